"""Online batch selection: rank all examples by their last loss, and draw the first ranks more often than the last.

Loshchilov and Hutter (2015), "Online Batch Selection for Faster Training of Neural Networks". Deviations:

- the pressure s falls with the share of the budget spent;
- losses are recomputed for the whole set at once (r_ratio = 1), un-augmented and in evaluation mode.
"""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from isbench.samplers.base import Sampler, Signals, assign
from isbench.types import Draw

SORTS_PER_PASS = 10


def draw_ranks(k: int, num_ranks: int, pressure: float, generator: torch.Generator) -> Tensor:
    """Return k ranks (k,), drawn independently from 0 to N - 1 with probabilities proportional to s^(-rank / N).

    The running sum of q^rank, with q = s^(-1 / N), is (1 - q^(rank + 1)) / (1 - 1 / s) of the total.
    """
    uniform = torch.rand(k, dtype=torch.float64, device=generator.device, generator=generator)
    log_pressure = math.log(pressure)
    if log_pressure > 1e-9:  # below, uniform to within the rounding of what follows
        uniform = torch.log1p(uniform * math.expm1(-log_pressure)) / -log_pressure
    return (uniform * num_ranks).long().clamp_(max=num_ranks - 1)


class OnlineBatchSelection(Sampler):
    """Draw rank i of N, 1 for the largest loss, with probability proportional to exp(log(s) / N)^-i, with replacement.

    The first rank is s times as likely as the last, and s falls exponentially. Losses come from training, at first from
    a shuffled pass, and from recomputations. Ties are ranked at random.

    Args:
        s_start: s at the start of the budget; 1 is uniform.
        s_end: s at its end.
        recompute: passes between recomputations of all losses (r_freq = 0.5 per epoch is 2); null is never.
        sort_every: updates between sorts; null is ten sorts a pass.

    Estimator: biased (towards examples with a high loss; no weights, as in the paper)
    Memory: 20 bytes per example, the order of the pass included
    Cost: O(1) per draw; a sort of N every sort_every updates; N forward passes every `recompute` passes
    GPU-CPU syncs: 0 per update
    """

    observes = ("loss",)

    losses: Tensor  # (N,) last known
    ranking: Tensor  # (N,) examples by falling loss

    def __init__(
        self,
        s_start: Annotated[float, Ge(1)] = 100.0,
        s_end: Annotated[float, Ge(1)] = 1.0,
        recompute: Annotated[float, Gt(0)] | None = 2.0,
        sort_every: Annotated[int, Ge(1)] | None = None,
    ):
        super().__init__()
        self.s_start = s_start
        self.s_end = s_end
        self.recompute = recompute
        self.asks = () if recompute is None else ("score_dataset",)
        self.sort_every = sort_every

    def allocate(self) -> None:
        n, b = self.workspace.num_examples, self.workspace.batch_size
        self._sort_period = (self.sort_every or max(1, n // (SORTS_PER_PASS * b))) * b  # in examples
        self.register_buffer("losses", torch.zeros(n))
        self.register_buffer("ranking", torch.arange(n))

    def pressure(self) -> float:
        """Return s at this point of the budget."""
        return self.s_start * (self.s_end / self.s_start) ** min(self.workspace.fraction(), 1.0)

    def draw(self) -> Draw:
        workspace = self.workspace
        k, n = workspace.batch_size, workspace.num_examples
        is_ranked = workspace.progress.examples_trained >= n
        if not is_ranked:
            indices = workspace.candidates(k)
        else:
            self._refresh()
            indices = self.ranking[draw_ranks(k, n, self.pressure(), workspace.generator)]
        return Draw(workspace.fetch(indices), torch.ones(k, device=workspace.device), acts=is_ranked)

    def observe(self, draw: Draw, signals: Signals) -> None:
        indices = draw.batch.indices
        assign(self.losses, indices, signals["loss"])

    def diagnostics(self) -> dict[str, float]:
        return {"pressure": self.pressure()}

    def probabilities(self) -> Tensor:
        """Return the probabilities by the ranks of the last sort; before the first, equal ones."""
        workspace = self.workspace
        n, device = workspace.num_examples, workspace.device
        is_sorted = workspace.progress.examples_trained - workspace.batch_size >= n
        log_pressure = math.log(self.pressure()) if is_sorted else 0.0
        by_rank = (torch.arange(n, dtype=torch.float64, device=device) * (-log_pressure / n)).softmax(dim=0)
        return torch.empty_like(by_rank).index_copy_(0, self.ranking, by_rank)

    def _refresh(self) -> None:
        """Recompute the losses and sort, where the last update has reached the time for it."""
        n, b = self.workspace.num_examples, self.workspace.batch_size
        trained = self.workspace.progress.examples_trained

        def is_due(period: float) -> bool:  # in examples
            return trained // period > (trained - b) // period

        recompute = self.recompute is not None and is_due(self.recompute * n)
        if recompute:
            self.losses.copy_(self.workspace.score_dataset("loss"))
        if recompute or trained - b < n or is_due(self._sort_period):
            order = torch.randperm(n, device=self.losses.device, generator=self.workspace.generator)
            self.ranking.copy_(order[self.losses[order].argsort(descending=True, stable=True)])
