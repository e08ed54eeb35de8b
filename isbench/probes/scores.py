"""Scores of training examples at every look, from which scatter plots of one score against another are made.

They serve the loss against the gradient norm (Zakka 2018), the probabilities by loss and by upper bound against those
by gradient norm (Katharopoulos and Fleuret 2018, Figure 2), and the norm at the loss layer against that of the whole
gradient (Johnson and Guestrin 2018, Figure 2 left). Deviation: Zakka's post records its pairs during an epoch, so that
each belongs to another state of the model; here all belong to the same.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from isbench.build import Parts
from isbench.errors import ConfigError
from isbench.probes.base import Probe
from isbench.signals import FULL_GRADIENT, Score, per_example, per_example_gradient_norm

log = getLogger("isbench")
SUBSET_SEED = 0  # the same examples are looked at in every run
SECONDS_BETWEEN_LINES = 10.0

Fetch = Callable[[Tensor], tuple[Tensor, Tensor]]


class Scores(Probe):
    """Tell the scores of a fixed random subset of the training set: un-augmented, in evaluation mode.

    One row: lists `index`, `label`, and one per signal, to six significant digits.

    Args:
        examples: size of the subset; null is the whole set.
        signals: of `isbench.signals.SCORES`.
    """

    def __init__(self, examples: Annotated[int, Ge(1)] | None, signals: list[Score]):
        self.examples = examples
        self.signals = signals

    def allocate(self, parts: Parts) -> None:
        n = parts.dataset.num_examples
        if self.examples is not None and self.examples > n:
            raise ConfigError(f"probe.examples={self.examples} is larger than the training set ({n} examples)")
        subset = torch.randperm(n, generator=torch.Generator().manual_seed(SUBSET_SEED))[: self.examples]
        self.subset = subset.sort().values.to(parts.dataset.device)

    def look(self, parts: Parts, folder: Path) -> list[dict[str, Any]]:
        with evaluation_mode(parts.model):
            scores = score(parts, self.subset, parts.dataset.plain, self.signals)
        labels = parts.dataset.targets[self.subset]
        lists = {name: rounded(values) for name, values in scores.items()}
        return [{"index": self.subset.tolist(), "label": labels.tolist(), **lists}]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Look at a model without dropout and with stored batch statistics, which then stay as they are."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def gradient_chunk(parts: Parts) -> int:
    """Return how many examples go through the network together where activations are kept for a backward pass."""
    return max(1, parts.dataset.chunk_size // 8)


def score(parts: Parts, positions: Tensor, fetch: Fetch, signals: Sequence[str]) -> dict[str, Tensor]:
    """Return per-example signals of what `fetch` gives for `positions` (n,), (n,) float32 each.

    Not counted as scored: looking is no cost of the method.
    """
    model, criterion = parts.model, parts.criterion
    by_forward = tuple(name for name in signals if name != FULL_GRADIENT)
    pieces: dict[str, list[Tensor]] = {name: [] for name in signals}
    done, said_at = 0, time.monotonic()
    for part in positions.split(gradient_chunk(parts)):
        inputs, targets = fetch(part)
        with torch.no_grad():
            scores = per_example(by_forward, model.run(inputs), targets, criterion)
        if FULL_GRADIENT in signals:
            scores[FULL_GRADIENT] = per_example_gradient_norm(model, criterion, inputs, targets)
        for name in signals:
            pieces[name].append(scores[name])
        done += len(part)
        if time.monotonic() - said_at >= SECONDS_BETWEEN_LINES:
            said_at = time.monotonic()
            log.info("probe: %d of %d examples scored", done, len(positions))
    return {name: torch.cat(values) for name, values in pieces.items()}


def rounded(values: Tensor) -> list[float]:
    """Return numbers to six significant digits, which keeps records small."""
    return [float(f"{value:.6g}") for value in values.tolist()]
