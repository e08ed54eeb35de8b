"""Importance sampling by a loss that a small recurrent network predicts from each example's past losses.

Katharopoulos and Fleuret (2017), "Biased Importance Sampling for Deep Neural Network Training" (arXiv 1706.00043), with
the sizes and defaults of the authors' library (idiap/importance-sampling). Deviations:

- past losses are masked by their number, not by value, so that a loss of zero counts;
- the predictor has PyTorch's LSTM cells and one uniform initialisation.
"""

from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from isbench.samplers.base import Sampler, Signals, assign, categorical
from isbench.types import Draw


class Predictor(nn.Module):
    """Two LSTMs of 32 over past losses, beside a 32-dimensional embedding of the class, into one number."""

    WIDTH = 32

    def __init__(self, num_classes: int):
        super().__init__()
        self.recurrent = nn.LSTM(1, self.WIDTH, num_layers=2, batch_first=True)
        self.embedding = nn.Embedding(num_classes, self.WIDTH)
        self.output = nn.Linear(2 * self.WIDTH, 1)

    def forward(self, past: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """Return predicted losses (n,) from past losses (n, T), oldest first; `lengths` (n,) of each row count."""
        states, _ = self.recurrent(past[:, :, None])
        last = states[torch.arange(len(past), device=past.device), lengths - 1]  # later steps do not reach back to it
        return self.output(torch.cat([last, self.embedding(targets)], dim=1)).squeeze(1)


def push(past: Tensor, lengths: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Append `values` (n,) to past values (n, T) of the given lengths (n,), dropping the oldest of a full row."""
    capacity = past.shape[1]
    past = torch.where((lengths == capacity)[:, None], past.roll(-1, dims=1), past)
    past = past.scatter(1, lengths.clamp(max=capacity - 1)[:, None], values[:, None])
    return past, (lengths + 1).clamp(max=capacity)


def biased_weights(probabilities: Tensor, pool_size: int, exponent: float) -> Tensor:
    """Return w^k times a constant that keeps the sum of w p over the batch, with w = 1 / (B p) and k the exponent."""
    unbiased = 1 / (pool_size * probabilities)
    powered = unbiased**exponent
    return powered * torch.dot(unbiased, probabilities) / torch.dot(powered, probabilities)


class LossPredictor(Sampler):
    """Draw each batch from a uniform pool, with replacement, in proportion to predicted losses.

    Each update, the predictor takes an Adam step on the squared error for the batch. Each history starts with the value
    1.

    Args:
        pool_size: B, drawn with replacement.
        exponent: k of the weights (1 / (B p))^k, rescaled. 1 is unbiased; with less, large losses count more.
        predictor_lr: learning rate of the predictor.

    Estimator: biased (towards large losses; unbiased with exponent=1)
    Memory: 48 bytes per example
    Cost: the predictor's forward pass over B histories per draw, and a step of it per update
    GPU-CPU syncs: 0 per update
    """

    CAPACITY = 10
    FLOOR = 1e-6

    past: Tensor
    lengths: Tensor
    prediction_error: Tensor

    observes = ("loss",)
    remembers = ("optimizer",)

    def __init__(
        self,
        pool_size: int = 2048,
        exponent: Annotated[float, Le(1)] = 0.5,
        predictor_lr: Annotated[float, Gt(0)] = 0.001,
    ):
        super().__init__()
        self.pool_size = pool_size
        self.exponent = exponent
        self.predictor_lr = predictor_lr

    def allocate(self) -> None:
        workspace = self.workspace
        self.check_pool(self.pool_size)
        with torch.device("meta"):  # no numbers are drawn for weights here, so the global stream stays as it is
            predictor = Predictor(workspace.num_classes)
        self.predictor = predictor.to_empty(device=workspace.device)
        for parameter in self.predictor.parameters():
            nn.init.uniform_(parameter, -(Predictor.WIDTH**-0.5), Predictor.WIDTH**-0.5, generator=workspace.generator)
        self.optimizer = torch.optim.Adam(self.predictor.parameters(), self.predictor_lr, fused=True)  # no host reads
        past = torch.zeros(workspace.num_examples, self.CAPACITY)
        past[:, 0] = 1
        self.register_buffer("past", past)
        self.register_buffer("lengths", torch.ones(workspace.num_examples, dtype=torch.int64))
        self.register_buffer("prediction_error", torch.zeros(()))

    def draw(self) -> Draw:
        workspace = self.workspace
        pool = workspace.uniform(self.pool_size)
        with torch.no_grad():
            scores = self._predict(pool).clamp_min(self.FLOOR)
        positions, probabilities = categorical(scores, workspace.batch_size, workspace.generator)
        weights = biased_weights(probabilities, self.pool_size, self.exponent)
        return Draw(workspace.fetch(pool[positions]), weights.float())

    def observe(self, draw: Draw, signals: Signals) -> None:
        indices, losses = draw.batch.indices, signals["loss"]
        self.optimizer.zero_grad()
        error = F.mse_loss(self._predict(indices), losses)
        error.backward()
        self.optimizer.step()
        self.prediction_error.copy_(error.detach())
        past, lengths = push(self.past[indices], self.lengths[indices], losses)
        assign(self.past, indices, past)
        self.lengths[indices] = lengths  # the same for each repeat

    def diagnostics(self) -> dict[str, float]:
        return {"prediction_error": float(self.prediction_error)}

    def _predict(self, indices: Tensor) -> Tensor:
        return self.predictor(self.past[indices], self.lengths[indices], self.workspace.targets[indices])
