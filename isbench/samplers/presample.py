"""Presampling: score a pool with forward passes, draw the batch from it, reweight (document 001).

Katharopoulos and Fleuret (2018), "Not All Samples Are Created Equal: Deep Learning with Importance Sampling",
Algorithm 1. While the gate is closed, batches are uniform (with replacement, as in the algorithm) and the scores that
keep tau current come free from the training forward pass; while it is open, B examples are scored in evaluation mode,
b of them are drawn with replacement with probability g_i proportional to the score, and weighted by 1 / (B g_i).

Unbiased with respect to the pool, hence to the data. State: one scalar. Cost: nothing while closed; one forward pass
of B while open. One host read per update, the gate's decision.
"""

import torch
from torch import Tensor

from isbench.errors import ConfigError
from isbench.samplers.base import Sampler, Signals, categorical
from isbench.signals import PER_EXAMPLE, SCORES
from isbench.types import Draw, Progress


def variance_reduction(scores: Tensor) -> Tensor:
    """Return tau of a set of scores (n,): how many times larger a uniform batch would have equal standard error.

    With g the normalised scores and u uniform, 1 / tau = sqrt(1 - |g - u|^2 / |g|^2) (their equation for tau), which
    equals sqrt(mean(scores^2)) / mean(scores). Between 1 (equal scores) and sqrt(n); all-zero scores give 1.
    """
    scores = scores.double()
    mean = scores.mean()
    return torch.where(mean == 0, 1.0, scores.square().mean().sqrt() / mean)


class Presample(Sampler):
    """Resample each batch from a scored pool once that reduces the variance enough to pay for the scoring.

    Args:
        signal: the score, one of `isbench.signals.SCORES`.
        pool_size: B, examples scored per update while the gate is open.
        tau_threshold: the gate opens while tau exceeds it; null is the break-even point (B + 3b) / (3b), counting a
            backward pass as two forward passes.
        tau_momentum: a_tau, the weight of the past in tau's moving average, which starts at 0.
    """

    tau: Tensor

    def __init__(
        self,
        signal: str,
        pool_size: int = 640,
        tau_threshold: float | None = None,
        tau_momentum: float = 0.9,
    ):
        super().__init__()
        if signal not in SCORES:
            raise ConfigError(f"sampler.signal={signal}: choose one of {', '.join(SCORES)}")
        if not 0 <= tau_momentum < 1:
            raise ConfigError(f"sampler.tau_momentum={tau_momentum}: must be at least 0 and less than 1")
        self.signal = signal
        self.pool_size = pool_size
        self.tau_threshold = tau_threshold
        self.tau_momentum = tau_momentum
        self.observes = (signal,) if signal in PER_EXAMPLE else ()
        self.is_open = False

    def allocate(self, workspace) -> None:
        if self.pool_size < workspace.batch_size:
            raise ConfigError(
                f"sampler.pool_size={self.pool_size} is smaller than batch_size={workspace.batch_size}: "
                "the batch is drawn from the pool"
            )
        if self.pool_size > workspace.num_examples:
            raise ConfigError(
                f"sampler.pool_size={self.pool_size} is larger than the training set ({workspace.num_examples} examples)"
            )
        if self.tau_threshold is None:
            self.tau_threshold = (self.pool_size + 3 * workspace.batch_size) / (3 * workspace.batch_size)
        self.register_buffer("tau", torch.zeros((), dtype=torch.float64))

    def draw(self, progress: Progress) -> Draw:
        workspace = self.workspace
        self.is_open = bool(self.tau > self.tau_threshold)
        if not self.is_open:
            batch = workspace.fetch(workspace.uniform(workspace.batch_size))
            return Draw(batch, torch.ones(len(batch), device=workspace.device))
        pool = workspace.fetch(workspace.uniform(self.pool_size))
        scores = workspace.score(pool, self.signal)
        self._update_tau(scores)
        positions, probabilities = categorical(scores, workspace.batch_size, workspace.generator)
        return Draw(pool.take(positions), (1 / (self.pool_size * probabilities)).float())

    def observe(self, draw: Draw, signals: Signals) -> None:
        if not self.is_open:
            scores = signals.get(self.signal)
            if scores is None:  # not a by-product of training: pay for it
                scores = self.workspace.score(draw.batch, self.signal)
            self._update_tau(scores)

    def diagnostics(self) -> dict[str, float]:
        return {"tau": float(self.tau), "is_open": float(self.is_open)}

    def _update_tau(self, scores: Tensor) -> None:
        self.tau.lerp_(variance_reduction(scores), 1 - self.tau_momentum)
