"""Checkpoints: one dictionary of state_dicts, written whole or not at all, and checked when read.

The file is a SHA-256 digest followed by torch's own format. The previous checkpoint stays too, so a damaged file costs
some repeated work but never the run. Loading is weights-only: a checkpoint cannot run code.
"""

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from isbench.errors import UserError
from isbench.files import discard_drafts, write_whole

log = logging.getLogger("isbench")
NAMES = ("checkpoint.pt", "checkpoint.previous.pt")
DIGEST_BYTES = 32


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` to the run folder; the checkpoint before it stays.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    current, previous = (folder / name for name in NAMES)
    try:
        write_whole(current, hashlib.sha256(data).digest(), data, previous=previous)
    except OSError as error:
        raise UserError(
            f"cannot write the checkpoint in {folder}: {error.strerror}; "
            "make room or correct its permissions, then run the same command again"
        ) from error


def load(folder: Path) -> dict[str, Any] | None:
    """Return the newest whole checkpoint of a run folder, its tensors on the CPU, or None if there is none.

    Raises:
        UserError: a file cannot be read, or is undamaged but no checkpoint.
    """
    damaged: list[Path] = []
    for name in NAMES:
        path = folder / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; correct its permissions") from error
        if hashlib.sha256(data[DIGEST_BYTES:]).digest() == data[:DIGEST_BYTES]:
            if damaged:
                log.warning("%s is damaged (wrong checksum): going back to %s", damaged[0], name)
            try:
                return torch.load(io.BytesIO(data[DIGEST_BYTES:]), map_location="cpu", weights_only=True)
            except Exception as error:  # torch.load has no error of its own
                raise UserError(
                    f"{path} is not a checkpoint of isbench and was not loaded; "
                    "delete it, and the same command starts the run again"
                ) from error
        damaged.append(path)
    if damaged:
        names = " and ".join(path.name for path in damaged)
        log.warning("%s: %s damaged (wrong checksum): the run starts again", folder, names)
    return None


def remove(folder: Path) -> None:
    """Delete the checkpoints of a finished run, which nothing needs any more."""
    try:
        discard_drafts(folder / NAMES[0])
        for name in NAMES:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot delete the checkpoints in %s, which are no longer needed: %s", folder, error.strerror)
