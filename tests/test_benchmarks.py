"""The benchmark suite compares the same work, and reports its measurements."""

import itertools
import json
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import Interval

from benchmarks import break_even, gpu, harness, jobs, memory, samplers, summary
from benchmarks.__main__ import THEMES
from benchmarks.measure import Row, race
from benchmarks.runs import bare_step, copied, isbench_loop, make_parts
from isbench.types import Batch, Draw
from tests.conftest import SAMPLERS
from tests.pretend_gpu import pretend_gpu

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
SMALL = ("dataset.num_examples=64", "dataset.num_test=8", "batch_size=16", "model=lenet", "numerics.threads=1")


def test_quartiles_and_goals() -> None:
    assert Row("", "", [3.0, 1.0, 2.0, 5.0, 4.0]).quartiles() == (2.0, 3.0, 4.0)
    assert Row("", "", [1.5]).quartiles() == (1.5, 1.5, 1.5)
    assert Row("", "", [1.0, 1.0, 9.0], at_most=1.02).is_met() is True
    assert Row("", "", [1.1], at_most=1.02).is_met() is False
    assert Row("", "", [2.9], at_least=3).is_met() is False
    assert Row("", "", [3.0], at_least=3).is_met() is True
    assert Row("", "", [1.0]).is_met() is None


def test_what_is_compared_takes_turns() -> None:
    calls: list[tuple[str, int]] = []
    times = race([lambda n: calls.append(("a", n)), lambda n: calls.append(("b", n))], rounds=3, steps=5)
    assert calls == [("a", 5), ("b", 5)] * 3
    assert [len(column) for column in times] == [3, 3]


def test_seconds_are_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    ticks = itertools.count(step=8.0)
    monkeypatch.setattr("benchmarks.measure.time.process_time", lambda: next(ticks))
    assert race([lambda n: None], rounds=2, steps=4) == [[2.0, 2.0]]


def test_both_loops_take_the_same_update() -> None:
    parts = make_parts(CPU, *SMALL)
    model, optimizer = copied(parts)
    optimizer.param_groups[0]["lr"] = parts.rate(0.0)
    before = [p.detach().clone() for p in model.parameters()]
    bare_step(parts, model, optimizer)()
    indices = torch.arange(16)
    draw = Draw(Batch(indices, *parts.dataset.plain(indices), torch.empty(16, 0)), torch.ones(16))
    parts.step.compute_gradient(draw)
    parts.step.update(parts.rate(0.0))
    for old, ours, theirs in zip(before, parts.model.parameters(), model.parameters(), strict=True):
        assert not torch.equal(old, ours)
        torch.testing.assert_close(ours, theirs)


def test_copies_belong_together_and_apart() -> None:
    parts = make_parts(CPU, *SMALL)
    model, optimizer = copied(parts)
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in model.parameters()}
    assert not owned & {id(p) for p in parts.model.parameters()}


