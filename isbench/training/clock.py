"""The clock that a comparison stands on: it runs while a method works and is stopped while we look.

It synchronises with the device only when it stops, not at every step, so that timing does not disturb what it times.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds of training so far. Subclasses say where the time comes from."""

    def __init__(self) -> None:
        self.elapsed = 0.0  # seconds up to the last stop
        self.started_at: float | None = None

    def now(self) -> float:
        """Return the current reading of the underlying timer."""
        raise NotImplementedError

    def synchronise(self) -> None:
        """Wait until all work that was started has been done."""

    def seconds(self) -> float:
        """Return the seconds counted so far."""
        return self.elapsed if self.started_at is None else self.elapsed + self.now() - self.started_at

    def start(self) -> None:
        self.synchronise()
        self.started_at = self.now()

    def stop(self) -> None:
        self.synchronise()
        self.elapsed = self.seconds()
        self.started_at = None

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


class TickClock(Clock):
    """A clock for tests: every reading while it runs is `tick` seconds later than the one before."""

    def __init__(self, tick: float = 1.0):
        super().__init__()
        self.tick = tick
        self.readings = 0

    def now(self) -> float:
        self.readings += 1
        return self.readings * self.tick
