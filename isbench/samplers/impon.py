"""IMPON: train on the examples for which a linear model, fitted during training, predicts the highest loss.

Ganapathiraman, Calderon and Joshi (2022), "IMPON: Efficient IMPortance sampling with ONline regression for rapid neural
network training", section 3. docs/samplers.md says what the paper leaves open.
"""

import math
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from isbench.samplers.base import Sampler, Signals, assign
from isbench.types import Batch, Draw

CORRELATION_WEIGHT = 0.01  # of a batch in the moving average


class Impon(Sampler):
    """Rank a uniform bank of examples by predicted loss, and train on its top without weights.

    The prediction is theta . (x_i, |W|), from an example's inputs x_i and the norm |W| of the network's weights. theta
    takes an SGD step on the losses of each batch, and is set to zero after each epoch.

    Args:
        bank_size: examples ranked per update, drawn with replacement; at least b.
        regressor_lr: learning rate of theta.
        inputs: x_i. raw: the augmented inputs. features: the input of the network's last layer at the example's last
            visit, zeros before the first.
        lowest: train on the lowest predictions instead (the paper's "IMPONwLowScores").
        fit_level: add a constant that fits each batch best, so that theta learns from losses about their mean. Without
            it (the paper's reading) predictions stay far below the losses, and theta goes where the mean input points.

    Estimator: biased (towards high predicted loss; with `lowest` towards low)
    Memory: 0 bytes per example; inputs=features: 4 D bytes for D features
    Cost: fetching a bank, and a product of it with a vector, per draw; a regression step per update
    GPU-CPU syncs: 0 per update
    """

    without = {"features": "inputs='raw'", "num_features": "inputs='raw'"}
    theta: Tensor
    cache: Tensor
    regression_error: Tensor
    correlation: Tensor  # of predictions and losses within a batch, a moving average

    def __init__(
        self,
        bank_size: int = 200,
        regressor_lr: Annotated[float, Gt(0)] = 1e-6,
        inputs: Literal["raw", "features"] = "raw",
        lowest: bool = False,
        fit_level: bool = False,
    ):
        super().__init__()
        self.bank_size = bank_size
        self.regressor_lr = regressor_lr
        self.inputs = inputs
        self.lowest = lowest
        self.fit_level = fit_level
        self.observes = ("loss", "weight_norm", "features") if inputs == "features" else ("loss", "weight_norm")
        self.asks = ("num_features",) if inputs == "features" else ("input_shape",)

    def allocate(self) -> None:
        self.check_pool(self.bank_size, "bank_size")
        if self.inputs == "features":
            size = self.workspace.num_features
            self.register_buffer("cache", torch.zeros(self.workspace.num_examples, size))
        else:
            size = math.prod(self.workspace.input_shape)
        self.register_buffer("theta", torch.zeros(size + 1))  # the last entry belongs to |W|
        self.register_buffer("regression_error", torch.zeros(()))
        self.register_buffer("correlation", torch.zeros(()))

    def draw(self) -> Draw:
        workspace = self.workspace
        if workspace.progress.examples_trained % workspace.num_examples < workspace.batch_size:  # an epoch begins
            self.theta.zero_()
        bank = workspace.fetch(workspace.uniform(self.bank_size))
        predicted = self._represent(bank) @ self.theta[:-1]
        shuffled = torch.randperm(self.bank_size, device=workspace.device, generator=workspace.generator)  # breaks ties
        ranked = shuffled[predicted[shuffled].argsort(descending=not self.lowest, stable=True)]
        chosen = ranked[: workspace.batch_size]
        # Weights are 1; a regressor that is no longer finite must not go unnoticed.
        predicted = predicted[chosen]
        return Draw(bank.take(chosen), 1 + 0 * predicted, {"predicted": predicted})

    def observe(self, draw: Draw, signals: Signals) -> None:
        represented, norm, losses = self._represent(draw.batch), signals["weight_norm"], signals["loss"]
        errors = torch.addmv(self.theta[-1] * norm - losses, represented, self.theta[:-1])
        if self.fit_level:
            errors -= errors.mean()
        self.regression_error.copy_(errors.dot(errors) / len(errors))
        rate = self.regressor_lr * 2 / len(errors)
        self.theta[:-1].addmv_(represented.T, errors, alpha=-rate)
        self.theta[-1].sub_(errors.sum() * norm, alpha=rate)
        pair = torch.stack([draw.memo["predicted"], losses])
        correlation = pair.corrcoef()[0, 1].nan_to_num()  # equal predictions, after a reset, tell nothing
        self.correlation.lerp_(correlation, CORRELATION_WEIGHT)
        if self.inputs == "features":
            indices = draw.batch.indices
            assign(self.cache, indices, signals["features"])

    def diagnostics(self) -> dict[str, float]:
        return {"regression_error": float(self.regression_error), "correlation": float(self.correlation)}

    def _represent(self, batch: Batch) -> Tensor:
        """Return x of each example, (n, D)."""
        return self.cache[batch.indices] if self.inputs == "features" else batch.inputs.flatten(1)
