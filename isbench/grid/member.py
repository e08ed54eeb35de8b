"""One run as a member of a grid: not trained again if results/ has it, skipped if impossible, on a GPU of its own."""

import itertools
import os
from functools import cache
from logging import getLogger
from pathlib import Path

import torch

from isbench import locks
from isbench.build import resolve_device
from isbench.config import RunConfig, on_device, recorded, run_folder, run_id, scratch_dir
from isbench.errors import ConfigError, Incompatible
from isbench.files import RECORD
from isbench.grid.jobs import ELSEWHERE
from isbench.grid.kept import collected_runs
from isbench.recording.record import Outcome, Record
from isbench.run import InUse, locked, now, open_sink, run
from isbench.training.ranks import join

log = getLogger("isbench")


def run_member(config: RunConfig, num_processes: int) -> Outcome:
    """Train one run of a grid whose runs `num_processes` processes take in turn; see `isbench.run.run`."""
    if (outcome := kept(config)) is not None:
        return outcome
    if num_processes != 1:
        share_machine(config, num_processes, slot())
    try:
        return run(config)
    except Incompatible as error:
        log.info("skipped: %s", error)
        return skip(config, str(error))
    except InUse:
        return Outcome(run_folder(config), *ELSEWHERE)


def resolved(config: RunConfig) -> RunConfig:
    """Return the configuration that is recorded: `device` names the one it trains on."""
    return on_device(config, resolve_device(config.device).type)


def kept(config: RunConfig) -> Outcome | None:
    """Return how a run ended that is kept in results/ and has no folder here, None if there is no such run."""
    config = resolved(config)
    folder, ended = run_folder(config), collected_runs(config.group).get(run_id(config))
    return None if ended is None or (folder / RECORD).exists() else Outcome(folder, ended.status, ended.reason)


def skip(config: RunConfig, reason: str) -> Outcome:
    """Record that a configuration cannot be trained, so that a grid accounts for every run."""
    config = resolved(config)
    folder = run_folder(config)
    if not join(torch.device(config.device)).is_first:
        return Outcome(folder, "skipped", reason)
    with locked(folder):
        record, sink = Record(folder / RECORD), open_sink(config, folder, {})
        record.append("start", time=now(), resumed_at=0, run_id=run_id(config), config=recorded(config))
        record.append("end", status="skipped", reason=reason)
        sink.finish("skipped", reason)
    return Outcome(folder, "skipped", reason)


def share_machine(config: RunConfig, jobs: int, number: int) -> None:
    """Give the `number`-th of several simultaneous runs its GPU.

    Raises:
        ConfigError: the budget is in seconds, and runs would have to share a device; or each has several processes.
    """
    device = resolve_device(config.device)
    if join(device).size > 1:
        raise ConfigError(f"hydra.launcher.n_jobs={jobs}: runs that several processes share go one after the other")
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if config.budget.unit == "seconds" and not 1 <= jobs <= gpus:
        raise ConfigError(
            f"hydra.launcher.n_jobs={jobs} with budget.unit=seconds: runs that share a device cannot be timed; "
            "use launcher=local, or as many jobs as GPUs"
        )
    if gpus:
        torch.cuda.set_device(number % gpus)


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
