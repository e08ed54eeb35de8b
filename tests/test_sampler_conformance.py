"""What every sampler owes: one suite over all of conf/sampler and the example of CONTRIBUTING.md."""

import ast
import copy
import inspect
import re
import shutil
import statistics
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import isbench.samplers
from isbench.build import Parts
from isbench.config import config_folder
from isbench.errors import Interrupted
from isbench.samplers.basis import Basis
from isbench.types import Draw
from tests import conftest
from tests.conftest import SAMPLERS, build_parts, same_state, tiny_overrides, train_once, train_parts

EXAMPLE = "my_method"


@pytest.fixture(params=[*SAMPLERS, EXAMPLE])
def sampler(request, tmp_path: Path, monkeypatch) -> str:
    """Return a choice of conf/sampler; the example of CONTRIBUTING.md is put in place as printed."""
    if request.param == EXAMPLE:
        text = Path(__file__).parents[1].joinpath("CONTRIBUTING.md").read_text()
        code, choice = (
            textwrap.dedent(re.search(rf" *```{kind}\n(.*?) *```", text, re.DOTALL)[1]) for kind in ("python", "yaml")
        )
        (tmp_path / f"{EXAMPLE}.py").write_text(code)
        monkeypatch.setattr(isbench.samplers, "__path__", [*isbench.samplers.__path__, str(tmp_path)])
        shutil.copytree(config_folder(), tmp_path / "conf")
        (tmp_path / "conf" / "sampler" / f"{EXAMPLE}.yaml").write_text(choice)
        monkeypatch.setattr(conftest, "config_folder", lambda: tmp_path / "conf")
    return request.param


def stop_at(updates: int, parts: Parts) -> None:
    """Train up to an update and leave the loop there, as an interrupted run does."""

    def stop(rate: float, gain: float) -> None:
        if parts.progress.updates == updates:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_parts(parts, stop, points=int(parts.budget.limit))


def record_draws(parts: Parts) -> list[Draw]:
    """Keep every draw of a run that is still to come."""
    draws: list[Draw] = []
    original = parts.sampler.draw

    def draw():
        draws.append(original())
        return draws[-1]

    parts.sampler.draw = draw  # type: ignore[method-assign]
    return draws


def test_draws_are_valid(sampler: str) -> None:
    parts = build_parts(*tiny_overrides(sampler), "augmentation=crop")
    draws = record_draws(parts)
    train_parts(parts)
    assert draws
    for draw in draws:
        batch = draw.batch
        assert 1 <= len(batch) and batch.indices.dtype == torch.int64
        assert ((0 <= batch.indices) & (batch.indices < parts.dataset.num_examples)).all()
        assert draw.weights.shape == (len(batch),) and draw.weights.dtype == torch.float32
        assert draw.weights.isfinite().all() and (draw.weights > 0).all()
        assert torch.equal(batch.targets, parts.dataset.targets[batch.indices])
        again = parts.dataset.fetch(batch.indices, batch.views)
        assert torch.equal(again.inputs, batch.inputs), "a batch must be the views it says it is"
        assert all(len(value) == len(batch) for value in draw.memo.values())


@pytest.mark.parametrize("updates", [1, 17, 33])
def test_resume_is_bit_exact(sampler: str, updates: int, tmp_path) -> None:
    overrides = tiny_overrides(sampler) + ["augmentation=crop"]
    whole = build_parts(*overrides)
    train_parts(whole)

    first = build_parts(*overrides)
    stop_at(updates, first)
    assert first.progress.updates == updates
    torch.save(first.state_dict(), tmp_path / "state.pt")

    second = build_parts(*overrides, "seed=7")  # a process that knows nothing of the first
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train_parts(second)
    assert same_state(whole, second)


def test_a_damaged_checkpoint_is_noticed(sampler: str) -> None:
    """The negative control of the resume test: spoiling any one stream must change the result."""
    overrides = tiny_overrides(sampler) + ["augmentation=crop"]
    whole = build_parts(*overrides)
    train_parts(whole)
    first = build_parts(*overrides)
    stop_at(17, first)
    saved = copy.deepcopy(first.state_dict())
    for stream in whole.streams.generators:  # the global one serves dropout, which the tiny network lacks
        state = copy.deepcopy(saved)
        state["streams"][stream] = torch.Generator().manual_seed(99).get_state()
        second = build_parts(*overrides)
        second.load_state_dict(state)
        train_parts(second)
        assert not same_state(whole, second), stream


def test_evaluating_changes_nothing(sampler: str) -> None:
    overrides = tiny_overrides(sampler)
    plain, watched = build_parts(*overrides), build_parts(*overrides)
    train_parts(plain, points=1)

    def evaluate(rate: float, gain: float) -> None:
        watched.sampler.diagnostics()
        watched.model.eval()
        watched.model(watched.dataset.test_chunk(0, 100)[0])
        watched.model.train()

    train_parts(watched, evaluate, points=40)
    assert same_state(plain, watched)


