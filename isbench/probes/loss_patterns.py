"""Whether examples stay where they are in the distribution of the losses (Zakka 2018, "Loss Patterns").

The post sorts the losses of every epoch into ten bins, and counts the share of a bin's examples that are in it in all
of the epochs 1 to 5, 2 to 5 and 4 to 5. Deviation: there, an example's loss is that of its training step, so that each
belongs to another state of the model; here all losses of a look belong to the same, un-augmented, in evaluation mode.
"""

import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from isbench.build import Parts
from isbench.errors import ConfigError, UserError
from isbench.probes.base import Probe
from isbench.probes.scores import evaluation_mode, score
from isbench.recording.record import effective_rows, read_rows

FILE = "loss_patterns.npz"
MAX_BINS = 256  # deciles are kept in a byte each


class History(NamedTuple):
    """The looks so far, E of them."""

    updates: np.ndarray  # (E,)
    epochs: np.ndarray  # (E,)
    deciles: np.ndarray  # (E, N) uint8


class LossPatterns(Probe):
    """Follow every example's loss decile from look to look.

    A row for each earlier look and each decile, 1 of the highest losses: `first_epoch` (that look's), `decile`, `share`
    of the examples in the decile then that have been in it at every look since, this one included.

    Args:
        bins: 10 are deciles.
    """

    def __init__(self, bins: Annotated[int, Ge(2), Le(MAX_BINS)]):
        self.bins = bins

    def allocate(self, parts: Parts) -> None:
        n = parts.dataset.num_examples
        if self.bins > n:
            raise ConfigError(f"probe.bins={self.bins} is larger than the training set ({n} examples)")

    def look(self, parts: Parts, folder: Path) -> list[dict[str, Any]]:
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
    """Return the decile of each of N losses, (N,) uint8, 0 of the highest. Ties go by index."""
    n = len(losses)
    ranking = losses.argsort(descending=True, stable=True)
    result = torch.empty(n, dtype=torch.uint8, device=losses.device)
    result[ranking] = (torch.arange(n, device=losses.device) * bins // n).to(torch.uint8)
    return result


def lasting_shares(deciles: np.ndarray, bins: int) -> list[np.ndarray]:
    """Return, for each look but the last of (E, N), the share (bins,) of each decile that never left it again."""
    stayed = np.ones(deciles.shape[1], dtype=bool)
    shares = []
    for now, then in zip(deciles[-2::-1], deciles[:0:-1], strict=True):
        stayed &= now == then
        shares.append(np.bincount(now[stayed], minlength=bins) / np.bincount(now, minlength=bins))
    return shares[::-1]


def load(folder: Path, updates: int, num_examples: int) -> History:
    """Return the looks before `updates` that the record counts: a run that was killed goes through some of them again.

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
    counted = [row["updates"] for row in effective_rows(read_rows(folder / "record.jsonl")) if row["updates"] < updates]
    kept = np.isin(history.updates, counted)
    return History(*(values[kept] for values in history))


def save(folder: Path, history: History) -> None:
    """Write the looks so far, whole or not at all."""
    unfinished = folder / f"{FILE}.unfinished"
    try:
        with open(unfinished, "wb") as file:
            np.savez_compressed(file, **history._asdict())
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, folder / FILE)
    except OSError as error:
        raise UserError(f"cannot write {folder / FILE}: {error.strerror}") from error
