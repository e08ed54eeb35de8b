"""SGD-S: plain passes, then passes that draw by loss from a training set without its easiest examples.

Zakka (2018), the blog post "SGD on Steroids", section Mini-Batch Resampling. docs/samplers.md says what is followed
where the post's text, listing and scripts differ.
"""

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor

from isbench.samplers.base import EpochSampler, Signals, assign, categorical
from isbench.types import Draw


class SGDS(EpochSampler):
    """Before each resampled pass, drop the lowest losses and bring some dropped examples back; then draw in proportion
    to loss.

    Of m kept examples, int(drop m) with the lowest last training losses go, and int(restore m) of all dropped ones,
    chosen at random, come back. A pass draws as many as are kept, with replacement. An example without a loss yet
    counts as log C, the loss of a guess.

    Args:
        transient_passes: plain passes at the start.
        order: of the plain passes (the post's baseline: sequential).
        drop: share of the kept examples dropped before each resampled pass.
        restore: share of them brought back.

    Estimator: biased (towards examples with a high loss)
    Memory: 24 bytes per example, the order of the pass included
    Cost: O(N log N) per pass (a sort of the kept losses); a sort of b per update
    GPU-CPU syncs: 0 per update
    """

    observes = ("loss",)
    remembers = (*EpochSampler.remembers, "_kept", "_passes")
    losses: Tensor  # (N,)
    order: Tensor  # (N,) the kept examples, then the dropped ones

    def __init__(
        self,
        transient_passes: Annotated[int, Ge(1)] = 2,
        order: Literal["shuffled", "sequential"] = "shuffled",
        drop: Annotated[float, Ge(0), Lt(1)] = 0.1,
        restore: Annotated[float, Ge(0), Le(1)] = 0.01,
    ):
        super().__init__()
        self.transient_passes = transient_passes
        self.transient_order = order
        self.drop = drop
        self.restore = restore

    def allocate(self) -> None:
        super().allocate()
        n = self.workspace.num_examples
        self.register_buffer("losses", torch.full((n,), math.log(self.workspace.num_classes)))
        self.register_buffer("order", torch.arange(n))
        self._kept = n
        self._passes = 0

    def plan(self) -> tuple[Tensor, Tensor]:
        workspace = self.workspace
        self._passes += 1
        self.acts = self._passes > self.transient_passes
        if not self.acts:
            indices = torch.arange(workspace.num_examples, device=workspace.device)
            if self.transient_order == "shuffled":
                indices = torch.randperm(len(indices), device=workspace.device, generator=workspace.generator)
        else:
            self._prune()
            kept = self.order[: self._kept]
            positions, _ = categorical(self.losses[kept], self._kept, workspace.generator)
            indices = kept[positions]
        return indices, torch.ones(len(indices), device=workspace.device)

    def observe(self, draw: Draw, signals: Signals) -> None:
        indices = draw.batch.indices
        assign(self.losses, indices, signals["loss"])

    def diagnostics(self) -> dict[str, float]:
        return {"kept_share": self._kept / self.workspace.num_examples}

    def _prune(self) -> None:
        """Drop the lowest losses of the kept examples and bring back some of all that are dropped."""
        m, generator = self._kept, self.workspace.generator
        kept, before = self.order[:m], self.order[m:]
        kept = kept[self.losses[kept].argsort(descending=True, stable=True)]
        keep = m - int(self.drop * m)
        dropped = torch.cat([kept[keep:], before])
        dropped = dropped[torch.randperm(len(dropped), device=dropped.device, generator=generator)]
        self.order.copy_(torch.cat([kept[:keep], dropped]))
        self._kept = keep + min(int(self.restore * m), len(dropped))
