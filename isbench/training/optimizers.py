"""Optimizers, with the two conventions of weight decay in the papers.

`decayed=all` decays every parameter, as PyTorch does. `decayed=kernels` spares norm layers and biases, as Katharopoulos
and Fleuret (2018) do; their code also spares the kernels of 1 x 1 shortcuts. A penalty c |w|^2 in the loss (Keras
l2(c)) equals weight_decay 2c, and (lambda / 2) |w|^2 equals weight_decay lambda.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Len, Lt
from torch import nn

NotNegative = Annotated[float, Ge(0)]
Decayed = Literal["all", "kernels"]


def parameter_groups(model: nn.Module, weight_decay: float, decayed: Decayed) -> list[dict]:
    """Return the trainable parameters in groups, each with its weight decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if decayed == "all":
        return [{"params": trainable, "weight_decay": weight_decay}]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def sgd(
    model: nn.Module,
    lr: NotNegative,
    momentum: NotNegative = 0.0,
    nesterov: bool = False,
    weight_decay: NotNegative = 0.0,
    decayed: Decayed = "all",
) -> torch.optim.Optimizer:
    """Return stochastic gradient descent over the trainable parameters of `model`."""
    groups = parameter_groups(model, weight_decay, decayed)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


def adam(
    model: nn.Module,
    lr: NotNegative,
    betas: Annotated[Sequence[Annotated[float, Ge(0), Lt(1)]], Len(2, 2)] = (0.9, 0.999),
    weight_decay: NotNegative = 0.0,
    decayed: Decayed = "all",
) -> torch.optim.Optimizer:
    """Return Adam (Kingma and Ba 2015) over the trainable parameters of `model`."""
    groups = parameter_groups(model, weight_decay, decayed)
    return torch.optim.Adam(groups, lr=lr, betas=(betas[0], betas[1]), fused=True)


@torch.no_grad()
def penalty(optimizer: torch.optim.Optimizer) -> float:
    """Return what weight decay adds to the loss: the sum of (weight_decay / 2) |w|^2 over the parameter groups."""
    groups = [(group["weight_decay"], group["params"]) for group in optimizer.param_groups]
    squares = [decay / 2 * p.double().square().sum() for decay, params in groups if decay for p in params]
    return float(torch.stack(squares).sum()) if squares else 0.0
