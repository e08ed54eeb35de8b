"""Presampling: score a pool with forward passes, draw the batch from it, reweight.

Katharopoulos and Fleuret (2018), "Not All Samples Are Created Equal: Deep Learning with Importance Sampling",
Algorithm 1, and two variants from the authors' library (idiap/importance-sampling) that choose the two sizes by tau.
While the gate is closed, batches are uniform (with replacement, as in the algorithm) and the scores that keep tau
current come free from the training forward pass; while it is open, B examples are scored in evaluation mode, b of them
are drawn with replacement with probability g_i proportional to the score, and weighted by 1 / (B g_i). Their mean over
the batch is unbiased whatever the two sizes are, since these are fixed before the pool is scored.

A forward pass is counted as one unit of work and a backward pass as two, as in the paper, unless the gate is measured.
The gate reads tau as it was one update earlier (the algorithm reads the newest), so that the host need not wait for the
device at every update.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from isbench.errors import ConfigError
from isbench.samplers.base import LateReading, Sampler, Signals, categorical
from isbench.signals import PER_EXAMPLE, SCORES
from isbench.types import Batch, Draw


def variance_reduction(scores: Tensor) -> Tensor:
    """Return tau of a set of scores (n,): by what resampling in proportion to them divides the standard error.

    The paper reads it as the factor by which a uniform batch would have to grow; for equal error that is tau^2.

    With g the normalised scores and u uniform, 1 / tau = sqrt(1 - |g - u|^2 / |g|^2) (their equation for tau), which
    equals sqrt(mean(scores^2)) / mean(scores). Between 1 (equal scores) and sqrt(n); all-zero scores give 1.
    """
    scores = scores.double()
    mean = scores.mean()
    return torch.where(mean == 0, 1.0, scores.square().mean().sqrt() / mean)


class GatedPresample(Sampler):
    """Uniform batches while tau is at most `tau_threshold`, batches from a scored pool while it exceeds it.

    A subclass sets `tau_threshold`, at the latest in `allocate`, and writes `sizes`.
    """

    remembers = ("reading", "tau_threshold")
    tau: Tensor
    tau_threshold: float

    def __init__(self, signal: str, tau_momentum: float):
        super().__init__()
        if signal not in SCORES:
            raise ConfigError(f"sampler.signal={signal}: choose one of {', '.join(SCORES)}")
        if not 0 <= tau_momentum < 1:
            raise ConfigError(f"sampler.tau_momentum={tau_momentum}: must be at least 0 and less than 1")
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
            return Draw(batch, torch.ones(len(batch), device=workspace.device))
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
        if not self.is_open:
            self._update_tau(self.observed(self.signal, draw, signals))

    def diagnostics(self) -> dict[str, float]:
        return {"tau": float(self.tau), "tau_threshold": self.tau_threshold, "is_open": float(self.is_open)}

    def _update_tau(self, scores: Tensor) -> None:
        self.tau.lerp_(variance_reduction(scores), 1 - self.tau_momentum)
        self.reading.push(self.tau)


class Presample(GatedPresample):
    """Resample each batch from a scored pool once that reduces the variance enough to pay for the scoring.

    Katharopoulos and Fleuret (2018), Algorithm 1.

    Args:
        signal: the score, one of `isbench.signals.SCORES`.
        pool_size: B, examples scored per update while the gate is open.
        tau_threshold: the gate opens while tau exceeds it; null is the break-even point.
        gate: how null is worked out. published: (B + 3b) / (3b), a backward pass taking twice as long as a forward
            pass, and scores needing none. measured: (S + U) / U with the seconds S to score a pool and U of a uniform
            update, on this machine, before the clock starts.
        tau_momentum: a_tau, the weight of the past in tau's moving average, which starts at 0.

    Estimator: unbiased
    Memory: 0 bytes per example
    Cost: nothing while closed, one forward pass of B while open; exact gradient norms: both passes, of b and of B
    Host reads: 1 per update, the gate's decision, which waits for nothing in progress
    """

    def __init__(
        self,
        signal: str,
        pool_size: int = 640,
        tau_threshold: float | None = None,
        gate: Literal["published", "measured"] = "published",
        tau_momentum: float = 0.9,
    ):
        super().__init__(signal, tau_momentum)
        if gate == "measured" and tau_threshold is not None:
            raise ConfigError(
                f"sampler.tau_threshold={tau_threshold} leaves gate=measured nothing to measure; use null"
            )
        self.pool_size = pool_size
        self.given_threshold = tau_threshold
        self.is_measured = gate == "measured"

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
    """Spend the work of a uniform update, 3b, on scoring more examples and training on fewer.

    The least that must be trained is max(0.2 b, b / tau); all the rest of the work could go into scoring. The pool
    takes the middle between b and that much, and what then remains trains: at the default threshold, 1.25 b to 1.7 b
    examples are scored and 0.58 b to 0.43 b trained. Sizes follow tau and so change from update to update, which on a
    GPU costs a little time for new shapes; passes over the data count the examples trained.

    From the authors' library; not in the paper.

    Args:
        signal: the score, one of `isbench.signals.SCORES`.
        tau_threshold: the gate opens while tau exceeds it.
        tau_momentum: the weight of the past in tau's moving average, which starts at 0.

    Estimator: unbiased
    Memory: 0 bytes per example
    Cost: nothing while closed, that of a uniform update in all while open
    Host reads: 1 per update, the gate's decision, which waits for nothing in progress
    """

    LEAST_TRAINED = 0.2  # of b
    SCORING_SHARE = 0.5  # of what could be scored beyond b

    def __init__(self, signal: str, tau_threshold: float = 2.0, tau_momentum: float = 0.9):
        super().__init__(signal, tau_momentum)
        if tau_threshold < 1:
            raise ConfigError(f"sampler.tau_threshold={tau_threshold}: must be at least 1, the least that tau can be")
        self.tau_threshold = tau_threshold

    def sizes(self, tau: float) -> tuple[int, int]:
        batch_size = self.workspace.batch_size
        work = 3 * batch_size
        trained = max(self.LEAST_TRAINED * batch_size, batch_size / tau)
        most_scored = work - 3 * trained
        num_scored = int(batch_size + self.SCORING_SHARE * (most_scored - batch_size))
        return max(1, num_scored), max(1, (work - num_scored) // 3)


class ConstantVariance(GatedPresample):
    """Train on fewer examples, chosen so that the gradient's variance stays near that of a uniform batch of b.

    A uniform batch of b is scored and the fraction 1 / tau + `extra_fraction` of it drawn. Worth its scoring once that
    fraction is below 2/3, which is the gate's threshold: tau above 1 / (2/3 - extra_fraction). The batch follows tau
    and so changes from update to update, which on a GPU costs a little time for new shapes; passes over the data count
    the examples trained.

    From the authors' library; not in the paper.

    Args:
        signal: the score, one of `isbench.signals.SCORES`.
        extra_fraction: kept beyond what tau allows, since tau is an estimate.
        tau_momentum: the weight of the past in tau's moving average, which starts at 0.

    Estimator: unbiased
    Memory: 0 bytes per example
    Cost: nothing while closed, one forward pass of b while open
    Host reads: 1 per update, the gate's decision, which waits for nothing in progress
    """

    def __init__(self, signal: str, extra_fraction: float = 0.2, tau_momentum: float = 0.9):
        super().__init__(signal, tau_momentum)
        if not 0 <= extra_fraction < 2 / 3:
            raise ConfigError(f"sampler.extra_fraction={extra_fraction}: must be at least 0 and less than 2/3")
        self.extra_fraction = extra_fraction
        self.tau_threshold = 1 / (2 / 3 - extra_fraction)

    def sizes(self, tau: float) -> tuple[int, int]:
        batch_size = self.workspace.batch_size
        return batch_size, max(1, int((1 / tau + self.extra_fraction) * batch_size))
