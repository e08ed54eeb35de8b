"""SGD-S: plain passes first, then passes resampled by loss over a data set that loses its easiest tenth each time.

Zakka (2018), the blog post "SGD on Steroids", section Mini-Batch Resampling. The post's text and listing are followed
where its published scripts differ: the losses that start the resampling are those of the last plain pass; draws are
mapped to training examples through the list of kept ones; losses are remembered by example, not by place in the stream.
Where text and listing differ (the text drops examples at the end of a resampled pass, the listing before its sampler is
made), the listing is followed, so the first resampled pass already lacks the lowest tenth.
"""

import math

import torch
from torch import Tensor

from isbench.errors import ConfigError
from isbench.samplers.base import EpochSampler, Signals, assign, categorical
from isbench.types import Draw

ORDERS = ("shuffled", "sequential")


class SGDS(EpochSampler):
    """Resample each pass by loss over the kept examples; drop the lowest losses, bring some dropped ones back.

    A resampled pass over m kept examples first drops the int(drop m) with the lowest remembered loss, adds back
    int(restore m) chosen at random among all that are dropped, and then draws as many times as there are kept ones,
    with replacement, in proportion to the remembered losses. Losses come from the training forward; an example that
    has none yet (the last few of a single plain pass) counts as log C, the loss of a guess. The post's scripts train
    resampled passes with batches of 128 after plain ones of 64; here one batch size serves both.

    Args:
        transient_passes: plain passes at the start.
        order: of the plain passes, "shuffled" or "sequential" (the post's baseline).
        drop: share of the kept examples dropped before each resampled pass.
        restore: share of the kept examples brought back then.

    Estimator: biased (towards examples with a high loss)
    Memory: 24 bytes per example, the order of the pass included
    Cost: O(N log N) per pass (a sort of the kept losses); a sort of b per update
    Host reads: 0 per update
    """

    observes = ("loss",)
    remembers = (*EpochSampler.remembers, "_kept", "_passes")
    losses: Tensor  # (N,)
    order: Tensor  # (N,) the kept examples, then the dropped ones

    def __init__(self, transient_passes: int = 2, order: str = "shuffled", drop: float = 0.1, restore: float = 0.01):
        super().__init__()
        if transient_passes < 1:
            raise ConfigError(f"sampler.transient_passes={transient_passes}: at least 1 is needed to learn the losses")
        if order not in ORDERS:
            raise ConfigError(f"sampler.order={order}: choose one of {', '.join(ORDERS)}")
        if not 0 <= drop < 1:
            raise ConfigError(f"sampler.drop={drop}: must be at least 0 and less than 1")
        if not 0 <= restore <= 1:
            raise ConfigError(f"sampler.restore={restore}: must be between 0 and 1")
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
        if self._passes <= self.transient_passes:
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
