"""How much else is at work on the device: other runs, and programs that take the cores. Both spoil a run's seconds.

Every device has a folder, and every run at work holds a locked file in it. The system releases the lock when the
process ends, however it ends. A run that arrives counts the locked files and writes the count to each of them. So every
run reads from its own file how many have shared the device, at no cost to the clock. The count is the size of the file,
since a size changes in one step.

Of programs that are no runs Linux tells one thing: for how long each thread was ready to compute and had no core. A
process's seconds on a core alone would not do, for a thread that waits for another takes none either.
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


class CoreWait:
    """The seconds for which a thread of this process was ready and had no core, of the thread that waited most.

    Attributes:
        seconds: between all calls of `start` and the `stop` after each; NaN where the system does not tell.
    """

    def __init__(self) -> None:
        self._waited: dict[str, float] = {}
        self._at_start: dict[str, float] = {}
        self.seconds = 0.0 if waits() else float("nan")

    def start(self) -> None:
        self._at_start = waits()

    def stop(self) -> None:
        for thread, seconds in waits().items():
            self._waited[thread] = self._waited.get(thread, 0.0) + seconds - self._at_start.get(thread, 0.0)
        self.seconds = max(self._waited.values(), default=float("nan"))


def waits() -> dict[str, float]:
    """Return for each thread of this process the seconds that it has waited for a core; none where that is unknown."""
    found = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread that has just ended, or another system
            found[path.parent.name] = int(path.read_text().split()[1]) / 1e9
    return found
