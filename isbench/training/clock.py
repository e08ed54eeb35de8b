"""The clock of a run: it counts the seconds in which a method works, and stands still during evaluations.

It waits for the device only when it starts and stops, not at every step, so that timing does not slow training down.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from isbench.training.device_load import CoreWait
from isbench.training.ranks import LateMaximum, Ranks


class Clock:
    """Seconds of training so far. Subclasses say where the time comes from."""

    def __init__(self) -> None:
        self.elapsed = 0.0  # seconds up to the last stop
        self.core_wait = CoreWait()  # while this clock ran
        self.started_at: float | None = None

    def now(self) -> float:
        """Return the current reading of the underlying timer."""
        raise NotImplementedError

    def synchronise(self) -> None:
        """Wait until the device has done all work it was given."""

    def seconds(self) -> float:
        """Return the seconds counted so far."""
        return self.elapsed if self.started_at is None else self.elapsed + self.now() - self.started_at

    def start(self) -> None:
        self.core_wait.start()
        self.synchronise()
        self.started_at = self.now()

    def stop(self) -> None:
        self.synchronise()
        self.elapsed = self.seconds()
        self.started_at = None
        self.core_wait.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop on entering, start again on leaving."""
        self.stop()
        yield
        self.start()


class WallClock(Clock):
    """Monotonic wall-clock seconds; unaffected by changes of the system's time."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def now(self) -> float:
        return time.perf_counter()

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class SharedClock(WallClock):
    """The clock of ranks that train together: every rank reads the seconds of the slowest.

    While it runs, a reading gives the seconds of the reading before, so that no rank waits for another. Stopped, it is
    exact.
    """

    def __init__(self, device: torch.device, ranks: Ranks):
        super().__init__(device)
        self.ranks = ranks
        self.late = LateMaximum(0.0)

    def seconds(self) -> float:
        return self.elapsed if self.started_at is None else self.late.push(super().seconds())

    def start(self) -> None:
        self.ranks.wait()
        super().start()
        self.late = LateMaximum(self.elapsed)

    def stop(self) -> None:
        self.late.wait()
        self.synchronise()
        self.elapsed = self.ranks.largest(super().seconds())
        self.started_at = None
        self.core_wait.stop()
