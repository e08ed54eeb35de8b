"""One update, and the timed loop around it. There is no method, model or data set in it."""

from collections.abc import Callable

from isbench.samplers.base import Sampler
from isbench.training.budget import Boundaries, Budget
from isbench.training.clock import Clock
from isbench.training.schedule import Schedule
from isbench.training.step import TrainStep
from isbench.types import Draw, Progress


def take_update(sampler: Sampler, step: TrainStep, rate: float, progress: Progress) -> tuple[Draw, float]:
    """Take one update at the schedule's rate times the sampler's gain, and count it; return its draw and its gain."""
    draw = sampler.draw()
    sampler.observe(draw, step.compute_gradient(draw))
    gain = sampler.gain()
    step.update(gain * rate)
    progress.count(draw, gain)
    return draw, gain


def train(
    sampler: Sampler,
    step: TrainStep,
    rate: Schedule,
    budget: Budget,
    boundaries: Boundaries,
    progress: Progress,
    clock: Clock,
    at_boundary: Callable[[float, float], None],
) -> None:
    """Train until the budget is spent. The clock runs throughout except inside `at_boundary(learning_rate, gain)`."""
    clock.start()
    while not budget.is_spent(progress):
        scheduled = rate(budget.schedule_fraction(progress))
        _, gain = take_update(sampler, step, scheduled, progress)
        progress.seconds = clock.seconds()
        if boundaries.reached(progress):
            with clock.paused():
                progress.seconds = clock.seconds()
                at_boundary(gain * scheduled, gain)
    clock.stop()
