"""Runs that SLURM has jobs for. Who submits a job leaves the id of its run beside the job's logs; squeue says the rest.

So a grid does not submit a second job for a run whose first one still waits, and `python -m isbench.status` tells what
waits from what is missing. squeue suffices: a cluster need not keep accounts.
"""

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from isbench.errors import UserError

FOLDER = ".submitit"  # in runs_dir; conf/launcher/slurm.yaml has the logs there too
OVER = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
LONGEST_PAUSE_SECONDS = 30.0  # between two looks at the queue: SLURM answers everybody


@dataclass(frozen=True)
class SlurmJob:
    """A job as squeue knows it: `state` is PENDING, RUNNING and so on, `reason` says what it waits for, if known."""

    id: str
    state: str
    reason: str

    @property
    def is_over(self) -> bool:
        return self.state in OVER


def squeue(*options: str) -> list[SlurmJob]:
    """Return what squeue lists.

    Raises:
        UserError: it cannot be asked.
    """
    command = ["squeue", "--noheader", "--array", "--format=%i %T %r", *options]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except FileNotFoundError:
        raise UserError("no SLURM here: squeue is not installed; launcher=local runs in turn") from None
    except subprocess.CalledProcessError as error:
        raise UserError(" ".join(error.stderr.split())) from error
    columns = [line.split(maxsplit=2) for line in lines]
    return [SlurmJob(job_id, state, reason if reason != "None" else "") for job_id, state, reason in columns]


def note(runs_dir: Path, job_id: str, run_id: str) -> None:
    """Remember which run a job is for."""
    folder = runs_dir / FOLDER / job_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run").write_text(run_id)


def queued(runs_dir: Path) -> dict[str, SlurmJob]:
    """Return, by the id of the run, the jobs that wait or run."""
    if not (runs_dir / FOLDER).is_dir() or shutil.which("squeue") is None:
        return {}
    notes = {job: runs_dir / FOLDER / job.id / "run" for job in squeue("--me") if not job.is_over}
    return {path.read_text(): job for job, path in notes.items() if path.exists()}


def wait_for(ids: Collection[str]) -> dict[str, str]:
    """Wait until these jobs are over; return the last state of each that SLURM still remembers."""
    began, told = time.monotonic(), Counter[str]()
    while True:
        try:
            found = [job for job in squeue("--me", "--states=all") if job.id in ids]
        except UserError as error:  # a controller may be away for a while
            print(error, file=sys.stderr)
        else:
            if all(job.is_over for job in found):
                return {job.id: job.state for job in found}
            counts = Counter("over" if job.is_over else job.state.lower() for job in found)
            if counts != told:
                print("jobs:", ", ".join(f"{counts[state]} {state}" for state in sorted(counts)), file=sys.stderr)
                told = counts
        time.sleep(min(LONGEST_PAUSE_SECONDS, 1 + (time.monotonic() - began) / 10))
