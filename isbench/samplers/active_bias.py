"""Active Bias: train on examples that the model finds hard, or is unsure of, by the history of its predictions.

Chang et al. (2017), "Active Bias: Training More Accurate Neural Networks by Emphasizing High Variance Samples". Arazo
et al. (2021), "How Important is Importance Sampling for Deep Budgeted Training?", call two of its scores p-SGD and
c-SGD, and train each pass on a share of the data. Deviation from Chang et al.: scores are read once a pass.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from isbench.errors import ConfigError
from isbench.samplers.base import EpochSampler, Signals, assign
from isbench.types import Draw

Score = Literal["difficulty", "easiness", "threshold_closeness", "prediction_variance"]
# q from the mean and sample variance of the true-class probabilities of an example, and the number of its visits.
SCORES: dict[Score, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "difficulty": lambda mean, variance, visits: 1 - mean,
    "easiness": lambda mean, variance, visits: mean,
    "threshold_closeness": lambda mean, variance, visits: mean * (1 - mean),
    "prediction_variance": lambda mean, variance, visits: (variance + variance.square() / (visits - 1)).sqrt(),
}


def weighted_subset(scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draw `k` different positions, one after the other in proportion to `scores` (n,) among those left; shuffled.

    The k smallest of n exponential variables with these rates (Efraimidis and Spirakis 2006). Positions with a score of
    zero come last, in random order; scores that are all zero, or not finite, give a uniform draw.
    """
    scores = scores.double()  # in float32, 100 million keys would tie
    largest = scores.max()
    rates = torch.where((largest > 0) & (largest < torch.inf), scores.clamp_min(largest * 1e-12), 1.0)
    keys = torch.empty_like(rates).exponential_(generator=generator) / rates
    order = torch.randperm(k, device=scores.device, generator=generator)
    return keys.topk(k, largest=False).indices[order]


class ActiveBias(EpochSampler):
    """Draw each pass without replacement, with probabilities proportional to q + smoothing * mean(q).

    p is the mean and v the sample variance of an example's true-class probabilities in training so far. An example
    without a q yet gets the largest q of the others.

    Args:
        score: q. difficulty: 1 - p (p-SGD). easiness: p. threshold_closeness: p (1 - p) (c-SGD). prediction_variance:
            sqrt(v + v^2 / (visits - 1)).
        form: sampled: as above, with weights 1. weighted: uniform passes, and the same expression over its mean as
            weights.
        share: length of a pass as a share of N. In the sampled form, 1 is plain shuffling.
        smoothing: the smoothness constant, in units of mean(q).
        warmup_passes: uniform passes at the start.

    Estimator: biased (towards high q)
    Memory: 16 bytes per example, the order of the pass included
    Cost: O(N) and a sort of the share drawn per pass; a sort of b per update
    GPU-CPU syncs: 0 per update
    """

    observes = ("true_class_probability",)
    remembers = (*EpochSampler.remembers, "_passes")
    mean: Tensor  # (N,)
    squares: Tensor  # (N,) sum of squared deviations from the mean
    visits: Tensor  # (N,)

    def __init__(
        self,
        score: Score,
        form: Literal["sampled", "weighted"] = "sampled",
        share: Annotated[float, Gt(0), Le(1)] = 0.3,
        smoothing: Annotated[float, Ge(0)] = 1.0,
        warmup_passes: Annotated[int, Ge(0)] = 0,
    ):
        super().__init__()
        self.score = score
        self.form = form
        self.share = share
        self.smoothing = smoothing
        self.warmup_passes = warmup_passes

    def allocate(self) -> None:
        super().allocate()
        n = self.workspace.num_examples
        if int(self.share * n) < 1:
            raise ConfigError(f"sampler.share={self.share}: no example of {n} is left in a pass")
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("squares", torch.zeros(n))
        self.register_buffer("visits", torch.zeros(n, dtype=torch.int32))
        self._passes = 0

    def plan(self) -> tuple[Tensor, Tensor]:
        n, generator = self.workspace.num_examples, self.workspace.generator
        k = int(self.share * n)
        scores = self.smoothed_scores()
        ones = torch.ones_like(scores)
        is_warm = self._passes >= self.warmup_passes
        self.acts = is_warm and self._passes > 0  # in the first pass all scores are one
        self._passes += 1
        indices = weighted_subset(scores if is_warm and self.form == "sampled" else ones, k, generator)
        mean = scores.mean()
        weights = torch.where(mean == 0, 1.0, scores / mean) if is_warm and self.form == "weighted" else ones
        return indices, weights[indices].float()

    def observe(self, draw: Draw, signals: Signals) -> None:
        indices, probabilities = draw.batch.indices, signals["true_class_probability"]
        visits = self.visits[indices] + 1
        deviation = probabilities - self.mean[indices]
        mean = self.mean[indices] + deviation / visits
        squares = self.squares[indices] + deviation * (probabilities - mean)
        self.visits[indices] = visits
        assign(self.mean, indices, mean)
        assign(self.squares, indices, squares)

    def smoothed_scores(self) -> Tensor:
        """Return q + smoothing * mean(q), (N,) float64."""
        visits = self.visits.double()
        variance = self.squares.double().clamp_min(0) / (visits - 1)
        scores = SCORES[self.score](self.mean.double(), variance, visits).clamp_min(0)
        is_known = self.visits >= (2 if self.score == "prediction_variance" else 1)
        highest = torch.where(is_known, scores, -1.0).max()
        scores = torch.where(is_known, scores, torch.where(highest < 0, 1.0, highest))
        return scores + self.smoothing * scores.mean()
