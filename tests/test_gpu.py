"""Whole runs on a pretended GPU and on the CPU give the same bits, and do nothing that CUDA refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.samplers import hold_open
from isbench.build import build
from isbench.errors import ConfigError
from isbench.models.mlp import MLP
from isbench.recording.record import read_rows
from isbench.run import run
from isbench.training.engine import Captured, Engine
from isbench.types import Batch
from tests.conftest import LENET, SAMPLERS, TINY, compose_config, tiny_overrides
from tests.pretend_gpu import GPU, Recording, pretend_gpu

IMAGES = ("dataset.num_examples=64", "dataset.num_test=16", "budget.limit=6", "evaluation.points=2")


def losses(overrides: list[str], folder: Path, device: str = "cpu") -> list[float]:
    """Train a run; return its losses at the evaluations."""
    outcome = run(replace(compose_config(*overrides), device=device, runs_dir=str(folder / device)))
    assert outcome.status == "finished", outcome.reason
    rows = read_rows(outcome.folder / "record.jsonl")
    return [row[name] for row in rows if row["kind"] == "evaluation" for name in ("train_loss", "test_loss")]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers(sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*tiny_overrides(sampler), "augmentation=crop"]
    with pretend_gpu(monkeypatch):
        found = losses(overrides, tmp_path, "cuda")
    assert found == losses(overrides, tmp_path)


@pytest.mark.parametrize(
    "choices",
    [
        ("model=cnn7", "augmentation=rotation"),
        ("model=cnn7", "sampler=rais", "sampler.fit_examples=32", "augmentation=rotation"),
        ("model=lenet", "optimizer=adam", "clip_norm=1", "label_smoothing=0.1"),
        ("model=lenet", "slots=100", "augmentation=flip_crop_cutout"),
        ("model=lenet", "dataset.residency=host", "augmentation=shift_flip"),
        ("model=lenet", "probe=loss_patterns"),
        ("model=lenet", "probe=scores_in_training"),
        ("model=lenet", "numerics=fast", "numerics.engine=graphed"),
        ("model=lenet", "numerics.engine=eager"),
    ],
    ids=" ".join,
)
def test_models_and_data(choices: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*(each for each in TINY if "hidden" not in each), *IMAGES, *choices]
    with pretend_gpu(monkeypatch):
        found = losses(overrides, tmp_path, "cuda")
    assert all(torch.tensor(found).isfinite())


@pytest.mark.parametrize("sampler", ["rho_loss", "selective_backprop", "upper_bound"])
def test_scores_of_the_timed_part_are_captured_before_it(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_gpu(monkeypatch):
        config = compose_config(*tiny_overrides(sampler), "numerics.engine=graphed")
        parts = build(config, torch.device("cuda"))
        parts.warm_up()
        assert any(score.graphs for score in parts.workspace._scores.values() if isinstance(score, Captured))


class Launches(TorchDispatchMode):
    """Counts what the host launches: graphs, and operations outside of them that work on memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.graphs, self.names, self.is_replaying = 0, [], False
        replay = Recording.replay

        def counted(recording: Recording) -> None:
            self.graphs, self.is_replaying = self.graphs + 1, True
            replay(recording)
            self.is_replaying = False

        monkeypatch.setattr(Recording, "replay", counted)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if not (self.is_replaying or function.is_view or name.startswith(("empty", "_record_function"))):
            self.names.append(name)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(("sampler", "graphs", "operations"), [("uniform", 1, 24), ("upper_bound", 2, 71)])
def test_the_host_launches_little_beside_the_graphs(sampler: str, graphs: int, operations: int, monkeypatch) -> None:
    """At most so many of each in an update of LeNet with crops, the gate open: docs/gpu.md has these numbers."""
    choices = (*LENET, *tiny_overrides(sampler)[len(TINY) :], "augmentation=crop", "numerics.engine=graphed")
    with pretend_gpu(monkeypatch):
        parts = build(compose_config(*choices), GPU)
        if sampler == "upper_bound":
            hold_open(parts.sampler)
        parts.warm_up()
        for _ in range(3):
            parts.take_update()
        launches = Launches(monkeypatch)
        with launches:
            parts.take_update()
    assert launches.graphs == graphs
    assert len(launches.names) <= operations, launches.names


@pytest.mark.parametrize(
    "mistake",
    [
        lambda batch: {"x": batch.inputs * batch.inputs.sum().item()},
        lambda batch: {"x": batch.inputs[batch.targets == 0]},
        lambda batch: {"x": batch.inputs * torch.tensor([2.0], device="cuda")},
        lambda batch: {"x": batch.inputs.cpu()},
    ],
)
def test_what_no_graph_can_hold_is_one_line(mistake: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_gpu(monkeypatch):
        engine = Engine(MLP((1, 4, 4), 3), "graphed", device=GPU)
        tensors = (torch.arange(2), torch.ones(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), torch.empty(2, 0))
        batch = Batch(*(tensor.to(GPU) for tensor in tensors))
        with engine.warm_up(), pytest.raises(ConfigError, match="use numerics.engine=eager: .* not permitted"):
            engine.captured(mistake)(batch)


def test_the_pretended_gpu_refuses_what_a_real_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.use_deterministic_algorithms(True)
    with pretend_gpu(monkeypatch):
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert (there + there).device == there.t().device == GPU and here.to("cuda").is_cuda and not here.is_cuda
        assert (there * torch.tensor(2.0)).is_cuda and there.cpu().numpy().sum() == 3
        for mistake in (
            lambda: there + here,
            lambda: here[there.long()],
            lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
            lambda: torch.rand(3, generator=torch.Generator("cuda")),
            lambda: there.numpy(),
            lambda: there.scatter_reduce(0, there.long(), there, "amax"),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                mistake()
