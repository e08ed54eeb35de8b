"""Running a grid: the Hydra sweeper that runs and accounts for its jobs, and the launcher that gives them to SLURM.

Runs that ended and are kept in results/ are not run again, though their folders are not here. For SLURM see
docs/cluster.md.
"""

import itertools
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import DictConfig
from tabulate import tabulate

from isbench import locks
from isbench.config import run_id, scratch_dir
from isbench.errors import ConfigError, Interrupted, UserError
from isbench.jobs import Ending, Job, check_distinct, make_jobs
from isbench.recording.queue import note, queued, squeue, wait_for
from isbench.recording.record import ENDED

log = logging.getLogger("isbench")
ELSEWHERE: Ending = ("running", "another process is at work on it")


class GridFailed(Exception):
    """Runs of a grid failed or diverged. `args` has one line for each reason."""


class ArmSweeper(Sweeper):
    """Hydra's sweeper of isbench: runs every job of the grid, then accounts for each.

    Args:
        arms: name -> overrides.
        params: key -> values, as on the command line.
    """

    def __init__(self, arms: Mapping[str, Sequence[str]], params: Mapping[str, Any]):
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
        closed = sum(job.status(queue)[0] in ENDED for job in jobs)
        print(f"grid: {closed} of {len(jobs)} runs are finished", file=sys.stderr)
        run_all = self.launcher.run_all if isinstance(self.launcher, SlurmLauncher) else self.run_all
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


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """Hydra's launcher through submitit, with three things added.

    A run that has a job already gets no second one, what became of each job is told whatever became of the others, and
    a job that must leave its node while SLURM counts it as running puts itself back into the queue.
    """

    def run_all(self, jobs: Sequence[Job]) -> list[Ending]:
        """Submit the runs that neither ended nor have a job, and wait for all.

        Raises:
            Interrupted: waiting was cut short. The jobs stay.
        """
        runs_dir = Path(jobs[0].config.runs_dir)
        queue = queued(runs_dir)
        standing = [job.status(queue)[0] for job in jobs]
        jobs_of = {n: queue[key].id for n, job in enumerate(jobs) for key in job.ids if key in queue}
        new = [n for n, status in enumerate(standing) if status not in (*ENDED, "queued", "running")]
        for n, job_id in zip(new, self.submit([jobs[n].overrides for n in new]), strict=True):
            note(runs_dir, job_id, run_id(jobs[n].config))
            jobs_of[n] = job_id
        print(f"grid: {len(new)} jobs submitted, {len(jobs_of)} to wait for", file=sys.stderr)
        try:
            states = wait_for(set(jobs_of.values()))
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted("no longer waiting; the jobs stay with SLURM") from None
        return [self.ending(job, jobs_of.get(n), states) for n, job in enumerate(jobs)]

    def submit(self, overrides: Sequence[Sequence[str]]) -> list[str]:
        """Submit one array of jobs; return their ids.

        Raises:
            ConfigError: the time limit leaves no time to train.
            UserError: there is no SLURM, or it refuses.
        """
        if not overrides:
            return []
        limit, warning = self.params["timeout_min"], self.params["signal_delay_s"]
        if 60 * limit <= warning:
            raise ConfigError(
                f"hydra.launcher.timeout_min={limit}: no more than hydra.launcher.signal_delay_s={warning} seconds, "
                "at which jobs stop before it; raise one or lower the other"
            )
        squeue("--me")  # complains in one line where there is no SLURM
        import submitit  # slow

        options = dict(self.params)
        folder, retries = options.pop("submitit_folder"), options.pop("max_num_timeout")
        flags = options["additional_parameters"]
        options["additional_parameters"] = {key: value for key, value in flags.items() if value not in (None, False)}
        if options["cpus_per_task"]:  # which srun no longer takes from sbatch, since 22.05
            options["srun_args"] = [f"--cpus-per-task={options['cpus_per_task']}"]
        common = {item.name for item in fields(BaseQueueConf)}
        options = {key if key in common else f"slurm_{key}": value for key, value in options.items()}
        try:
            executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=retries)
            executor.update_parameters(**options)
            calls = (overrides, range(len(overrides)), itertools.repeat(Singleton.get_state()))
            return [job.job_id for job in executor.map_array(self, *calls)]
        except (RuntimeError, AssertionError) as error:  # sbatch refused, or a value is of the wrong type
            raise UserError(f"launcher=slurm: {' '.join(str(error).split())}") from error

    def __call__(self, overrides: list[str], number: int, singletons: dict[type, Any]) -> Ending:
        """Run one job, in its own process, with what Hydra knew in the one that submitted it."""
        import submitit

        try:
            return super().__call__(overrides, "hydra.sweep.dir", number, str(number), singletons).return_value
        except Interrupted as stop:
            environment = submitit.JobEnvironment()
            (job,) = squeue(f"--jobs={environment.job_id}")
            if job.state == "RUNNING":  # else SLURM requeues or cancels the job by itself
                signal.raise_signal(getattr(signal, f"SIG{environment.USR_SIG}"))  # submitit's handler requeues, exits
            sys.exit(str(stop))

    def ending(self, job: Job, job_id: str | None, states: Mapping[str, str]) -> Ending:
        """Return how a run ended: as its job says, else as its record does, else as SLURM does."""
        from submitit.core.utils import JobPaths, pickle_load

        status, reason = job.status({})
        if job_id is None:
            return ELSEWHERE if status == "running" else (status, reason)
        paths = JobPaths(self.params["submitit_folder"], job_id)
        if paths.result_pickle.exists():
            kind, said = pickle_load(paths.result_pickle)
            return said if kind == "success" else ("failed", said.strip().splitlines()[-1])
        if status in ENDED:
            return status, reason
        state = states.get(job_id, "unknown")
        reason = f"SLURM job {job_id} ended as {state}; its log is {paths.stderr}"
        return "interrupted" if state == "CANCELLED" else "failed", reason


def register() -> None:
    """Make these known to Hydra, which finds plugins in the package hydra_plugins alone or in this table."""
    for plugin in (ArmSweeper, SlurmLauncher):
        Plugins.instance().class_name_to_class[f"hydra_plugins.isbench.{plugin.__name__}"] = plugin


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


@cache
def slot() -> int:
    """Return this process's number among the live ones of a parallel grid, from 0; it is kept until the process ends.

    The number of a job does not do for sharing out GPUs: a late one may run beside another of the same remainder.
    """
    folder = Path(scratch_dir(), f"grid-{os.getppid()}")
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        if locks.keep(folder / str(number)):
            return number
    raise AssertionError


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
