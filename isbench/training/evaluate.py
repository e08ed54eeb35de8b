"""Evaluations: mean loss and error of a model, untimed, without touching any stream of random numbers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from isbench.models.heads import Classifier
from isbench.signals import CrossEntropy
from isbench.training.ranks import ALONE, Ranks


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off and use the stored batch statistics, which then stay as they are."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def evaluate(
    model: Classifier, criterion: CrossEntropy, chunks: Iterable[tuple[Tensor, Tensor]], ranks: Ranks = ALONE
) -> tuple[float, float]:
    """Return mean loss and error (the fraction wrong, in [0, 1]) over all ranks' chunks of (inputs, targets)."""
    totals = torch.zeros(3, dtype=torch.float64, device=next(model.parameters()).device)  # loss, wrong, examples
    with evaluation_mode(model):
        for inputs, targets in chunks:
            logits = model(inputs).float()
            totals[0] += criterion(logits, targets).sum(dtype=torch.float64)
            totals[1] += (logits.argmax(dim=1) != targets).sum()
            totals[2] += len(targets)
    loss, wrong, count = ranks.add_up(totals).tolist()
    return loss / count, wrong / count
