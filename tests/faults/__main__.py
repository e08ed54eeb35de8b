"""`python -m tests.faults`: all fault tests, and results/reliability made of what they found.

They take their random moments from a new seed, which is printed and recorded; ISBENCH_FAULT_SEED repeats one.
"""

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("ISBENCH_FAULT_SEED", str(time.time_ns() // 10**9))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from isbench.recording.environment import environment
from tests.faults.summary import KINDS, headline, markdown

OUT = Path("results", "reliability")
FACTS = ("isbench", "git_commit", "git_dirty", "python", "torch", "os", "cpu", "logical_cores")
COUNTS = ("survived", "rows", "rows_lost", "rows_doubled")


class Account:
    """A pytest plugin that adds up what tests say of their faults. A fault is survived if its test passes."""

    def __init__(self) -> None:
        self.kinds = {kind: dict.fromkeys(COUNTS, 0) for kind in KINDS}
        self.failed: list[str] = []
        self.not_run: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.not_run.append(report.nodeid)
        if report.failed:
            self.failed.append(report.nodeid)
        kind = ""
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "struck":
                kind, count = value
                self.kinds[kind]["survived"] += count if report.passed else 0
            elif kind:  # what a test that fails before its fault strikes says of rows is of no kind
                for key, number in zip(COUNTS[1:], value, strict=True):
                    self.kinds[kind][key] += number


def main() -> int:
    """Run the tests, write summary.json and summary.md, and return pytest's exit code."""
    print(f"seed {os.environ['ISBENCH_FAULT_SEED']}")
    account, started = Account(), time.monotonic()
    both_cores = ["-n", "2", "--dist", "worksteal"]
    code = pytest.main(["-m", "faults or not faults", "tests/faults", *both_cores, *sys.argv[1:]], plugins=[account])
    facts = environment("cpu")
    found = {
        "seed": os.environ["ISBENCH_FAULT_SEED"],
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "seconds": round(time.monotonic() - started),
        **{name: facts[name] for name in FACTS},
        "kinds": account.kinds,
        "failed": account.failed,
        "not_run": account.not_run,
    }
    print(headline(found))
    if len(sys.argv) > 1:  # a part of the tests
        return code
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    (OUT / "summary.md").write_text(f"{headline(found)}\n\n{markdown(found)}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
