"""Tiny networks that look at small images in a network's place: some hundred times cheaper, and right often enough."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

SIDE = 16  # pixels, at most, of what a proxy sees
ProxyKind = Literal["perceptron", "convolutional"]


def shrink(inputs: Tensor) -> Tensor:
    """Return images (n, C, H, W) averaged down to at most 16 x 16 pixels; sequences (n, T, F) as they are."""
    if inputs.ndim < 4:
        return inputs
    factors = [-(-side // SIDE) for side in inputs.shape[2:]]
    for axis, factor in enumerate(factors, start=2):  # a fourth of the time of avg_pool2d on a CPU
        inputs = reduce(torch.add, inputs.unfold(axis, factor, factor).unbind(-1))
    return inputs / math.prod(factors)


def make_proxy(
    kind: ProxyKind, shape: Sequence[int], num_classes: int, width: int, generator: torch.Generator
) -> nn.Sequential:
    """Return a network from inputs (n, *shape) to logits (n, C), with weights drawn from `generator` on its device.

    perceptron: one hidden layer of `width`. convolutional: two 3 x 3 convolutions of stride 2, of `width` and twice as
    many channels, for images.
    """
    with torch.device("meta"):  # torch's own first weights would come from the global stream
        if kind == "perceptron":
            body = [nn.Flatten(), nn.Linear(math.prod(shape), width), nn.ReLU()]
            size = width
        else:
            first = nn.Conv2d(shape[0], width, 3, stride=2, padding=1)
            second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
            body = [first, nn.ReLU(), second, nn.ReLU(), nn.Flatten()]
            size = 2 * width * math.prod(-(-side // 4) for side in shape[1:])
        proxy = nn.Sequential(*body, nn.Linear(size, num_classes)).to_empty(device=generator.device)
    for parameter in proxy.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
        else:
            nn.init.zeros_(parameter)
    return proxy
