"""What every sampler owes, as checks of a small run on the CPU; `check_sampler` takes a class of one's own.

The checks raise `AssertionError`. They compose runs as the command line does, so they need isbench[suite].
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from isbench.build import Parts, build
from isbench.config import RunConfig, validate
from isbench.errors import Interrupted
from isbench.loop import train
from isbench.nodes import config_folder
from isbench.samplers.base import Sampler
from isbench.training.budget import Boundaries
from isbench.training.clock import Clock
from isbench.types import Draw

# Small enough for a second or two, hard enough that every branch of a method is taken.
TINY = (
    "dataset=synthetic",
    "dataset.num_examples=160",
    "model=mlp",
    "model.hidden=[16]",
    "batch_size=16",
    "budget.unit=updates",
    "budget.limit=40",
    "numerics.threads=1",
    "logging=off",
)
Build = Callable[..., Parts]  # from overrides as on the command line; each call builds the same run anew


def check_sampler(sampler: type[Sampler], **options: Any) -> None:
    """Check a sampler in 40 updates of 16 among 160 examples.

    Args:
        options: the sampler's own; sizes such as a pool's have to fit.

    Raises:
        AssertionError: what it does not keep.
        UserError: options that cannot be used.
    """
    node = {"name": sampler.__name__, "_target_": sampler, **options}
    for check in CHECKS:
        check(partial(build_parts, *TINY, sampler=node))


def check_draws(build: Build) -> None:
    """Indices, weights and views of every draw are valid, and batches are the views they say they are."""
    parts = build("augmentation=crop")
    draws = record_draws(parts)
    train_parts(parts)
    assert draws, "the run drew nothing"
    for draw in draws:
        batch, n = draw.batch, len(draw.batch)
        assert n >= 1 and batch.indices.dtype == torch.int64, "a draw has int64 indices, one at least"
        is_inside = (0 <= batch.indices) & (batch.indices < parts.dataset.num_examples)
        assert is_inside.all(), "indices lie between 0 and N - 1"
        assert draw.weights.shape == (n,) and draw.weights.dtype == torch.float32, "weights are (n,) float32"
        assert draw.weights.isfinite().all() and (draw.weights > 0).all(), "weights are positive and finite"
        assert torch.equal(batch.targets, parts.dataset.targets[batch.indices]), "targets belong to the indices"
        again = parts.dataset.fetch(batch.indices, batch.views)
        assert torch.equal(again.inputs, batch.inputs), "a batch must be the views it says it is"
        assert all(len(value) == n for value in draw.memo.values()), "a memo has a row for each example"


def check_resume(build: Build) -> None:
    """A run that was stopped and goes on in a process that knows nothing of it has the bits of one that was not."""
    whole = build("augmentation=crop")
    train_parts(whole)
    for updates in (1, 17, 33):
        first = build("augmentation=crop")
        stop_at(updates, first)
        second = build("augmentation=crop", "seed=7")
        with tempfile.TemporaryFile() as file:
            torch.save(first.state_dict(), file)
            file.seek(0)
            second.load_state_dict(torch.load(file, weights_only=True))
        train_parts(second)
        assert same_state(whole, second), f"stopped at update {updates}: what a resume needs is a buffer or `remembers`"


def check_damage(build: Build) -> None:
    """The negative control of `check_resume`: spoiling any one stream changes the result."""
    whole, first = build("augmentation=crop"), build("augmentation=crop")
    train_parts(whole)
    stop_at(17, first)
    saved = copy.deepcopy(first.state_dict())
    for stream in whole.streams.generators:  # the global one serves dropout, which the tiny network lacks
        state = copy.deepcopy(saved)
        state["streams"][stream] = torch.Generator().manual_seed(99).get_state()
        second = build("augmentation=crop")
        second.load_state_dict(state)
        train_parts(second)
        assert not same_state(whole, second), f"the stream {stream} does not matter"


def check_evaluation(build: Build) -> None:
    """How often the model is evaluated, and the method asked for its numbers, changes nothing."""
    plain, watched = build(), build()
    train_parts(plain, points=1)

    def evaluate(rate: float, gain: float) -> None:
        watched.sampler.diagnostics()
        watched.sampler.probabilities()
        watched.model.eval()
        watched.model(watched.dataset.test_chunk(0, 100)[0])
        watched.model.train()

    train_parts(watched, evaluate, points=40)
    assert same_state(plain, watched), "an evaluation, `diagnostics` or `probabilities` changes the run"


def check_warm_up(build: Build) -> None:
    """Warming up leaves no trace."""
    cold, warm = build(), build()
    warm.warm_up()
    assert same_state(cold, warm), "warming up changes the state"
    train_parts(cold)
    train_parts(warm)
    assert same_state(cold, warm), "warming up changes the run"


def check_seeds(build: Build) -> None:
    """The seed decides the draws, and nothing else does."""
    one, again, other = (build(f"seed={seed}") for seed in (1, 1, 2))
    draws = [record_draws(parts) for parts in (one, again, other)]
    for parts in (one, again, other):
        train_parts(parts)
    indices = [torch.cat([draw.batch.indices for draw in run]) for run in draws]
    assert torch.equal(indices[0], indices[1]) and same_state(one, again), "the same seed gives other draws"
    assert not torch.equal(indices[0][:100], indices[2][:100]), "another seed gives the same draws"


def check_initial_weights(build: Build) -> None:
    """The model starts as with any other sampler."""
    ours, uniform = build(), build_parts(*TINY)
    for a, b in zip(ours.model.parameters(), uniform.model.parameters(), strict=True):
        assert torch.equal(a, b), "the sampler changes the initial weights"


def check_learning(build: Build) -> None:
    """The training loss falls."""
    parts = build("budget.limit=80", "optimizer.lr=0.05")

    def mean_loss() -> float:
        inputs, targets = parts.dataset.plain(torch.arange(parts.dataset.num_examples))
        with torch.no_grad():
            return float(parts.criterion(parts.model.eval()(inputs), targets).mean())

    before = mean_loss()
    parts.model.train()
    train_parts(parts)
    assert mean_loss() < 0.7 * before, "the training loss does not fall"


CHECKS: tuple[Callable[[Build], None], ...] = (
    check_draws,
    check_resume,
    check_damage,
    check_evaluation,
    check_warm_up,
    check_seeds,
    check_initial_weights,
    check_learning,
)


class TickClock(Clock):
    """A clock for tests: every reading while it runs is `tick` seconds later than the one before."""

    def __init__(self, tick: float = 1.0):
        super().__init__()
        self.tick = tick
        self.readings = 0

    def now(self) -> float:
        self.readings += 1
        return self.readings * self.tick


def compose_config(*overrides: str) -> RunConfig:
    """Compose and check a configuration as the command line does."""
    return validate(_composed(config_folder(), overrides))


@cache
def _composed(folder: Path, overrides: tuple[str, ...]) -> DictConfig:
    """Compose once what checks build again and again: it takes Hydra longer than 40 updates take."""
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def build_parts(*overrides: str, sampler: dict[str, Any] | None = None) -> Parts:
    """Build a run on the CPU under a clock that ticks; `sampler` is a node in place of the configuration's."""
    config = compose_config(*overrides)
    config.sampler = sampler or config.sampler
    return build(config, torch.device("cpu"), TickClock())


