"""How far something long has come: a bar on a terminal, a line now and then in a log."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_BARS, SECONDS_BETWEEN_LINES = 0.1, 10.0


class ProgressBar:
    """A bar on standard error. It changes in `update` alone: no thread of it takes time while a clock runs.

    Args:
        total: what `update` counts up to.
        transient: take the bar away at the end.
    """

    def __init__(self, title: str, total: float, transient: bool = False):
        terminal = Console(file=sys.stderr)
        self.title = title
        self.total = total
        self.interval = SECONDS_BETWEEN_BARS if terminal.is_terminal else SECONDS_BETWEEN_LINES
        self.shown_at = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=terminal,
            auto_refresh=False,
            transient=transient,
            disable=not terminal.is_terminal,
        )
        self.task = self.bar.add_task(title, total=total, facts="")
        self.bar.start()

    def update(self, done: float, facts: str, is_due: bool = False) -> None:
        """Show how much is done, with more facts about it: now if it `is_due`, else once there was time enough."""
        is_due = is_due or time.monotonic() - self.shown_at >= self.interval
        self.bar.update(self.task, completed=min(done, self.total), facts=facts, refresh=is_due)
        if is_due:
            self.shown_at = time.monotonic()
            if self.bar.disable:
                share = min(done / self.total, 1)
                print(f"{self.title}: {share:4.0%}  {facts}", file=sys.stderr, flush=True)

    def count(self, done: int) -> None:
        """Show how many of `total` are done."""
        self.update(done, f"{done:,} of {self.total:,}")

    def close(self) -> None:
        """Leave the bar as it is, or take it away."""
        self.bar.stop()
