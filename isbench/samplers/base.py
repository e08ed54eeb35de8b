"""The sampler contract, and the helpers that samplers share.

A sampler decides which examples the next update trains on and with which weights. It sees its `workspace` and nothing
else of the program. One contract serves every family of methods:

- `draw` does all work before an update, such as scoring a pool or refreshing a history; it is on the clock;
- `observe` receives signals of the training forward pass, which cost nothing extra, for methods that learn from them;
- `reweight` changes the weights between forward and backward pass, for methods whose weights depend on the former;
- `gain` says how many uniform updates an update is worth.

State that must survive a resume is registered as buffers in `allocate`, or named in `remembers`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isbench.errors import ConfigError
from isbench.samplers.basis import Basis, Feed
from isbench.types import Draw

Signals = Mapping[str, Tensor]


class Sampler(nn.Module):
    """One way of choosing examples. A subclass must write `draw`; all else is optional."""

    observes: tuple[str, ...] = ()  # the signals that the training step returns
    asks: tuple[str, ...] = ()  # what it uses of the workspace that needs a model, labels or inputs
    without: Mapping[str, str] = {}  # of what it asks or observes: the option that does without
    made_by: Mapping[str, str] = {}  # arguments that name a file: the command that makes it
    remembers: tuple[str, ...] = ()  # attributes, besides buffers, that a checkpoint holds: see `get_extra_state`
    weighted_norm: bool = False  # whether the draw's weights also weight the statistics of batch norm
    moves_to_device: bool = True  # False: each buffer stays where `allocate` makes it

    workspace: Basis

    def bind(self, workspace: Basis) -> None:
        """Keep the workspace and register the buffers."""
        self.workspace = workspace
        self.allocate()
        if self.moves_to_device:
            self.to(workspace.device)

    def allocate(self) -> None:
        """Check sizes and register buffers. Raise `ConfigError` or `Incompatible` if the method cannot be used."""

    def warm_up(self, take_update: Callable[[], None]) -> None:
        """Call everything that an update may call once, before the clock starts.

        `take_update` takes one whole update with this sampler. The run's state is put back afterwards.
        """
        for _ in range(2):
            take_update()

    def draw(self) -> Draw:
        """Choose the examples of the next update."""
        raise NotImplementedError

    def reweight(self, draw: Draw, signals: Signals) -> Tensor:
        """Return the weights (n,) to train with. Called between forward and backward pass: pure, no host reads."""
        return draw.weights

    def observe(self, draw: Draw, signals: Signals) -> None:
        """Learn from the signals of the forward pass. The model's parameters are not yet updated."""

    def observed(self, name: str, draw: Draw, signals: Signals) -> Tensor:
        """Return a signal (n,) of the batch that is trained on, scored anew where training does not give it."""
        return signals[name] if name in signals else self.workspace.score(draw.batch, name)

    def gain(self) -> float:
        """Return how many uniform updates this update is worth. It multiplies the rate and advances the schedule."""
        return 1.0

    def diagnostics(self) -> dict[str, float]:
        """Return numbers for the record. Called while the clock is paused."""
        return {}

    def probabilities(self) -> Tensor | None:
        """Return the probability of each example in the next draw (N,) float64, or None where a method has none."""
        return None

    def check_pool(self, size: int, key: str = "pool_size", at_least: int | None = None) -> None:
        """Check that a batch (or `at_least` examples) can be chosen from a pool of `size` training examples.

        Raises:
            ConfigError: naming the sampler's key.
        """
        batch_size, num_examples = self.workspace.batch_size, self.workspace.num_examples
        if size < (batch_size if at_least is None else at_least):
            raise ConfigError(
                f"sampler.{key}={size} is smaller than batch_size={batch_size}: the batch is taken from it"
            )
        if size > num_examples:
            raise ConfigError(f"sampler.{key}={size} is larger than the training set ({num_examples} examples)")

    def get_extra_state(self) -> dict[str, Any]:
        """Return what `remembers` names, as checkpoints store it.

        Numbers, strings, None and tensors are stored as they are; a batch as its indices and views; anything else, such
        as an optimizer, by its `state_dict`.
        """
        return {name: _stored(getattr(self, name)) for name in self.remembers}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        for name in self.remembers:
            current, stored = getattr(self, name), state[name]
            if hasattr(current, "load_state_dict"):
                current.load_state_dict(stored)
            else:
                setattr(self, name, self._restored(stored))

    def _restored(self, stored: Any) -> Any:
        device = self.workspace.device
        if isinstance(stored, dict):
            return self.workspace.fetch(stored["indices"].to(device), stored["views"].to(device))
        return stored.to(device) if isinstance(stored, Tensor) else stored


