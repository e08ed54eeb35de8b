"""The loop, the clock, budgets, boundaries and schedules, under a clock that ticks once a reading."""

import inspect
import math

import pytest
import torch

from isbench import loop
from isbench.errors import ConfigError
from isbench.training import schedule
from isbench.training.budget import Boundaries, Budget
from isbench.training.clock import WallClock
from isbench.types import Progress
from tests.conftest import SAMPLERS, TINY, build_parts, tiny_overrides, train_parts


def test_seconds_exclude_what_happens_at_boundaries() -> None:
    parts = build_parts(*tiny_overrides("uniform"))
    readings = []

    def evaluate(rate: float, gain: float) -> None:
        readings.append(parts.progress.seconds)
        for _ in range(1000):
            parts.clock.now()  # time passes meanwhile

    train_parts(parts, evaluate, points=4)
    # One reading starts the clock, one follows each update, one stops it at each boundary, one restarts it there.
    assert readings == [11, 22, 33, 44]
    assert parts.progress.seconds == 44


def test_wall_clock_counts_only_while_it_runs(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = WallClock(torch.device("cpu"))
    assert clock.seconds() == 0
    clock.start()
    now[0] += 2.5
    with clock.paused():
        assert clock.seconds() == 2.5
        now[0] += 60
        assert clock.seconds() == 2.5
    now[0] += 1
    assert clock.seconds() == 3.5
    clock.stop()
    now[0] += 60
    assert clock.seconds() == 3.5


def test_gains_multiply_the_rate_and_advance_the_schedule() -> None:
    parts = build_parts(*tiny_overrides("uniform"), "schedule=linear", "optimizer.lr=0.2", "budget.limit=10")
    parts.sampler.gain = lambda: 2.0  # type: ignore[method-assign]
    rates = []
    original = parts.step.update
    parts.step.update = lambda rate: (rates.append(rate), original(rate))  # type: ignore[method-assign, func-returns-value]
    train_parts(parts)
    assert parts.progress.updates == 10 and parts.progress.effective_updates == 20
    expected = [2 * 0.2 * max(0.0, 1 - 2 * update / 10) for update in range(10)]
    assert rates == pytest.approx(expected)


def test_an_effective_budget_ends_earlier() -> None:
    parts = build_parts(*tiny_overrides("uniform"), "budget.limit=10", "budget.effective=true")
    parts.sampler.gain = lambda: 2.5  # type: ignore[method-assign]
    train_parts(parts)
    assert parts.progress.updates == 4


@pytest.mark.parametrize(("unit", "limit", "updates"), [("updates", 7, 7), ("examples", 100, 7), ("epochs", 0.5, 5)])
def test_budgets_end_where_they_should(unit: str, limit: float, updates: int) -> None:
    parts = build_parts(*tiny_overrides("uniform"), f"budget.unit={unit}", f"budget.limit={limit}")
    train_parts(parts)  # batches of 16 from 160 examples
    assert parts.progress.updates == updates
    assert parts.progress.examples_trained == 16 * updates


def test_a_budget_of_seconds_ends_at_the_first_update_past_it() -> None:
    parts = build_parts(*tiny_overrides("uniform"), "budget.unit=seconds", "budget.limit=12.5")
    train_parts(parts, points=1)
    assert parts.progress.updates == 13 and parts.progress.seconds == 14  # one tick more to stop the clock


@pytest.mark.parametrize("points", [1, 3, 7, 20, 30])
@pytest.mark.parametrize("limit", [1, 13, 300, 977])
def test_boundaries_are_the_first_updates_at_or_past_each_part(points: int, limit: int) -> None:
    budget = Budget("updates", limit)
    progress = Progress(1000)
    boundaries = Boundaries(budget, points, progress)
    taken = []
    while not budget.is_spent(progress):
        progress.updates += 1
        progress.effective_updates += 1
        if boundaries.reached(progress) and boundaries.take_evaluation(progress):
            taken.append(progress.updates)
    assert taken == sorted({math.ceil(part * limit / points) for part in range(1, points + 1)})


def test_a_request_to_stop_is_a_boundary_but_no_evaluation() -> None:
    progress = Progress(1000, updates=5, effective_updates=5)
    boundaries = Boundaries(Budget("updates", 100), 10, progress)
    assert not boundaries.reached(progress)
    boundaries.stop_requested = True
    assert boundaries.reached(progress) and not boundaries.take_evaluation(progress)


def test_boundaries_continue_after_a_resume() -> None:
    progress = Progress(1000, updates=30, effective_updates=30)
    boundaries = Boundaries(Budget("updates", 100), 10, progress)
    assert not boundaries.reached(progress)
    progress.updates = progress.effective_updates = 40
    assert boundaries.reached(progress) and boundaries.take_evaluation(progress)


def test_schedules() -> None:
    assert [schedule.step((0.4, 0.8), 0.2)(f) for f in (0, 0.39, 0.4, 0.8, 1)] == pytest.approx([1, 1, 0.2, 0.04, 0.04])
    assert [schedule.linear(0.1)(f) for f in (0, 0.5, 1, 2)] == pytest.approx([1, 0.55, 0.1, 0.1])
    assert [schedule.cosine()(f) for f in (0, 0.5, 1, 2)] == pytest.approx([1, 0.5, 0, 0])
    assert schedule.constant()(0.7) == 1
    per_epoch = schedule.exponential(0.96, drops=100)
    assert [per_epoch(f) for f in (0, 0.0099, 0.01, 0.5, 1.3)] == pytest.approx([1, 1, 0.96, 0.96**50, 0.96**130])
    updates = 18750  # ten epochs of MNIST at a batch of 32; Johnson and Guestrin's rate 3.4 / sqrt(100 + t)
    rate = schedule.inverse_square_root(span=updates / 100)
    for t in (0, 1, 5000, updates):
        assert 0.34 * rate(t / updates) == pytest.approx(3.4 / math.sqrt(100 + t))
    with pytest.raises(ConfigError, match="milestones"):
        schedule.step((0.8, 0.4), 0.2)


def test_the_loop_knows_no_method() -> None:
    source = inspect.getsource(loop)
    assert not [name for name in SAMPLERS if name in source.replace("sampler", "")]
    assert len(inspect.getsource(loop.train).splitlines()) < 40


@pytest.mark.parametrize(
    ("words", "acted"),
    [
        (["sampler=uniform"], 40),
        (["sampler=upper_bound", "sampler.pool_size=32", "sampler.tau_threshold=1e9"], 0),
        (["sampler=rais", "sampler.fit_examples=64"], 40 - 16),  # the first fit is after update 16
        (["sampler=sgd_s"], 40 - 20),  # two passes of ten updates
        (["sampler=p_sgd", "sampler.share=1", "sampler.warmup_passes=1"], 40 - 10),
        (["sampler=online_batch_selection"], 40 - 10),
        (["sampler=infobatch", "sampler.prune=0"], 0),
        (["sampler=selective_backprop"], 40 - 10),
    ],
)
def test_updates_count_as_acted_where_the_method_has_a_say(words: list[str], acted: int) -> None:
    parts = build_parts(*TINY, *words)
    train_parts(parts)
    assert parts.progress.acted_updates == acted
