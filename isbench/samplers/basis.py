"""What a sampler may ask for, whoever trains: sizes, indices, scores, progress, and a stream of random numbers.

Two classes give it: `isbench.samplers.workspace.Workspace` in a run, `isbench.guide.Surroundings` in a training loop of
one's own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from isbench.types import Batch, Draw, Progress


class Feed:
    """Rows of equally long tensors, handed out in order. When all are taken, new ones are made."""

    def __init__(self, device: torch.device):
        self.device = device
        self.columns: tuple[Tensor, ...] = ()
        self.num_rows = self.taken = 0

    def take(self, k: int, refill: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return the next k rows of each column, (k, ...). `refill` makes the columns (m, ...) that follow."""
        pieces = []
        while k > 0:
            if self.taken == self.num_rows:
                self._hold(refill())
            size = min(k, self.num_rows - self.taken)
            pieces.append(tuple(column.narrow(0, self.taken, size) for column in self.columns))
            self.taken += size
            k -= size
        return pieces[0] if len(pieces) == 1 else tuple(map(torch.cat, zip(*pieces, strict=True)))

    def state_dict(self) -> dict[str, Any]:
        return {"columns": list(self.columns), "taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._hold(tuple(column.to(self.device) for column in state["columns"]))
        self.taken = state["taken"]

    def _hold(self, columns: tuple[Tensor, ...]) -> None:
        self.columns, self.taken = columns, 0
        self.num_rows = len(columns[0]) if columns else 0


class Basis:
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
        progress: how far the training has come.
    """

    num_classes: int
    targets: Tensor
    input_shape: tuple[int, ...]
    num_features: int
    has_recurrent_layers: bool
    stored_views: Tensor | None

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        device: torch.device,
        generator: torch.Generator,
        order: torch.Generator,
        progress: Progress,
    ):
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.device = device
        self.generator = generator
        self.progress = progress
        self._order_stream = order
        self._passes = Feed(device)

    def fraction(self) -> float:
        """Return the share of the budget that is spent, from 0 to about 1."""
        raise NotImplementedError

    def data_checksum(self) -> str | None:
        """Return the checksum of the data set, None in a loop of one's own, where nobody knows it."""
        return None

    def uniform(self, k: int) -> Tensor:
        """Return k indices drawn independently and uniformly, (k,)."""
        return torch.randint(self.num_examples, (k,), device=self.device, generator=self._order_stream)

    def candidates(self, k: int) -> Tensor:
        """Return the next k indices, (k,), of an endless stream of shuffled passes over the training set."""
        return self._passes.take(k, self._shuffle)[0]

    def draw_views(self, k: int) -> Tensor:
        """Return fresh augmentation parameters, (k, V)."""
        raise NotImplementedError

    def view_offset(self, views: Tensor) -> Tensor | None:
        """Return how far each view (n, V) moves the image, in pixels (n,), or None if the augmentation moves none."""
        raise NotImplementedError

    def fetch(self, indices: Tensor, views: Tensor | None = None) -> Any:
        """Return the examples at `indices` (n,), seen through `views` (n, V); fresh views unless given or fixed."""
        raise NotImplementedError

    def plain(self, indices: Tensor) -> Any:
        """Return the examples at `indices` (n,) without fresh randomness: in their stored views, else un-augmented."""
        raise NotImplementedError

    def score(self, batch: Batch, signal: str) -> Tensor:
        """Return a per-example signal of `batch`, (n,) float32; `signal` is one of `isbench.signals.SCORES`."""
        raise NotImplementedError

    def score_dataset(self, signal: str) -> Tensor:
        """Return a per-example signal of the whole training set, (N,): un-augmented, or in the stored views."""
        raise NotImplementedError

    def mean_gradient(self) -> list[Tensor]:
        """Return the gradient of the training set's mean loss for each trainable parameter, as in `score_dataset`."""
        raise NotImplementedError

    def gradient_product(self, draw: Draw) -> Tensor:
        """Return <g, g'>, (): g is the gradient of the update in progress, g' that of `draw` at the same parameters.

        Both are the gradients that training takes: in train mode, with the sampler's weights, the penalty included.
        """
        raise NotImplementedError

    def parameters(self) -> list[Tensor]:
        """Return the trainable parameters, without a graph."""
        raise NotImplementedError

    def seconds(self, function: Callable[[], object], calls: int = 9) -> float:
        """Return the median seconds of a call on the slowest rank, work on the device included. It waits for that."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return self._passes.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._passes.load_state_dict(state)

    def _shuffle(self) -> tuple[Tensor]:
        return (torch.randperm(self.num_examples, device=self.device, generator=self._order_stream),)