def _stored(value: Any) -> Any:
    if hasattr(value, "views"):  # a batch
        return {"indices": value.indices, "views": value.views}
    return value.state_dict() if hasattr(value, "state_dict") else value


class LateReading:
    """A number on the device that the host reads one update late, so that reading never waits for the device.

    `push` is called once per update; `value` returns what the update before the last has pushed.
    """

    def __init__(self, first: float):
        self.fill(first)

    def fill(self, value: float) -> None:
        """Make `value` what the next reads return."""
        self._before_last = self._last = _Copy(torch.tensor(value, dtype=torch.float64))

    def push(self, number: Tensor) -> None:
        """Start copying a number () to the host."""
        self._before_last, self._last = self._last, _Copy(number)

    def value(self) -> float:
        """Return the number that the update before the last has pushed. One host read."""
        return self._before_last.wait()

    def state_dict(self) -> list[float]:
        return [self._before_last.wait(), self._last.wait()]

    def load_state_dict(self, state: list[float]) -> None:
        for number in state:
            self.push(torch.tensor(number, dtype=torch.float64))


class _Copy:
    """A number on its way to the host."""

    def __init__(self, number: Tensor):
        self.is_pending = number.device.type == "cuda"
        if self.is_pending:
            self.host = torch.empty_like(number, device="cpu", pin_memory=True).copy_(number, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.host = number.clone()

    def wait(self) -> float:
        if self.is_pending:
            self.event.synchronize()
        return float(self.host)


class EpochSampler(Sampler):
    """A sampler that decides for a whole pass, or for several updates, at once. A subclass writes `plan`.

    A batch that reaches past the end of a pass is filled from the next one, so that every batch has b examples.
    """

    remembers: tuple[str, ...] = ("planned", "acts")
    acts: bool = True  # see `Draw`; `plan` may set it for its pass
    planned: Feed

    def allocate(self) -> None:
        self.planned = Feed(self.workspace.device)

    def plan(self) -> tuple[Tensor, Tensor]:
        """Return the indices (m,) of the next pass or updates in order, and their weights (m,) float32."""
        raise NotImplementedError

    def draw(self) -> Draw:
        indices, weights = self.planned.take(self.workspace.batch_size, self.plan)
        return Draw(self.workspace.fetch(indices), weights, acts=self.acts)


def last_of_repeats(indices: Tensor, values: Tensor) -> Tensor:
    """Return `values` (k, ...), where all positions with the same index (k,) have the value of the last of them.

    Draws with replacement repeat examples. With these values, the order in which a device writes does not matter.
    """
    ordered, positions = indices.sort(stable=True)
    ends = torch.searchsorted(ordered, indices, right=True) - 1
    return values.index_select(0, positions[ends])


def assign(state: Tensor, indices: Tensor, values: Tensor) -> None:
    """Write `values` (k, ...) into `state` (N, ...) at `indices` (k,). Of a repeated index the last value stays."""
    state[indices] = last_of_repeats(indices, values)


def categorical(scores: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `k` positions with replacement, in proportion to `scores` (n,), which are not negative.

    Returns the positions (k,) int64 and their probabilities (k,) float64. Scores are rounded to integer counts, whose
    cumulative sum does not depend on the order of addition. The probabilities belong to the rounded scores, so weights
    made from them are unbiased. A score that rounds to zero is never drawn; if all are zero, the draw is uniform. A
    score that is not finite makes all returned probabilities NaN, which ends the run as diverged.
    """
    n = scores.shape[0]
    bits = min(40, 61 - n.bit_length())  # the sum of n counts of up to 2**bits stays below 2**62
    scores = scores.double()
    largest = scores.max()
    counts = (scores * (2.0**bits / largest)).nan_to_num_(0.0, 0.0, 0.0).long()
    counts = torch.where(largest > 0, counts, 1)
    cumulative = counts.cumsum(0)
    total = cumulative[-1]
    uniform = torch.rand(k, dtype=torch.float64, device=scores.device, generator=generator)
    targets = (uniform * total).long().clamp_(max=total - 1)
    positions = torch.searchsorted(cumulative, targets, right=True).clamp_(max=n - 1)
    return positions, counts[positions].double() / total + largest * 0
