"""Counts the runs that train on a device at once. They disturb each other's seconds, so records give their number.

Every device has a folder, and every run at work holds a locked file in it. The system releases the lock when the
process ends, however it ends. A run that arrives counts the locked files and writes the count to each of them. So every
run reads from its own file how many have shared the device, at no cost to the clock. The count is the size of the file,
since a size changes in one step.
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
    """Count as one of the runs on the device of `folder`; yield a function that returns their largest number so far."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid4().hex}.run"
    with open(folder / "door", "wb") as door:
        locks.take(door, wait=True)  # one run arrives at a time
        own = open(path, "wb")
        locks.take(own)
        others = list(folder.glob("*.run"))
        at_work = [other for other in others if locks.is_taken(other)]
        for other in others:
            with suppress(FileNotFoundError):  # that run has just ended
                if other in at_work:
                    os.truncate(other, max(other.stat().st_size, len(at_work)))
                else:
                    other.unlink()  # a killed run left it
    with own:
        try:
            yield lambda: os.fstat(own.fileno()).st_size
        finally:
            path.unlink(missing_ok=True)
