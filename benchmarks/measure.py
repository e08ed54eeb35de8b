"""Compares works by timing them in turns, and reports the comparison as a row.

Machines are noisy, so works take turns in one process, A B A B, in blocks of steps. A row keeps the ratio of every
round and reports median and quartiles. If one thread of a CPU does the work, seconds are CPU seconds of this process,
which other processes disturb less; otherwise they are wall-clock seconds.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from isbench.training.process import quiet_garbage_collector

Work = Callable[[int], object]  # takes the given number of steps
BLOCK_SECONDS = 0.3


@dataclass(frozen=True)
class Row:
    """One quantity, measured in several rounds. A goal is `at_most` or `at_least`; without one, `note` says why."""

    what: str
    against: str  # the divisor of a ratio, or a value to compare with
    values: Sequence[float]  # one for each round
    unit: str = "x"
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""
    threads: int = field(default_factory=torch.get_num_threads)

    def quartiles(self) -> tuple[float, float, float]:
        """Return lower quartile, median, upper quartile."""
        if len(self.values) == 1:
            return self.values[0], self.values[0], self.values[0]
        low, median, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, median, high

    def is_met(self) -> bool | None:
        """Say whether the median meets the goal; None without a goal."""
        median = self.quartiles()[1]
        if self.at_most is not None:
            return median <= self.at_most
        return None if self.at_least is None else median >= self.at_least

    def record(self) -> dict[str, Any]:
        """Return the row for the summary."""
        low, median, high = self.quartiles()
        return asdict(self) | {"low": low, "median": median, "high": high, "met": self.is_met()}


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def seconds(work: Work, steps: int, wall: bool = False) -> float:
    """Return the seconds of `steps` steps together. Set `wall` if other processes work for this one."""
    is_cuda = torch.cuda.is_available()
    clock = time.process_time if torch.get_num_threads() == 1 and not (is_cuda or wall) else time.perf_counter
    if is_cuda:
        torch.cuda.synchronize()
    start = clock()
    work(steps)
    if is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def race(works: Sequence[Work], rounds: int, steps: int | None = None, wall: bool = False) -> list[list[float]]:
    """Return the seconds per step of each work in each round: len(works) lists of `rounds`.

    Args:
        steps: number of steps of each work in a round; None fits the slowest work into `BLOCK_SECONDS`.
        wall: see `seconds`.
    """
    if steps is None:
        for work in works:
            work(1)
        steps = max(1, int(BLOCK_SECONDS / max(seconds(work, 1, wall) for work in works)))
    with quiet_garbage_collector():
        times = [[seconds(work, steps, wall) / steps for work in works] for _ in range(rounds)]
    return [list(column) for column in zip(*times, strict=True)]
