"""Looking at a model: untimed, in evaluation mode, without touching any stream of random numbers."""

from collections.abc import Iterable

import torch
from torch import Tensor

from isbench.models.heads import Classifier
from isbench.signals import CrossEntropy
from isbench.training.ranks import ALONE, Ranks


@torch.no_grad()
def evaluate(
    model: Classifier, criterion: CrossEntropy, chunks: Iterable[tuple[Tensor, Tensor]], ranks: Ranks = ALONE
) -> tuple[float, float]:
    """Return mean loss and fraction wrong, in [0, 1], over all ranks' chunks of (inputs, targets)."""
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=next(model.parameters()).device)  # loss, wrong, examples
    for inputs, targets in chunks:
        logits = model(inputs).float()
        totals[0] += criterion(logits, targets).sum(dtype=torch.float64)
        totals[1] += (logits.argmax(dim=1) != targets).sum()
        totals[2] += len(targets)
    model.train()
    loss, wrong, count = ranks.add_up(totals).tolist()
    return loss / count, wrong / count
