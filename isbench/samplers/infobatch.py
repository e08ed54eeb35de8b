"""InfoBatch: leave out a random part of the well-learned examples in each pass, and give more weight to the rest of
them.

Qin et al. (2024), "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning". Examples are left out
independently, as in the paper's equations; the authors' code leaves out a fixed number.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor

from isbench.samplers.base import EpochSampler, Signals, assign
from isbench.types import Draw

INITIAL_SCORE = 3.0  # any constant leaves the first pass whole; by the next, all but its last batch has a loss


class InfoBatch(EpochSampler):
    """Leave out examples with a last training loss below the mean with probability r; weight those that stay 1 / (1 -
    r).

    A pass of m examples takes m / N as many updates as a whole one, each with N / m times the gradient in expectation.
    As in the paper, the learning rate stays as it is.

    Args:
        prune: r.
        stop: passes that start after this share of the budget are whole, with weights 1.

    Estimator: unbiased (sum over a pass, given the scores at its start)
    Memory: 16 bytes per example, the order of the pass included
    Cost: O(N) per pass; a sort of b per update
    GPU-CPU syncs: 1 per pass (its length)
    """

    observes = ("loss",)
    scores: Tensor  # (N,)

    def __init__(self, prune: Annotated[float, Ge(0), Lt(1)] = 0.5, stop: Annotated[float, Ge(0), Le(1)] = 0.875):
        super().__init__()
        self.prune = prune
        self.stop = stop

    def allocate(self) -> None:
        super().allocate()
        self.register_buffer("scores", torch.full((self.workspace.num_examples,), INITIAL_SCORE))

    def plan(self) -> tuple[Tensor, Tensor]:
        workspace = self.workspace
        n, device, generator = workspace.num_examples, workspace.device, workspace.generator
        indices = torch.randperm(n, device=device, generator=generator)
        self.acts = False
        if workspace.fraction() >= self.stop:
            return indices, torch.ones(n, device=device)
        # In float64: the mean of equal float32 scores could round to above all of them.
        scores = self.scores[indices].double()
        is_low = scores < scores.mean()
        is_in = ~is_low | (torch.rand(n, device=device, generator=generator) >= self.prune)
        kept = is_in.nonzero().squeeze(1)
        self.acts = len(kept) < n  # in the first pass all scores are one
        return indices[kept], torch.where(is_low[kept], 1 / (1 - self.prune), 1.0)

    def observe(self, draw: Draw, signals: Signals) -> None:
        indices = draw.batch.indices
        assign(self.scores, indices, signals["loss"])

    def diagnostics(self) -> dict[str, float]:
        return {"kept_share": self.planned.num_rows / self.workspace.num_examples}
