"""OrderDP: each pass trains on the examples of a random part of the data that had the highest losses.

Jin, Xu, Wang, Jia, Chen and Zeng (2026), "OrderDP: A Theoretically Guaranteed Lossless Dynamic Data Pruning Framework",
ICLR 2026, as far as the abstract and the authors' code (shengze-xu/OrderDP) tell it. Deviation: shares are rounded, to
one example at least.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from isbench.samplers.base import EpochSampler, Signals, assign
from isbench.types import Draw

UNSEEN = 3.0  # the loss of an example that was never trained on, in the authors' code


class OrderDP(EpochSampler):
    """Draw a part of the training set without replacement, and train on the highest last losses in it, with weights 1.

    Args:
        drawn: share of N that is drawn for a pass.
        kept: share of the drawn that is trained on.
        stop: passes that start after this share of the budget are whole; 1, as in the authors' code: none.

    Estimator: biased (towards high losses; unbiased for a weighted loss of the authors' own)
    Memory: 16 bytes per example, the order of the pass included
    Cost: O(N) per pass; a sort of b per update
    GPU-CPU syncs: 1 per pass (whether it acts)
    """

    observes = ("loss",)
    scores: Tensor  # (N,)

    def __init__(
        self,
        drawn: Annotated[float, Gt(0), Le(1)] = 0.8,
        kept: Annotated[float, Gt(0), Le(1)] = 0.375,
        stop: Annotated[float, Ge(0), Le(1)] = 1.0,
    ):
        super().__init__()
        self.drawn = drawn
        self.kept = kept
        self.stop = stop

    def allocate(self) -> None:
        super().allocate()
        n = self.workspace.num_examples
        self.num_drawn = max(1, round(self.drawn * n))
        self.num_kept = max(1, round(self.kept * self.num_drawn))
        self.register_buffer("scores", torch.full((n,), UNSEEN))

    def plan(self) -> tuple[Tensor, Tensor]:
        workspace = self.workspace
        indices = torch.randperm(workspace.num_examples, device=workspace.device, generator=workspace.generator)
        self.acts = False
        if workspace.fraction() < self.stop:
            drawn = indices[: self.num_drawn]
            highest = self.scores[drawn].topk(self.num_kept, sorted=False)
            indices = drawn[highest.indices.sort().values]  # in the order of the draw, which is random
            self.acts = bool((highest.values != UNSEEN).all())  # else chance chose among those unseen
        return indices, torch.ones(len(indices), device=workspace.device)

    def observe(self, draw: Draw, signals: Signals) -> None:
        assign(self.scores, draw.batch.indices, signals["loss"])
