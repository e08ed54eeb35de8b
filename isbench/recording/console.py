"""Shows the progress of a run: a bar on a terminal, or a line now and then in a log.

Both change only while the clock is paused, so they cost the method nothing.
"""

import sys
import time
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class Console:
    """The progress of one run on standard error."""

    def __init__(self, name: str):
        self.name = name
        self.terminal = Terminal(file=sys.stderr)
        self.line_at = 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self.terminal,
            auto_refresh=False,  # a refreshing thread would run inside the clock
            disable=not self.terminal.is_terminal,
        )
        self.task = self.bar.add_task(name, total=1.0, facts="")
        self.bar.start()

    def update(self, fraction: float, row: dict[str, Any]) -> None:
        """Show how far the run has come; `row` is an evaluation row."""
        facts = f"test error {row['test_error']:.2%}  train loss {row['train_loss']:.4g}"
        if self.terminal.is_terminal:
            self.bar.update(self.task, completed=min(fraction, 1.0), facts=facts, refresh=True)
        elif time.monotonic() - self.line_at >= SECONDS_BETWEEN_LINES or fraction >= 1:
            self.line_at = time.monotonic()
            print(
                f"{self.name}: {min(fraction, 1):4.0%}  update {row['updates']}  {row['train_seconds']:.1f} s  {facts}",
                file=sys.stderr,
                flush=True,
            )

    def close(self, status: str, reason: str) -> None:
        """Stop the bar, and print how the run ended unless it finished."""
        self.bar.stop()
        if status != "finished":
            print(f"{self.name}: {status}{': ' + reason if reason else ''}", file=sys.stderr, flush=True)
