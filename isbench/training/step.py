"""One training step in two calls: the gradient, and the optimizer's update.

Between forward and backward pass the sampler may change the weights; between the two calls it learns from the batch.
Weights and loss are float32 in every precision of the model, since importance weights can reach thousands.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from isbench.errors import Diverged
from isbench.models.norm import StatisticsWeights
from isbench.signals import PER_EXAMPLE, PER_STEP, CrossEntropy, joint_norm, per_example
from isbench.training.engine import Engine, Tensors
from isbench.training.ranks import ALONE, Ranks
from isbench.types import Draw

Reweight = Callable[[Draw, Mapping[str, Tensor]], Tensor]


class TrainStep:
    """Forward, signals, weighted loss, backward; then the optimizer.

    Args:
        reweight: gives the weights (n,) to train with, from a draw and the observed signals. It is captured in the
            engine's graphs, if there are any.
        observes: names of the signals to return from each step.
        clip_norm: the largest norm of the weighted gradient, or None.
        ranks: the processes that share the batch.
        sync_norm: take the statistics of weighted batch norm over the whole batch, not over each process's part.
        watch: is shown each draw and its signals before the update.
    """

    def __init__(
        self,
        engine: Engine,
        criterion: CrossEntropy,
        optimizer: torch.optim.Optimizer,
        reweight: Reweight,
        observes: Sequence[str] = (),
        clip_norm: float | None = None,
        ranks: Ranks = ALONE,
        sync_norm: bool = True,
        watch: Callable[[Draw, Tensors], None] = lambda draw, signals: None,
    ):
        self.engine = engine
        self.criterion = criterion
        self.optimizer = optimizer
        self.reweight = reweight
        self.observes_loss = "loss" in observes  # it is computed in any case
        self.example_signals = tuple(name for name in observes if name in PER_EXAMPLE and name != "loss")
        self.step_signals = tuple(name for name in observes if name in PER_STEP)
        self.clip_norm = clip_norm
        self.watch = watch
        self.parameters = engine.model.trainable()
        self.ranks = ranks
        self.statistics = StatisticsWeights(engine.model, ranks.part, is_shared=ranks.size > 1 and sync_norm)
        self._gradient = engine.captured(self._forward_and_backward, self.parameters)
        self._losses: list[Tensor] = []  # one scalar an update since the last report, left on the device
        self._rates: list[float] = []

    def compute_gradient(self, draw: Draw) -> dict[str, Tensor]:
        """Put the gradient of mean(weights * losses) in place; return the observed signals of the forward pass."""
        signals = self._gradient(draw)
        self._losses.append(signals.pop("objective"))
        self.watch(draw, signals)
        return signals

    def _forward_and_backward(self, draw: Draw) -> Tensors:
        for parameter in self.parameters:  # without the bookkeeping of optimizer.zero_grad()
            parameter.grad = None
        batch = self.ranks.part(draw.batch)
        with self.statistics.using(draw.weights):
            forward = self.engine.run(batch.inputs)
        targets = batch.targets
        losses = self.criterion(forward.logits.float(), targets)
        signals = per_example(self.example_signals, forward, targets, self.criterion) if self.example_signals else {}
        if self.observes_loss:
            signals["loss"] = losses.detach()
        signals = self.ranks.gather(signals, len(draw.batch))
        # The ranks' gradients are averaged: each is of a mean over its share of the batch.
        weights = self.ranks.part(self.reweight(draw, signals)) / (len(draw.batch) / self.ranks.size)
        losses.backward(weights)
        for name in self.step_signals:
            signals[name] = getattr(self, f"_{name}")()
        return {**signals, "objective": torch.dot(weights, losses.detach())}

    def product_with(self, draw: Draw) -> Tensor:
        """Return the inner product of the gradient in place and that of another draw at the same parameters, ().

        Both count the weight decay's part. The gradient and the running statistics stay as they are.
        """
        buffers = list(self.engine.model.buffers())
        kept = [buffer.clone() for buffer in buffers]
        gradients = [None if p.grad is None else p.grad.clone() for p in self.parameters]
        first = [gradient.clone() for gradient in self._whole_gradient()]
        self._gradient(draw)
        products = torch._foreach_mul(first, self._whole_gradient())
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
        return torch.stack([product.sum() for product in products]).sum()

    def update(self, learning_rate: float) -> None:
        """Take one optimizer step at this rate."""
        if self.clip_norm is not None:
            clip_grad_norm_(self.parameters, self.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self._rates.append(learning_rate)

    def report(self, updates: int) -> dict[int, float]:
        """Return the learning rate of each update since the last report at which it changed. One host read.

        Raises:
            Diverged: naming the update, if a loss since then was not finite.
        """
        losses, rates = self._losses, self._rates
        self.forget()
        first = updates - len(rates) + 1
        if losses:
            finite = self.ranks.add_up(torch.stack(losses)).isfinite()
            if not finite.all():
                raise Diverged(f"the training loss was not finite at update {first + int(finite.int().argmin())}")
        before = [None, *rates]
        return {first + i: rate for i, rate in enumerate(rates) if rate != before[i]}

    def forget(self) -> None:
        """Drop what is kept for `report`."""
        self._losses, self._rates = [], []

    @torch.no_grad()
    def _whole_gradient(self) -> list[Tensor]:
        """Return the gradient in place of each parameter that has one, the weight decay's part included."""
        whole: list[Tensor] = []
        for group in self.optimizer.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = tuple(p.grad for p in parameters)
            if group["weight_decay"]:
                gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
            whole.extend(gradients)
        return whole

    def _gradient_norm(self) -> Tensor:
        """Return the norm of the whole gradient before clipping."""
        return joint_norm(self._whole_gradient())

    def _weight_norm(self) -> Tensor:
        """Return the norm of all trainable parameters together."""
        return joint_norm([p.detach() for p in self.parameters])
