"""O-SGD: sampling by the exact gradient norms of all examples, the best that cheaper methods can approach.

Johnson and Guestrin (2018), "Training Deep Models Faster with Robust, Approximate Importance Sampling", section 3. Far
too slow to be useful.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from isbench.errors import Incompatible
from isbench.samplers.base import Sampler, categorical
from isbench.signals import FULL_GRADIENT, joint_norm
from isbench.types import Draw


def gain_ratio(norms: Tensor, mean_norm: Tensor, objective_norm: Tensor, batch_size: int) -> Tensor:
    """Return r = E|g_U|^2 / E|g_O|^2 (equation 6), how many uniform updates an oracle update is worth.

    By equation (5) with p uniform and with p proportional to the norms. If all gradients are zero it is 1.

    Args:
        norms: of the gradients of all losses (N,).
        mean_norm: of their mean.
        objective_norm: of the gradient of the objective, the penalty included.
    """
    norms = norms.double()
    shared = objective_norm.double().square() - mean_norm.double().square() / batch_size
    uniform = norms.square().mean() / batch_size + shared
    sampled = norms.mean().square() / batch_size + shared
    return torch.where(uniform == sampled, 1.0, uniform / sampled)


class Oracle(Sampler):
    """Draw in proportion to all gradient norms, with weights 1 / (N p), and raise the learning rate by the gain ratio.

    Norms and gain ratio (equation 6) belong to the last refresh, in evaluation mode, un-augmented or of each slot's
    view.

    Args:
        refresh_every: updates between two scorings of the whole set. Above 1, draws early in training can be worse than
            uniform.
        gain: multiply the learning rate by the gain ratio and advance the schedule by it.
        weight_decay: lambda of the penalty lambda / 2 |w|^2; the configuration passes the optimizer's.

    Estimator: unbiased
    Memory: 4 bytes per example
    Cost: every `refresh_every` updates, a gradient per training example and a backward pass over the set; O(N) per draw
    GPU-CPU syncs: 1 per update (the gain; none without)
    """

    without = {"mean_gradient": "gain=False", "parameters": "gain=False"}
    norms: Tensor
    ratio: Tensor

    def __init__(self, refresh_every: Annotated[int, Ge(1)] = 1, gain: bool = True, weight_decay: float = 0.0):
        super().__init__()
        self.refresh_every = refresh_every
        self.has_gain = gain
        self.weight_decay = weight_decay
        self.asks = ("score_dataset", "mean_gradient", "parameters") if gain else ("score_dataset",)

    def allocate(self) -> None:
        if self.workspace.has_recurrent_layers:
            raise Incompatible("sampler=oracle cannot be used with recurrent networks: it needs a gradient per example")
        self.register_buffer("norms", torch.zeros(self.workspace.num_examples))
        self.register_buffer("ratio", torch.ones((), dtype=torch.float64))

    def draw(self) -> Draw:
        workspace = self.workspace
        if workspace.progress.updates % self.refresh_every == 0:
            self._refresh()
        indices, probabilities = categorical(self.norms, workspace.batch_size, workspace.generator)
        weights = 1 / (workspace.num_examples * probabilities)
        return Draw(workspace.fetch(indices), weights.float())

    def gain(self) -> float:
        """Return the gain ratio of the last refresh. One host read."""
        return float(self.ratio) if self.has_gain else 1.0

    def diagnostics(self) -> dict[str, float]:
        return {"gain_ratio": float(self.ratio)}

    def probabilities(self) -> Tensor:
        """Return the probabilities of the last refresh; before the first, equal ones."""
        norms = self.norms.double()
        return torch.where(norms.sum() > 0, norms / norms.sum(), 1 / len(norms))

    def _refresh(self) -> None:
        workspace = self.workspace
        self.norms.copy_(workspace.score_dataset(FULL_GRADIENT))
        if not self.has_gain:
            return
        mean = workspace.mean_gradient()
        objective = torch._foreach_add(mean, workspace.parameters(), alpha=self.weight_decay)
        self.ratio.copy_(gain_ratio(self.norms, joint_norm(mean), joint_norm(objective), workspace.batch_size))