def train_parts(
    parts: Parts, at_boundary: Callable[[float, float], None] = lambda rate, gain: None, points: int = 4
) -> Boundaries:
    """Train to the end of the budget; return the boundaries object."""
    boundaries = Boundaries(parts.budget, points, parts.progress)

    def evaluate(rate: float, gain: float) -> None:
        boundaries.take_evaluation(parts.progress)
        at_boundary(rate, gain)

    train(parts.sampler, parts.step, parts.rate, parts.budget, boundaries, parts.progress, parts.clock, evaluate)
    return boundaries


def stop_at(updates: int, parts: Parts) -> None:
    """Train up to an update and leave the loop there, as an interrupted run does."""

    def stop(rate: float, gain: float) -> None:
        if parts.progress.updates == updates:
            raise Interrupted

    try:
        train_parts(parts, stop, points=int(parts.budget.limit))
    except Interrupted:
        return
    raise AssertionError(f"the run ended before update {updates}")


def record_draws(parts: Parts) -> list[Draw]:
    """Keep every draw of a run that is still to come."""
    draws: list[Draw] = []
    original = parts.sampler.draw

    def draw() -> Draw:
        draws.append(original())
        return draws[-1]

    parts.sampler.draw = draw  # type: ignore[method-assign]
    return draws


def tensors(state: object) -> Iterator[Tensor]:
    """Walk through all tensors (and numbers, as tensors) of a nested state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for key in sorted(state, key=str):
            yield from tensors(state[key])
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors(value)
    elif isinstance(state, int | float):
        yield torch.tensor(state, dtype=torch.float64)


def same_state(one: Parts, other: Parts) -> bool:
    """Compare two runs bit for bit, seconds aside."""
    states = [copy.deepcopy(parts.state_dict()) for parts in (one, other)]
    for state in states:
        state["progress"].pop("seconds")
    pairs = list(zip(*(list(tensors(state)) for state in states), strict=True))
    return all(torch.equal(a, b) or (a.isnan() == b.isnan()).all() and a.isnan().any() for a, b in pairs)
