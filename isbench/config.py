"""The configuration: its keys, their ranges, and the identity of a run.

`RunConfig` is the one list of keys. The annotations of its parts, and of the constructors that group nodes (dataset,
model, sampler, ...) name, are the schema, which `isbench.nodes` reads. This module does not import torch, so that the
command line answers at once.
"""

import hashlib
import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from pydantic import AfterValidator

from isbench.errors import ConfigError
from isbench.nodes import MOVED, check_arguments, config_folder

# Options that came after runs were recorded, by the target that has them: at this value, which is what was done before,
# they stay out of the identity.
ADDED: dict[str, dict[str, Any]] = {
    "isbench.samplers.impon.Impon": {"fit_level": False},
    "isbench.samplers.prioritized.Prioritized": {"anneal": True},
}
# The options of every data set: `isbench.build.load_source` takes them off before its reader is called. All but the
# first came later too.
DATA_OPTIONS: dict[str, Any] = {"residency": "device", "validation": None, "label_noise": 0.0}
MAX_THREADS = max(64, os.cpu_count() or 1)

# The names of choices and arms. They are folders, and tags in W&B.
NAME = r"\w[\w.-]{0,63}"
NAMES = "needs a name of at most 64 letters, digits, '_', '-' and '.'"

Choice = dict[Any, Any]  # a node with a _target_ and its arguments
Count = Annotated[int, Ge(1)]
Folder = Annotated[str, MinLen(1)]


def _fit_for_wandb(name: str) -> str:
    """Refuse what W&B does not take in the name of a project."""
    if set(name) & set("/\\#?%:"):
        raise ValueError("must have none of / \\ # ? % :")
    return name


WandbName = Annotated[str, MinLen(1), MaxLen(128), AfterValidator(_fit_for_wandb)]
Tag = Annotated[str, MinLen(1), MaxLen(64)]


def setting(default: Any = MISSING, **facts: Any) -> Any:
    """Return a field of a configuration; a function as default is called for each new one.

    Args:
        facts: `help`, a line for --help; `group`, whether conf/ has choices of the key; `chosen`, whether these name
            what to call; `identity`, whether the value makes two runs different runs: True, or a function of the value.
    """
    return field(metadata=facts, **{"default_factory" if callable(default) else "default": default})


choice = partial(setting, group=True, chosen=True)


@dataclass
class BudgetConfig:
    """How long to train; see isbench.training.budget."""

    name: str = ""
    unit: Literal["updates", "epochs", "examples", "seconds"] = setting(help="what the budget counts")
    limit: Annotated[float, Ge(1e-9)] = setting(help="how many of them a run may spend")
    effective: bool = setting(False, help="count an update as often as its gain says")


@dataclass
class NumericsConfig:
    """Determinism, precision and execution; see isbench.training.engine. `on_device` says what auto is."""

    name: str = ""
    deterministic: bool = setting(True, help="use only algorithms that give the same bits again")
    engine: Literal["auto", "eager", "compiled", "graphed", "compiled_graphed"] = setting("eager", help="runs a step")
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = setting("float32", help="precision of products")
    channels_last: bool | None = setting(None, help="memory format of images; null takes the faster one")
    threads: Annotated[int, Ge(1), Le(MAX_THREADS)] | None = setting(None, help="of the CPU; null takes all cores")


@dataclass
class LoggingConfig:
    """Where rows go besides the run's own record; see isbench.recording.wandb_sink."""

    name: str = ""
    mode: Literal["offline", "online", "off"] = setting("offline", help="where W&B keeps the run")
    project: WandbName = setting("isbench", help="project in W&B")
    entity: WandbName | None = setting(None, help="user or team in W&B; null is your default")
    tags: list[Tag] = setting(list, help="tags in W&B, besides the paper and the sampler")
    timeout_seconds: Annotated[float, Gt(0), Le(3600)] = setting(20.0, help="how long to wait for W&B's server")


@dataclass
class EvaluationConfig:
    """How often loss and error are measured, and on how much."""

    points: Count = setting(20, help="number of evaluations, at equal parts of the budget")
    train_examples: Count = setting(2000, help="how many training examples an evaluation takes")


@dataclass
class CheckpointConfig:
    """When state is saved. Checkpoints are written at boundaries."""

    seconds: Annotated[float, Ge(0)] = setting(30.0, help="least time between two checkpoints")
    keep: bool = setting(False, help="keep the last checkpoint of a run that has ended")


