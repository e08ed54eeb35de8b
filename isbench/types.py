"""The values that pass between data, samplers and the training loop.

Symbols in shape comments, here and everywhere: N training examples, b batch, B pool, C classes, D features, V view
parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Examples as the model will see them. A view is the augmentation that produced an input."""

    indices: Tensor  # (n,) int64, into the training set (or its slots)
    inputs: Tensor  # (n, ...) float32: augmented and normalised
    targets: Tensor  # (n,) int64
    views: Tensor  # (n, V) float32: parameters of the augmentation

    def __len__(self) -> int:
        return len(self.indices)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that a batch consists of, by name."""
        return dict(vars(self))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Batch":
        """Return the batch that consists of these."""
        return cls(**tensors)

    def split(self, size: int) -> list["Batch"]:
        """Return batches of at most `size`, in order."""
        columns = zip(*(tensor.split(size) for tensor in vars(self).values()), strict=True)
        return [Batch(*column) for column in columns]

    def take(self, positions: Tensor) -> "Batch":
        """Return the examples at `positions` (k,), repeats allowed."""
        return Batch(self.indices[positions], self.inputs[positions], self.targets[positions], self.views[positions])

    def join(self, other: "Batch") -> "Batch":
        """Return these examples and then those of another batch."""
        return Batch(*(torch.cat(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Draw:
    """What a sampler decided for one update. The objective is mean(weights * losses)."""

    batch: Batch
    weights: Tensor  # (n,) float32
    memo: Mapping[str, Tensor] = field(default_factory=dict)  # (n, ...) each: what the method must recall of this draw

    def tensors(self) -> dict[str, Tensor]:
        """Return all that a draw consists of, by name."""
        return {**self.batch.tensors(), "weights": self.weights, **self.memo}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Draw":
        """Return the draw that consists of these."""
        memo = dict(tensors)
        batch = Batch.of({name: memo.pop(name) for name in Batch.__dataclass_fields__})
        return cls(batch, memo.pop("weights"), memo)


class Forward(NamedTuple):
    """What a forward pass leaves for the per-example signals."""

    logits: Tensor  # (n, C)
    features: Tensor  # (n, D): input of the last linear layer


@dataclass
class Progress:
    """How far a run has come. `effective_updates` sums the gains (equal to `updates` where a method has none)."""

    num_examples: int
    updates: int = 0
    effective_updates: float = 0.0
    seconds: float = 0.0
    examples_trained: int = 0
    examples_scored: int = 0

    @property
    def epoch(self) -> float:
        """Passes over the training set, counted in examples trained."""
        return self.examples_trained / self.num_examples

    def state_dict(self) -> dict[str, int | float]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        vars(self).update(state)
