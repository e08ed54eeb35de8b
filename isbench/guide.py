"""Samplers for a training loop of one's own: three lines, any PyTorch code.

    guide = isbench.attach("infobatch", num_examples=len(data), batch_size=128, updates=10_000, seed=0)
    loader = DataLoader(isbench.indexed(data), batch_sampler=guide)
    for indices, inputs, targets in loader:
        losses = F.cross_entropy(model(inputs), targets, reduction="none")
        guide.loss(indices, losses).backward()

A `Guide` gives the samplers of `isbench.samplers` what such a loop has (`Surroundings`). It touches nothing of the
program: no global stream of random numbers, no model. docs/own_loop.md shows all of it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset

from isbench.errors import ConfigError, Incompatible
from isbench.nodes import choice, construct, locate
from isbench.samplers.base import Sampler
from isbench.samplers.basis import Basis
from isbench.signals import PER_EXAMPLE, CrossEntropy, joint_norm, per_example
from isbench.training.ranks import ALONE, Ranks
from isbench.training.streams import stream
from isbench.types import Batch, Draw, Forward, Progress

Load = Callable[[Tensor], Any]  # indices (n,) to the examples, in any shape
Scorer = Callable[[Any], Tensor]  # examples, or without a `Load` their indices (n,), to scores (n,)
Inputs = Callable[[Tensor], Tensor]  # indices (n,) to inputs (n, ...)
# What a loop gives a sampler besides losses, by the argument of `attach` that it takes.
GIVES = {
    "scorer": ("score", "score_dataset"),
    "targets": ("targets", "num_classes", "logit_gradient_norm", "true_class_probability"),
    "plain_inputs": ("plain", "input_shape"),
    "parameters": ("weight_norm",),
}


def attach(
    name: str | type[Sampler],
    *,
    num_examples: int,
    batch_size: int,
    updates: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    targets: Tensor | None = None,
    scorer: Scorer | None = None,
    load: Load | None = None,
    plain_inputs: Inputs | None = None,
    parameters: Iterable[Tensor] | None = None,
    **options: Any,
) -> "Guide":
    """Return a guide that draws batches by one of isbench's methods, or by a sampler class of one's own.

    Args:
        name: a choice of conf/sampler, whose values are the defaults; or a class.
        batch_size: b, of all ranks together where `torch.distributed` has several.
        updates: the batches that the whole training takes; iterating once gives them all.
        epochs: instead of `updates`: iterating once gives ceil(N / b) batches, and the training takes so many epochs.
        seed: decides all draws.
        device: where the sampler keeps its state and its random numbers.
        targets: the labels of all examples (N,) int64, for methods that need them.
        scorer: gives the scores (n,) of examples, for methods that score before they choose. It is called without
            gradients; the model's mode is the caller's affair.
        load: gives the examples at indices (n,): a tensor, or a dictionary, tuple or list of them. `scorer` is then
            called with examples, and `Guide.choose` returns them.
        plain_inputs: gives the un-augmented inputs at indices (n,), in floating point, for methods that look at them.
        parameters: of the model, for methods that use the norm of its weights.
        options: the sampler's own.

    Raises:
        UserError: values that cannot be used, or a method that needs what the loop cannot give. One line.
    """
    if (updates is None) == (epochs is None):
        raise ConfigError("attach needs either updates=... or epochs=...")
    if (updates if epochs is None else epochs) < 1:  # type: ignore[operator]
        raise ConfigError("updates and epochs must be positive")
    if not 1 <= batch_size <= num_examples:
        raise ConfigError(f"batch_size={batch_size}: must be between 1 and num_examples={num_examples}")
    per_pass = updates or -(-num_examples // batch_size)
    device = torch.device(device)
    defaults: dict[str, Any] = (
        choice("sampler", name) if isinstance(name, str) else {"name": name.__name__, "_target_": name}
    )
    called, target = defaults.pop("name"), defaults.pop("_target_")
    sampler: Sampler = construct("sampler", called, locate(target), {**defaults, **options})
    surroundings = Surroundings(
        called,
        sampler.without,
        num_examples,
        batch_size,
        per_pass * (epochs or 1),
        seed,
        device,
        targets,
        scorer,
        load,
        plain_inputs,
        parameters,
    )
    surroundings.check(*sampler.asks, *sampler.observes, *["weighted_norm"] * sampler.weighted_norm)
    sampler.bind(surroundings)
    return Guide(sampler, surroundings, per_pass)


class Numbers:
    """A batch of which only the indices (n,) are known. It may stand where samplers have a `Batch`.

    What `load` gave of it is kept, so that an example is trained on as it was scored.
    """

    def __init__(self, indices: Tensor, surroundings: "Surroundings", examples: Any = None):
        self.indices = indices
        self._surroundings = surroundings
        self._examples = examples

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def views(self) -> Tensor:
        """None that isbench knows of, (n, 0)."""
        return torch.empty(len(self), 0, device=self.indices.device)

    @property
    def inputs(self) -> Tensor:
        """What `plain_inputs` gives, (n, ...)."""
        return self._surroundings.inputs(self.indices)

    @property
    def examples(self) -> Any:
        """What `load` gives."""
        if self._examples is None:
            self._examples = self._surroundings.load(self.indices)
        return self._examples

    def take(self, positions: Tensor) -> "Numbers":
        """Return the examples at `positions` (k,), repeats allowed."""
        examples = None if self._examples is None else rows(self._examples, positions)
        return Numbers(self.indices[positions], self._surroundings, examples)

    def join(self, other: "Numbers") -> "Numbers":
        """Return these examples, followed by the other batch. They will be loaded anew."""
        return Numbers(torch.cat([self.indices, other.indices]), self._surroundings)

    def part(self, ranks: Ranks) -> "Numbers":
        """Return this rank's part; where there are several, it will be loaded anew."""
        return self if ranks.size == 1 else Numbers(ranks.part(self.indices), self._surroundings)


