"""Nodes: the yaml of a choice, and the object that its `_target_` makes of it. Without Hydra and torch.

The annotations of the function or class that a node names are the schema of its values; pydantic reads them.
"""

import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from isbench.errors import ConfigError

# Modules that moved after runs were recorded, and where they were: identities keep the old name, and both are found.
MOVED = {"isbench.data.readers": "isbench.data.sources"}
MISSING = "???"  # a value that has to be given: OmegaConf's word for it


def config_folder() -> Path:
    """Return the folder of yaml files: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def choice(group: str, name: str) -> dict[str, Any]:
    """Return the node of one of conf/'s choices, without the values that refer to other groups.

    Raises:
        ConfigError: there is no such choice.
    """
    paths = {path.stem: path for path in (config_folder() / group).glob("*.yaml")}
    if name not in paths:
        raise ConfigError(f"{group}={name}: no such choice; {nearest(name, paths)}")
    node = yaml.safe_load(paths[name].read_text())
    return {key: value for key, value in node.items() if not (isinstance(value, str) and "${" in value)}


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a hint that names the choices most like `word`, else those whose last part begins so, else all."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    if not close and word:
        close = [choice for choice in choices if re.split(r"[./]", choice)[-1].startswith(word)][:3]
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "valid: " + ", ".join(choices)


def locate(path: str | Callable) -> Callable:
    """Return the function or class that a yaml's `_target_` names, also under the name of a module that has moved."""
    if callable(path):
        return path
    module, _, name = path.rpartition(".")
    module = {before: now for now, before in MOVED.items()}.get(module, module)
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        lacking = (getattr(error, "name", None) or "") if isinstance(error, ModuleNotFoundError) else ""
        if lacking and not f"{module}.".startswith(f"{lacking}."):
            raise ConfigError(
                f"_target_={path} needs the package {lacking}: pip install 'isbench[suite]' brings it"
            ) from None
        found = None
    if not callable(found):
        raise ConfigError(f"_target_={path}: no such function or class")
    return found


def check_arguments(
    group: str, function: Callable, arguments: Mapping[Any, Any], given: Iterable[str] = ()
) -> dict[str, Any]:
    """Check values against the signature they are meant for, and return them converted.

    Args:
        group: the configuration group, for messages; empty for the configuration itself.
        function: a function or a class. Its annotations say which types and ranges are right.
        arguments: the values of the yaml, without `name` and `_target_` where these are no arguments.
        given: names of the arguments that are supplied when the object is built.

    Raises:
        ConfigError: an unknown or missing argument, or a value that is of the wrong type or out of range.
    """
    given = set(given)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in given and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    hints = _hints(function)
    prefix = f"{group}." if group else ""
    for name in arguments:
        if name not in parameters:
            raise ConfigError(f"unknown key {prefix}{name}: {nearest(str(name), parameters)}")
    for name, parameter in parameters.items():
        if name not in arguments and (parameter.default is parameter.empty or parameter.default == MISSING):
            raise ConfigError(f"{prefix}{name} is missing: {function.__name__} needs it")
    return {name: _convert(f"{prefix}{name}", hints.get(name, Any), value) for name, value in arguments.items()}


def _hints(function: Callable) -> dict[str, Any]:
    """Return the annotations of a function's arguments, or of a class's constructor; not all need have one."""
    try:
        return get_type_hints(function.__init__ if inspect.isclass(function) else function, include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigError(f"{function.__name__}: its annotations cannot be read: {error}") from None


def _convert(key: str, hint: Any, value: Any) -> Any:
    """Return a value as its annotation wants it."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint(**check_arguments(key, hint, _convert(key, dict, value)))
    try:
        converted = _adapter(hint).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{key}={value}: {_complaint(error, hint)}") from None
    if isinstance(value, bool) and not isinstance(converted, bool):  # pydantic takes true for 1
        raise ConfigError(f"{key}={value}: must not be true or false")
    return converted


@cache
def _adapter(hint: Any) -> TypeAdapter:
    rules = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False, coerce_numbers_to_str=True)
    with warnings.catch_warnings(action="ignore"):  # about a hint that is no type, which then allows anything
        return TypeAdapter(hint, config=rules)


def _complaint(error: ValidationError, hint: Any) -> str:
    """Say in a few words what is wrong with a value."""
    first = error.errors()[0]
    if first["type"] == "literal_error":
        return "valid: " + ", ".join(sorted(re.findall(r"'(.+?)'", first["ctx"]["expected"])))
    words = re.sub("^((Input|Value|String) should|Value error, must)", "must", first["msg"])
    words = words.replace(" after validation", "").lower()
    return f"{words}, or null" if type(None) in get_args(hint) else words


def instantiate(group: str, node: dict[str, Any], **given: Any) -> Any:
    """Call a node's `_target_` with its own values, checked against the signature, and what the program gives."""
    arguments = {key: value for key, value in node.items() if key not in ("name", "_target_")}
    target = locate(node["_target_"])
    return construct(group, node.get("name", target.__name__), target, arguments, given)


def construct(
    group: str, name: str, target: Callable, arguments: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> Any:
    """Call `target` with arguments, checked against its signature, and with what the program gives."""
    given = given or {}
    checked = check_arguments(group, target, arguments, given)
    try:
        return target(**given, **checked)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{group}={name}: {reason}") from error
