"""Normalisation layers for importance sampling.

The statistics of an importance-sampled batch estimate the wrong distribution. `WeightedBatchNorm2d` corrects them by
the examples' weights (Johnson and Guestrin 2018; the paper does not say how weights are scaled, here they sum to one).
`SampleLayerNorm` needs none (code of Katharopoulos and Fleuret 2018). `FrozenBatchNorm2d` uses stored ones (the same
authors, for fine-tuning).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class SampleLayerNorm(nn.Module):
    """Normalise each example over channels, height and width; one gain for all channels, one bias for each."""

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.group_norm(inputs, 1, self.weight.expand_as(self.bias), self.bias, self.eps)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that uses its stored statistics in train mode too, and trains its scale and shift."""

    def forward(self, inputs: Tensor) -> Tensor:
        return F.batch_norm(inputs, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def add_up(tensor: Tensor, is_shared: bool) -> Tensor:
    """Return the sum of a tensor over the processes that share the batch, if several do."""
    if is_shared:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


class WeightedNorm(torch.autograd.Function):
    """Normalise by weighted batch statistics, with a backward pass of its own.

    Autograd's backward pass takes two to eight times as long on a CPU. With fractions f_i, centred inputs c = x - mean
    and s = weight / deviation, dx = s (dy - f_i / (H W) (sum(dy) + c sum(dy c) / variance)). The built-in kernel gives
    the sums, and dx for equal fractions; what is added to that is linear in x for each example and channel.
    """

    @staticmethod
    def forward(ctx, inputs, weight, bias, fractions, eps, is_shared) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs (n, channels, H, W), and the weighted mean and variance (channels,); fractions is (n,)."""
        # torch.var_mean would take longer than all of this, and autocast and TF32 would round a matmul.
        per_example = fractions[:, None]
        mean = add_up((per_example * inputs.mean(dim=(2, 3))).sum(0), is_shared)
        squares = (inputs - mean[:, None, None]).square_()
        variance = add_up((per_example * squares.mean(dim=(2, 3))).sum(0), is_shared)
        ctx.save_for_backward(inputs, weight, fractions, mean, torch.rsqrt(variance + eps))
        ctx.is_shared = is_shared  # no function: torch 2.11 does not compile past one
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(inputs, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    def backward(ctx, gradient, *unused) -> tuple[Tensor | None, ...]:
        inputs, weight, fractions, mean, inverse = ctx.saved_tensors
        equal, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, inputs, weight, None, None, mean, inverse, True, 0.0, [True, True, True]
        )
        sums = torch.stack([by_bias, by_weight * inverse])  # of dy, and of dy c / variance
        area = gradient.shape[2] * gradient.shape[3]
        lacking = sums / (len(gradient) * area) - fractions[:, None, None] * add_up(sums, ctx.is_shared) / area
        offset, slope = (weight * inverse * lacking).unbind(dim=1)  # (n, channels) each
        equal.addcmul_(inputs, slope[:, :, None, None]).add_((offset - slope * mean)[:, :, None, None])
        return equal, by_weight, by_bias, None, None, None


class WeightedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose batch statistics weight the examples inside `StatisticsWeights.using`; else `nn.BatchNorm2d`.

    Mean and variance use the weights w_i divided by their sum. The running variance uses Bessel's correction, with
    sum(w) H W as the number of elements: importance weights 1 / (N p_i) average one, so their sum estimates how many
    examples the batch stands for. Unit weights therefore reproduce `nn.BatchNorm2d`, and a weight of two counts an
    example twice.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float
    example_weights: tuple[Tensor, Tensor] | None = None  # weights divided by their sum (n,); their sum ()
    is_shared: bool = False  # whether several ranks share the batch

    def forward(self, inputs: Tensor) -> Tensor:
        if self.example_weights is None or not self.training:
            return super().forward(inputs)
        fractions, total = self.example_weights
        # Autocast gives inputs in half precision; the statistics keep the buffers' precision, as in the built-in layer.
        values = inputs.to(self.running_mean.dtype)
        outputs, mean, variance = WeightedNorm.apply(
            values, self.weight, self.bias, fractions, self.eps, self.is_shared
        )
        self._track(mean, variance, total * (inputs.shape[2] * inputs.shape[3]))
        return outputs.to(inputs.dtype)

    def _track(self, mean: Tensor, variance: Tensor, elements: Tensor) -> None:
        """Move the running statistics towards the batch's; `elements` is its number of values per channel."""
        elements = elements.clamp(min=2)  # one value has no unbiased variance
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (elements / (elements - 1)), self.momentum)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


class SharedBatchNorm2d(WeightedBatchNorm2d):
    """Plain batch norm over a batch that several ranks share: all examples weigh the same."""


class StatisticsWeights:
    """Gives the weights of a batch to the weighted norm layers of a model.

    Args:
        part: returns this rank's part of a tensor (n, ...) if several ranks share a batch.
        is_shared: sum the statistics over the ranks; without it each rank uses the statistics of its own part.
    """

    def __init__(self, model: nn.Module, part: Callable[[Tensor], Tensor] = _itself, is_shared: bool = False) -> None:
        self.layers = [layer for layer in model.modules() if isinstance(layer, WeightedBatchNorm2d)]
        self.part = part
        self.is_shared = is_shared
        for layer in self.layers:
            layer.is_shared = is_shared

    @contextmanager
    def using(self, weights: Tensor) -> Iterator[None]:
        """Weight the batch statistics of forward passes inside by `weights` (n,), positive, of the whole batch."""
        if not self.layers:
            yield
            return
        shared = {kind: self._fractions(kind, weights) for kind in {type(layer) for layer in self.layers}}
        for layer in self.layers:
            layer.example_weights = shared[type(layer)]
        try:
            yield
        finally:
            for layer in self.layers:
                layer.example_weights = None

    def _fractions(self, kind: type, weights: Tensor) -> tuple[Tensor, Tensor]:
        if kind is SharedBatchNorm2d:
            weights = torch.ones_like(weights)
        elif not self.is_shared:
            weights = self.part(weights)
        total = weights.sum()
        fractions = weights / total
        return self.part(fractions) if self.is_shared else fractions, total


def turn_batch_norm_into(kind: type[WeightedBatchNorm2d], model: nn.Module) -> None:
    """Turn every `nn.BatchNorm2d` of a model into this kind. Its subclasses, such as frozen batch norm, stay."""
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            # The subclass adds no state, so to change the class keeps every tensor, hook and reference.
            layer.__class__ = kind


Norm = Literal["batch", "weighted", "layer", "none"]
NORMS: dict[Norm, type[nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "weighted": WeightedBatchNorm2d,
    "layer": SampleLayerNorm,
    "none": nn.Identity,
}


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """Return a norm layer for maps of `channels` channels."""
    return NORMS[kind](channels)