def rows(examples: Any, positions: Tensor) -> Any:
    """Return the examples at `positions` (k,), of a tensor (n, ...) or of a dictionary, tuple or list of them."""
    if isinstance(examples, Tensor):
        return examples[positions.to(examples.device)]
    if isinstance(examples, Mapping):
        return {key: rows(column, positions) for key, column in examples.items()}
    if isinstance(examples, tuple | list):
        return type(examples)(rows(column, positions) for column in examples)
    raise TypeError(f"load: gave a {type(examples).__name__}, not a tensor or a dictionary, tuple or list of them")


class Surroundings(Basis):
    """What a training loop of one's own gives a sampler: indices, progress, and what `attach` was told.

    Examples have no views: what an augmentation does to them is the loop's affair.

    Attributes:
        updates: the batches that the whole training takes.
        ranks: the processes that share each batch.
    """

    stored_views = None
    has_recurrent_layers = False  # how examples are scored is the scorer's affair

    def __init__(
        self,
        name: str,
        without: Mapping[str, str],
        num_examples: int,
        batch_size: int,
        updates: int,
        seed: int,
        device: torch.device,
        targets: Tensor | None,
        scorer: Scorer | None,
        load: Load | None,
        plain_inputs: Inputs | None,
        parameters: Iterable[Tensor] | None,
    ):
        self.streams = {purpose: stream(seed, purpose, device) for purpose in ("sampler", "order")}
        own, order = self.streams.values()
        super().__init__(num_examples, batch_size, device, own, order, Progress(num_examples))
        self.updates = updates
        has_ranks = dist.is_available() and dist.is_initialized()
        self.ranks = Ranks(dist.get_rank(), dist.get_world_size()) if has_ranks else ALONE
        self._name = name
        self._without = without
        self._scorer = scorer
        self._load = load
        self._plain_inputs = plain_inputs
        self._parameters = [tensor for tensor in parameters or () if tensor.requires_grad]
        given = {"scorer": scorer, "targets": targets, "plain_inputs": plain_inputs, "parameters": parameters}
        self._given = {"loss"}.union(*(gives for argument, gives in GIVES.items() if given[argument] is not None))
        if batch_size % self.ranks.size:
            raise ConfigError(f"batch_size={batch_size}: must be a multiple of the {self.ranks.size} processes")
        if targets is not None:
            if targets.shape != (num_examples,):
                raise ConfigError(f"targets: {num_examples} labels are needed, and the shape is {tuple(targets.shape)}")
            self.targets = targets.to(device)
            self.num_classes = int(targets.max()) + 1
        if parameters is not None and not self._parameters:
            raise ConfigError("parameters: none of them requires a gradient")
        if plain_inputs is not None:
            self.input_shape = tuple(self.inputs(torch.zeros(1, dtype=torch.int64, device=device)).shape[1:])

    def check(self, *wanted: str) -> None:
        """Check that the loop gives what a sampler wants.

        Raises:
            Incompatible: it does not. The message says what to give `attach`, if that helps.
        """
        lacking = [what for what in dict.fromkeys(wanted) if what not in self._given]
        ways = {**self._without, **{what: f"{argument}=..." for argument, gives in GIVES.items() for what in gives}}
        if beyond := [what for what in lacking if what not in ways]:
            raise Incompatible(f"sampler={self._name} needs {', '.join(beyond)}: only a run of isbench has that")
        if lacking:
            helps = ", ".join(dict.fromkeys(ways[what] for what in lacking))
            raise Incompatible(f"sampler={self._name} needs {', '.join(lacking)}: give attach {helps}")

    def __getattr__(self, what: str) -> Any:
        if what in Basis.__annotations__:
            self.check(what)
        raise AttributeError(what)

    def fraction(self) -> float:
        return self.progress.updates / self.updates

    def draw_views(self, k: int) -> Tensor:
        return torch.empty(k, 0, device=self.device)

    def view_offset(self, views: Tensor) -> None:
        return None

    def fetch(self, indices: Tensor, views: Tensor | None = None) -> Numbers:
        return Numbers(indices, self)

    def plain(self, indices: Tensor) -> Numbers:
        return Numbers(indices, self)

    def load(self, indices: Tensor) -> Any:
        """Return the examples at `indices` (n,), as `load` gives them."""
        if self._load is None:
            raise ConfigError("guide.choose: attach needs load=...")
        return self._load(indices)

    def inputs(self, indices: Tensor) -> Tensor:
        """Return the inputs at `indices` (n,), as `plain_inputs` gives them, (n, ...)."""
        self.check("plain")
        assert self._plain_inputs is not None
        inputs = self._plain_inputs(indices)
        if not (isinstance(inputs, Tensor) and inputs.is_floating_point() and len(inputs) == len(indices)):
            raise ConfigError(f"plain_inputs: must give {len(indices)} inputs for as many indices, in floating point")
        return inputs.detach().to(self.device)

    def parameters(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self._parameters]

    def score(self, batch: Batch | Numbers, signal: str) -> Tensor:
        self.check("score")
        assert self._scorer is not None and isinstance(batch, Numbers)
        part = batch.part(self.ranks)
        with torch.no_grad():
            scores = self._scorer(part.indices if self._load is None else part.examples)
        if scores.shape != (len(part),):
            raise ValueError(f"scorer: {len(part)} scores are needed, and the shape is {tuple(scores.shape)}")
        self.progress.examples_scored += len(batch)
        return self.ranks.gather({signal: scores.to(self.device).float()}, len(batch))[signal]

    def score_dataset(self, signal: str) -> Tensor:
        pieces = torch.arange(self.num_examples, device=self.device).split(self.batch_size)
        return torch.cat([self.score(self.fetch(piece), signal) for piece in pieces])


