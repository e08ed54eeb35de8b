"""From a configuration to the objects of a run, in reading order. The only list of what a run is made of."""

import copy
import inspect
import math
import time
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from isbench.config import DATA_OPTIONS, RunConfig, on_device
from isbench.data.augment import Augmentation
from isbench.data.cache import on_disk
from isbench.data.changes import changed
from isbench.data.resident import ResidentDataset
from isbench.data.source import Residency, Source, checked
from isbench.errors import ConfigError
from isbench.loop import take_update
from isbench.models.heads import Classifier
from isbench.models.norm import SharedBatchNorm2d, WeightedBatchNorm2d, turn_batch_norm_into
from isbench.nodes import check_arguments, instantiate, locate, nearest
from isbench.samplers.base import Sampler
from isbench.samplers.workspace import Workspace
from isbench.signals import CrossEntropy
from isbench.training.budget import Budget
from isbench.training.clock import Clock, SharedClock, WallClock
from isbench.training.engine import Engine, memory_format
from isbench.training.ranks import ALONE, Ranks
from isbench.training.schedule import Schedule
from isbench.training.step import TrainStep
from isbench.training.streams import Streams, derive_seed
from isbench.types import Progress


def resolve_device(name: str) -> torch.device:
    """Return the device for auto, cpu or cuda; `auto` takes the first GPU if there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: no GPU is available to torch here; use device=cpu or device=auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@dataclass
class Parts:
    """The objects of a run; those with state are in `state_dict`."""

    source: Source
    dataset: ResidentDataset
    model: Classifier
    criterion: CrossEntropy
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    sampler: Sampler
    workspace: Workspace
    step: TrainStep
    budget: Budget
    streams: Streams
    progress: Progress
    clock: Clock
    probe: Any  # an isbench.probes.base.Probe, which measures these parts
    learning_rate: float  # the base rate, which the schedule multiplies

    STATEFUL = ("model", "optimizer", "sampler", "workspace", "streams", "progress", "probe")

    def rate(self, fraction: float) -> float:
        """Return the learning rate at a fraction of the budget."""
        return self.learning_rate * self.schedule(fraction)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the future of the run depends on. Tensors are shared, not copied."""
        return {name: getattr(self, name).state_dict() for name in self.STATEFUL}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.clock.elapsed = self.progress.seconds

    def take_update(self) -> None:
        """Take one update at the first learning rate."""
        take_update(self.sampler, self.step, self.rate(0.0), self.progress)

    def warm_up(self) -> float:
        """Take a few untimed steps and undo them, so that no method's clock pays for first-call costs.

        Returns: about how many seconds an update takes, on a CPU: what the quickest of them took.
        """
        before, seconds = copy.deepcopy(self.state_dict()), []

        def take_update() -> None:
            started = time.perf_counter()
            self.take_update()
            seconds.append(time.perf_counter() - started)

        with self.step.engine.warm_up():
            self.sampler.warm_up(take_update)
        self.step.forget()
        self.load_state_dict(before)
        return min(seconds)


class Options(dict[str, Any]):
    """Values of a yaml, as part of a cache's key: lists and dictionaries among them too."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


@lru_cache(maxsize=1)
def _source(target: str, data_dir: Path, residency: str, options: Options, changes: Options) -> Source:
    """Read a data set, and change it, once for all runs of a grid in this process."""
    node, reader = {"_target_": target, **options}, locate(target)
    given: dict[str, Any] = {"data_dir": data_dir}
    keeps_itself = "residency" in inspect.signature(reader).parameters  # on disk, where that is asked for
    if keeps_itself:
        given["residency"] = residency
        if residency == "disk" and "validation" in changes:  # which would copy it into the memory
            raise ConfigError(f"dataset.validation: {reader.__name__} cannot be split on disk; use residency=host")

    def read() -> Source:
        return changed(checked(instantiate("dataset", node, **given), reader.__name__), **changes)

    in_place = keeps_itself or residency != "disk"
    source = read() if in_place else on_disk(read, reader, options | changes, data_dir)
    return replace(source, known_checksum=source.checksum())  # which every run of a grid asks for


def load_source(node: dict[str, Any], data_dir: str) -> Source:
    """Read the data set of a configuration node."""
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in node.items() if key not in ("name", "_target_")}
    options = {key: values.pop(key, default) for key, default in DATA_OPTIONS.items()}
    residency = options.pop("residency")
    if residency not in get_args(Residency):
        raise ConfigError(f"dataset.residency={residency}: {nearest(str(residency), get_args(Residency))}")
    values = check_arguments("dataset", locate(node["_target_"]), values, ("data_dir", "residency"))
    options = check_arguments("dataset", changed, options, ("source",))
    changes = {key: value for key, value in options.items() if value != DATA_OPTIONS[key]}
    with warnings.catch_warnings(action="ignore"):  # what a library says of a damaged file beside the line it gets
        return _source(
            node["_target_"],
            Path(data_dir).expanduser(),
            residency,
            Options(values),
            Options(changes),
        )


def initial_model(node: dict[str, Any], dataset: ResidentDataset, seed: int) -> Classifier:
    """Return the network with weights that depend on the run's seed alone."""
    with torch.random.fork_rng(devices=[]):  # weights are made on the CPU
        torch.manual_seed(derive_seed(seed, "init"))
        return instantiate("model", node, input_shape=dataset.input_shape, num_classes=dataset.num_classes)


