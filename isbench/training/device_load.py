"""How many runs train on a device at once. Runs that share a device disturb each other's seconds, so records say so.

A run at work holds a locked file in a folder of its device, which the system unlocks with the process, however that
ends. Who arrives counts the locked files and raises the number in each of them, so that a run learns of all that came
while it was there from its own file, at no cost to the clock. The number is the size of the file: it changes at once.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import torch

from isbench import locks


def device_name(device: torch.device) -> str:
    """Return a name that this machine's processes agree on: the GPU's serial identity, or cpu."""
    return f"gpu-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else "cpu"


@contextmanager
def counted(folder: Path) -> Iterator[Callable[[], int]]:
    """Be one of the runs at work on the device of `folder`; yield what tells the largest number of them since then."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid4().hex}.run"
    with open(folder / "door", "wb") as door:
        locks.take(door, wait=True)  # one arrives at a time
        own = open(path, "wb")
        locks.take(own)
        others = list(folder.glob("*.run"))
        at_work = [other for other in others if locks.is_taken(other)]
        for other in others:
            with suppress(FileNotFoundError):  # it has just ended
                if other in at_work:
                    os.truncate(other, max(other.stat().st_size, len(at_work)))
                else:
                    other.unlink()  # left by one that was killed
    with own:
        try:
            yield lambda: os.fstat(own.fileno()).st_size
        finally:
            path.unlink(missing_ok=True)