def test_the_loop_goes_on_where_it_stopped() -> None:
    whole, halves = make_parts(CPU, *SMALL), make_parts(CPU, *SMALL)
    isbench_loop(whole)(6)
    loop = isbench_loop(halves)
    loop(2)
    loop(4)
    assert halves.progress.updates == 6
    for a, b in zip(whole.model.parameters(), halves.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_graph_keeps_what_it_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        replay = Mock()

    def make_step(*arguments: object) -> Callable[[], None]:
        def step() -> None:
            pass

        made.append(weakref.ref(step))
        return step

    made: list[weakref.ref] = []
    monkeypatch.setattr(harness, "bare_step", make_step)
    parts = make_parts(CPU, *SMALL)
    with pretend_gpu(monkeypatch):
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
        loop = harness.graphed_loop(parts)
    loop(3)
    assert Graph.replay.call_count == 3 and made[0]() is not None


@pytest.mark.parametrize("sampler", gpu.SAMPLERS)
def test_a_profile_says_what_each_part_of_an_update_takes(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PROFILED", 4)
    choices = ["sampler.pool_size=32"] if sampler == "upper_bound" else []
    parts = gpu.working(partial(make_parts, CPU, *SMALL, *choices), sampler)
    layers = sum(isinstance(module, torch.nn.Conv2d | torch.nn.Linear) for module in parts.model.modules())
    gpu.name_parts(parts)
    _, events = gpu.profiled(isbench_loop(parts))
    found = gpu.shares(events)
    assert sum(share for share, *_ in found.values()) == pytest.approx(1)
    assert set(found) >= {"fetch", "forward", "backward", "optimizer"}
    assert ("score" in found) == (sampler == "upper_bound")
    assert found["forward"][1] > layers and found["backward"][1] > layers


def test_what_a_gpu_does_is_counted_and_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[SimpleNamespace] = []

    def host(name: str, start: float, end: float = 0.0, **done: float) -> None:
        """Add a call of the host, and microseconds of what the GPU did for it."""
        events.append(event(name, len(events), DeviceType.CPU, start, end or start + 1))
        call = events[-1].id
        for kernel, us in done.items():
            events.append(event(kernel, call, DeviceType.CUDA, 500, 500 + us))

    def event(name: str, number: int, device: DeviceType, start: float, end: float) -> SimpleNamespace:
        is_range = name in gpu.PARTS
        return SimpleNamespace(
            name=name, id=number, device_type=device, time_range=Interval(start, end), is_user_annotation=is_range
        )

    host("fetch", 0, 10)
    host("cudaLaunchKernel", 1, gather=2, fetch=9)  # the GPU has the range too
    host("score", 20, 40)
    host("forward", 22, 30)
    host("cudaLaunchKernel", 25, gemm=3)
    host("backward", 50, 70)
    host("forward", 52, 55)
    host("cuLaunchKernelEx", 53, gemm=1)
    host("cudaGraphLaunch", 60, gemm=1, relu=1, Memcpy=1)
    host("aten::lerp_", 80, 82)
    host("cudaMemcpyAsync", 81, Memcpy=1)
    monkeypatch.setattr(gpu, "PROFILED", 2)
    expected = {
        "fetch": (0.2, 0.5, 0.0),
        "score": (0.3, 0.5, 0.0),
        "forward": (0.1, 0.5, 0.0),
        "backward": (0.3, 1.0, 0.5),
        gpu.REST: (0.1, 0.0, 0.5),
    }
    assert gpu.shares(events) == {part: pytest.approx(numbers) for part, numbers in expected.items()}
    monkeypatch.setattr(gpu, "profiled", lambda loop: (4e-5, events))
    found = {row.what: row.values for row in gpu.by_kernel("x", lambda steps: None)}
    assert found["x: kernels"] == pytest.approx([0.25]) and found["x: gemm"] == pytest.approx([0.5])
    assert [found[f"x: {kind}"] for kind in gpu.HOST] == [[1.5], [0.5], [0.5], [0.0]]


def test_the_rows_of_a_gpu_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    small = (*SMALL, "dataset.num_examples=640")
    captured = ("numerics.engine=graphed",)
    changed = {"MODELS": ["lenet"], "NUMERICS": {"captured": (*small, *captured)}, "NETWORKS": {"LeNet": small}}
    for name, value in {**changed, "FAST": captured, "PROFILED": 1, "ROUNDS": 2}.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(torch, "compile", lambda run, **options: run)  # takes a CPU long
    with pretend_gpu(monkeypatch):
        found = {row.what for row in gpu.rows(torch.device("cuda"), quick=True)}
    assert {f"LeNet, uniform: {part}" for part in ("kernels", "launches of graphs", "fetch", "optimizer")} <= found


def test_cases_belong_to_samplers() -> None:
    assert set(samplers.CASES) <= set(SAMPLERS) - set(samplers.LEFT_OUT)


def test_the_papers_break_even() -> None:
    pool, batch = 640, 128
    assert break_even.break_even(pool * 1.0, batch * (1.0 + 2.0)) == pytest.approx((pool + 3 * batch) / (3 * batch))


def test_saved_bytes_of_a_linear_layer() -> None:
    layer, inputs = (
        torch.nn.Linear(4, 3),
        torch.randn(2, 4),
    )  # saves its input: 2 x 4 floats, which are also the largest
    assert memory.saved_bytes(layer, lambda: layer(inputs)) == 2 * (2 * 4 * 4)


def test_storages_are_counted_once() -> None:
    tensor = torch.zeros(10, dtype=torch.float64)
    assert memory.num_bytes([tensor, tensor[3:], None, torch.zeros(2)]) == 80 + 8


def test_batched_seeds_learn_what_separate_ones_do() -> None:
    runs = jobs.runs_of(CPU, "dataset.num_examples=64", "batch_size=16", "model=mlp", "model.hidden=[8]")
    stacked = jobs.StackedSeeds(runs)
    before = {name: value.clone() for name, value in stacked.parameters.items()}
    stacked.steps(3)
    for i, parts in enumerate(runs):
        optimizer = torch.optim.SGD(parts.model.parameters(), lr=0.02, momentum=0.9)
        inputs, targets = parts.dataset.plain(torch.arange(16 * i, 16 * i + 16))
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(parts.model(inputs), targets).backward()
            optimizer.step()
        for name, value in parts.model.named_parameters():
            assert not torch.equal(before[name][i], value)
            torch.testing.assert_close(stacked.parameters[name][i], value)


def test_themes_are_merged_and_worst_rows_shown(tmp_path: Path) -> None:
    rows = [Row("good", "x", [1.0], at_most=1.02).record(), Row("bad", "x", [1.3], at_most=1.02).record()]
    summary.merge(tmp_path, "cpu", "harness", "One.", rows[:1], False, 1.0)
    summary.merge(tmp_path, "cpu", "data", "Two.", [Row("fast", "x", [20.0], at_least=10).record()], False, 1.0)
    summary.merge(tmp_path, "cpu", "harness", "One.", rows, True, 1.0)
    content = json.loads((tmp_path / "summary.json").read_text())
    assert set(content["cpu"]) == {"harness", "data"} and content["cpu"]["harness"]["quick"]
    assert content["cpu"]["harness"]["rows"][1]["values"] == [1.3]
    table = summary.headline(content)
    assert "| harness (--quick) | bad | x | 1.300 | ≤ 1.02 | 1 of 2 |" in table
    assert "| data | fast | x | 20 | ≥ 10 | 1 of 1 |" in table
    assert "**no**" in (tmp_path / "summary.md").read_text()


def test_every_theme_is_a_module_and_explained() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    for theme in THEMES:
        assert (ROOT / "benchmarks" / f"{theme}.py").exists() and f"| {theme} |" in readme
