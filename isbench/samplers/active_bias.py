"""Active Bias: prefer examples that are hard, or that the model is unsure of, by the history of their predictions.

Chang et al. (2017), "Active Bias: Training More Accurate Neural Networks by Emphasizing High Variance Samples", as
turned into p-SGD (difficulty) and c-SGD (threshold closeness) by Arazo et al. (2021), "How Important is Importance
Sampling for Deep Budgeted Training?": each pass trains on a share of the data, drawn at its start without replacement.
Chang et al.'s other scores, and their weights on uniform passes instead of probabilities, are options. Deviation from
them: scores are read once a pass, not at every update.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from isbench.errors import ConfigError
from isbench.samplers.base import EpochSampler, Signals, assign
from isbench.types import Draw

# Of the mean and (sample) variance of an example's true-class probabilities, and the number of its visits.
SCORES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "difficulty": lambda mean, variance, visits: 1 - mean,
    "easiness": lambda mean, variance, visits: mean,
    "threshold_closeness": lambda mean, variance, visits: mean * (1 - mean),
    "prediction_variance": lambda mean, variance, visits: (variance + variance.square() / (visits - 1)).sqrt(),
}
FORMS = ("sampled", "weighted")


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
    """Draw each pass without replacement by q + smoothing * mean(q), q from the history of true-class probabilities.

    With p the mean of an example's true-class probabilities over its visits, from the training forward, q is 1 - p
    (difficulty: SGD-SD, p-SGD), p (easiness: SGD-SE), p (1 - p) (threshold_closeness: SGD-STC, c-SGD) or
    sqrt(v + v^2 / (visits - 1)) with v their sample variance (prediction_variance: SGD-SPV). An example without a q
    (no visit, or fewer than two for the variance) gets the largest q of the others; before there is one, all are equal.
    (Arazo et al.'s code gives it the largest 1 - p before forming p (1 - p), which can make it the least likely.)
    At share 1 the sampled form is shuffling, whatever q is.

    Args:
        score: one of `SCORES`.
        form: "sampled" draws passes by these probabilities, all weights 1; "weighted" draws passes uniformly and
            weights the loss by the same expression divided by its mean (SGD-WD, SGD-WTC, SGD-WPV).
        share: length of a pass as a share of N; 0.3 is the example setting of Arazo et al.'s code.
        smoothing: the smoothness constant, in units of mean(q).
        warmup_passes: uniform passes at the start.

    Estimator: biased (towards high q)
    Memory: 16 bytes per example, the order of the pass included
    Cost: O(N) per pass for its keys, their selection and sort of share * N; a sort of b per update
    Host reads: 0 per update
    """

    observes = ("true_class_probability",)
    remembers = (*EpochSampler.remembers, "_passes")
    mean: Tensor  # (N,)
    squares: Tensor  # (N,) sum of squared deviations from the mean
    visits: Tensor  # (N,)

    def __init__(
        self,
        score: str,
        form: str = "sampled",
        share: float = 0.3,
        smoothing: float = 1.0,
        warmup_passes: int = 0,
    ):
        super().__init__()
        if score not in SCORES:
            raise ConfigError(f"sampler.score={score}: choose one of {', '.join(SCORES)}")
        if form not in FORMS:
            raise ConfigError(f"sampler.form={form}: choose one of {', '.join(FORMS)}")
        if not 0 < share <= 1:
            raise ConfigError(f"sampler.share={share}: must be above 0 and at most 1")
        if not 0 <= smoothing < float("inf"):
            raise ConfigError(f"sampler.smoothing={smoothing}: must be at least 0")
        if warmup_passes < 0:
            raise ConfigError(f"sampler.warmup_passes={warmup_passes}: must be at least 0")
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
        is_active = self._passes >= self.warmup_passes
        self._passes += 1
        indices = weighted_subset(scores if is_active and self.form == "sampled" else ones, k, generator)
        mean = scores.mean()
        weights = torch.where(mean == 0, 1.0, scores / mean) if is_active and self.form == "weighted" else ones
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