@dataclass
class RunConfig:
    """One run. Every field can be set on the command line as key=value; `setting` explains the fields' metadata."""

    dataset: Choice = choice(lambda: dict(DATA_OPTIONS), identity=True)
    model: Choice = choice(identity=True)
    sampler: Choice = choice(identity=True)
    optimizer: Choice = choice(identity=True)
    schedule: Choice = choice(identity=True)
    rates_of: Choice | None = setting(
        None, identity=lambda sampler: sampler is not None, help="train at the rates of the run with this sampler"
    )
    augmentation: Choice = choice(identity=True)
    probe: Choice = choice(identity=lambda probe: probe["name"] != "none")
    budget: BudgetConfig = setting(BudgetConfig, group=True, identity=True)
    numerics: NumericsConfig = setting(NumericsConfig, group=True, identity=True)
    logging: LoggingConfig = setting(LoggingConfig, group=True)
    evaluation: EvaluationConfig = setting(EvaluationConfig, identity=True)
    checkpoint: CheckpointConfig = setting(CheckpointConfig)
    seed: Annotated[int, Ge(0)] = setting(0, identity=True, help="decides weights, batches and augmentation")
    batch_size: Count = setting(128, identity=True, help="examples per update")
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = setting(0.0, identity=True, help="share that all classes get")
    clip_norm: Annotated[float, Gt(0)] | None = setting(None, identity=True, help="largest gradient norm; null is none")
    sync_norm: bool = setting(
        True, identity=lambda is_shared: not is_shared, help="several processes: batch norm sees the whole batch"
    )
    slots: Count | None = setting(None, identity=True, help="number of fixed views; null draws views afresh")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", identity=True, help="auto takes a GPU if there is one")
    data_dir: Folder = setting(help="folder of the data sets; the variable ISBENCH_DATA sets it too")
    runs_dir: Folder = setting("runs", help="folder of the records")
    group: Annotated[str, MaxLen(128)] | None = setting(
        None, help="folder below runs_dir, and group in W&B: the experiment"
    )
    arm: str | None = setting(None, help="line of a table that a run belongs to; arm=a,b narrows a grid")


def _keys_with(fact: str) -> tuple[str, ...]:
    return tuple(item.name for item in fields(RunConfig) if item.metadata.get(fact))


IDENTITY = _keys_with("identity")
CHOSEN = _keys_with("chosen")
GROUPS = (*_keys_with("group"), "launcher", "experiment")  # these two set keys of other groups
DEFAULTS = asdict(RunConfig())
ConfigStore.instance().store(name="schema", node=DEFAULTS)  # Hydra's part is to refuse other keys


def default_data_dir() -> str:
    return os.environ.get("ISBENCH_DATA", "data")


def scratch_dir() -> str:
    """Return a folder for what processes leave each other, which nobody reads later."""
    return str(Path(tempfile.gettempdir(), f"isbench-{os.getuid()}"))


OmegaConf.register_new_resolver("isbench_data", default_data_dir, replace=True)
OmegaConf.register_new_resolver("isbench_scratch", scratch_dir, replace=True)


def validate(cfg: DictConfig) -> RunConfig:
    """Check a composed configuration and return it as a `RunConfig` whose groups are plain dictionaries.

    Raises:
        ConfigError: a key that does not exist, or a value that is out of range.
    """
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    run = RunConfig(**check_arguments("", RunConfig, plain))
    for group in (*CHOSEN, *(["rates_of"] if run.rates_of else [])):
        node = getattr(run, group)
        if not isinstance(node.get("_target_"), str):
            raise ConfigError(f"{group}: its yaml needs a _target_, the function or class to call")
        if not re.fullmatch(NAME, str(node.get("name") or "")):
            raise ConfigError(f"{group}.name={node.get('name')}: {NAMES}")
    if run.budget.effective and run.budget.unit == "seconds":
        raise ConfigError(
            "budget.effective=True: seconds are the same for every method; count updates, epochs or examples instead"
        )
    if run.group is not None and (run.group == "" or {"..", "/"} & set(Path(run.group).parts)):
        raise ConfigError(f"group={run.group}: must be a folder below runs_dir, or null")
    return run


def on_device(run: RunConfig, device: str, is_alone: bool = True) -> RunConfig:
    """Return the configuration as it trains on cpu or cuda: where it leaves a choice open, the fastest there.

    On an H100 an update of WRN-28-2 takes 2.97 ms in a graph of compiled code in bfloat16, 7.5 ms in one of TF32.

    Args:
        is_alone: whether one process trains the run: graphs cannot be shared.
    """
    on_gpu = device == "cuda"
    best = {
        "engine": "compiled_graphed" if on_gpu and is_alone else "eager",
        "precision": "bfloat16" if on_gpu else "float32",
    }
    chosen = {key: value for key, value in best.items() if getattr(run.numerics, key) == "auto"}
    return replace(run, device=device, numerics=replace(run.numerics, **chosen))  # type: ignore[arg-type]


def run_id(run: RunConfig) -> str:
    """Return eight hex digits that depend on everything that makes the run what it is, and on nothing else."""
    plain = asdict(run)
    rules = {item.name: item.metadata["identity"] for item in fields(run) if item.name in IDENTITY}
    keys = [key for key, rule in rules.items() if rule is True or rule(plain[key])]
    text = json.dumps({key: _canonical(plain[key]) for key in keys}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _canonical(value: Any) -> Any:
    """Drop what does not change a run (names, leave to download, where data waits), and write 1 and 1.0 alike."""
    if isinstance(value, dict):
        kept = {str(key): item for key, item in value.items() if key not in ("name", "download", "residency")}
        if "_target_" in kept:
            module, _, name = kept["_target_"].rpartition(".")
            kept["_target_"] = target = f"{MOVED.get(module, module)}.{name}"
            added = DATA_OPTIONS | ADDED.get(target, {})
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
