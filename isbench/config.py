"""The configuration: its schema, its checks, and the identity of a run.

Group nodes (dataset, model, sampler, ...) are plain mappings whose schema is the signature of the constructor that they
name; the top level is a dataclass. This module does not import torch, so that the command line answers at once.
"""

import difflib
import hashlib
import inspect
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError

from isbench.errors import ConfigError
from isbench.recording.record import UNIT_COLUMNS

# What makes two runs the same run. Where it is stored, how it is launched and who is told about it do not.
IDENTITY = (
    "dataset",
    "model",
    "sampler",
    "optimizer",
    "schedule",
    "augmentation",
    "budget",
    "numerics",
    "evaluation",
    "seed",
    "batch_size",
    "label_smoothing",
    "clip_norm",
    "slots",
    "device",
)
# Groups that name what to call.
CHOSEN = ("dataset", "model", "sampler", "optimizer", "schedule", "augmentation", "probe")
# Modules that moved after runs were recorded, and where they were: identities keep the old name, and both are found.
MOVED = {"isbench.data.readers": "isbench.data.sources"}
# Options that came after runs were recorded, by the target that has them: at this value, which is what was done before,
# they stay out of the identity.
ADDED: dict[str, dict[str, Any]] = {}
MAX_THREADS = max(64, os.cpu_count() or 1)
ENGINES = ("auto", "eager", "compiled", "graphed", "compiled_graphed")
PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass
class Budget:
    """How long to train: `limit` updates, epochs, examples or (training) seconds; see isbench.training.budget."""

    name: str = ""
    unit: str = MISSING
    limit: float = MISSING
    effective: bool = False


@dataclass
class Numerics:
    """Determinism, precision and execution; see isbench.training.engine.

    `channels_last: null` uses that memory format where it is faster; `threads: null` takes all cores.
    """

    name: str = ""
    deterministic: bool = True
    engine: str = "eager"
    precision: str = "float32"
    channels_last: bool | None = None
    threads: int | None = None


@dataclass
class Logging:
    """Where rows go besides the run's own record; see isbench.recording.wandb_sink."""

    name: str = ""
    mode: str = "offline"
    project: str = "isbench"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    timeout_seconds: float = 20.0


@dataclass
class Evaluation:
    """How often to look (equal parts of the budget), and at how many training examples."""

    points: int = 20
    train_examples: int = 2000


@dataclass
class Checkpoint:
    """Seconds between checkpoints at least (they are written at boundaries), and whether the last one is kept."""

    seconds: float = 30.0
    keep: bool = False


@dataclass
class RunConfig:
    """One run. Every field can be set on the command line as key=value."""

    dataset: Any = field(default_factory=lambda: {"residency": "device"})  # a key of every data set
    model: Any = MISSING
    sampler: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    augmentation: Any = MISSING
    probe: Any = MISSING
    budget: Budget = MISSING
    numerics: Numerics = MISSING
    logging: Logging = MISSING
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    seed: int = 0
    batch_size: int = 128
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    sync_norm: bool = True  # several processes: batch norm over the whole batch, not over each one's part
    slots: int | None = None
    device: str = "auto"
    data_dir: str = MISSING
    runs_dir: str = "runs"
    group: str | None = None  # a folder under runs_dir and the group in W&B: the name of the experiment
    arm: str | None = None  # the line of a table that the run belongs to; set by isbench.grid.jobs


ConfigStore.instance().store(name="schema", node=RunConfig)


