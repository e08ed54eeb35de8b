"""Shows how far a run has come and how well it does, at each evaluation.

It changes only while the clock is paused, so it costs the method nothing.
"""

import sys
from typing import Any

from isbench.progress_bar import ProgressBar


class Console:
    """The progress of one run on standard error."""

    def __init__(self, name: str):
        self.name = name
        self.bar = ProgressBar(name, total=1.0)

    def update(self, fraction: float, row: dict[str, Any]) -> None:
        """Show how far the run has come; `row` is an evaluation row."""
        facts = (
            f"update {row['updates']}  {row['train_seconds']:.1f} s  "
            f"test error {row['test_error']:.2%}  train loss {row['train_loss']:.4g}"
        )
        self.bar.update(fraction, facts, is_due=row["updates"] == 0 or fraction >= 1)

    def close(self, status: str, reason: str) -> None:
        """Close the bar, and print how the run ended unless it finished."""
        self.bar.close()
        if status != "finished":
            print(f"{self.name}: {status}{': ' + reason if reason else ''}", file=sys.stderr, flush=True)
