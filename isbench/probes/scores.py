"""Scores of training examples, for scatter plots of one score against another.

By one state of the model: sampling probabilities by loss and by upper bound against probabilities by gradient norm
(Katharopoulos and Fleuret 2018, Figure 2), and gradient norm at the loss layer against the norm of the whole gradient
(Johnson and Guestrin 2018, Figure 2 left). Each by the state that its own training step met: loss against gradient norm
(Zakka 2018, first figure).
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from isbench.build import Parts
from isbench.errors import ConfigError
from isbench.probes.base import Probe
from isbench.progress_bar import ProgressBar
from isbench.samplers.base import Signals, assign
from isbench.signals import FULL_GRADIENT, Score, per_example, per_example_gradient_norm
from isbench.training.evaluate import evaluation_mode
from isbench.training.streams import fixed_subset
from isbench.types import Draw

Fetch = Callable[[Tensor], tuple[Tensor, Tensor]]


class Scores(Probe):
    """Score a fixed random subset of the training set, un-augmented and in evaluation mode.

    One row of lists: `index`, `label`, and the values of each signal, to six significant digits.

    Args:
        examples: size of the subset; null is the whole set.
        signals: names in `isbench.signals.SCORES`.
    """

    def __init__(self, examples: Annotated[int, Ge(1)] | None, signals: list[Score]):
        super().__init__()
        self.examples = examples
        self.signals = signals

    def allocate(self, parts: Parts) -> None:
        n = parts.dataset.num_examples
        if self.examples is not None and self.examples > n:
            raise ConfigError(f"probe.examples={self.examples} is larger than the training set ({n} examples)")
        self.subset = fixed_subset(n, self.examples).sort().values.to(parts.dataset.device)

    def measure(self, parts: Parts) -> list[dict[str, Any]]:
        with evaluation_mode(parts.model):
            scores = score(parts, self.subset, parts.dataset.plain, self.signals)
        labels = parts.dataset.targets[self.subset]
        lists = {name: rounded(values) for name, values in scores.items()}
        return [{"index": self.subset.tolist(), "label": labels.tolist(), **lists}]


class ScoresInTraining(Probe):
    """Keep the scores that each example had in its last training step, with its inputs there and before the update.

    One row of lists, of the examples that have been trained on: `index`, `label`, and the values of each signal, to six
    significant digits. The step's own forward pass gives all signals but the norm of the whole gradient. This one is
    taken in evaluation mode, since batch norm in train mode ties examples together, while the clock stands still.

    Args:
        signals: names in `isbench.signals.SCORES`.
    """

    scores: Tensor  # (N, number of signals) float32; NaN before the first step

    def __init__(self, signals: list[Score]):
        super().__init__()
        self.signals = signals
        self.observes = tuple(name for name in signals if name != FULL_GRADIENT)

    def allocate(self, parts: Parts) -> None:
        self.parts = parts
        shape = parts.dataset.num_examples, len(self.signals)
        self.register_buffer("scores", torch.full(shape, torch.nan, device=parts.dataset.device))

    def observe(self, draw: Draw, signals: Signals) -> None:
        parts, batch, scores = self.parts, draw.batch, dict(signals)
        if FULL_GRADIENT in self.signals:
            with parts.clock.paused(), evaluation_mode(parts.model):
                scores[FULL_GRADIENT] = per_example_gradient_norm(
                    parts.model, parts.criterion, batch.inputs, batch.targets
                )
        assign(self.scores, batch.indices, torch.stack([scores[name] for name in self.signals], dim=1))

    def measure(self, parts: Parts) -> list[dict[str, Any]]:
        index = self.scores[:, 0].isfinite().nonzero().flatten()
        if not len(index):
            return []
        columns = zip(self.signals, map(rounded, self.scores[index].T), strict=True)
        return [{"index": index.tolist(), "label": parts.dataset.targets[index].tolist()} | dict(columns)]


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
