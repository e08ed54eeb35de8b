"""The command line: Hydra composes the configuration, isbench checks and trains it, and every mistake gets one line.

Torch is imported only once there is something to train, so that help, completion and complaints come at once.
"""

import logging
import os
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isbench.config import config_folder, nearest, validate
from isbench.errors import Incompatible, Interrupted, UserError

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
    "budget",
    "numerics",
    "logging",
    "launcher",
    "experiment",
)
EXAMPLES = """\
Examples:
  isbench sampler=upper_bound budget.unit=seconds budget.limit=20
  isbench dataset=cifar10 model=wrn_28_2 augmentation=flip_crop sampler=loss dataset.download=true
  isbench -m experiment=demo                 a grid; running it again continues it
"""
failures: list[str] = []  # of the runs of this process, in order


def main() -> None:
    """Run the command line; the exit code is 0 if every run was trained, recorded as skipped, or already there."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text(config_folder()))
        return
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets errors through to the handlers below
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products; read when CUDA starts
    failures.clear()
    try:
        application()
    except Interrupted as stop:
        sys.exit(f"isbench: {stop}; the same command continues it")
    except KeyboardInterrupt:
        sys.exit("isbench: stopped at once; the same command continues from the last checkpoint")
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            traceback.print_exc()
        sys.exit(f"isbench: {explain(error)}")
    if failures:
        sys.exit("\n".join(f"isbench: {failure}" for failure in failures))


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")
def application(cfg: DictConfig) -> None:
    """Train one composed configuration. In a grid, what goes wrong with one run is kept for the end."""
    if HydraConfig.get().mode == RunMode.RUN:
        outcome = _train(cfg)
        if outcome.status == "finished":
            print(f"record: {outcome.folder / 'record.jsonl'}")
        else:
            failures.append(f"{outcome.folder}: {outcome.status}: {outcome.reason}")
        return
    overrides = " ".join(HydraConfig.get().overrides.task)
    try:
        outcome = _train(cfg, skip_incompatible=True)
        if outcome.status == "diverged":
            failures.append(f"{outcome.folder}: diverged: {outcome.reason}")
    except (UserError, OmegaConfBaseException) as error:
        failures.append(f"{overrides}: {explain(error)}")
    except Exception as error:  # a defect in one run must not take the grid with it
        traceback.print_exc()
        failures.append(f"{overrides}: {type(error).__name__}: {explain(error)}")


def _train(cfg: DictConfig, skip_incompatible: bool = False) -> "Outcome":
    config = validate(cfg)
    from isbench.training.run import run, skip  # imports torch

    try:
        return run(config)
    except Incompatible as error:
        if not skip_incompatible:
            raise
        log.info("skipped: %s", error)
        return skip(config, str(error))


def help_text(folder: Path) -> str:
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
        for path in sorted((folder / group).rglob("*.yaml")):
            choice = path.relative_to(folder / group).with_suffix("").as_posix()
            lines.append(f"  {choice:<24}{summary(path)}")
    lines += [
        "",
        "Keys: seed, batch_size, label_smoothing, clip_norm, slots, device (auto, cpu, cuda), data_dir, runs_dir, group,",
        "budget.unit (updates, epochs, examples, seconds), budget.limit, evaluation.points, optimizer.lr,",
        "sampler.pool_size, and whatever else --cfg job shows.",
        "",
        EXAMPLES,
    ]
    return "\n".join(lines)


def summary(path: Path) -> str:
    """Return the first comment of a yaml that is not an instruction to Hydra."""
    for line in path.read_text().splitlines():
        if line.startswith("# ") and not line.startswith("# @"):
            return line[2:]
    return ""


def explain(error: BaseException) -> str:
    """Return one line on a configuration error, with the nearest valid choices where there are any."""
    text = str(error)
    if isinstance(error, UserError):
        return " ".join(text.split())
    choice = re.search(r"Could not find '(.+?)/(.+?)'", text) or re.search(r"Could not load '(.+?)/(.+?)'", text)
    if choice:
        group, word = choice.groups()
        choices = [p.relative_to(config_folder() / group).with_suffix("").as_posix()
                   for p in (config_folder() / group).rglob("*.yaml")]
        return f"{group}={word}: no such choice; {nearest(word, choices)}"
    key = re.search(r"Could not override '(.+?)'", text) or re.search(r"Key '(.+?)' is not in struct", text)
    if key:
        return f"unknown key {key[1]}: {nearest(key[1], known_keys())}"
    cause: Any = error.__cause__
    full_key = re.search(r"full_key: (\S+)", f"{text}\n{cause}")
    value = re.search(r"Value '.*?'.*", f"{text}\n{cause}")
    if full_key and value:
        return f"{full_key[1]}: {value[0].lower()}"
    return " ".join(text.split())


def known_keys() -> list[str]:
    """Return every key of the default configuration, dotted."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    overrides = [word for word in sys.argv[1:] if word.split("=")[0] in GROUPS and "," not in word]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("config", overrides=overrides)

    def keys(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix.rstrip(".")]
        return [key for name, value in node.items() for key in keys(value, f"{prefix}{name}.")]

    return [*GROUPS, *keys(OmegaConf.to_container(cfg), "")]
