"""Scores of training examples at every evaluation, for scatter plots of one score against another.

Three figures need them: loss against gradient norm (Zakka 2018); sampling probabilities by loss and by upper bound
against probabilities by gradient norm (Katharopoulos and Fleuret 2018, Figure 2); gradient norm at the loss layer
against the norm of the whole gradient (Johnson and Guestrin 2018, Figure 2 left). Deviation: Zakka's post records its
pairs during an epoch, so every pair belongs to another state of the model. Here all pairs belong to one state.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from isbench.build import Parts
from isbench.errors import ConfigError
from isbench.probes.base import Probe
from isbench.progress_bar import ProgressBar
from isbench.signals import FULL_GRADIENT, Score, per_example, per_example_gradient_norm
from isbench.training.evaluate import evaluation_mode
from isbench.training.streams import fixed_subset

Fetch = Callable[[Tensor], tuple[Tensor, Tensor]]


class Scores(Probe):
    """Score a fixed random subset of the training set, un-augmented and in evaluation mode.

    One row of lists: `index`, `label`, and the values of each signal, to six significant digits.

    Args:
        examples: size of the subset; null is the whole set.
        signals: names in `isbench.signals.SCORES`.
    """

    def __init__(self, examples: Annotated[int, Ge(1)] | None, signals: list[Score]):
        self.examples = examples
        self.signals = signals

    def allocate(self, parts: Parts) -> None:
        n = parts.dataset.num_examples
        if self.examples is not None and self.examples > n:
            raise ConfigError(f"probe.examples={self.examples} is larger than the training set ({n} examples)")
        self.subset = fixed_subset(n, self.examples).sort().values.to(parts.dataset.device)

    def measure(self, parts: Parts, folder: Path) -> list[dict[str, Any]]:
        with evaluation_mode(parts.model):
            scores = score(parts, self.subset, parts.dataset.plain, self.signals)
        labels = parts.dataset.targets[self.subset]
        lists = {name: rounded(values) for name, values in scores.items()}
        return [{"index": self.subset.tolist(), "label": labels.tolist(), **lists}]


def gradient_chunk(parts: Parts) -> int:
    """Return how many examples go through the network together where a backward pass follows."""
    return max(1, parts.dataset.chunk_size // 8)


def score(parts: Parts, positions: Tensor, fetch: Fetch, signals: Sequence[str]) -> dict[str, Tensor]:
    """Return per-example signals, (n,) float32 each, of the examples that `fetch` returns for `positions` (n,).

    They are not counted as scored, since measuring is no cost of the method.
    """
    model, criterion = parts.model, parts.criterion
    by_forward = tuple(name for name in signals if name != FULL_GRADIENT)
    pieces: dict[str, list[Tensor]] = {name: [] for name in signals}
    done = 0
    with closing(ProgressBar("probe: scoring", len(positions), transient=True)) as bar:
        for part in positions.split(gradient_chunk(parts)):
            inputs, targets = fetch(part)
            with torch.no_grad():
                scores = per_example(by_forward, model.run(inputs), targets, criterion)
            if FULL_GRADIENT in signals:
                scores[FULL_GRADIENT] = per_example_gradient_norm(model, criterion, inputs, targets)
            for name in signals:
                pieces[name].append(scores[name])
            done += len(part)
            bar.count(done)
    return {name: torch.cat(values) for name, values in pieces.items()}


def rounded(values: Tensor) -> list[float]:
    """Return numbers to six significant digits, which keeps records small."""
    return [float(f"{value:.6g}") for value in values.tolist()]
