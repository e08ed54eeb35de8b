"""Optimizers, with the two conventions of weight decay in the papers.

`decayed=all` decays every parameter, as PyTorch does. `decayed=kernels` spares norm layers and biases, as Katharopoulos
and Fleuret (2018) do; their code also spares the kernels of 1 x 1 shortcuts. A penalty c |w|^2 in the loss (Keras
l2(c)) equals weight_decay 2c, and (lambda / 2) |w|^2 equals weight_decay lambda.
"""

from collections.abc import Sequence

import torch
from torch import nn

from isbench.errors import ConfigError


def parameter_groups(model: nn.Module, weight_decay: float, decayed: str) -> list[dict]:
    """Return the trainable parameters in groups, each with its weight decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if decayed == "all":
        return [{"params": trainable, "weight_decay": weight_decay}]
    if decayed != "kernels":
        raise ConfigError(f"optimizer.decayed={decayed}: choose all or kernels")
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def sgd(
    model: nn.Module,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decayed: str = "all",
) -> torch.optim.Optimizer:
    """Return stochastic gradient descent over the trainable parameters of `model`."""
    groups = parameter_groups(model, weight_decay, decayed)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


def adam(
    model: nn.Module,
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    decayed: str = "all",
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
