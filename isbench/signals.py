"""Signals: numbers about examples (or about a step) that samplers learn from.

A per-example signal is a pure function of one forward pass, the targets and the loss object, so that label smoothing
changes loss and score together. Per-step signals are scalars of the whole gradient. The exact per-example gradient
norm needs a backward pass per example and is therefore available to `Workspace.score` only.

The norm of the loss gradient with respect to the logits is the upper-bound score of Katharopoulos and Fleuret
(2018, "Not All Samples Are Created Equal", section 3.2) and the loss-layer norm of Johnson and Guestrin (2018).
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from isbench.models.heads import Classifier
from isbench.types import Forward


class CrossEntropy:
    """Softmax cross-entropy, optionally with label smoothing (weight spread evenly over all classes)."""

    def __init__(self, label_smoothing: float = 0.0):
        self.label_smoothing = label_smoothing

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, (n,)."""
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)

    def logit_gradient(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return d loss / d logits, (n, C): softmax minus the (smoothed) target distribution."""
        gradient = logits.softmax(dim=1)
        if self.label_smoothing:
            gradient -= self.label_smoothing / logits.shape[1]
        hot = torch.full_like(gradient[:, :1], self.label_smoothing - 1)
        return gradient.scatter_add_(1, targets[:, None], hot)


Signal = Callable[[Forward, Tensor, CrossEntropy], Tensor]


def loss(forward: Forward, targets: Tensor, criterion: CrossEntropy) -> Tensor:
    """Return the loss of each example, (n,)."""
    return criterion(forward.logits, targets)


def logit_gradient_norm(forward: Forward, targets: Tensor, criterion: CrossEntropy) -> Tensor:
    """Return |d loss / d logits| of each example, (n,), between 0 and sqrt(2)."""
    return torch.linalg.vector_norm(criterion.logit_gradient(forward.logits, targets), dim=1)


def last_layer_gradient_norm(forward: Forward, targets: Tensor, criterion: CrossEntropy) -> Tensor:
    """Return the exact gradient norm of the head's weight and bias, (n,): |d loss / d logits| sqrt(|h|^2 + 1)."""
    size = forward.features.float().square().sum(dim=1).add_(1).sqrt_()
    return logit_gradient_norm(forward, targets, criterion) * size


def true_class_probability(forward: Forward, targets: Tensor, criterion: CrossEntropy) -> Tensor:
    """Return the probability given to the label of each example, (n,)."""
    return forward.logits.softmax(dim=1).gather(1, targets[:, None]).squeeze(1)


def features(forward: Forward, targets: Tensor, criterion: CrossEntropy) -> Tensor:
    """Return the input of the last linear layer, (n, D): the one signal that is no score."""
    return forward.features.float()


PER_EXAMPLE: dict[str, Signal] = {
    signal.__name__: signal
    for signal in (loss, logit_gradient_norm, last_layer_gradient_norm, true_class_probability, features)
}
PER_STEP = ("gradient_norm", "weight_norm")
FULL_GRADIENT = "per_example_gradient_norm"
Score = Literal[
    "loss",
    "logit_gradient_norm",
    "last_layer_gradient_norm",
    "true_class_probability",
    "per_example_gradient_norm",
]
SCORES = get_args(Score)


def joint_norm(tensors: list[Tensor]) -> Tensor:
    """Return the norm of all numbers of some tensors together, ()."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def per_example(
    names: tuple[str, ...], forward: Forward, targets: Tensor, criterion: CrossEntropy
) -> dict[str, Tensor]:
    """Return the named per-example signals, (n,) each (features: (n, D)) in float32, without a graph."""
    detached = Forward(forward.logits.detach().float(), forward.features.detach())
    return {name: PER_EXAMPLE[name](detached, targets, criterion) for name in names}


def per_example_gradient_norm(
    model: Classifier, criterion: CrossEntropy, inputs: Tensor, targets: Tensor, max_elements: int | None = None
) -> Tensor:
    """Return the norm of each example's gradient over all trainable parameters, (n,).

    Examples are taken in chunks so that at most `max_elements` gradient entries exist at once (default: 2^23 on a CPU,
    whose caches make LeNet's norms 1.6 times faster than with 2^26, else 2^28, a gigabyte, since each chunk launches
    its kernels anew); with recurrent layers, one by one.
    """
    if model.has_recurrent_layers:
        # vmap falls back to a loop of its own for these, 50 times slower than this one. cuDNN's refuse a backward pass
        # in evaluation mode.
        trainable = model.trainable()
        with torch.backends.cudnn.flags(enabled=False):
            losses = (criterion(model(inputs[i : i + 1]), targets[i : i + 1])[0] for i in range(len(inputs)))
            norms = [torch._foreach_norm(torch.autograd.grad(loss, trainable)) for loss in losses]
        return torch.linalg.vector_norm(torch.stack([torch.stack(parts) for parts in norms]), dim=1)
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    constants = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    constants.update(model.named_buffers())

    def example_loss(parameters: dict[str, Tensor], example: Tensor, target: Tensor) -> Tensor:
        logits = functional_call(model, (parameters, constants), (example[None],))
        return criterion(logits, target[None])[0]

    def squared_norm(parameters: dict[str, Tensor], example: Tensor, target: Tensor) -> Tensor:
        gradients = grad(example_loss)(parameters, example, target)
        return torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum()

    max_elements = max_elements or 2 ** (23 if inputs.device.type == "cpu" else 28)
    chunk = max(1, max_elements // sum(p.numel() for p in parameters.values()))
    squared = vmap(squared_norm, in_dims=(None, 0, 0), randomness="different", chunk_size=chunk)
    return squared(parameters, inputs, targets).sqrt()