def test_warm_up_leaves_no_trace(sampler: str) -> None:
    overrides = tiny_overrides(sampler)
    cold, warm = build_parts(*overrides), build_parts(*overrides)
    warm.warm_up()
    assert same_state(cold, warm)
    train_parts(cold)
    train_parts(warm)
    assert same_state(cold, warm)


def test_seeds_decide(sampler: str) -> None:
    one, same, other = (build_parts(*tiny_overrides(sampler), f"seed={seed}") for seed in (1, 1, 2))
    draws = [record_draws(parts) for parts in (one, same, other)]
    for parts in (one, same, other):
        train_parts(parts)
    indices = [torch.cat([draw.batch.indices for draw in run]) for run in draws]
    assert torch.equal(indices[0], indices[1]) and same_state(one, same)
    assert not torch.equal(indices[0][:100], indices[2][:100])


def test_initial_weights_do_not_depend_on_the_sampler(sampler: str) -> None:
    ours, uniform = build_parts(*tiny_overrides(sampler)), build_parts(*tiny_overrides("uniform"))
    for a, b in zip(ours.model.parameters(), uniform.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_loss_falls(sampler: str) -> None:
    parts = build_parts(*tiny_overrides(sampler), "budget.limit=80", "optimizer.lr=0.05")

    def mean_loss() -> float:
        inputs, targets = parts.dataset.plain(torch.arange(parts.dataset.num_examples))
        with torch.no_grad():
            return float(parts.criterion(parts.model.eval()(inputs), targets).mean())

    before = mean_loss()
    parts.model.train()
    train_parts(parts)
    assert mean_loss() < 0.7 * before


class HostReads(TorchDispatchMode):
    """Count what would make the host wait for a GPU: scalars read, tensors copied out, shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in arguments[1]
        )
        if masks or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2"):
            self.count += 1
        return function(*arguments, **(keywords or {}))


def check_host_reads(parts: Parts, counter: Any) -> None:
    """Train a little; compare what `counter.count` counts inside `with counter` with the docstring of the sampler."""
    documented = re.search(r"Host reads: (\d+)(?: per (\w+))?", inspect.getdoc(type(parts.sampler)) or "")
    assert documented, "the docstring has no line 'Host reads: ...'"
    per_update, per_pool = [], []
    for _ in range(30):
        before, scored = counter.count, parts.progress.examples_scored
        with counter:
            train_once(parts, 0.01)
        per_update.append(counter.count - before)
        per_pool.append((parts.progress.examples_scored - scored) / parts.workspace.batch_size)
    allowed = int(documented[1])
    if documented[2] == "pool":
        assert sum(per_update) <= allowed * sum(per_pool)
    else:
        assert statistics.median(per_update) <= allowed


def test_host_reads_are_as_documented(sampler: str, monkeypatch) -> None:
    counter = HostReads()
    original = Tensor.tolist

    def tolist(tensor: Tensor) -> list:
        counter.count += 1  # one copy; on a CPU it is invisible to the dispatcher
        return original(tensor)

    monkeypatch.setattr(Tensor, "tolist", tolist)
    check_host_reads(build_parts(*tiny_overrides(sampler), "augmentation=crop"), counter)


def test_the_docstring_says_what_the_method_costs(sampler: str) -> None:
    documentation = inspect.getdoc(type(build_parts(*tiny_overrides(sampler)).sampler)) or ""
    for fact in ("Estimator", "Memory", "Cost", "Host reads"):
        assert re.search(rf"^{fact}: \w", documentation, re.MULTILINE), fact


def offered() -> set[str]:
    """Return the names that a sampler may take from the workspace: its documented attributes and methods."""
    attributes = re.findall(r"^    (\w+): ", inspect.getdoc(Basis) or "", re.MULTILINE)
    methods = [name for name, method in inspect.getmembers(Basis, inspect.isfunction) if method.__doc__]
    return {name for name in (*attributes, *methods) if not name.startswith("_")}


def trespasses(source: str) -> list[str]:
    """Return what code takes from a workspace without being offered it, and what it takes that belongs to others."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        is_private = node.attr.startswith("_") and not node.attr.startswith("__") and owner not in ("self", "torch")
        if is_private or (owner.split(".")[-1] == "workspace" and node.attr not in offered()):
            found.append(ast.unparse(node))
    return found


def test_samplers_take_from_the_workspace_what_it_offers() -> None:
    assert trespasses("self.workspace.model") and trespasses("workspace.state_dict()") and trespasses("w._streams")
    assert not trespasses("self.workspace.fetch(workspace.uniform(self._size))")
    for path in Path(isbench.samplers.__file__).parent.glob("*.py"):
        if path.stem not in ("basis", "workspace"):
            assert not trespasses(path.read_text()), path.name


def test_samplers_say_what_they_ask_of_a_model() -> None:
    """By name: a loop of one's own can then refuse a method before it trains."""
    for path in Path(isbench.samplers.__file__).parent.glob("*.py"):
        if path.stem not in ("base", "basis", "workspace"):
            source = path.read_text()
            asked = re.findall(
                r"workspace\.(score|score_dataset|mean_gradient|gradient_product|parameters|seconds)\(", source
            )
            assert all(f'"{name}"' in source for name in asked), path.name
