"""How far experiments have come: `isbench status [EXPERIMENT ...] [KEY=VALUE ...] [--runs-dir DIR]`.

The runs are those that `python -m isbench -m experiment=...` would train, found by their configuration and judged by
their records and SLURM's queue. Any other grid is shown by its own words, `isbench status -m KEY=A,B ...`.
What is left is estimated in seconds of training, from the share of its budget that a run spends in one; for a run that
has not begun, from the runs of its arm. Evaluating and saving come on top: a record says when an attempt began and how
long it has trained, and the time of its file may be that of a copy. Torch is not imported.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import fmean

from tabulate import tabulate

from isbench.config import BudgetConfig
from isbench.errors import ConfigError
from isbench.explain import MISTAKES, choices, explain, own_choices
from isbench.files import RECORD
from isbench.grid.jobs import Job, compose_grid
from isbench.grid.kept import collected_runs
from isbench.grid.queue import SlurmJob, queued
from isbench.nodes import nearest
from isbench.recording.record import ENDED, UNIT_COLUMNS, Row, effective_rows, read_rows
from isbench.terminal import outlive_terminal

NOTHING_LEFT = (*ENDED, "skipped")
STATUSES = (*NOTHING_LEFT, "failed", "running", "queued", "interrupted", "missing")


@dataclass(frozen=True)
class Standing:
    """How one run stands: `fraction` of the budget is spent, in `seconds` of training."""

    job: Job
    status: str
    reason: str
    fraction: float
    seconds: float

    @property
    def whole(self) -> float | None:
        """Seconds of training that all of the budget takes, None where there is no telling."""
        return self.seconds / self.fraction if self.fraction > 0 else None


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line."""
    outlive_terminal()
    parser = argparse.ArgumentParser(prog="isbench status", description="How far experiments have come.")
    parser.add_argument("words", nargs="*", metavar="EXPERIMENT or KEY=VALUE", help="all experiments unless given")
    parser.add_argument("-m", action="store_true", help="the words are those of `isbench -m ...`")
    parser.add_argument("--runs-dir", type=Path, help="where the runs are (runs)")
    parser.add_argument("--config-dir", "-cd", type=Path, help="a folder of your own yaml files")
    arguments = parser.parse_intermixed_args(words)
    runs_dir = [f"runs_dir={arguments.runs_dir}"] if arguments.runs_dir else []
    overrides = [*(word for word in arguments.words if "=" in word), *runs_dir, *own_choices()]
    names = [word for word in arguments.words if "=" not in word]
    try:
        if arguments.m:
            print(table("grid", [*arguments.words, *runs_dir, *own_choices()]))
        elif names:
            print("\n\n".join(table(name, [f"experiment={name}", *overrides]) for name in map(find, names)))
        else:
            print(overview(overrides, queued(arguments.runs_dir or Path("runs"))))
    except MISTAKES as error:
        sys.exit(f"isbench: {explain(error)}")


def find(name: str) -> str:
    """Return the choice of the group `experiment` that is called `name`, with or without its folder."""
    known = {spelling: choice for choice in choices("experiment") for spelling in (choice, choice.rpartition("/")[2])}
    if name not in known:
        raise ConfigError(f"{name}: no such experiment; {nearest(name, known)}")
    return known[name]


def table(title: str, words: Sequence[str]) -> str:
    """Return a line for each run of `python -m isbench -m WORDS`, and one for all."""
    _, jobs = compose_grid(words)
    queue = queued(Path(jobs[0].config.runs_dir))
    runs = [stand(job, queue) for job in jobs]
    rows = [
        [
            run.job.label,
            run.status + (f": {run.reason}" if run.reason else ""),
            f"{min(run.fraction, 1):.0%}",
            round(run.seconds, 1),
            duration(left(run, runs)),
        ]
        for run in runs
    ]
    lines = tabulate(rows, [title, "status", "spent", "seconds", "left"], disable_numparse=True)
    counts = Counter(run.status for run in runs)
    ended = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    seconds = sum(run.seconds for run in runs)
    return f"{lines}\nruns: {ended}; {duration(seconds)} trained, {duration(all_left(runs))} left"


def overview(overrides: Sequence[str], queue: Mapping[str, SlurmJob]) -> str:
    """Return a line for each experiment, those at the end that cannot be composed."""
    rows, mistakes = [], []
    for experiment in choices("experiment"):
        try:
            rows.append(summary(experiment, overrides, queue))
        except MISTAKES as error:
            mistakes.append(f"{experiment}: {explain(error)}")
    told = [["experiment", "runs", *STATUSES, "left"], *rows]
    filled = [column for column in zip(*told, strict=True) if any(column[1:])]
    return "\n".join([tabulate(list(zip(*filled, strict=True)), headers="firstrow"), *mistakes])


def summary(experiment: str, overrides: Sequence[str], queue: Mapping[str, SlurmJob]) -> list[str | int]:
    """Return the overview's cells for one experiment."""
    config, jobs = compose_grid([f"experiment={experiment}", *overrides])
    if Path(str(config.runs_dir), str(config.group)).is_dir() or collected_runs(config.group) or queue:
        runs = [stand(job, queue) for job in jobs]
        counts, remaining = Counter(run.status for run in runs), duration(all_left(runs))
    else:  # composing each job for nothing would make one wait
        counts, remaining = Counter(missing=len(jobs)), ""
    return [experiment, len(jobs), *(counts[status] or "" for status in STATUSES), remaining]


def stand(job: Job, queue: Mapping[str, SlurmJob]) -> Standing:
    """Read how one run stands from its record, else from results/, and from SLURM's queue."""
    status, reason = job.status(queue)
    if (kept := job.kept) is not None:
        return Standing(job, status, reason, float(status == "finished"), kept.seconds)
    evaluations = effective_rows(read_rows(job.folder / RECORD))
    if not evaluations:
        return Standing(job, status, reason, 0.0, 0.0)
    last = evaluations[-1]
    return Standing(job, status, reason, spent(last, job.config.budget), last["train_seconds"])


def spent(row: Row, budget: BudgetConfig) -> float:
    """Return the share of the budget that is spent at an evaluation row; see isbench.training.budget."""
    share = row[UNIT_COLUMNS[budget.unit]] / budget.limit
    return share * row["effective_updates"] / row["updates"] if budget.effective and row["updates"] else share


def left(run: Standing, runs: Sequence[Standing]) -> float | None:
    """Return the seconds of training that a run still needs, None where nothing tells its speed."""
    if run.status in NOTHING_LEFT:
        return 0.0
    known = [other for other in runs if other.whole is not None]
    same_arm = [other for other in known if other.job.arm == run.job.arm]
    finished = [other for other in same_arm if other.status == "finished"]
    best = [run] if run.whole is not None else finished or same_arm or known
    wholes = [other.whole for other in best if other.whole is not None]
    budget = run.job.config.budget
    whole = fmean(wholes) if wholes else budget.limit if budget.unit == "seconds" else None
    return None if whole is None else max(0.0, 1 - run.fraction) * whole


def all_left(runs: Sequence[Standing]) -> float | None:
    """Return the seconds that all runs need, one after the other; None where one of them is unknown."""
    each = [left(run, runs) for run in runs]
    return None if None in each else sum(seconds for seconds in each if seconds is not None)


def duration(seconds: float | None) -> str:
    """Write seconds as h:mm:ss, at most some 3,000 years: a budget may have any number of zeros."""
    return "?" if seconds is None else str(timedelta(seconds=round(min(seconds, 1e11))))


if __name__ == "__main__":
    main()
