"""The values that pass between data, samplers and the training loop.

All shapes use these symbols: N training examples, b batch, B pool, C classes, D features, V parameters of a view; n and
k are any numbers of examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Examples as the model sees them. A view holds the parameters of the augmentation that made an input."""

    indices: Tensor  # (n,) int64, into the training set (or its slots)
    inputs: Tensor  # (n, ...) float32: augmented and normalised
    targets: Tensor  # (n,) int64
    views: Tensor  # (n, V) float32: parameters of the augmentation

    def __len__(self) -> int:
        return len(self.indices)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the batch, by name."""
        return dict(vars(self))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Batch":
        """Return the batch that has these tensors."""
        return cls(**tensors)

    def split(self, size: int) -> list["Batch"]:
        """Return batches of at most `size`, in order."""
        columns = zip(*(tensor.split(size) for tensor in vars(self).values()), strict=True)
        return [Batch(*column) for column in columns]

    def take(self, positions: Tensor) -> "Batch":
        """Return the examples at `positions` (k,), repeats allowed."""
        return Batch(self.indices[positions], self.inputs[positions], self.targets[positions], self.views[positions])

    def join(self, other: "Batch") -> "Batch":
        """Return these examples, followed by the other batch."""
        return Batch(*(torch.cat(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Draw:
    """The examples and weights that a sampler chose for one update. The objective is mean(weights * losses)."""

    batch: Batch
    weights: Tensor  # (n,) float32
    memo: Mapping[str, Tensor] = field(default_factory=dict)  # (n, ...) each: what `observe` needs to know of this draw
    acts: bool = True  # whether the method had a say; False while it still, or for now, samples plainly

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the draw, by name."""
        return {**self.batch.tensors(), "weights": self.weights, **self.memo}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Draw":
        """Return the draw that has these tensors."""
        memo = dict(tensors)
        batch = Batch.of({name: memo.pop(name) for name in Batch.__dataclass_fields__})
        return cls(batch, memo.pop("weights"), memo)


class Forward(NamedTuple):
    """The result of a forward pass, from which per-example signals follow."""

    logits: Tensor  # (n, C)
    features: Tensor  # (n, D): input of the last linear layer


@dataclass
class Progress:
    """How far a run has come.

    `effective_updates` is the sum of the gains; without gains it equals `updates`. `acted_updates` are those at which
    the method had a say.
    """

    num_examples: int
    updates: int = 0
    effective_updates: float = 0.0
    acted_updates: int = 0
    seconds: float = 0.0
    examples_trained: int = 0
    examples_scored: int = 0

    @property
    def epoch(self) -> float:
        """Passes over the training set, counted in examples trained."""
        return self.examples_trained / self.num_examples

    def count(self, draw: Draw, gain: float) -> None:
        """Count an update that trained on `draw` and is worth `gain` uniform ones."""
        self.updates += 1
        self.effective_updates += gain
        self.acted_updates += draw.acts
        self.examples_trained += len(draw.batch)

    def state_dict(self) -> dict[str, int | float]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        vars(self).update(state)
