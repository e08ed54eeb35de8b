"""Looking at a model: untimed, in evaluation mode, without touching any stream of random numbers."""

from collections.abc import Iterable

import torch
from torch import Tensor

from isbench.models.heads import Classifier
from isbench.signals import CrossEntropy


@torch.no_grad()
def evaluate(
    model: Classifier, criterion: CrossEntropy, chunks: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """Return mean loss and fraction wrong, in [0, 1], over chunks of (inputs, targets)."""
    model.eval()
    total_loss, wrong, count = [], [], 0
    for inputs, targets in chunks:
        logits = model(inputs).float()
        total_loss.append(criterion(logits, targets).sum(dtype=torch.float64))
        wrong.append((logits.argmax(dim=1) != targets).sum())
        count += len(targets)
    model.train()
    return float(torch.stack(total_loss).sum()) / count, float(torch.stack(wrong).sum()) / count
