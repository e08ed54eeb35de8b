"""Help for people: what there is to choose from, and a mistake in one line with the nearest valid choices."""

import argparse
import codecs
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isbench.config import GROUPS, RunConfig
from isbench.errors import ConfigError, UserError
from isbench.nodes import config_folder, nearest

PLAIN = (UserError, OmegaConfBaseException, OSError, RecursionError)  # the user's, wherever they come from
MISTAKES = (*PLAIN, HydraException, ValueError, yaml.YAMLError)  # the user's, where they come from composing
USAGE = """\
isbench trains data set x model x sampler, timed by the same rules, and records loss and error against seconds.

  isbench [group=choice ...] [key=value ...]    one run
  isbench -m [group=a,b ...] [key=1,2 ...]      a grid (Hydra multirun)
  isbench status [EXPERIMENT ...]               how far experiments have come, or with -m a grid
  isbench report [FOLDER | wandb:PLACE | ID]    tables, figures and a page of runs; see isbench report --help
  isbench collect [ID ...]                      keep the runs of experiments in results/
  isbench spend LIST [MINUTES]                  spend a given time on runs that are missing
  isbench --cfg job [...]                       show the configuration and stop
  eval "$(isbench -sc install=bash)"            tab completion

`python -m isbench` is the same command.
"""
EXAMPLES = """
Examples:
  isbench sampler=upper_bound budget.unit=seconds budget.limit=20
  isbench dataset=cifar10 model=wrn_28_2 augmentation=flip_crop sampler=loss dataset.download=true
  isbench -m experiment=demo                 a grid; running it again continues it
"""


def help_text() -> str:
    """Return the usage, the choices of each group and the single keys with a line each, and examples."""
    tables = {group: {choice: summary(path) for choice, path in choices(group).items()} for group in GROUPS}
    tables["keys, besides those that --cfg job shows of the choices"] = dict(described_keys(RunConfig))
    lines = [
        line
        for title, table in tables.items()
        for line in ["", f"{title}:", *(f"  {name:<28} {text}" for name, text in table.items())]
    ]
    return "\n".join([USAGE.rstrip(), *lines, EXAMPLES])


