"""Whether examples keep their rank among the losses (Zakka 2018, "Loss Patterns").

The post takes each example's loss from its training step, and sorts the losses of every epoch into ten bins. It counts
which share of a bin's examples is in that bin in all of the epochs 1 to 5, 2 to 5 and 4 to 5.
"""

from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from isbench.build import Parts
from isbench.errors import ConfigError
from isbench.probes.base import Probe
from isbench.samplers.base import Signals, assign
from isbench.types import Draw

MAX_BINS = 256  # deciles are kept in a byte each


class LossPatterns(Probe):
    """Follow every example's loss decile from pass to pass; a pass is N examples trained.

    One row for each complete pass but the last and each decile: `first_epoch` (the pass, from 1), `decile` (1 has the
    highest losses), `share` (which part of the decile's examples then has stayed in it to the last complete pass).

    A loss is that of the example's training step. An example that a pass leaves out keeps its last loss; while it has
    none, it is with the highest.

    Args:
        bins: number of bins; 10 makes deciles.
        passes: number of passes that are followed, from the first on.
    """

    observes = ("loss",)
    losses: Tensor  # (passes + 1, N) float32: by pass and example; NaN where there is none

    def __init__(self, bins: Annotated[int, Ge(2), Le(MAX_BINS)], passes: Annotated[int, Ge(2)]):
        super().__init__()
        self.bins = bins
        self.passes = passes

    def allocate(self, parts: Parts) -> None:
        n, device = parts.dataset.num_examples, parts.dataset.device
        if self.bins > n:
            raise ConfigError(f"probe.bins={self.bins} is larger than the training set ({n} examples)")
        self.progress = parts.progress
        # The last row takes what comes after the passes that are followed, so that nothing waits for the device.
        self.register_buffer("losses", torch.full((self.passes + 1, n), torch.nan, device=device))

    def observe(self, draw: Draw, signals: Signals) -> None:
        n, indices = self.losses.shape[1], draw.batch.indices
        trained = self.progress.examples_trained + torch.arange(len(indices), device=indices.device)
        assign(self.losses.view(-1), (trained // n).clamp_(max=self.passes) * n + indices, signals["loss"])

    def measure(self, parts: Parts) -> list[dict[str, Any]]:
        complete = min(self.progress.examples_trained // self.progress.num_examples, self.passes)
        last, history = self.losses[0], []
        for losses in self.losses[:complete]:
            last = torch.where(losses.isnan(), last, losses)
            history.append(deciles(last, self.bins).cpu().numpy())
        return [
            {"first_epoch": float(first), "decile": decile + 1, "share": float(share)}
            for first, shares in enumerate(lasting_shares(history, self.bins), start=1)
            for decile, share in enumerate(shares)
        ]


def deciles(losses: Tensor, bins: int) -> Tensor:
    """Return the decile of each of N losses, (N,) uint8; 0 has the highest. The index breaks ties."""
    n = len(losses)
    ranking = losses.argsort(descending=True, stable=True)
    result = torch.empty(n, dtype=torch.uint8, device=losses.device)
    result[ranking] = (torch.arange(n, device=losses.device) * bins // n).to(torch.uint8)
    return result


def lasting_shares(deciles: list[np.ndarray], bins: int) -> list[np.ndarray]:
    """Return for each of `deciles`, (N,) each, but the last which share (bins,) of each decile never left it again."""
    shares = []
    stayed: np.ndarray | bool = True
    for now, then in zip(deciles[-2::-1], deciles[:0:-1], strict=True):
        stayed = stayed & (now == then)
        shares.append(np.bincount(now[stayed], minlength=bins) / np.bincount(now, minlength=bins))
    return shares[::-1]