class Guide:
    """Draws batches, weights their losses, and lets the sampler learn from them.

    As the `batch_sampler` of a DataLoader it gives lists of indices. Workers that prefetch make it draw ahead: a draw
    then knows the losses of all but the batches that are in flight, at most num_workers * prefetch_factor of them.

    Attributes:
        sampler: the method.
        weights: of the last batch that `loss` was called for (n,).
        gain: how many uniform updates that batch is worth. The learning rate may be multiplied by it.
    """

    def __init__(self, sampler: Sampler, surroundings: Surroundings, per_pass: int):
        self.sampler = sampler
        self.surroundings = surroundings
        self.per_pass = per_pass
        self.weights = torch.ones(0)
        self.gain = 1.0
        self._in_flight: deque[Draw] = deque()  # drawn, and not yet trained on
        self._passed = 0  # batches before those
        self._is_whole = False  # whether the last iteration has given all of its batches

    def __len__(self) -> int:
        """Return how many batches a whole iteration gives."""
        return self.per_pass

    def __iter__(self) -> Iterator[list[int]]:
        """Give this rank's indices of each batch up to the end of the pass.

        An iteration that was left early is taken up again, with the batches that were in flight.
        """
        if self._is_whole:  # what was not trained on by now was skipped
            self._pass_over(len(self._in_flight))
        self._is_whole = False
        end = min((self._passed // self.per_pass + 1) * self.per_pass, self.surroundings.updates)
        for number in range(self._passed, end):
            if number - self._passed == len(self._in_flight):
                self._in_flight.append(self._draw())
            yield self._part(self._in_flight[number - self._passed]).tolist()
        self._is_whole = True

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: each iteration goes on where the one before has ended. For loaders that call it."""

    def choose(self) -> tuple[Tensor, Any]:
        """Return this rank's indices of the next batch (n,), and what `load` gives for them; `loss` goes on from there.

        Raises:
            ConfigError: `attach` was not given `load`.
        """
        if not self._in_flight:
            self._in_flight.append(self._draw())
        batch = self._in_flight[0].batch.part(self.surroundings.ranks)  # type: ignore[attr-defined]
        return batch.indices, batch.examples

    def loss(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> Tensor:
        """Return the weighted mean of the losses of a batch, () float32. The sampler learns from them.

        It is to be called once for each batch, in their order. Batches that were left out are skipped.

        Args:
            indices: this rank's part of a batch that was drawn (n,).
            losses: of each example (n,), with a graph.
            logits: (n, C), for methods that learn from more than losses.

        Raises:
            ValueError: indices of no batch in flight, or arguments of other shapes.
        """
        if losses.shape != indices.shape:
            raise ValueError(f"losses: one for each of {len(indices)} examples, and the shape is {tuple(losses.shape)}")
        ranks = self.surroundings.ranks
        draw = self._taken(indices)
        size = len(draw.batch)
        signals = ranks.gather(self._signals(draw, losses.detach(), logits), size)
        if "weight_norm" in self.sampler.observes:
            signals["weight_norm"] = joint_norm(self.surroundings.parameters()).to(self.surroundings.device)
        self.weights = ranks.part(self.sampler.reweight(draw, signals)).to(losses.device)
        # Ranks average their gradients: each is of a mean over its share of the batch.
        objective = torch.dot(self.weights / (size / ranks.size), losses.float())
        self.sampler.observe(draw, signals)
        self.gain = self.sampler.gain()
        self.surroundings.progress.count(draw, self.gain)
        return objective

    def probabilities(self) -> Tensor | None:
        """Return the probability of each example in the next draw (N,) float64, or None where a method has none."""
        return self.sampler.probabilities()

    def state_dict(self) -> dict[str, Any]:
        """Return all that later draws depend on, as of the last batch trained. Tensors are shared, not copied.

        Batches in flight are part of it: a guide that loads it gives them again, then the same draws as this one.
        """
        return {
            "sampler": self.sampler.state_dict(),
            "surroundings": self.surroundings.state_dict(),
            "progress": self.surroundings.progress.state_dict(),
            "streams": {name: generator.get_state() for name, generator in self.surroundings.streams.items()},
            "passed": self._passed,
            "in_flight": [
                {"indices": draw.batch.indices, "weights": draw.weights, "memo": dict(draw.memo), "acts": draw.acts}
                for draw in self._in_flight
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.surroundings.device
        self.sampler.load_state_dict(state["sampler"])
        self.surroundings.load_state_dict(state["surroundings"])
        self.surroundings.progress.load_state_dict(state["progress"])
        for name, generator in self.surroundings.streams.items():
            generator.set_state(state["streams"][name].cpu())
        self._passed, self._is_whole = state["passed"], False
        self._in_flight = deque(
            Draw(
                self.surroundings.fetch(draw["indices"].to(device)),  # type: ignore[arg-type]
                draw["weights"].to(device),
                {name: tensor.to(device) for name, tensor in draw["memo"].items()},
                draw["acts"],
            )
            for draw in state["in_flight"]
        )

    def _draw(self) -> Draw:
        """Draw, as far into the training as the batch will be trained on."""
        progress = self.surroundings.progress
        updates, examples = len(self._in_flight), sum(len(draw.batch) for draw in self._in_flight)
        progress.updates += updates
        progress.examples_trained += examples
        try:
            return self.sampler.draw()
        finally:
            progress.updates -= updates
            progress.examples_trained -= examples

    def _part(self, draw: Draw) -> Tensor:
        return self.surroundings.ranks.part(draw.batch.indices)

    def _pass_over(self, count: int) -> None:
        for _ in range(count):
            self._in_flight.popleft()
        self._passed += count

    def _taken(self, indices: Tensor) -> Draw:
        """Return the draw that has these indices, and take it and those before it out of flight."""
        indices = indices.to(self.surroundings.device)
        for place, draw in enumerate(self._in_flight):
            if torch.equal(self._part(draw), indices):
                self._pass_over(place + 1)
                return draw
        raise ValueError("indices: of no batch that was drawn and not yet trained on")

    def _signals(self, draw: Draw, losses: Tensor, logits: Tensor | None) -> dict[str, Tensor]:
        device = self.surroundings.device
        signals = {"loss": losses.float().to(device)}
        names = tuple(name for name in self.sampler.observes if name in PER_EXAMPLE and name != "loss")
        if names:
            if logits is None or len(logits) != len(losses):
                raise ValueError(f"logits: the method learns from {', '.join(names)}, so `loss` needs them, (n, C)")
            forward = Forward(logits.to(device), logits.new_empty(len(logits), 0))
            signals |= per_example(names, forward, self.surroundings.targets[self._part(draw)], CrossEntropy())
        return signals


class Indexed(Dataset):
    """A data set whose items carry their indices; see `indexed`."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return numbered(index, self.dataset[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the items of a batch, which some data sets fetch together."""
        together = getattr(self.dataset, "__getitems__", None)
        items = together(indices) if together else map(self.dataset.__getitem__, indices)
        return list(map(numbered, indices, items))


def numbered(index: int, item: Any) -> Any:
    """Return an item with its index."""
    if isinstance(item, tuple | list):
        return (index, *item)
    return {"indices": index, **item} if isinstance(item, Mapping) else (index, item)


def indexed(dataset: Any) -> Indexed:
    """Return a data set with the index of each item before it: in front of a tuple, or as "indices" of a dictionary."""
    return Indexed(dataset)
