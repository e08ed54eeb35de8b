"""A given time for a list of grids: `isbench spend LIST [MINUTES]`.

A machine that is lent for a while should turn into records without thought. Each line of the list holds the words of a
grid, as after `isbench -m`; what stands first is trained first, and a line is empty or a remark after `#`.
Without minutes the command says what is missing, and how long it will take. With them it trains one run after the
other. A run that does not fit into what is left is passed over, for a shorter one; one that takes longer than expected
is stopped in time, with a checkpoint. Run by run, a process of its own leaves its records, so that an end at any moment
loses nothing: `make results` collects them, and the same command goes on.
"""

import argparse
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tabulate import tabulate

from isbench.errors import ConfigError
from isbench.explain import MISTAKES, explain
from isbench.grid.jobs import Job, compose_grid
from isbench.grid.status import NOTHING_LEFT, duration, left, stand

OVERHEAD = 15.0  # seconds of a process besides training, until this call has measured its own
GRACE = 20.0  # seconds that a run has to write its checkpoint


@dataclass(frozen=True)
class Missing:
    """A run that has not ended: the words that train it alone, and the seconds of training that it needs, if known."""

    words: list[str]
    job: Job
    seconds: float | None


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="isbench spend", description="Spend a given time on missing runs.")
    parser.add_argument("list", type=Path, metavar="LIST", help="a file: in each line the words of a grid")
    parser.add_argument("minutes", type=float, nargs="?", help="to spend; without, what is missing is shown")
    arguments = parser.parse_args(words)
    try:
        lines = read(arguments.list)
        if arguments.minutes is not None and not 0 < arguments.minutes < math.inf:
            raise ConfigError(f"MINUTES={arguments.minutes:g}: must be positive and finite")
        if arguments.minutes is None:
            print(overview(lines))
        else:
            print(spend(lines, 60 * arguments.minutes))
    except MISTAKES as error:
        sys.exit(f"isbench: {explain(error)}")


def read(path: Path) -> list[list[str]]:
    """Return the words of each line.

    Raises:
        ConfigError: the file cannot be read, or is no list of words.
    """
    try:
        lines = [shlex.split(line, comments=True) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # no text, or a quotation without an end
        raise ConfigError(f"{path}: {error}") from None
    return [words for words in lines if words]


def missing(words: Sequence[str]) -> list[Missing]:
    """Return the runs of a grid that have not ended, in its order."""
    runs = [stand(job, {}) for job in compose_grid(words)[1]]
    return [
        Missing(narrowed(words, run.job), run.job, left(run, runs)) for run in runs if run.status not in NOTHING_LEFT
    ]


def narrowed(words: Sequence[str], job: Job) -> list[str]:
    """Return the words of a grid with the values of one of its jobs."""
    own = {word.partition("=")[0]: word for word in job.overrides}
    keys = [word.partition("=")[0] for word in words]
    kept = [own.get(key, word) for key, word in zip(keys, words, strict=True) if key not in ("arm", "seed")]
    return [*kept, *([f"arm={job.config.arm}"] if job.config.arm else []), f"seed={job.config.seed}"]


def overview(lines: Sequence[Sequence[str]]) -> str:
    """Return what is missing of each line, and the time until it is done if lines are taken in order."""
    rows, total = [], 0.0
    for words in lines:
        runs = missing(words)
        known = [run.seconds for run in runs if run.seconds is not None]
        each = fmean(known) + OVERHEAD if known else None
        total += each * len(runs) if each is not None else 0.0
        rows.append([" ".join(words), len(runs), duration(each) if runs else "", duration(total)])
    return tabulate(rows, ["grid", "missing", "a run", "until then"], disable_numparse=True)


def spend(lines: Sequence[Sequence[str]], seconds: float) -> str:
    """Train what is missing, first things first, for so many seconds; return a line of what came of it."""
    end = time.monotonic() + seconds
    beside: list[float] = []  # seconds of finished runs besides training
    finished = passed_over = 0
    for words in lines:
        for run in missing(words):
            expected = (run.seconds or 0.0) + (fmean(beside) if beside else OVERHEAD)
            if expected > end - time.monotonic():
                passed_over += 1
                continue
            start = time.monotonic()
            train(run.words, end - start)
            standing = stand(run.job, {})
            print(f"{' '.join(run.words)}: {standing.status} after {duration(time.monotonic() - start)}", flush=True)
            if standing.status == "finished":
                finished += 1
                beside.append(max(0.0, time.monotonic() - start - standing.seconds))
    return f"{finished} runs finished, {passed_over} did not fit into {duration(seconds)}"


def train(words: Sequence[str], seconds: float) -> None:
    """Train a grid in a process of its own, which is asked to stop when its seconds are over."""
    process = subprocess.Popen([sys.executable, "-m", "isbench", "-m", *words])
    try:
        process.wait(seconds - GRACE if seconds > 2 * GRACE else seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
