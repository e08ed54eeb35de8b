"""What a sampler sees of a run: examples, their scores by the model, progress, and a stream of random numbers.

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
from isbench.signals import FULL_GRADIENT, PER_EXAMPLE, per_example, per_example_gradient_norm
from isbench.training.budget import Budget
from isbench.training.engine import Tensors
from isbench.training.ranks import SharedBatch
from isbench.training.step import TrainStep
from isbench.training.streams import Streams
from isbench.types import Batch, Draw, Progress


class Workspace:
    """The training set and the model, as far as a sampler may use them.

    Attributes:
        num_examples: N; with slots, each slot is an example.
        num_classes: C.
        batch_size: b.
        targets: the labels of all examples, (N,) int64.
        input_shape: the shape of one input, (C, H, W) or (T, F).
        num_features: D, the size of the last layer's input.
        has_recurrent_layers: whether the model has any.
        stored_views: (N, V) where every example has one fixed view, else None.
        device: where the model and all tensors given out lie.
        generator: the sampler's own stream of random numbers.
        progress: how far the run has come.
    """

    def __init__(
        self,
        dataset: ResidentDataset,
        step: TrainStep,
        batch_size: int,
        streams: Streams,
        progress: Progress,
        budget: Budget,
    ):
        self._dataset = dataset
        self._step = step
        self._engine = step.engine
        self._model = step.engine.model
        self._criterion = step.criterion
        self.batch_size = batch_size
        self._streams = streams
        self.progress = progress
        self._budget = budget
        self._ranks = step.ranks
        self._score_chunk = dataset.chunk_size
        self.device = dataset.device
        self.num_examples = dataset.num_examples
        self.num_classes = dataset.num_classes
        self.targets = dataset.targets
        self.input_shape = dataset.input_shape
        self.num_features = self._model.head.in_features
        self.has_recurrent_layers = self._model.has_recurrent_layers
        self.stored_views = dataset.stored_views
        self.generator = streams.sampler
        self._order: Tensor | None = None  # the current shuffled pass of `candidates`
        self._cursor = 0
        self._scores = {signal: self._engine.captured(partial(self._forward_score, signal)) for signal in PER_EXAMPLE}
        self._gradient_chunk = max(1, self._score_chunk // 8)  # activations are kept for the backward pass

    def fraction(self) -> float:
        """Return the share of the run's budget that is spent, from 0 to about 1."""
        return self._budget.fraction(self.progress)

    def uniform(self, k: int) -> Tensor:
        """Return k indices drawn independently and uniformly, (k,)."""
        return torch.randint(self.num_examples, (k,), device=self.device, generator=self._streams.order)

    def candidates(self, k: int) -> Tensor:
        """Return the next k indices, (k,), of an endless stream of shuffled passes over the training set."""
        if self._order is None:
            self._order = self._shuffle()
        pieces = []
        while k > 0:
            if self._cursor == self.num_examples:
                self._order, self._cursor = self._shuffle(), 0
            piece = self._order[self._cursor : self._cursor + k]
            self._cursor += len(piece)
            k -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def draw_views(self, k: int) -> Tensor:
        """Return fresh augmentation parameters, (k, V)."""
        return self._dataset.draw_views(k, self._streams.augmentation)

    def view_offset(self, views: Tensor) -> Tensor | None:
        """Return how far each view (n, V) moves the image, in pixels (n,), or None if the augmentation moves none."""
        return self._dataset.view_offset(views)

    def fetch(self, indices: Tensor, views: Tensor | None = None) -> Batch:
        """Return the examples at `indices` (n,), seen through `views` (n, V); fresh views unless given or fixed."""
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
        """Return a per-example signal of `batch`, (n,) float32; `signal` is one of `isbench.signals.SCORES`.

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
        """Return a per-example signal of the whole training set, (N,): un-augmented, or in the stored views."""
        scores = []
        for start in range(0, self.num_examples, self._score_chunk):
            indices = torch.arange(start, min(start + self._score_chunk, self.num_examples), device=self.device)
            no_views = torch.empty(len(indices), 0, device=self.device)
            scores.append(self.score(self._shared(lambda some, _: self.plain(some), indices, no_views), signal))
        return torch.cat(scores)

    def mean_gradient(self) -> list[Tensor]:
        """Return the gradient of the training set's mean loss for each trainable parameter, as in `score_dataset`."""
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
        """Return <g, g'>, (): g is the gradient of the update in progress, g' that of `draw` at the same parameters.

        Both are the gradients that training takes: in train mode, with the sampler's weights, the penalty included.
        """
        self.progress.examples_scored += len(draw.batch)
        return self._step.product_with(draw)

    def parameters(self) -> list[Tensor]:
        """Return the trainable parameters, without a graph."""
        return [parameter.detach() for parameter in self._model.trainable()]

    def seconds(self, function: Callable[[], object], calls: int = 9) -> float:
        """Return the median seconds of a call on the slowest rank, work on the device included. It waits for that."""
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            function()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        return self._ranks.largest(statistics.median(times))

    def state_dict(self) -> dict[str, Tensor | int | None]:
        return {"order": self._order, "cursor": self._cursor}

    def load_state_dict(self, state: dict) -> None:
        order = state["order"]
        self._order = None if order is None else order.to(self.device)
        self._cursor = state["cursor"]

    def _shared(self, fetch: Callable[[Tensor, Tensor | None], Batch], indices: Tensor, views: Tensor | None) -> Any:
        """Return fetched examples, or where several ranks share them, a batch of which each fetches its part."""
        if self._ranks.size == 1:
            return fetch(indices, views)
        if views is None:
            assert self.stored_views is not None
            views = self.stored_views[indices]
        return SharedBatch(indices, self.targets[indices], views, fetch)

    def _shuffle(self) -> Tensor:
        return torch.randperm(self.num_examples, device=self.device, generator=self._streams.order)

    def _score(self, batch: Batch, signal: str) -> Tensor:
        if signal == FULL_GRADIENT:
            return per_example_gradient_norm(self._model, self._criterion, batch.inputs, batch.targets)
        return self._scores[signal](batch)[signal]

    @torch.no_grad()
    def _forward_score(self, signal: str, batch: Batch) -> Tensors:
        return per_example((signal,), self._engine.run(batch.inputs), batch.targets, self._criterion)
