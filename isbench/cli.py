"""The command line: Hydra composes the configuration, isbench checks and trains it, and every mistake gets one line.

Torch is imported only once there is something to train, so that help, completion and complaints come at once.
"""

import logging
import os
import sys
import traceback
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import isbench.openmp  # noqa: F401  # before torch
from isbench.config import validate
from isbench.errors import ConfigError, GridFailed, Interrupted
from isbench.explain import MISTAKES, PLAIN, as_meant, check_marks, explain, help_text
from isbench.files import RECORD
from isbench.nodes import config_folder
from isbench.place import place
from isbench.recording.record import Outcome
from isbench.terminal import outlive_terminal

log = logging.getLogger("isbench")
# Kept apart, since `command` sets Hydra's own variable, which the processes of a grid inherit.
_wants_traceback = os.environ.setdefault("ISBENCH_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"
failures: list[str] = []  # what `command` complains of at the end


def main() -> None:
    """Run the command line; the exit code is 0 if every run was trained, recorded as skipped, or already there."""
    outlive_terminal()
    try:
        if place().rank:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # the first process speaks for all
        command()
        code = None
    except ConfigError as error:  # of the place
        sys.exit(f"isbench: {error}")
    except SystemExit as end:
        if "WORLD_SIZE" not in os.environ:
            raise
        code = end.code
    if "WORLD_SIZE" in os.environ:
        if isinstance(code, str):
            print(code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(bool(code))  # the threads behind a group of processes abort an interpreter that tears them down


def command() -> None:
    """Do what the command line asks for.

    Raises:
        SystemExit: what went wrong, in a line for each reason.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text())
        return
    sys.argv[1:] = as_meant(sys.argv[1:])
    for flag in {"-m", "--multirun"} & set(sys.argv[1:]):  # wherever it stands
        sys.argv.remove(flag)
        sys.argv.insert(1, flag)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets errors through to the handlers below
    failures.clear()
    try:
        check_flags()
        check_marks()
        application()
    except Interrupted as stop:
        sys.exit(f"isbench: {stop}; the same command continues it")
    except KeyboardInterrupt:
        sys.exit("isbench: stopped at once; the same command continues from the last checkpoint")
    except GridFailed as error:
        failures.extend(error.args)
    except MISTAKES as error:
        if _wants_traceback:
            traceback.print_exc()
        if not failures:
            failures.append(explain(error))
    if failures:
        sys.exit("\n".join(f"isbench: {failure}" for failure in failures))


def check_flags() -> None:
    """Show the words to Hydra's parser, which of itself answers a mistake with all of its usage.

    Raises:
        ConfigError: a flag that there is not.
    """

    def complain(message: str) -> NoReturn:
        raise ConfigError(f"{message}; values are set by key=value, see --help")

    parser = get_args_parser()
    parser.error = complain  # type: ignore[method-assign]
    if parser.parse_args().experimental_rerun:
        raise ConfigError("--experimental-rerun is not supported: the same command, given again, continues a run")


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")
def application(cfg: DictConfig) -> tuple[str, str]:
    """Train one composed configuration; return how it ended, and why. What goes wrong is kept for `command`."""
    is_grid = HydraConfig.get().mode == RunMode.MULTIRUN
    outlive_terminal()  # a grid has processes of its own
    try:
        outcome = _train(cfg, is_grid)
        status, reason = outcome.status, outcome.reason
    except Exception as error:
        if _wants_traceback or not isinstance(error, PLAIN):
            traceback.print_exc()
        status, reason = "failed", explain(error)
        if (rank := place().rank) and not getattr(error, "is_shared", False):
            print(f"isbench: process {rank}: {reason}", file=sys.__stderr__)
        if is_grid:
            log.error("failed: %s", reason)
    if is_grid:
        return status, reason  # to isbench.grid, perhaps in another process
    if status == "failed":
        failures.append(reason)
    elif status == "diverged":
        failures.append(f"{outcome.folder}: diverged: {reason}")
    else:
        print(f"record: {outcome.folder / RECORD}")
    return status, reason


def _train(cfg: DictConfig, is_grid: bool) -> Outcome:
    config = validate(cfg)
    if is_grid:
        from isbench.grid.member import run_member  # imports torch

        return run_member(config, HydraConfig.get().launcher.get("n_jobs", 1))
    check_single(config.arm)
    from isbench.run import run

    return run(config)


def check_single(arm: str | None) -> None:
    """Check that a command for one run asks for nothing that grids alone have."""
    launcher = HydraConfig.get().runtime.choices["launcher"]
    if arm is not None:
        raise ConfigError(f"arm={arm}: only grids have arms; add -m")
    if launcher != "local":
        raise ConfigError(f"launcher={launcher}: launchers are for grids; add -m")
    sweeper = HydraConfig.get().sweeper
    if sweeper.params or sweeper.get("arms"):
        log.info("this is one run; the experiment is a grid of them with -m")
