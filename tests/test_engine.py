"""Engines against eager code. A tape of operations stands in for CUDA graphs: like them, it never runs Python again."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch

from isbench import build
from isbench.errors import ConfigError
from isbench.models.cnn import LeNet
from isbench.models.mlp import MLP
from isbench.training.engine import Engine, memory_format
from isbench.types import Batch
from tests.conftest import build_parts, same_state, train_parts
from tests.pretend_gpu import Tape

CPU = torch.device("cpu")
TINY = ("dataset=synthetic", "dataset.num_examples=160", "model=lenet", "batch_size=16", "budget.limit=25")
SAMPLERS = {
    "uniform": ("sampler=uniform",),
    "presample": ("sampler=upper_bound", "sampler.pool_size=48", "sampler.tau_threshold=0.5"),
    "rais": ("sampler=rais", "sampler.fit_examples=64"),
    "impon": ("sampler=impon", "sampler.bank_size=40"),
    "sizes that change": ("sampler=presample_constant_variance", "sampler.extra_fraction=0"),
}


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(build, "Engine", partial(Engine, make_graph=Tape))
    monkeypatch.setattr(Tape, "made", 0)
    yield


@pytest.mark.parametrize("model", ["model=lenet", "model=cnn7"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_replayed_training_equals_eager_training(taped: None, sampler: str, model: str) -> None:
    overrides = (*TINY, *SAMPLERS[sampler], model, "optimizer.lr=0.05", "clip_norm=3")
    runs = []
    for engine in ("eager", "graphed"):  # one after the other: dropout draws from the global stream
        parts = build_parts(*overrides, f"numerics.engine={engine}")
        parts.warm_up()
        train_parts(parts)
        runs.append(parts)
    assert Tape.made > 0 and [parts.step.engine.is_graphed for parts in runs] == [False, True]
    assert same_state(*runs)


def test_shapes_that_were_not_warmed_up_run_as_written(taped: None) -> None:
    parts = build_parts(*TINY, "sampler=uniform", "numerics.engine=graphed")
    parts.warm_up()
    made = Tape.made
    parts.workspace.batch_size = 12
    parts.sampler.ones = torch.ones(12)
    parts.take_update()
    assert Tape.made == made
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parts.model.parameters())


def test_what_a_replay_returns_may_be_kept() -> None:
    engine = Engine(MLP((1, 4, 4), 3), "graphed", make_graph=Tape)
    batch = Batch(torch.arange(2), torch.ones(2), torch.zeros(2, dtype=torch.int64), torch.empty(2, 0))
    double = engine.captured(lambda batch: {"y": batch.inputs * 2})
    with engine.warm_up():
        first = double(batch)["y"]
    second = double(replace(batch, inputs=torch.full((2,), 5.0)))["y"]
    assert first.tolist() == [2, 2] and second.tolist() == [10, 10]


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(ConfigError, match="numerics.engine=graphed needs a GPU"):
        Engine(MLP((1, 4, 4), 3), "graphed")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_training_is_eager_training_up_to_rounding() -> None:
    torch.compiler.reset()
    overrides = (*TINY, "sampler=upper_bound", "sampler.pool_size=48", "sampler.tau_threshold=0.5", "model=mlp")
    eager, compiled = build_parts(*overrides), build_parts(*overrides, "numerics.engine=compiled")
    compiled.warm_up()
    assert len(compiled.step.engine._compiled_shapes) == 2, "training batches and scored pools"
    for parts in (eager, compiled):
        train_parts(parts)
    for one, other in zip(eager.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_bfloat16_keeps_losses_and_scores_in_float32_and_stays_close() -> None:
    torch.manual_seed(0)
    model = LeNet((1, 28, 28), 10)
    inputs = torch.randn(32, 1, 28, 28)
    exact, rounded = Engine(model).run(inputs), Engine(model, precision="bfloat16").run(inputs)
    assert rounded.logits.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.logits.float(), exact.logits, rtol=0.05, atol=0.02)
    assert not torch.equal(rounded.logits.float(), exact.logits)
    parts = build_parts(*TINY, "sampler=uniform", "numerics.precision=bfloat16")
    draw = parts.sampler.draw()
    parts.step.compute_gradient(draw)
    scores = parts.workspace.score(draw.batch, "logit_gradient_norm")
    assert scores.dtype == parts.step._losses[0].dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in parts.model.parameters())


def test_memory_format_changes_no_result() -> None:
    assert memory_format(None, "float32", CPU) == torch.channels_last
    assert memory_format(None, "float32", torch.device("cuda")) == torch.preserve_format
    assert memory_format(None, "tf32", torch.device("cuda")) == torch.channels_last
    assert memory_format(False, "bfloat16", CPU) == torch.preserve_format
    build_one = partial(build_parts, *TINY, "model=cnn7", "model.dropout=0", "sampler=uniform")
    one, other = build_one("numerics.channels_last=true"), build_one("numerics.channels_last=false")
    for parts in (one, other):
        parts.take_update()
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