def own_folder() -> Path | None:
    """Return the folder that --config-dir names on the command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    return parser.parse_known_args(sys.argv[1:])[0].config_dir


def own_choices() -> list[str]:
    """Return the override that adds the choices of --config-dir, if it is there."""
    return [f"hydra.searchpath=[file://{folder.absolute()}]"] if (folder := own_folder()) else []


def choices(group: str) -> dict[str, Path]:
    """Return the choices of a group and their files, in alphabetical order, those of --config-dir among them."""
    found = {
        path.relative_to(folder / group).with_suffix("").as_posix(): path
        for folder in (config_folder(), own_folder())
        if folder is not None
        for path in (folder / group).rglob("*.yaml")
    }
    return dict(sorted(found.items()))


def as_meant(words: Sequence[str]) -> list[str]:
    """Return the words of a command line as Hydra takes them for what they mean.

    An experiment may be called without its folder, and a text may look like a number: of group=2026_11 Hydra would make
    202611, and of 1e3 1000.0. With arm=..., a setting of a choice (sampler.eps=0) may be one that only the arm's choice
    has: as a sweep of one value it waits until the arm has chosen.
    """
    in_arms = any(word.startswith("arm=") for word in words)
    short = {choice.rpartition("/")[2]: choice for choice in reversed(choices("experiment"))}
    texts = set(text_keys(RunConfig))
    meant = []
    for word in words:
        key, _, value = word.partition("=")
        name = key.lstrip("+")
        if name == "experiment" and value not in choices(name):
            word = f"{key}={short.get(value, value)}"
        elif name in texts and not value.isdecimal() and re.fullmatch(r"[+-]?[\d._]+([eE][+-]?\d+)?", value):
            word = f"{key}='{value}'"
        elif in_arms and re.fullmatch(rf"({'|'.join(GROUPS)})\..+=[\w.+-]+", word):
            word = f"{key}=choice({value})"
        meant.append(word)
    return meant


def text_keys(part: type, prefix: str = "") -> Iterator[str]:
    """Yield the keys of a configuration, dotted, whose values are texts."""
    for name, hint in get_type_hints(part).items():
        if is_dataclass(hint):
            yield from text_keys(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif hint is str or str in get_args(hint):
            yield f"{prefix}{name}"


def check_marks() -> None:
    """Check that no yaml of --config-dir begins with a mark of its encoding: Hydra then overlooks `# @package`.

    Raises:
        ConfigError: one does.
    """
    for path in folder.rglob("*.yaml") if (folder := own_folder()) else ():
        with suppress(OSError):  # Hydra says so if it is chosen
            if path.is_file() and path.read_bytes().startswith((codecs.BOM_UTF8, codecs.BOM_LE, codecs.BOM_BE)):
                raise ConfigError(f"{path}: begins with a byte order mark; save it as UTF-8 without one")


def summary(path: Path) -> str:
    """Return the first comment of a yaml that is not an instruction to Hydra, or why it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return next((line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @")), "")


def described_keys(part: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys of a configuration that have a line of help, dotted, with that line."""
    hints = get_type_hints(part)
    for item in fields(part):
        key, hint = f"{prefix}{item.name}", hints[item.name]
        if is_dataclass(hint):
            yield from described_keys(hint, f"{key}.")  # type: ignore[arg-type]
        elif "help" in item.metadata:
            words = f" ({', '.join(get_args(hint))})" if get_origin(hint) is Literal else ""
            yield key, item.metadata["help"] + words


def explain(error: BaseException) -> str:
    """Return one line on a configuration error, with the nearest valid choices where there are any."""
    printable = (character if character.isprintable() else " " for character in _reason(error))
    return " ".join("".join(printable).split())


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, RecursionError):
        return "the configuration is nested too deep, or in itself"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; write key=value, and quote a value that is not a plain word"
    text = f"{error}\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else str(error)
    for pattern, line in LINES.items():
        if found := re.search(pattern, text):
            return line(*found.groups())
    return text


def no_such_choice(group: str, word: str) -> str:
    return f"{group}={word}: no such choice; {nearest(word, choices(group))}"


def no_such_key(key: str) -> str:
    known = [other for other in known_keys() if other.startswith("hydra.") == key.startswith("hydra.")]
    beside = [other for other in known if other.startswith(key[: key.rfind(".") + 1])]
    return f"unknown key {key}: {nearest(key, beside or known)}"


# What Hydra and OmegaConf say, and what is said instead.
LINES: dict[str, Callable[..., str]] = {
    r"Could not (?:find|load) '(.+?)/(.+?)'": no_such_choice,
    r"(?:Could not override|Key) '(.+?)'(?:\.| is not in struct)": no_such_key,
    r"Ambiguous value for argument '(.+?)'": lambda word: f"{word}: several values make a grid; give -m, too",
    r"Sweep parameters '(.+?)=": lambda key: f"{key}: several values, or an arm, make a grid; give -m, too",
    r"(?m)^(.+)\n +full_key: (\S+)": lambda reason, key: f"{key}: {reason}",
}


def known_keys() -> list[str]:
    """Return every key, dotted, of the configuration that the choices on the command line make."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    words = [word for word in sys.argv[1:] if is_choice(*word.partition("=")[::2])]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        for overrides in ([*words, *own_choices()], []):
            with suppress(HydraException):  # a yaml of the user's own may be what is wrong
                cfg = compose("config", overrides=overrides, return_hydra_config=True)
                return [*GROUPS, *flat(OmegaConf.to_container(cfg))]
    raise AssertionError


def is_choice(group: str, word: str) -> bool:
    return group in GROUPS and word in choices(group)


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return every key of nested dictionaries, dotted, with its value."""
    if not isinstance(node, dict):
        return {prefix.rstrip("."): node}
    return {key: value for name, item in node.items() for key, value in flat(item, f"{prefix}{name}.").items()}
