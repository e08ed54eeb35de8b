"""IMPON: train on the examples for which a linear model, fitted online, predicts the highest loss.

Ganapathiraman, Calderon and Joshi (2022), "IMPON: Efficient IMPortance sampling with ONline regression for rapid neural
network training". Choosing a batch needs no forward pass of the deep model.

What the paper leaves open is settled so: the regressor has no intercept (the weight norm acts as one), starts from zero
and is reset to zero, and its step is taken on the mean squared error of the batch; an epoch is N examples trained; the
bank is drawn with replacement, independently at each update.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from isbench.errors import ConfigError
from isbench.samplers.base import Sampler, Signals, assign
from isbench.types import Batch, Draw


class Impon(Sampler):
    """Rank a uniform bank by predicted loss and train on the top of it, without weights (their section 3).

    The context of an example is its inputs x_i and the norm |W| of the deep model's weights. After each update one SGD
    step fits theta . (x_i, |W|) to the losses just seen, and theta is reset after every epoch. |W| is the same for a
    whole bank, so it cannot change the order and is left out of the ranking; it helps to fit the level of the losses.

    Args:
        bank_size: examples ranked per update, at least the batch size.
        regressor_lr: rate of the regressor's SGD.
        inputs: x_i. `raw`: the normalised, augmented inputs, flattened. `features`: the input of the deep model's last
            layer when the example was last trained on, zeros before that. The paper says "feature representation".
        lowest: train on the lowest predictions instead (their "IMPONwLowScores").

    Estimator: biased (towards examples of high predicted loss; `lowest`: of low predicted loss)
    Memory: 0 bytes per example; inputs=features: 4 D bytes for D features
    Cost: fetching a bank and one product of it with a vector per draw; one regression step per update
    Host reads: 0 per update
    """

    theta: Tensor
    cache: Tensor
    regression_error: Tensor

    def __init__(
        self,
        bank_size: int = 200,
        regressor_lr: float = 1e-6,
        inputs: Literal["raw", "features"] = "raw",
        lowest: bool = False,
    ):
        super().__init__()
        if not regressor_lr > 0:
            raise ConfigError(f"sampler.regressor_lr={regressor_lr}: must be above 0")
        self.bank_size = bank_size
        self.regressor_lr = regressor_lr
        self.inputs = inputs
        self.lowest = lowest
        self.observes = ("loss", "weight_norm", "features") if inputs == "features" else ("loss", "weight_norm")

    def allocate(self) -> None:
        self.check_pool(self.bank_size, "bank_size")
        if self.inputs == "features":
            size = self.workspace.num_features
            self.register_buffer("cache", torch.zeros(self.workspace.num_examples, size))
        else:
            size = math.prod(self.workspace.input_shape)
        self.register_buffer("theta", torch.zeros(size + 1))  # the last entry belongs to |W|
        self.register_buffer("regression_error", torch.zeros(()))

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
        return Draw(bank.take(chosen), 1 + 0 * predicted[chosen])

    def observe(self, draw: Draw, signals: Signals) -> None:
        represented, norm = self._represent(draw.batch), signals["weight_norm"]
        errors = torch.addmv(self.theta[-1] * norm - signals["loss"], represented, self.theta[:-1])
        self.regression_error.copy_(errors.dot(errors) / len(errors))
        rate = self.regressor_lr * 2 / len(errors)
        self.theta[:-1].addmv_(represented.T, errors, alpha=-rate)
        self.theta[-1].sub_(errors.sum() * norm, alpha=rate)
        if self.inputs == "features":
            indices = draw.batch.indices
            assign(self.cache, indices, signals["features"])

    def diagnostics(self) -> dict[str, float]:
        return {"regression_error": float(self.regression_error)}

    def _represent(self, batch: Batch) -> Tensor:
        """Return x of each example, (n, D)."""
        return self.cache[batch.indices] if self.inputs == "features" else batch.inputs.flatten(1)
