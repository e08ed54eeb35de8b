"""Grids: the runs behind a table or figure, and the Hydra sweeper that makes them.

An experiment names its arms in `hydra.sweeper.arms`: the lines of a table or the curves of a figure, each a list of
overrides. The grid is arms x the cross product of `hydra.sweeper.params` and of what the command line sweeps; the
command line wins over arms, and arms over params. Seeds are the outer loop and arms the inner one, so that a grid
stopped half-way compares the same seeds. `arm=a,b` on the command line narrows the grid to these arms. Runs that ended
and are kept in results/ are not run again, though their folders are not here. Where SLURM runs the jobs, see
docs/cluster.md.
"""

import fcntl
import itertools
import logging
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import DictConfig, OmegaConf
from tabulate import tabulate

from isbench.config import RunConfig, config_folder, nearest, run_folder, run_id, scratch_dir, validate
from isbench.errors import ConfigError, Interrupted, UserError
from isbench.recording.collected import ENDED, collected_runs
from isbench.recording.queue import SlurmJob, note, queued, squeue, wait_for
from isbench.recording.record import last_status, read_rows

log = logging.getLogger("isbench")
Axes = dict[str, list[str]]  # key -> key=value, once for each value
Ending = tuple[str, str]  # status and reason
ELSEWHERE: Ending = ("running", "another process is at work on it")


class GridFailed(Exception):
    """Runs of a grid failed or diverged. `args` has one line for each reason."""


@dataclass(frozen=True)
class Job:
    """One run of a grid: what Hydra is told, and what tells it from the others."""

    overrides: list[str]
    label: str
    compose: Callable[[Sequence[str]], RunConfig]

    @cached_property
    def config(self) -> RunConfig:
        """The configuration, checked. It takes Hydra a while, so that it waits until it is asked for."""
        return self.compose(self.overrides)

    @property
    def arm(self) -> str:
        """The arm, or the sampler where there are no arms."""
        return self.config.arm or self.config.sampler["name"]

    @property
    def folder(self) -> Path:
        """The run's folder. Where the device is left open, a GPU's comes first, if there is a record."""
        folders = [run_folder(config) for config in self._candidates()]
        return next((folder for folder in folders if (folder / "record.jsonl").exists()), folders[-1])

    @property
    def ids(self) -> list[str]:
        """The run's id, and those that it takes where the device is left open."""
        return [run_id(config) for config in (self.config, *self._candidates())]

    @property
    def attempts(self) -> int:
        """How many processes have begun to work on the run."""
        return max((row["attempt"] for row in read_rows(self.folder / "record.jsonl")), default=0)

    def status(self, queue: Mapping[str, SlurmJob]) -> Ending:
        """Return how the run stands, and why; where there is no record here, as results/ has it.

        Args:
            queue: the jobs that SLURM has, by the id of their run.
        """
        rows = read_rows(self.folder / "record.jsonl")
        kept = {} if rows else collected_runs(self.config.group)
        last = last_status(rows) if rows else next((kept[key] for key in self.ids if key in kept), None)
        if last is not None and last[0] in ENDED:
            return last
        for slurm_job in (queue[key] for key in self.ids if key in queue):
            return ("running", "") if slurm_job.state == "RUNNING" else ("queued", slurm_job.reason)
        if last is not None:
            return last
        return ("running" if is_locked(self.folder) else "interrupted" if rows else "missing", "")

    def _candidates(self) -> list[RunConfig]:
        devices = ("cuda", "cpu") if self.config.device == "auto" else (self.config.device,)
        return [replace(self.config, device=device) for device in devices]


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
        failures = [line for line in reasons(jobs, endings) if not line.startswith("skipped: ")]
        if failures:
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


