"""The works that benchmarks time: isbench's own loop on the objects of a run, and a loop written by hand."""

import copy
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import nn

from benchmarks.measure import Work
from isbench.build import Parts, build
from isbench.config import RunConfig, config_folder, on_device, validate
from isbench.data.readers import Source
from isbench.loop import train
from isbench.training.budget import Boundaries, Budget
from isbench.training.process import apply_numerics

MNIST = ("dataset._target_=benchmarks.runs.random_images", "dataset.num_examples=60000", "dataset.num_test=10000")
CIFAR = (*MNIST, "dataset.num_examples=50000", "dataset.shape=[3,32,32]")


def random_images(
    data_dir: Path, num_examples: int, num_test: int, num_classes: int = 10, shape: Sequence[int] = (1, 28, 28)
) -> Source:
    """Return noise in the shape of a data set, made quickly at any size: the target of `dataset=synthetic` here."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.randint(256, (n, *shape), dtype=torch.uint8, generator=generator)
        return inputs, torch.randint(num_classes, (n,), generator=generator)

    channels = shape[0] if len(shape) == 3 else shape[-1]
    mean, std = (0.5,) * channels, (0.25,) * channels
    return Source("random", *draw(num_examples), *draw(num_test), num_classes, mean, std, "noise, fixed seed")


def compose_config(*overrides: str) -> RunConfig:
    """Compose and check a configuration as the command line does."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return validate(compose("config", overrides=["logging=off", "budget=updates_50k", *overrides]))


def make_parts(device: torch.device, *overrides: str) -> Parts:
    """Make and warm up the objects of a run, as `isbench.run` does, by default on `dataset=synthetic`."""
    config = on_device(compose_config("dataset=synthetic", *overrides), device.type)
    numerics = config.numerics
    apply_numerics(numerics.deterministic, numerics.precision, numerics.threads)
    parts = build(config, device)
    parts.warm_up()
    return parts


def experiment_numerics(device: torch.device) -> tuple[str, ...]:
    """Return the numerics of the published experiments on a device."""
    return ("numerics=fast",) if device.type == "cuda" else ("numerics.threads=1",)


def isbench_loop(parts: Parts) -> Work:
    """Return the timed loop of a run; every call continues it, with the learning rate of the run's budget."""
    progress = parts.progress

    def steps(count: int) -> None:
        block = Budget("updates", progress.updates + count)
        train(
            parts.sampler,
            parts.step,
            lambda _: parts.rate(parts.budget.schedule_fraction(progress)),
            block,
            Boundaries(block, 1, progress),
            progress,
            parts.clock,
            lambda rate, gain: parts.step.forget(),
        )

    return steps


def bare_loop(parts: Parts, fetches: bool = False) -> Work:
    """Return the shortest loop that trains a copy of the model with a copy of the optimizer.

    It trains on one fixed batch or, if it `fetches`, gathers and normalises batches of the shuffled training set.
    """
    step = bare_step(parts, *copied(parts), fetches)

    def steps(count: int) -> None:
        for _ in range(count):
            step()

    return steps


def bare_step(
    parts: Parts, model: nn.Module, optimizer: torch.optim.Optimizer, fetches: bool = False
) -> Callable[[], None]:
    """Return one hand-written update, on the first batch or, if it `fetches`, on the next of shuffled passes."""
    dataset, size = parts.dataset, parts.workspace.batch_size
    inputs, targets = dataset.plain(torch.arange(size, device=dataset.device))
    passes = cycle(torch.randperm(dataset.num_examples, device=dataset.device).split(size)[:-1])

    def step() -> None:
        nonlocal inputs, targets
        if fetches:
            inputs, targets = dataset.plain(next(passes))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return step


def copied(parts: Parts) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return copies of model and optimizer that belong together."""
    return copy.deepcopy((parts.model, parts.optimizer))
