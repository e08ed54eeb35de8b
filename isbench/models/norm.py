"""Normalisation layers for importance sampling.

Batch statistics of an importance-sampled batch estimate the wrong distribution. `WeightedBatchNorm2d` corrects them
with the examples' weights (Johnson and Guestrin 2018; that the weights are scaled to sum to one is our reading, the
paper leaves it open), `SampleLayerNorm` avoids them (the code of Katharopoulos and Fleuret 2018), and
`FrozenBatchNorm2d` ignores them (the same authors' fine-tuning).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isbench.errors import ConfigError


class SampleLayerNorm(nn.Module):
    """Normalise each example over channels, height and width together; one gain in all, one bias per channel."""

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.group_norm(inputs, 1, self.weight.expand_as(self.bias), self.bias, self.eps)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that uses its stored statistics in train mode too; scale and shift are trained."""

    def forward(self, inputs: Tensor) -> Tensor:
        return F.batch_norm(inputs, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class WeightedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose batch statistics can weight the examples; see `StatisticsWeights`.

    Mean and variance use the weights w_i divided by their sum. The running variance uses Bessel's correction with
    sum(w) H W as the number of elements: importance weights 1 / (N p_i) average one, so their sum estimates how many
    examples the batch stands for. Unit weights thus reproduce `nn.BatchNorm2d` exactly, and integer weights reproduce
    repeated examples. (The two rule out a correction that ignores the scale of the weights: weights that are all two
    mean every example twice.) Without weights, and in eval mode, this is `nn.BatchNorm2d`.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float
    example_weights: tuple[Tensor, Tensor] | None = None  # weights that sum to one (n,), their sum before that ()

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(channels, eps, momentum)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.example_weights is None or not self.training:
            return super().forward(inputs)
        fractions, total = self.example_weights
        # Under autocast inputs are half precision; like the built-in layer, keep statistics in the buffers' precision.
        values = inputs.to(self.running_mean.dtype)
        variances, means = torch.var_mean(values, dim=(2, 3), correction=0)  # (n, channels) each
        # Law of total variance: one pass over the inputs. No matmul, which autocast and TF32 would round.
        fractions = fractions[:, None]
        mean = (fractions * means).sum(0)
        variance = (fractions * (variances + (means - mean).square())).sum(0)
        self._track(mean.detach(), variance.detach(), total * (inputs.shape[2] * inputs.shape[3]))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], values, scale[:, None, None]).to(inputs.dtype)

    def _track(self, mean: Tensor, variance: Tensor, elements: Tensor) -> None:
        """Move the running statistics towards those of a batch of `elements` values per channel."""
        elements = elements.clamp(min=2)  # a batch of less has no unbiased variance
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (elements / (elements - 1)), self.momentum)


class StatisticsWeights:
    """Hands the weights of a batch to the weighted norm layers of a model, collected once."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = [layer for layer in model.modules() if isinstance(layer, WeightedBatchNorm2d)]

    @contextmanager
    def using(self, weights: Tensor) -> Iterator[None]:
        """Weight the batch statistics of the forward passes inside by `weights` (n,), positive."""
        if not self.layers:
            yield
            return
        total = weights.sum()
        shared = (weights / total, total)
        for layer in self.layers:
            layer.example_weights = shared
        try:
            yield
        finally:
            for layer in self.layers:
                layer.example_weights = None


def use_weighted_norm(model: nn.Module) -> None:
    """Turn every `nn.BatchNorm2d` of a model into a `WeightedBatchNorm2d`, keeping its parameters and buffers.

    Subclasses, such as frozen batch norm, stay what they are.
    """
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            # The subclass adds no state, so changing the class keeps every tensor, hook and reference.
            layer.__class__ = WeightedBatchNorm2d


NORMS = {"batch": nn.BatchNorm2d, "weighted": WeightedBatchNorm2d, "layer": SampleLayerNorm, "none": nn.Identity}


def make_norm(kind: str, channels: int) -> nn.Module:
    """Return a norm layer for maps of `channels` channels.

    Raises:
        ConfigError: no such kind.
    """
    if kind not in NORMS:
        raise ConfigError(f"model.norm={kind} is unknown; valid: {', '.join(NORMS)}")
    return NORMS[kind](channels)
