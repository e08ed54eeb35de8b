"""What there is to choose from, and a mistake in one line, with the nearest valid choices where there are any."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isbench.config import config_folder, nearest
from isbench.errors import UserError

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