def compose_grid(words: Sequence[str]) -> tuple[Path, list[Job]]:
    """Return the folder of the group and the jobs of `python -m isbench -m WORDS`, without running them."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    config = loader.load_configuration("config", list(words), RunMode.MULTIRUN)
    arguments = [word for word in words if not re.match(r"[+~]*hydra[./]", word)]  # those that a sweeper is given
    jobs = make_jobs(loader, config, config.hydra.sweeper.arms, config.hydra.sweeper.params, arguments)
    return Path(config.runs_dir, config.group or ""), jobs


def make_jobs(
    loader: ConfigLoader,
    config: DictConfig,
    arms: Mapping[str, Sequence[str]],
    params: Mapping[str, Any],
    arguments: Sequence[str],
) -> list[Job]:
    """Return the jobs of a grid in order.

    Raises:
        ConfigError: no such arm, or an empty grid.
    """
    composed: dict[tuple[str, ...], DictConfig] = {}  # without the seed, for all seeds

    def compose(words: Sequence[str]) -> RunConfig:
        seeds = [word for word in words if re.fullmatch(r"seed=\d+", word)]
        others = tuple(word for word in words if word not in seeds)
        if others not in composed:
            cfg = loader.load_sweep_config(config, list(others))
            composed[others] = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        for word in seeds:
            composed[others].seed = int(word.removeprefix("seed="))
        return validate(composed[others])

    parser = OverridesParser.create(config_loader=loader)
    return [Job(words, label, compose) for label, words in expand(parser, arms, params, arguments)]


def check_distinct(jobs: Sequence[Job]) -> None:
    """Compose all jobs.

    Raises:
        ConfigError: a value out of range, or two jobs that are one run.
    """
    seen: dict[Path, Job] = {}
    for job in jobs:
        twin = seen.setdefault(run_folder(job.config), job)
        if twin is not job:
            raise ConfigError(f"'{twin.label}' and '{job.label}' are one and the same run; leave one of them out")


def expand(
    parser: OverridesParser, arms: Mapping[str, Sequence[str]], params: Mapping[str, Any], arguments: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield the label and the overrides of each job of a grid, in order."""
    given = read_axes(parser, arguments)
    if len(given.get("experiment", ())) > 1:
        raise ConfigError(f"{', '.join(given['experiment'])}: run one experiment at a time")
    chosen = read_arms(parser, arms, given.pop("arm", None))
    for key in sorted({key for own in chosen.values() for key in own} & set(given)):
        if "." not in key:
            raise ConfigError(f"{given[key][0]}: the arms of this grid set {key}; narrow them with arm=a,b instead")
    swept = {**read_axes(parser, [f"{key}={value}" for key, value in params.items()]), **given}
    swept = dict(sorted(swept.items(), key=lambda item: item[0] != "seed"))
    seen = set()
    for values in itertools.product(*swept.values()):
        point = dict(zip(swept, values, strict=True))
        for arm, own in chosen.items():
            words = list({**point, **own, **{key: point[key] for key in given}}.values())
            if tuple(words) not in seen:  # an arm may fix what params sweep
                seen.add(tuple(words))
                varied = [own.get(key, point[key]) for key in swept if len(swept[key]) > 1]
                yield " ".join([arm, *varied]).strip() or " ".join(arguments), words


def read_axes(parser: OverridesParser, words: Sequence[str]) -> Axes:
    """Return the values that each key is to take; the last mention of a key counts."""
    axes: Axes = {}
    for override in parser.parse_overrides(list(words)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            axes[key] = [str(override.input_line)]
        elif override.is_discrete_sweep():
            axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ConfigError(f"{override.input_line}: name the values, key=1,2 or key=range(3)")
        if not axes[key]:
            raise ConfigError(f"{override.input_line}: no values, so that the grid has no runs")
    return axes


def read_arms(
    parser: OverridesParser, arms: Mapping[str, Sequence[str]], narrowed: list[str] | None
) -> dict[str, dict[str, str]]:
    """Return key -> override for each arm, of those in `narrowed` (arm=name each) if it is given.

    An experiment without arms has one, without a name.
    """
    for name, overrides in arms.items():
        if not re.fullmatch(r"[A-Za-z][\w.-]*", str(name)):
            raise ConfigError(f"hydra.sweeper.arms.{name}: needs a name of letters, digits, '_', '-' and '.'")
        if not OmegaConf.is_list(overrides) or not all(isinstance(word, str) for word in overrides):
            raise ConfigError(f"hydra.sweeper.arms.{name}: needs a list of overrides, [key=value, ...]")
    names = [word.removeprefix("arm=") for word in narrowed or []]
    for name in names:
        if name not in arms:
            hint = nearest(name, arms) if arms else "only an experiment has arms, and not each of them"
            raise ConfigError(f"arm={name}: no such arm; {hint}")
    chosen = {}
    for name in [name for name in arms if name in names or narrowed is None]:
        axes = read_axes(parser, [*arms[name], f"arm={name}"])
        for key, values in axes.items():
            if len(values) > 1:
                raise ConfigError(f"hydra.sweeper.arms.{name}: {key} needs one value; several make several arms")
        chosen[name] = {key: value for key, (value,) in axes.items()}
    return chosen or {"": {}}


def summary(jobs: Sequence[Job], endings: Sequence[Ending]) -> str:
    """Return a table of how many runs of each arm ended how, and why any were skipped."""
    counts = Counter((job.arm, status) for job, (status, _) in zip(jobs, endings, strict=True))
    statuses = list(dict.fromkeys(["finished", *(status for _, status in counts)]))
    rows = [[arm, *(counts[arm, status] for status in statuses)] for arm in dict.fromkeys(job.arm for job in jobs)]
    table = tabulate(rows, ["arm" if jobs[0].config.arm else "sampler", *statuses])
    return "\n".join([table, *(line for line in reasons(jobs, endings) if line.startswith("skipped: "))])


def reasons(jobs: Sequence[Job], endings: Sequence[Ending]) -> list[str]:
    """Return a line for every reason not to finish, with the runs that it stopped."""
    stopped: dict[tuple[str, str], list[str]] = {}
    for job, (status, reason) in zip(jobs, endings, strict=False):
        if reason:
            stopped.setdefault((status, reason), []).append(job.label)
    return [f"{status}: {', '.join(labels)}: {reason}" for (status, reason), labels in stopped.items()]


@cache
def slot() -> int:
    """Return this process's number among the live ones of a parallel grid, from 0; it is kept until the process ends.

    The number of a job does not do for sharing out GPUs: a late one may run beside another of the same remainder.
    """
    folder = Path(scratch_dir(), f"grid-{os.getppid()}")
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        descriptor = os.open(folder / str(number), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return number
        except BlockingIOError:
            os.close(descriptor)
    raise AssertionError


def is_locked(folder: Path) -> bool:
    """Say whether a process is at work in a run folder."""
    try:
        with open(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


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
