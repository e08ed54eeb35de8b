"""Prioritized sampling: the last score of every example decides how often it is drawn.

Schaul, Quan, Antonoglou and Silver (2016), "Prioritized Experience Replay", the proportional variant (section 3.3,
Algorithm 1), with training examples for transitions and the loss for the temporal-difference error. Deviations:

- weights are divided by the largest of the batch, not of the whole set;
- beta rises with the share of the budget spent, unless it is kept constant.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from isbench.samplers.base import Sampler, Signals
from isbench.samplers.sum_tree import SumTree
from isbench.signals import PER_EXAMPLE, Score
from isbench.types import Draw


class Prioritized(Sampler):
    """Draw from the whole training set with P(i) proportional to (last score + eps)^alpha, and weights (N P(i))^-beta.

    One example is drawn from each of b equal parts of the total. Those not seen yet have the largest priority so far, 1
    at first, and share one leaf of the tree.

    Args:
        signal: the score, one of `isbench.signals.SCORES`.
        alpha: 0 is uniform, 1 proportional.
        beta: exponent of the weights at the start of the budget.
        anneal: let beta rise linearly to 1 at the end of the budget; otherwise it is constant.
        eps: keeps priorities above zero.
        normalize: divide the weights by the largest of the batch.

    Estimator: biased (beta < 1: towards high scores; normalize: by a random factor of at most 1), else unbiased
    Memory: 16.5 bytes per example
    Cost: O(log N) per draw and per new score
    GPU-CPU syncs: 0 per update
    """

    queue: Tensor  # (N,) examples in the order in which they are first seen
    num_seen: Tensor  # ()
    max_priority: Tensor  # (), of priorities raised to alpha
    unseen_leaf: Tensor  # (1,)

    def __init__(
        self,
        signal: Score = "loss",
        alpha: Annotated[float, Ge(0)] = 0.6,
        beta: Annotated[float, Ge(0), Le(1)] = 0.4,
        eps: Annotated[float, Gt(0)] = 1e-6,
        normalize: bool = True,
        anneal: bool = True,
    ):
        super().__init__()
        self.signal = signal
        self.alpha = alpha
        self.beta = beta
        self.eps = eps
        self.normalize = normalize
        self.anneal = anneal
        self.observes, self.asks = ((signal,), ()) if signal in PER_EXAMPLE else ((), ("score",))

    def allocate(self) -> None:
        workspace = self.workspace
        n, device = workspace.num_examples, workspace.device
        self.tree = SumTree(n + 1).to(device)
        self.register_buffer("queue", torch.randperm(n, device=device, generator=workspace.generator))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("max_priority", torch.ones((), dtype=torch.float64))
        self.register_buffer("unseen_leaf", torch.full((1,), n, device=device), persistent=False)
        self.tree.update(self.unseen_leaf, torch.full((1,), n, device=device))

    def current_beta(self) -> float:
        """Return the exponent of the weights at this point of the budget."""
        return self.beta + (1 - self.beta) * min(self.workspace.fraction(), 1.0) if self.anneal else self.beta

    def draw(self) -> Draw:
        workspace = self.workspace
        leaves = self.tree.draw(workspace.batch_size, workspace.generator, stratified=True)
        is_unseen = leaves == self.unseen_leaf
        places = (self.num_seen + is_unseen.cumsum(0) - 1).clamp_(0, workspace.num_examples - 1)
        indices = torch.where(is_unseen, self.queue[places], leaves)
        priorities = torch.where(is_unseen, self.max_priority, self.tree.weights[0, leaves])
        self.num_seen.add_(is_unseen.sum()).clamp_(max=workspace.num_examples)
        weights = (workspace.num_examples * priorities / self.tree.totals()) ** -self.current_beta()
        if self.normalize:
            weights = weights / weights.amax()
        return Draw(workspace.fetch(indices), weights.float())

    def observe(self, draw: Draw, signals: Signals) -> None:
        scores = self.observed(self.signal, draw, signals)
        priorities = (scores.double() + self.eps) ** self.alpha
        torch.maximum(self.max_priority, priorities.amax(), out=self.max_priority)
        unseen_mass = (self.workspace.num_examples - self.num_seen) * self.max_priority
        leaves = torch.cat([draw.batch.indices, self.unseen_leaf])
        self.tree.update(leaves, torch.cat([priorities, unseen_mass[None]]))

    def diagnostics(self) -> dict[str, float]:
        return {"beta": self.current_beta(), "unseen": float(self.workspace.num_examples - self.num_seen)}

    def probabilities(self) -> Tensor:
        """Return the examples' shares of all priorities."""
        priorities = self.tree.weights[0, :-1].clone()
        priorities[self.queue[int(self.num_seen) :]] = self.max_priority
        return priorities / priorities.sum()
