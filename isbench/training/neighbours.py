"""How many runs train on a device at once. Runs that share a device disturb each other's seconds, so records say so.

A run at work holds a locked file in a folder of its device, which the system unlocks with the process, however that
ends. Who arrives counts the locked files and raises the number in each of them, so that a run learns of all that came
while it was there from its own file, at no cost to the clock. The number is the size of the file: it changes at once.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import torch


def device_name(device: torch.device) -> str:
    """Return a name that this machine's processes agree on: the GPU's serial identity, or cpu."""
    return f"gpu-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else "cpu"


@contextmanager
def counted(folder: Path) -> Iterator[Callable[[], int]]:
    """Be one of the runs at work on the device of `folder`; yield what tells the largest number of them since then."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid4().hex}.run"
    with open(folder / "door", "wb") as door:
        fcntl.flock(door, fcntl.LOCK_EX)  # one arrives at a time
        own = open(path, "wb")
        fcntl.flock(own, fcntl.LOCK_EX)
        at_work = [other for other in folder.glob("*.run") if _is_locked(other)]
        for other in at_work:
            with suppress(FileNotFoundError):  # it has just ended
                os.truncate(other, max(other.stat().st_size, len(at_work)))
    with own:
        try:
            yield lambda: os.fstat(own.fileno()).st_size
        finally:
            path.unlink(missing_ok=True)


def _is_locked(path: Path) -> bool:
    """Say whether a process holds `path`, and remove what a killed one left."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        path.unlink()
    return False