def build(config: RunConfig, device: torch.device, clock: Clock | None = None, ranks: Ranks = ALONE) -> Parts:
    """Make the objects of a run that `ranks` share.

    Raises:
        UserError: choices that cannot be used, or not together; before anything is written or trained.
    """
    schedule: Schedule = instantiate("schedule", config.schedule)
    try:
        is_usable = all(0 <= schedule(fraction) < math.inf for fraction in (0.0, 0.5, 1.0))
    except (ArithmeticError, ValueError):
        is_usable = False
    if not is_usable:
        raise ConfigError(
            f"schedule={config.schedule['name']}: these values give a factor that is negative or not finite"
        )
    sampler: Sampler = instantiate("sampler", config.sampler)
    probe = instantiate("probe", config.probe)
    augmentation: Augmentation = instantiate("augmentation", config.augmentation)
    source = load_source(config.dataset, config.data_dir)
    residency = config.dataset.get("residency", "device")
    dataset = ResidentDataset(source, augmentation, device, slots=config.slots, residency=residency)
    if not (source.train_inputs.numel() and source.test_inputs.numel()):
        raise ConfigError(f"dataset={config.dataset['name']}: with these values it holds nothing")
    if config.batch_size > dataset.num_examples:
        raise ConfigError(
            f"batch_size={config.batch_size} is larger than the training set ({dataset.num_examples} examples)"
        )
    if config.batch_size < ranks.size:
        raise ConfigError(f"batch_size={config.batch_size} is smaller than the number of processes ({ranks.size})")
    model = initial_model(config.model, dataset, config.seed)
    if sampler.weighted_norm:
        turn_batch_norm_into(WeightedBatchNorm2d, model)
    elif ranks.size > 1 and config.sync_norm:
        turn_batch_norm_into(SharedBatchNorm2d, model)
    numerics = on_device(config, device.type, ranks.size == 1).numerics
    model.to(device).to(memory_format=memory_format(numerics.channels_last, numerics.precision, device)).train()
    optimizer = instantiate("optimizer", config.optimizer, model=model)
    criterion = CrossEntropy(config.label_smoothing)
    streams = Streams(config.seed, device, ranks.rank)
    progress = Progress(dataset.num_examples)
    budget = Budget(config.budget.unit, config.budget.limit, config.budget.effective)
    share_buffers = not config.sync_norm
    engine = Engine(model, numerics.engine, numerics.precision, device, ranks=ranks, share_buffers=share_buffers)
    observes = tuple(dict.fromkeys((*sampler.observes, *probe.observes)))
    step = TrainStep(
        engine,
        criterion,
        optimizer,
        sampler.reweight,
        observes,
        config.clip_norm,
        ranks,
        config.sync_norm,
        watch=probe.observe,
    )
    workspace = Workspace(dataset, step, config.batch_size, streams, progress, budget)
    sampler.bind(workspace)
    parts = Parts(
        source,
        dataset,
        model,
        criterion,
        optimizer,
        schedule,
        sampler,
        workspace,
        step,
        budget,
        streams,
        progress,
        clock or (WallClock(device) if ranks.size == 1 else SharedClock(device, ranks)),
        probe,
        learning_rate=optimizer.param_groups[0]["lr"],
    )
    probe.allocate(parts)
    return parts


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
