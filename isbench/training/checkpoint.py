"""Checkpoints: one dictionary of state_dicts, written whole or not at all, and proved whole when read.

The file is a SHA-256 digest followed by torch's own format. The one before is kept, so a damaged file costs some
repeated work and never the run. Loading is weights-only: a checkpoint cannot run code.
"""

import hashlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import torch

from isbench.errors import UserError

log = logging.getLogger("isbench")
NAMES = ("checkpoint.pt", "checkpoint.previous.pt")
DIGEST_BYTES = 32


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` to the run folder, keeping the checkpoint before it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    current, previous = (folder / name for name in NAMES)
    unfinished = folder / "checkpoint.unfinished"
    try:
        with open(unfinished, "wb") as file:
            file.write(hashlib.sha256(data).digest())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if current.exists():
            os.replace(current, previous)
        os.replace(unfinished, current)
    except OSError as error:
        raise UserError(f"cannot write the checkpoint in {folder}: {error.strerror}") from error


def load(folder: Path) -> dict[str, Any] | None:
    """Return the newest whole checkpoint of a run folder, its tensors on the CPU, or None if there is none."""
    for name in NAMES:
        path = folder / name
        if not path.exists():
            continue
        data = path.read_bytes()
        if hashlib.sha256(data[DIGEST_BYTES:]).digest() == data[:DIGEST_BYTES]:
            return torch.load(io.BytesIO(data[DIGEST_BYTES:]), map_location="cpu", weights_only=True)
        log.warning("%s is damaged (wrong checksum): going back to the one before", path)
    return None


def remove(folder: Path) -> None:
    """Delete the checkpoints of a finished run; its record says all there is to say."""
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)
