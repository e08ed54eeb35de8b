"""The Hydra launcher that gives the runs of a grid to SLURM, one job each; see docs/cluster.md."""

import itertools
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

from isbench.config import run_id
from isbench.errors import ConfigError, Interrupted, UserError
from isbench.grid.jobs import ELSEWHERE, Ending, Job
from isbench.grid.queue import note, queued, squeue, wait_for
from isbench.recording.record import ENDED


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
            try:
                jobs = squeue(f"--jobs={environment.job_id}")
            except UserError as error:  # nodes of some clusters may not ask
                sys.exit(f"{stop}, and its job cannot put itself back ({error}); the same command continues it")
            if any(job.state == "RUNNING" for job in jobs):  # else SLURM requeues or cancels the job by itself
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