def config_folder() -> Path:
    """Return the folder of yaml files: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def default_data_dir() -> str:
    return os.environ.get("ISBENCH_DATA", "data")


def scratch_dir() -> str:
    """Return a folder for what processes leave each other, which nobody reads later."""
    return str(Path(tempfile.gettempdir(), f"isbench-{os.getuid()}"))


OmegaConf.register_new_resolver("isbench_data", default_data_dir, replace=True)
OmegaConf.register_new_resolver("isbench_scratch", scratch_dir, replace=True)


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a hint that names the choices most like `word`, or all of them if none is like it."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "valid: " + ", ".join(choices)


def validate(cfg: DictConfig) -> RunConfig:
    """Check a composed configuration and return it as a `RunConfig` whose groups are plain dictionaries.

    Raises:
        ConfigError: a key that does not exist, or a value that is out of range.
    """
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    for key in map(str, plain):  # Hydra lets +key=value pass
        if key not in RunConfig.__dataclass_fields__:
            raise ConfigError(f"unknown key {key}: {nearest(key, RunConfig.__dataclass_fields__)}")
    run: RunConfig = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), plain))  # type: ignore[assignment]
    for group in CHOSEN:
        node = getattr(run, group)
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
            raise ConfigError(f"{group}: its yaml needs a _target_, the function or class to call")
        if not re.fullmatch(r"\w[\w.-]*", str(node.get("name") or "")):
            raise ConfigError(f"{group}.name={node.get('name')}: needs a name of letters, digits, '_', '-' and '.'")
    modes, devices = ("offline", "online", "off"), ("auto", "cpu", "cuda")
    budget, evaluation = run.budget, run.evaluation
    checks = [
        ("seed", run.seed, run.seed >= 0, "must not be negative"),
        ("batch_size", run.batch_size, run.batch_size >= 1, "must be at least 1"),
        ("label_smoothing", run.label_smoothing, 0 <= run.label_smoothing < 1, "must be at least 0 and less than 1"),
        ("clip_norm", run.clip_norm, run.clip_norm is None or run.clip_norm > 0, "must be above 0, or null"),
        ("slots", run.slots, run.slots is None or run.slots >= 1, "must be at least 1, or null"),
        ("budget.unit", budget.unit, budget.unit in UNIT_COLUMNS, nearest(budget.unit, UNIT_COLUMNS)),
        ("budget.limit", budget.limit, 1e-9 <= budget.limit < math.inf, "must be above 0 and finite"),
        (
            "budget.effective",
            budget.effective,
            not (budget.effective and budget.unit == "seconds"),
            "seconds are the same for every method; count updates, epochs or examples instead",
        ),
        ("evaluation.points", evaluation.points, evaluation.points >= 1, "must be at least 1"),
        ("evaluation.train_examples", evaluation.train_examples, evaluation.train_examples >= 1, "must be at least 1"),
        ("checkpoint.seconds", run.checkpoint.seconds, run.checkpoint.seconds >= 0, "must not be negative"),
        (
            "numerics.threads",
            run.numerics.threads,
            run.numerics.threads is None or 1 <= run.numerics.threads <= MAX_THREADS,
            f"must be from 1 to {MAX_THREADS}, or null",
        ),
        ("numerics.engine", run.numerics.engine, run.numerics.engine in ENGINES, nearest(run.numerics.engine, ENGINES)),
        (
            "numerics.precision",
            run.numerics.precision,
            run.numerics.precision in PRECISIONS,
            nearest(run.numerics.precision, PRECISIONS),
        ),
        ("logging.mode", run.logging.mode, run.logging.mode in modes, nearest(run.logging.mode, modes)),
        (
            "logging.timeout_seconds",
            run.logging.timeout_seconds,
            0 < run.logging.timeout_seconds <= 3600,
            "must be above 0, at most 3600",
        ),
        (
            "group",
            run.group,
            run.group is None or not ({"..", "/"} & set(Path(run.group).parts) or run.group == ""),
            "must be a folder below runs_dir, or null",
        ),
        ("data_dir", run.data_dir, run.data_dir != "", "must name a folder"),
        ("runs_dir", run.runs_dir, run.runs_dir != "", "must name a folder"),
        ("device", run.device, run.device in devices, nearest(run.device, devices)),
    ]
    for key, value, is_right, reason in checks:
        if not is_right:
            raise ConfigError(f"{key}={value}: {reason}")
    return run


def locate(path: str) -> Callable:
    """Return the function or class that a yaml's `_target_` names, also under the name of a module that has moved."""
    module, _, name = path.rpartition(".")
    module = {before: now for now, before in MOVED.items()}.get(module, module)
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError):
        found = None
    if not callable(found):
        raise ConfigError(f"_target_={path}: no such function or class")
    return found


def check_arguments(group: str, function: Callable, arguments: dict[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """Check a group's values against the signature they are meant for, and return them converted.

    Args:
        group: the configuration group, for messages.
        arguments: the values of the yaml, without `name` and `_target_`.
        given: names of the arguments that are supplied when the object is built.

    Raises:
        ConfigError: an unknown or missing argument, or a value of the wrong type.
    """
    given = set(given)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in given and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    for name in arguments:
        if name not in parameters:
            raise ConfigError(f"unknown key {group}.{name}: {nearest(str(name), parameters)}")
    converted = {}
    for name, parameter in parameters.items():
        if name not in arguments:
            if parameter.default is parameter.empty:
                raise ConfigError(f"{group}.{name} is missing: {function.__name__} needs it")
            continue
        try:
            if isinstance(arguments[name], bool) and hints[name] is not bool:
                raise ConfigError(f"{group}.{name}={arguments[name]}: input should not be true or false")
            adapter = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
            converted[name] = adapter.validate_python(arguments[name])
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            raise ConfigError(f"{group}.{name}={arguments[name]}: {reason}") from None
    return converted


def run_id(run: RunConfig) -> str:
    """Return eight hex digits that depend on everything that makes the run what it is, and on nothing else."""
    plain = asdict(run)
    keys = list(IDENTITY)
    if run.probe["name"] != "none":
        keys.append("probe")
    if not run.sync_norm:
        keys.append("sync_norm")
    text = json.dumps({key: _canonical(plain[key]) for key in keys}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _canonical(value: Any) -> Any:
    """Drop what does not change a run (names, leave to download, where data waits), and write 1 and 1.0 alike."""
    if isinstance(value, dict):
        kept = {str(key): item for key, item in value.items() if key not in ("name", "download", "residency")}
        if "_target_" in kept:
            module, _, name = kept["_target_"].rpartition(".")
            kept["_target_"] = target = f"{MOVED.get(module, module)}.{name}"
            added = ADDED.get(target, {})
            kept = {key: item for key, item in kept.items() if key not in added or item != added[key]}
        return {key: _canonical(item) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def recorded(run: RunConfig) -> dict[str, Any]:
    """Return the configuration as it is recorded: without paths, which are this machine's own affair."""
    return {key: value for key, value in asdict(run).items() if key not in ("data_dir", "runs_dir")}


def tags(run: RunConfig) -> list[str]:
    """Return what W&B may sort runs by: the paper that the experiment is of, the sampler, and `logging.tags`."""
    papers = [path.parent.name for path in (config_folder() / "experiment").glob(f"*/{run.group}.yaml")]
    return list(dict.fromkeys([*papers, run.sampler["name"], *run.logging.tags]))


def run_folder(run: RunConfig) -> Path:
    """Return the folder of a run: a function of its configuration, so that the same command finds it again."""
    name = f"{run.sampler['name']}-s{run.seed}-{run_id(run)}"
    return Path(run.runs_dir, run.group or "", f"{run.dataset['name']}-{run.model['name']}", name)
