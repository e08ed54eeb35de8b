"""The command line: Hydra composes the configuration, isbench checks and trains it, and every mistake gets one line.

Torch is imported only once there is something to train, so that help, completion and complaints come at once.
"""

import argparse
import logging
import os
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isbench.config import config_folder, nearest, run_folder, validate
from isbench.errors import ConfigError, Incompatible, Interrupted, UserError
from isbench.grid import ELSEWHERE, GridFailed, register, slot

if TYPE_CHECKING:
    from isbench.training.run import Outcome

log = logging.getLogger("isbench")
GROUPS = (
    "dataset",
    "model",
    "sampler",
    "optimizer",
    "schedule",
    "augmentation",
    "probe",
    "budget",
    "numerics",
    "logging",
    "launcher",
    "experiment",
)
PLAIN = (UserError, OmegaConfBaseException, OSError, RecursionError)  # the user's, wherever they come from
MISTAKES = (*PLAIN, HydraException, ValueError, yaml.YAMLError)  # the user's, where they come from composing
EXAMPLES = """\
Examples:
  isbench sampler=upper_bound budget.unit=seconds budget.limit=20
  isbench dataset=cifar10 model=wrn_28_2 augmentation=flip_crop sampler=loss dataset.download=true
  isbench -m experiment=demo                 a grid; running it again continues it
"""
# Kept apart, since `command` sets Hydra's own variable, which the processes of a grid inherit.
_wants_traceback = os.environ.setdefault("ISBENCH_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"
failures: list[str] = []  # what `command` complains of at the end


def main() -> None:
    """Run the command line; the exit code is 0 if every run was trained, recorded as skipped, or already there."""
    if rank():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # the first process speaks for all
    try:
        command()
        code = None
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
    for flag in {"-m", "--multirun"} & set(sys.argv[1:]):  # wherever it stands
        sys.argv.remove(flag)
        sys.argv.insert(1, flag)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets errors through to the handlers below
    failures.clear()
    register()
    try:
        check_flags()
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
    try:
        outcome = _train(cfg, is_grid)
        status, reason = outcome.status, outcome.reason
    except Exception as error:
        if _wants_traceback or not isinstance(error, PLAIN):
            traceback.print_exc()
        status, reason = "failed", explain(error)
        if rank() and not getattr(error, "is_shared", False):
            print(f"isbench: process {rank()}: {reason}", file=sys.__stderr__)
        if is_grid:
            log.error("failed: %s", reason)
    if is_grid:
        return status, reason  # to isbench.grid, perhaps in another process
    if status == "failed":
        failures.append(reason)
    elif status == "diverged":
        failures.append(f"{outcome.folder}: diverged: {reason}")
    else:
        print(f"record: {outcome.folder / 'record.jsonl'}")
    return status, reason


def _train(cfg: DictConfig, is_grid: bool) -> "Outcome":
    config = validate(cfg)
    if config.arm is not None and not is_grid:
        raise ConfigError(f"arm={config.arm}: only grids have arms; add -m")
    sweeper = HydraConfig.get().sweeper
    if not is_grid and (sweeper.params or sweeper.get("arms")):
        log.info("this is one run; the experiment is a grid of them with -m")
    launcher = HydraConfig.get().runtime.choices["launcher"]
    if launcher != "local" and not is_grid:
        raise ConfigError(f"launcher={launcher}: launchers are for grids; add -m")
    from isbench.training.run import InUse, Outcome, kept, run, share_machine, skip  # imports torch

    if is_grid and (outcome := kept(config)) is not None:
        return outcome
    jobs = HydraConfig.get().launcher.get("n_jobs", 1)
    if jobs != 1:
        share_machine(config, jobs, slot())
    try:
        return run(config)
    except Incompatible as error:
        if not is_grid:
            raise
        log.info("skipped: %s", error)
        return skip(config, str(error))
    except InUse:
        if not is_grid:
            raise
        return Outcome(run_folder(config), *ELSEWHERE)


def rank() -> int:
    """Return this process's number among those that torchrun, or srun with several tasks, started together."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return int(os.environ.get("RANK", os.environ["SLURM_PROCID"]))
    return int(os.environ.get("RANK", 0))


def help_text() -> str:
    """Return the groups, their choices with one line each, the single keys, and examples."""
    lines = [
        "isbench trains data set x model x sampler under one clock and records loss and error against seconds.",
        "",
        "  python -m isbench [group=choice ...] [key=value ...]     one run",
        "  python -m isbench -m [group=a,b ...] [key=1,2 ...]       a grid (Hydra multirun)",
        "  python -m isbench --cfg job [...]                        show the configuration and stop",
        '  eval "$(isbench -sc install=bash)"                       tab completion',
    ]
    for group in GROUPS:
        lines += ["", f"{group}:"]
        lines += [f"  {choice:<28} {summary(path)}" for choice, path in choices(group).items()]
    lines += [
        "",
        "Keys: seed, batch_size, label_smoothing, clip_norm, slots, device (auto, cpu, cuda), data_dir, runs_dir,",
        "group, budget.unit (updates, epochs, examples, seconds), budget.limit, evaluation.points, optimizer.lr,",
        "sampler.pool_size, and whatever else --cfg job shows.",
        "",
        EXAMPLES,
    ]
    return "\n".join(lines)


def choices(group: str) -> dict[str, Path]:
    """Return the choices of a group and their files, in alphabetical order, those of --config-dir among them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    folders = [config_folder(), parser.parse_known_args(sys.argv[1:])[0].config_dir]
    found = {
        path.relative_to(folder / group).with_suffix("").as_posix(): path
        for folder in folders
        if folder is not None
        for path in (folder / group).rglob("*.yaml")
    }
    return dict(sorted(found.items()))


def summary(path: Path) -> str:
    """Return the first comment of a yaml that is not an instruction to Hydra."""
    for line in path.read_text().splitlines():
        if line.startswith("# ") and not line.startswith("# @"):
            return line[2:]
    return ""


def explain(error: BaseException) -> str:
    """Return one line on a configuration error, with the nearest valid choices where there are any."""
    printable = (character if character.isprintable() else " " for character in _reason(error))
    return " ".join("".join(printable).split())


def _reason(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, RecursionError):
        return "the configuration is nested too deep, or in itself"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; write key=value, and quote a value that is not a plain word"
    choice = re.search(r"Could not find '(.+?)/(.+?)'", text) or re.search(r"Could not load '(.+?)/(.+?)'", text)
    if choice:
        group, word = choice.groups()
        return f"{group}={word}: no such choice; {nearest(word, choices(group))}"
    key = re.search(r"Could not override '(.+?)'", text) or re.search(r"Key '(.+?)' is not in struct", text)
    if key:
        group, dot, word = key[1].rpartition(".")
        keys = [known for known in known_keys() if known.startswith(f"{group}.") or not dot]
        return f"unknown key {key[1]}: {nearest(key[1], keys)}"
    cause: Any = error.__cause__
    full_key = re.search(r"full_key: (\S+)", f"{text}\n{cause}")
    value = re.search(r"Value '.*?'.*", f"{text}\n{cause}")
    if full_key and value:
        return f"{full_key[1]}: {value[0][0].lower()}{value[0][1:]}"
    reason = f": {cause}" if isinstance(cause, OmegaConfBaseException) and str(cause) not in text else ""
    return f"{text}{reason}"


def known_keys() -> list[str]:
    """Return every key of the default configuration, dotted."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    overrides = [
        word
        for word in sys.argv[1:]
        if word.partition("=")[0] in GROUPS and word.partition("=")[2] in choices(word.partition("=")[0])
    ]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        try:
            cfg = compose("config", overrides=overrides)
        except HydraException:  # a choice of the user's own
            cfg = compose("config")

    def keys(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix.rstrip(".")]
        return [key for name, value in node.items() for key in keys(value, f"{prefix}{name}.")]

    return [*GROUPS, *keys(OmegaConf.to_container(cfg), "")]
