"""Tiny networks that look at small images in a network's place: a hundred times cheaper, and right often enough.

A proxy learns from every look. Calls cost more than arithmetic at its size, so all of its weights are one vector, its
Adam is six operations on it, and the perceptron's gradient is written out.
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

    A subclass gives the shapes of its weights, (out, ...) and biases in turns, and writes `gradient`.
    """

    vector: Tensor  # all weights
    first: Tensor  # Adam's moments
    second: Tensor

    def __init__(self, shapes: Sequence[Sequence[int]], generator: torch.Generator, rate: float):
        super().__init__()
        self.shapes = [tuple(shape) for shape in shapes]
        self.rate = rate
        self.steps = 0
        vector = torch.zeros(sum(map(math.prod, self.shapes)), device=generator.device)
        for weight in self.unpack(vector)[::2]:
            weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=generator)  # He et al. 2015
        self.register_buffer("vector", vector)
        self.register_buffer("first", torch.zeros_like(vector))
        self.register_buffer("second", torch.zeros_like(vector))

    def unpack(self, vector: Tensor) -> list[Tensor]:
        """Return the weights as views of a vector."""
        parts = vector.split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def gradient(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities (C, n) for inputs (n, ...), and the gradient of the mean cross-entropy, a vector."""
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

    classes: Tensor  # (C, 1)

    def __init__(
        self, shape: Sequence[int], num_classes: int, width: int, generator: torch.Generator, rate: float
    ) -> None:
        shapes = [(width, math.prod(shape)), (width,), (num_classes, width), (num_classes, 1)]
        super().__init__(shapes, generator, rate)
        self.register_buffer("classes", torch.arange(num_classes, device=generator.device)[:, None], persistent=False)

    def gradient(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias, last_weight, last_bias = self.unpack(self.vector)
        inputs = inputs.flatten(1)
        hidden = torch.addmm(bias, inputs, weight.T).relu_()
        # Classes come first, since torch's softmax of ten adjacent numbers takes ten times as long.
        probabilities = torch.addmm(last_bias, last_weight, hidden.T).softmax(0)
        errors = (probabilities - torch.eq(targets, self.classes).float()) / len(targets)
        backward = (errors.T @ last_weight).mul_(hidden > 0)
        gradients = backward.T @ inputs, backward.sum(0), errors @ hidden, errors.sum(1)
        return probabilities, torch.cat([gradient.flatten() for gradient in gradients])


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
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, targets), vector)
        return logits.detach().softmax(1).T, gradient


PROXIES: dict[str, type[Perceptron] | type[Convolutional]] = {"perceptron": Perceptron, "convolutional": Convolutional}
