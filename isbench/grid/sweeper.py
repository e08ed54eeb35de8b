"""The Hydra sweeper that runs the jobs of a grid and accounts for each."""

import logging
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from tabulate import tabulate

from isbench.errors import GridFailed, Interrupted, UserError
from isbench.grid.jobs import Ending, Job, check_distinct, check_files, make_jobs
from isbench.grid.kept import RESULTS
from isbench.grid.queue import queued
from isbench.grid.status import Standing, all_left, duration, stand
from isbench.recording.record import ENDED

log = logging.getLogger("isbench")
LONG = 600  # seconds of training that are worth a line


class ArmSweeper(Sweeper):
    """Hydra's sweeper of isbench: runs every job of the grid, then accounts for each.

    Args:
        arms: name -> overrides.
        params: key -> values, as on the command line.
        about: what the experiment shows; it is not needed to run it, see isbench.report.inventory.
    """

    def __init__(self, arms: Mapping[str, Sequence[str]], params: Mapping[str, Any], about: str = ""):
        self.arms = arms
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader = hydra_context.config_loader
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None and self.launcher is not None
        jobs = make_jobs(self.loader, self.config, self.arms, self.params, arguments)
        check_distinct(jobs)
        runs_dir = Path(jobs[0].config.runs_dir)
        queue = queued(runs_dir)
        open_jobs = [job for job in jobs if job.status(queue)[0] not in ENDED]
        check_files(open_jobs)
        kept = sum(job.kept is not None for job in jobs)
        where = (
            f", {kept} of them in {RESULTS / str(jobs[0].config.group)}: group=NAME trains them anew" if kept else ""
        )
        print(f"grid: {len(jobs) - len(open_jobs)} of {len(jobs)} runs are finished{where}", file=sys.stderr)
        run_all = getattr(self.launcher, "run_all", self.run_all)  # SLURM's has its own
        if line := long_training([stand(job, queue) for job in jobs]):
            print(line, file=sys.stderr)
        try:
            with stop_on_sigterm():
                endings = run_all(jobs)
        except BaseException:
            queue = queued(runs_dir)
            print(summary(jobs, [job.status(queue) for job in jobs]), file=sys.stderr)
            raise
        print(summary(jobs, endings), file=sys.stderr)
        if failures := [line for status, line in reasons(jobs, endings) if status != "skipped"]:
            raise GridFailed(*failures)
        return endings

    def run_all(self, jobs: Sequence[Job]) -> list[Ending]:
        """Run all jobs on this machine. A process that is killed takes those beside it along; the others still run."""
        assert self.launcher is not None
        endings: dict[int, Ending] = {}
        while open_jobs := {n: job.attempts for n, job in enumerate(jobs) if n not in endings}:
            try:
                returns = self.launcher.launch([jobs[n].overrides for n in open_jobs], initial_job_idx=0)
                endings |= {n: job_return.return_value for n, job_return in zip(open_jobs, returns, strict=True)}
            except BrokenExecutor as error:
                begun = [n for n, attempts in open_jobs.items() if jobs[n].attempts > attempts]
                if not begun:
                    raise UserError("a process of the grid was killed; the same command continues it") from error
                for n in begun:
                    status, reason = jobs[n].status({})
                    endings[n] = status, reason or ("" if status == "finished" else "a process of the grid was killed")
                log.warning("a process of the grid was killed: going on with the runs that it did not disturb")
        return [endings[n] for n in range(len(jobs))]


def long_training(runs: Sequence[Standing]) -> str | None:
    """Return a line on how long all runs still train, if that is known and long."""
    seconds = all_left(runs) or 0.0
    return f"grid: about {duration(seconds)} of training, one run after the other" if seconds >= LONG else None


def summary(jobs: Sequence[Job], endings: Sequence[Ending]) -> str:
    """Return a table of how many runs of each arm ended how, and why any were skipped."""
    counts = Counter((job.arm, status) for job, (status, _) in zip(jobs, endings, strict=True))
    statuses = list(dict.fromkeys(["finished", *(status for _, status in counts)]))
    rows = [[arm, *(counts[arm, status] for status in statuses)] for arm in dict.fromkeys(job.arm for job in jobs)]
    table = tabulate(rows, ["arm" if jobs[0].config.arm else "sampler", *statuses])
    return "\n".join([table, *(line for status, line in reasons(jobs, endings) if status == "skipped")])


def reasons(jobs: Sequence[Job], endings: Sequence[Ending]) -> list[tuple[str, str]]:
    """Return a status and a line for every reason not to finish, with the runs that it stopped."""
    stopped: dict[tuple[str, str], list[str]] = {}
    for job, (status, reason) in zip(jobs, endings, strict=True):
        if reason:
            stopped.setdefault((status, reason), []).append(job.label)
    return [(status, f"{status}: {', '.join(labels)}: {reason}") for (status, reason), labels in stopped.items()]


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the grid also where no run of this process takes it."""

    def stop(number: int, frame: Any) -> None:
        raise Interrupted("stopped")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
