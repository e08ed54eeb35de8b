"""What a sampler sees of a run: see `isbench.samplers.basis` for what it may ask for.

Every forward pass that a sampler asks for goes through here and is counted. Collaborators are private.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from isbench.data.resident import ResidentDataset
from isbench.samplers.basis import Basis
from isbench.signals import FULL_GRADIENT, PER_EXAMPLE, per_example, per_example_gradient_norm
from isbench.training.budget import Budget
from isbench.training.engine import Tensors
from isbench.training.ranks import SharedBatch
from isbench.training.step import TrainStep
from isbench.training.streams import Streams
from isbench.types import Batch, Draw, Progress


class Workspace(Basis):
    """What a run gives its sampler: a resident data set, the model that trains, and the streams of the run."""

    def __init__(
        self,
        dataset: ResidentDataset,
        step: TrainStep,
        batch_size: int,
        streams: Streams,
        progress: Progress,
        budget: Budget,
    ):
        super().__init__(dataset.num_examples, batch_size, dataset.device, streams.sampler, streams.order, progress)
        self._dataset = dataset
        self._step = step
        self._engine = step.engine
        self._model = step.engine.model
        self._criterion = step.criterion
        self._streams = streams
        self._budget = budget
        self._ranks = step.ranks
        self._score_chunk = dataset.chunk_size
        self.num_classes = dataset.num_classes
        self.targets = dataset.targets
        self.input_shape = dataset.input_shape
        self.num_features = self._model.head.in_features
        self.has_recurrent_layers = self._model.has_recurrent_layers
        self.stored_views = dataset.stored_views
        self._scores = {signal: self._engine.captured(partial(self._forward_score, signal)) for signal in PER_EXAMPLE}
        self._gradient_chunk = max(1, self._score_chunk // 8)  # activations are kept for the backward pass

    def fraction(self) -> float:
        return self._budget.fraction(self.progress)

    def data_checksum(self) -> str:
        return self._dataset.checksum()

    def draw_views(self, k: int) -> Tensor:
        return self._dataset.draw_views(k, self._streams.augmentation)

    def view_offset(self, views: Tensor) -> Tensor | None:
        return self._dataset.view_offset(views)

    def fetch(self, indices: Tensor, views: Tensor | None = None) -> Batch:
        if views is None and self.stored_views is None:
            views = self.draw_views(len(indices))
        return self._shared(self._dataset.fetch, indices, views)

    def plain(self, indices: Tensor) -> Batch:
        """Return the examples at `indices` (n,) without fresh randomness: in their stored views, else un-augmented."""
        if self.stored_views is not None:
            return self._dataset.fetch(indices, None)
        inputs, targets = self._dataset.plain(indices)
        return Batch(indices, inputs, targets, torch.empty(len(indices), 0, device=self.device))

    def score(self, batch: Batch, signal: str) -> Tensor:
        """Return a per-example signal of `batch`, (n,) float32.

        The model runs in evaluation mode (no dropout, stored batch statistics), so that a score depends on its own
        example alone and scoring leaves no trace in the model.
        """
        self._model.eval()
        part = self._ranks.part(batch)
        pieces = [part] if len(part) <= self._score_chunk else part.split(self._score_chunk)
        scores = [self._score(piece, signal) for piece in pieces if len(piece)] or [torch.empty(0, device=self.device)]
        self._model.train()
        self.progress.examples_scored += len(batch)
        part_scores = scores[0] if len(scores) == 1 else torch.cat(scores)
        return self._ranks.gather({signal: part_scores}, len(batch))[signal]

    def score_dataset(self, signal: str) -> Tensor:
        scores = []
        for start in range(0, self.num_examples, self._score_chunk):
            indices = torch.arange(start, min(start + self._score_chunk, self.num_examples), device=self.device)
            no_views = torch.empty(len(indices), 0, device=self.device)
            scores.append(self.score(self._shared(lambda some, _: self.plain(some), indices, no_views), signal))
        return torch.cat(scores)

    def mean_gradient(self) -> list[Tensor]:
        parameters = self._model.trainable()
        gradient = [torch.zeros_like(p) for p in parameters]
        self._model.eval()
        mine = self._ranks.part(torch.arange(self.num_examples, device=self.device))
        for indices in mine.split(self._gradient_chunk):
            batch = self.plain(indices)
            loss = self._criterion(self._model(batch.inputs), batch.targets).sum() / self.num_examples
            torch._foreach_add_(gradient, torch.autograd.grad(loss, parameters))
        self._model.train()
        self.progress.examples_scored += self.num_examples
        return [self._ranks.add_up(tensor) for tensor in gradient]

    def gradient_product(self, draw: Draw) -> Tensor:
        self.progress.examples_scored += len(draw.batch)
        return self._step.product_with(draw)

    def parameters(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self._model.trainable()]

    def seconds(self, function: Callable[[], object], calls: int = 9) -> float:
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            function()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        return self._ranks.largest(statistics.median(times))

    def _shared(self, fetch: Callable[[Tensor, Tensor | None], Batch], indices: Tensor, views: Tensor | None) -> Any:
        """Return fetched examples, or where several ranks share them, a batch of which each fetches its part."""
        if self._ranks.size == 1:
            return fetch(indices, views)
        if views is None:
            assert self.stored_views is not None
            views = self.stored_views[indices]
        return SharedBatch(indices, self.targets[indices], views, fetch)

    def _score(self, batch: Batch, signal: str) -> Tensor:
        if signal == FULL_GRADIENT:
            return per_example_gradient_norm(self._model, self._criterion, batch.inputs, batch.targets)
        return self._scores[signal](batch)[signal]

    @torch.no_grad()
    def _forward_score(self, signal: str, batch: Batch) -> Tensors:
        return per_example((signal,), self._engine.run(batch.inputs), batch.targets, self._criterion)
