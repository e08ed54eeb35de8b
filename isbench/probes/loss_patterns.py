"""Whether examples keep their rank among the losses (Zakka 2018, "Loss Patterns").

The post sorts the losses of every epoch into ten bins. It counts which share of a bin's examples is in that bin in all
of the epochs 1 to 5, 2 to 5 and 4 to 5. Deviation: the post takes an example's loss from its training step, so every
loss belongs to another state of the model. Here one model gives all losses, un-augmented and in evaluation mode.
"""

from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from isbench.build import Parts
from isbench.errors import ConfigError, UserError
from isbench.files import RECORD, write_whole
from isbench.probes.base import Probe
from isbench.probes.scores import score
from isbench.recording.record import effective_rows, read_rows
from isbench.training.evaluate import evaluation_mode

FILE = "loss_patterns.npz"
MAX_BINS = 256  # deciles are kept in a byte each


class History(NamedTuple):
    """The measurements so far, E of them."""

    updates: np.ndarray  # (E,)
    epochs: np.ndarray  # (E,)
    deciles: np.ndarray  # (E, N) uint8


class LossPatterns(Probe):
    """Follow every example's loss decile from measurement to measurement.

    One row for each earlier measurement and each decile: `first_epoch` (of the earlier measurement), `decile` (1 has
    the highest losses), `share` (which part of the decile's examples then has stayed in it until now).

    Args:
        bins: number of bins; 10 makes deciles.
    """

    def __init__(self, bins: Annotated[int, Ge(2), Le(MAX_BINS)]):
        self.bins = bins

    def allocate(self, parts: Parts) -> None:
        n = parts.dataset.num_examples
        if self.bins > n:
            raise ConfigError(f"probe.bins={self.bins} is larger than the training set ({n} examples)")

    def measure(self, parts: Parts, folder: Path) -> list[dict[str, Any]]:
        dataset, progress = parts.dataset, parts.progress
        with evaluation_mode(parts.model):
            everything = torch.arange(dataset.num_examples, device=dataset.device)
            losses = score(parts, everything, dataset.plain, ("loss",))["loss"]
        earlier = load(folder, progress.updates, dataset.num_examples)
        history = History(
            np.append(earlier.updates, progress.updates),
            np.append(earlier.epochs, progress.epoch),
            np.vstack([earlier.deciles, deciles(losses, self.bins).cpu().numpy()]),
        )
        save(folder, history)
        return [
            {"first_epoch": float(epoch), "decile": decile + 1, "share": float(share)}
            for epoch, shares in zip(earlier.epochs, lasting_shares(history.deciles, self.bins), strict=True)
            for decile, share in enumerate(shares)
        ]


def deciles(losses: Tensor, bins: int) -> Tensor:
    """Return the decile of each of N losses, (N,) uint8; 0 has the highest. The index breaks ties."""
    n = len(losses)
    ranking = losses.argsort(descending=True, stable=True)
    result = torch.empty(n, dtype=torch.uint8, device=losses.device)
    result[ranking] = (torch.arange(n, device=losses.device) * bins // n).to(torch.uint8)
    return result


def lasting_shares(deciles: np.ndarray, bins: int) -> list[np.ndarray]:
    """Return for each row but the last of `deciles` (E, N) which share (bins,) of each decile never left it again."""
    stayed = np.ones(deciles.shape[1], dtype=bool)
    shares = []
    for now, then in zip(deciles[-2::-1], deciles[:0:-1], strict=True):
        stayed &= now == then
        shares.append(np.bincount(now[stayed], minlength=bins) / np.bincount(now, minlength=bins))
    return shares[::-1]


def load(folder: Path, updates: int, num_examples: int) -> History:
    """Return the measurements before `updates` that count: a run that was killed repeats some of them.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return History(np.empty(0, np.int64), np.empty(0), np.empty((0, num_examples), np.uint8))
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            history = History(*(arrays[name] for name in History._fields))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        raise UserError(f"{path} cannot be read; delete {folder} to start this run again") from None
    counted = [row["updates"] for row in effective_rows(read_rows(folder / RECORD)) if row["updates"] < updates]
    kept = np.isin(history.updates, counted)
    return History(*(values[kept] for values in history))


def save(folder: Path, history: History) -> None:
    """Write the measurements so far, whole or not at all."""
    buffer = BytesIO()
    np.savez_compressed(buffer, **history._asdict())
    try:
        write_whole(folder / FILE, buffer.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {folder / FILE}: {error.strerror}") from error
