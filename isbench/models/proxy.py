"""Tiny networks that look at small images in a network's place: a hundred times cheaper, and right often enough.

A proxy learns from every look. At its size calls cost more than arithmetic. So its weights are one vector, which Adam
changes in six calls, and the perceptron's gradient is written out. Losses are summed: Adam takes no notice of scale.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 16  # pixels, at most, of what a proxy sees
BETAS = (0.9, 0.99)
EPSILON = 1e-8


def shrink(inputs: Tensor) -> Tensor:
    """Return images (n, C, H, W) averaged down to at most 16 x 16 pixels; sequences (n, T, F) as they are."""
    if inputs.ndim < 4:
        return inputs
    factors = [-(-side // SIDE) for side in inputs.shape[2:]]
    for axis, factor in enumerate(factors, start=2):  # a fourth of the time of avg_pool2d on a CPU
        inputs = reduce(torch.add, inputs.unfold(axis, factor, factor).unbind(-1))
    return inputs / math.prod(factors)


class Proxy(nn.Module):
    """A network from inputs to the probabilities of C classes, and its Adam (Kingma and Ba 2015).

    A subclass gives the shapes of its weights and biases in turns, each with the units that it leads to first, and
    writes `gradient`.
    """

    vector: Tensor  # all weights
    first: Tensor  # Adam's moments
    second: Tensor

    def __init__(self, shapes: Sequence[Sequence[int]], generator: torch.Generator, rate: float):
        super().__init__()
        self.shapes = [tuple(shape) for shape in shapes]
        self.rate = rate
        self.steps = 0
        size = sum(map(math.prod, self.shapes))
        for name in ("vector", "first", "second"):
            self.register_buffer(name, torch.zeros(size, device=generator.device))
        self.weights = self.unpack(self.vector)
        for weight in self.weights[::2]:
            weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=generator)  # He et al. 2015

    def unpack(self, vector: Tensor) -> list[Tensor]:
        """Return the weights that a vector holds, as views of it."""
        parts = vector.split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def gradient(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities (C, n) for inputs (n, ...), and the gradient of the summed cross-entropy, a vector.

        The vector may be overwritten by the next call.
        """
        raise NotImplementedError

    @torch.no_grad()
    def look(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the probabilities of the classes, (C, n), and take one step on the same inputs."""
        probabilities, gradient = self.gradient(inputs, targets)
        self.steps += 1
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.lerp_(gradient.square_(), 1 - BETAS[1])
        rate = self.rate * (1 - BETAS[1] ** self.steps) ** 0.5 / (1 - BETAS[0] ** self.steps)
        self.vector.addcdiv_(self.first, self.second.sqrt().add_(EPSILON), value=-rate)
        return probabilities

    def get_extra_state(self) -> Any:
        return self.steps

    def set_extra_state(self, state: Any) -> None:
        self.steps = state


class Perceptron(Proxy):
    """One hidden layer of `width` units with ReLU, for inputs of any shape."""

    def __init__(
        self, shape: Sequence[int], num_classes: int, width: int, generator: torch.Generator, rate: float
    ) -> None:
        shapes = [(width, math.prod(shape)), (width,), (num_classes, width), (num_classes, 1)]
        super().__init__(shapes, generator, rate)
        self.gradients = torch.zeros_like(self.vector)
        self.gradient_of = self.unpack(self.gradients)
        self.one_hot = torch.eye(num_classes, device=generator.device)

    def gradient(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias, last_weight, last_bias = self.weights
        inputs = inputs.flatten(1)
        hidden = torch.addmm(bias, inputs, weight.T).relu_()
        # Classes come first, since torch's softmax of ten adjacent numbers takes ten times as long.
        probabilities = torch.addmm(last_bias, last_weight, hidden.T).softmax(0)
        errors = probabilities - self.one_hot.index_select(1, targets)
        backward = torch.ops.aten.threshold_backward(errors.T @ last_weight, hidden, 0)  # ReLU's, in one call
        to_weight, to_bias, to_last_weight, to_last_bias = self.gradient_of
        torch.mm(backward.T, inputs, out=to_weight)
        torch.sum(backward, 0, out=to_bias)
        torch.mm(errors, hidden, out=to_last_weight)
        torch.sum(errors, 1, keepdim=True, out=to_last_bias)
        return probabilities, self.gradients


class Convolutional(Proxy):
    """Two 3 x 3 convolutions of stride 2 with ReLU, of `width` and twice as many channels, for images."""

    def __init__(
        self, shape: Sequence[int], num_classes: int, width: int, generator: torch.Generator, rate: float
    ) -> None:
        size = 2 * width * math.prod(-(-side // 4) for side in shape[1:])
        kernels = (width, shape[0], 3, 3), (width,), (2 * width, width, 3, 3), (2 * width,)
        super().__init__([*kernels, (num_classes, size), (num_classes,)], generator, rate)

    def gradient(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        vector = self.vector.detach().requires_grad_()
        with torch.enable_grad():
            first, first_bias, second, second_bias, last, last_bias = self.unpack(vector)
            hidden = F.conv2d(inputs, first, first_bias, stride=2, padding=1).relu()
            hidden = F.conv2d(hidden, second, second_bias, stride=2, padding=1).relu()
            logits = F.linear(hidden.flatten(1), last, last_bias)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, targets, reduction="sum"), vector)
        return logits.detach().softmax(1).T, gradient


PROXIES: dict[str, type[Perceptron] | type[Convolutional]] = {"perceptron": Perceptron, "convolutional": Convolutional}
