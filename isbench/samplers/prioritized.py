"""Prioritized sampling: the last score of every example decides how often it is drawn, through a sum tree.

Schaul, Quan, Antonoglou and Silver (2016), "Prioritized Experience Replay", the proportional variant (section 3.3 and
Algorithm 1), with the training set in the place of the replay memory and an example's loss in the place of its
temporal-difference error: P(i) = p_i^alpha / sum p^alpha with p = score + eps, and weights (N P(i))^-beta.

Deviations. The weights are divided by the largest of the batch rather than of the whole set, as in Dopamine's replay:
the set's largest belongs to the single smallest priority, which is one stale score, and would need a second tree.
Beta rises over the run's budget, the share spent taking the place of their count of updates.
"""

import torch
from torch import Tensor

from isbench.errors import ConfigError
from isbench.samplers.base import Sampler, Signals
from isbench.samplers.sum_tree import SumTree
from isbench.signals import PER_EXAMPLE, SCORES
from isbench.types import Draw


class Prioritized(Sampler):
    """Draw from the whole training set in proportion to (last score + eps)^alpha, one from each of b equal parts.

    An example not seen yet has the largest priority met so far (1 at first), as a new transition has in the paper. All
    of them share one leaf of the tree, whose mass follows that maximum, and wait in a queue in random order.

    Args:
        signal: the score, one of `isbench.signals.SCORES`; read from the training pass where that gives it.
        alpha: 0 is uniform, 1 fully proportional.
        beta: exponent of the weights at the start of the budget; it rises linearly to 1 at its end.
        eps: added to every score, so that nothing has priority zero.
        normalize: divide the weights by the largest of the batch.

    Estimator: biased (while beta < 1 towards examples with a high score; normalize: by a random factor of at most 1),
        unbiased if beta = 1 and normalize = false
    Memory: 16.5 bytes per example
    Cost: O(log N) per draw and per new score
    Host reads: 0 per update
    """

    queue: Tensor  # (N,) examples in the order in which they are first seen
    num_seen: Tensor  # ()
    max_priority: Tensor  # (), of priorities raised to alpha
    unseen_leaf: Tensor  # (1,)

    def __init__(
        self,
        signal: str = "loss",
        alpha: float = 0.6,
        beta: float = 0.4,
        eps: float = 1e-6,
        normalize: bool = True,
    ):
        super().__init__()
        if signal not in SCORES:
            raise ConfigError(f"sampler.signal={signal}: choose one of {', '.join(SCORES)}")
        if not alpha >= 0:
            raise ConfigError(f"sampler.alpha={alpha}: must be at least 0")
        if not 0 <= beta <= 1:
            raise ConfigError(f"sampler.beta={beta}: must be between 0 and 1")
        if not eps > 0:
            raise ConfigError(f"sampler.eps={eps}: must be greater than 0")
        self.signal = signal
        self.alpha = alpha
        self.beta = beta
        self.eps = eps
        self.normalize = normalize
        self.observes = (signal,) if signal in PER_EXAMPLE else ()

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
        return self.beta + (1 - self.beta) * min(self.workspace.fraction(), 1.0)

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
