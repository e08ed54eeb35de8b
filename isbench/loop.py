"""The timed loop. There is no method, model or data set in it."""

from collections.abc import Callable

from isbench.samplers.base import Sampler
from isbench.training.budget import Boundaries, Budget
from isbench.training.clock import Clock
from isbench.training.schedule import Schedule
from isbench.training.step import TrainStep
from isbench.types import Progress


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
        draw = sampler.draw(progress)
        signals = step.compute_gradient(draw, sampler.reweight)
        sampler.observe(draw, signals)
        gain = sampler.gain()
        learning_rate = gain * rate(budget.schedule_fraction(progress))
        step.update(learning_rate)
        progress.updates += 1
        progress.effective_updates += gain
        progress.examples_trained += len(draw.batch)
        progress.seconds = clock.seconds()
        if boundaries.reached(progress):
            with clock.paused():
                progress.seconds = clock.seconds()
                at_boundary(learning_rate, gain)
    clock.stop()
