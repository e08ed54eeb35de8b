"""Presampling: score a pool of examples with forward passes, draw the batch from it, and weight it to stay unbiased.

Katharopoulos and Fleuret (2018), "Not All Samples Are Created Equal: Deep Learning with Importance Sampling", Algorithm
1, and two variants that only the authors' library has (idiap/importance-sampling). Deviation: the gate reads tau one
update late, so that the host does not wait for the device.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from isbench.errors import ConfigError
from isbench.samplers.base import LateReading, Sampler, Signals, categorical
from isbench.signals import PER_EXAMPLE, Score
from isbench.types import Batch, Draw

Momentum = Annotated[float, Ge(0), Lt(1)]


def variance_reduction(scores: Tensor) -> Tensor:
    """Return tau of scores (n,): resampling in proportion to them divides the standard error by it.

    With g the normalised scores and u uniform, 1 / tau = sqrt(1 - |g - u|^2 / |g|^2) (the paper's equation for tau), so
    that tau = sqrt(mean(scores^2)) / mean(scores), between 1 (equal scores) and sqrt(n). All-zero scores give 1.
    """
    scores = scores.double()
    mean = scores.mean()
    return torch.where(mean == 0, 1.0, scores.square().mean().sqrt() / mean)


class GatedPresample(Sampler):
    """Train on uniform batches while tau is at most `tau_threshold`, and on draws from a scored pool while it is above.

    While the gate is closed, tau follows the scores of the training forward pass. While it is open, B uniform examples
    are scored in evaluation mode, and drawn with replacement with probability g_i proportional to the score and weight
    1 / (B g_i).

    A subclass sets `tau_threshold`, in `allocate` at the latest, and writes `sizes`.
    """

    asks: tuple[str, ...] = ("score",)
    remembers = ("reading", "tau_threshold")
    tau: Tensor
    tau_threshold: float

    def __init__(self, signal: Score, tau_momentum: Momentum):
        super().__init__()
        self.signal = signal
        self.tau_momentum = tau_momentum
        self.observes = (signal,) if signal in PER_EXAMPLE else ()
        self.is_open = False
        self.reading = LateReading(0.0)

    def sizes(self, tau: float) -> tuple[int, int]:
        """Return how many examples to score and how many of them to draw while the gate is open."""
        raise NotImplementedError

    def allocate(self) -> None:
        self.register_buffer("tau", torch.zeros((), dtype=torch.float64))

    def warm_up(self, take_update: Callable[[], None]) -> None:
        super().warm_up(take_update)
        self.score_pool(self.sizes(max(1.0, self.tau_threshold))[0])  # the gate is closed at first

    def draw(self) -> Draw:
        workspace = self.workspace
        tau = self.reading.value()
        self.is_open = tau > self.tau_threshold
        if not self.is_open:
            batch = workspace.fetch(workspace.uniform(workspace.batch_size))
            return Draw(batch, torch.ones(len(batch), device=workspace.device), acts=False)
        num_scored, num_drawn = self.sizes(tau)
        pool, scores = self.score_pool(num_scored)
        self._update_tau(scores)
        positions, probabilities = categorical(scores, num_drawn, workspace.generator)
        return Draw(pool.take(positions), (1 / (num_scored * probabilities)).float())

    def score_pool(self, size: int) -> tuple[Batch, Tensor]:
        """Return `size` uniform examples and their scores (size,)."""
        pool = self.workspace.fetch(self.workspace.uniform(size))
        return pool, self.workspace.score(pool, self.signal)

    def observe(self, draw: Draw, signals: Signals) -> None:
        if not draw.acts:
            self._update_tau(self.observed(self.signal, draw, signals))

    def diagnostics(self) -> dict[str, float]:
        return {"tau": float(self.tau), "tau_threshold": self.tau_threshold, "is_open": float(self.is_open)}

    def _update_tau(self, scores: Tensor) -> None:
        self.tau.lerp_(variance_reduction(scores), 1 - self.tau_momentum)
        self.reading.push(self.tau)


class Presample(GatedPresample):
    """Draw b examples from a pool of B, once that reduces the variance enough to pay for the scoring (Algorithm 1).

    Args:
        signal: the score, one of `isbench.signals.SCORES`.
        pool_size: B.
        tau_threshold: the gate opens while tau exceeds it; null is the break-even point.
        gate: the break-even point. published: (B + 3b) / (3b), where a backward pass takes twice as long as a forward
            pass. measured: (S + U) / U, from the seconds S to score a pool and U of a uniform update, before the clock
            starts.
        tau_momentum: a_tau, the weight of the past in tau's moving average, which starts at 0.

    Estimator: unbiased
    Memory: 0 bytes per example
    Cost: an extra forward pass over the pool once presampling starts; for exact gradient norms, a backward pass too
    GPU-CPU syncs: 1 per update (whether to presample), without stalling the GPU
    """

    without = {"seconds": "gate='published'"}

    def __init__(
        self,
        signal: Score,
        pool_size: int = 640,
        tau_threshold: float | None = None,
        gate: Literal["published", "measured"] = "published",
        tau_momentum: Momentum = 0.9,
    ):
        super().__init__(signal, tau_momentum)
        if gate == "measured" and tau_threshold is not None:
            raise ConfigError(
                f"sampler.tau_threshold={tau_threshold} leaves gate=measured nothing to measure; use null"
            )
        self.pool_size = pool_size
        self.given_threshold = tau_threshold
        self.is_measured = gate == "measured"
        if self.is_measured:
            self.asks = ("score", "seconds")

    def allocate(self) -> None:
        super().allocate()
        self.check_pool(self.pool_size)
        break_even = (self.pool_size + 3 * self.workspace.batch_size) / (3 * self.workspace.batch_size)
        self.tau_threshold = break_even if self.given_threshold is None else self.given_threshold
        self._measured: float | None = None  # in this process; a resumed run goes on with what it began with

    def warm_up(self, take_update: Callable[[], None]) -> None:
        super().warm_up(take_update)
        if self.is_measured:
            update = self.workspace.seconds(take_update)
            self._measured = 1 + self.workspace.seconds(lambda: self.score_pool(self.pool_size)) / update

    def draw(self) -> Draw:
        if self._measured is not None and self.workspace.progress.updates == 0:
            self.tau_threshold = self._measured
        return super().draw()

    def sizes(self, tau: float) -> tuple[int, int]:
        return self.pool_size, self.workspace.batch_size


class ConstantTime(GatedPresample):
    """Do the work of a uniform update, 3b forward passes, but score more examples and train on fewer.

    The pool's size lies halfway between b and what could be scored beside training max(0.2 b, b / tau) examples; the
    work that is left trains. At the default threshold at least 1.25 b examples are scored and at most 0.58 b trained.

    Args:
        signal, tau_momentum: as in `Presample`.
        tau_threshold: the gate opens while tau exceeds it.

    Estimator: unbiased
    Memory: 0 bytes per example
    Cost: as much as a uniform update, and on a GPU a little time for new batch sizes
    GPU-CPU syncs: 1 per update (whether to presample), without stalling the GPU
    """

    LEAST_TRAINED = 0.2  # of b
    SCORING_SHARE = 0.5  # of what could be scored beyond b

    def __init__(self, signal: Score, tau_threshold: Annotated[float, Ge(1)] = 2.0, tau_momentum: Momentum = 0.9):
        super().__init__(signal, tau_momentum)
        self.tau_threshold = tau_threshold

    def sizes(self, tau: float) -> tuple[int, int]:
        batch_size = self.workspace.batch_size
        work = 3 * batch_size
        trained = max(self.LEAST_TRAINED * batch_size, batch_size / tau)
        most_scored = work - 3 * trained
        num_scored = int(batch_size + self.SCORING_SHARE * (most_scored - batch_size))
        return max(1, num_scored), max(1, (work - num_scored) // 3)


class ConstantVariance(GatedPresample):
    """Train on fewer examples, while the gradient's variance stays near a uniform batch's.

    Once presampling starts, the fraction 1 / tau + `extra_fraction` of a scored uniform batch trains. The gate opens
    where that is below 2/3, which pays for the scoring.

    Args:
        signal, tau_momentum: as in `Presample`.
        extra_fraction: drawn beyond 1 / tau, which is an estimate.

    Estimator: unbiased
    Memory: 0 bytes per example
    Cost: an extra forward pass of b once presampling starts
    GPU-CPU syncs: 1 per update (whether to presample), without stalling the GPU
    """

    def __init__(
        self, signal: Score, extra_fraction: Annotated[float, Ge(0), Lt(2 / 3)] = 0.2, tau_momentum: Momentum = 0.9
    ):
        super().__init__(signal, tau_momentum)
        self.extra_fraction = extra_fraction
        self.tau_threshold = 1 / (2 / 3 - extra_fraction)

    def sizes(self, tau: float) -> tuple[int, int]:
        batch_size = self.workspace.batch_size
        return batch_size, max(1, int((1 / tau + self.extra_fraction) * batch_size))
