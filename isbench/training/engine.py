"""Engines run the network's passes: as written, compiled, or replayed as a CUDA graph, each in a chosen precision.

- eager: the code as written.
- compiled: torch.compile takes the forward pass, and with it the backward pass.
- graphed: one CUDA graph holds all work between two decisions of the host, and a replay spares the launch of every
  kernel. A training step (forward, signals, reweighting, loss, backward) is one graph, a score another.
- compiled_graphed: a graph of compiled code.

A run compiles and captures while it warms up, before the clock starts, for the shapes that it meets there. Other shapes
run as written later. Graphs repeat the kernels of eager code; compiled kernels round differently. Losses, signals and
weights are float32 in every precision.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from isbench.errors import ConfigError
from isbench.models.heads import Classifier
from isbench.training.ranks import ALONE, Ranks
from isbench.types import Batch, Draw, Forward

Tensors = dict[str, Tensor]
Given = TypeVar("Given", bound=Batch | Draw)
Shapes = tuple[tuple[str, torch.Size, torch.dtype], ...]
CPU = torch.device("cpu")
WARM_UP_CALLS = 3  # before a capture, on a stream of its own, as CUDA graphs demand


def memory_format(channels_last: bool | None, precision: str, device: torch.device) -> torch.memory_format:
    """Return the memory format of the network's weights; `channels_last` None takes the faster one.

    Channels last is faster for convolutions on a CPU (results/benchmarks, theme engines) and on tensor cores.
    """
    is_faster = device.type == "cpu" or precision != "float32"
    is_last = is_faster if channels_last is None else channels_last
    return torch.channels_last if is_last else torch.preserve_format


class CudaGraph:
    """One recorded call of `function(given)`; `replay` repeats it on the same memory.

    Raises:
        ConfigError: the call does something that a graph cannot hold.
    """

    def __init__(self, function: Callable[[Given], Tensors], given: Given):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_CALLS):
                function(given)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        try:
            # A capture whose end fails leaves its own stream in place; the outer context brings ours back.
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(self.graph):
                self.outputs = function(given)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of the capture only says that something failed inside
            reason = str(cause).partition("\n")[0]
            raise ConfigError(
                f"a step cannot be captured as a CUDA graph, use numerics.engine=eager: {reason}"
            ) from error

    def replay(self) -> Tensors:
        self.graph.replay()
        return self.outputs


class Engine:
    """Runs a network's passes.

    Args:
        kind: eager, compiled, graphed or compiled_graphed.
        precision: float32, tf32 (the caller has switched it on) or bfloat16 (by autocast).
        make_graph: class that captures a call; tests give another than `CudaGraph`.
        ranks: the processes that share the passes.
        share_buffers: give all ranks the buffers of the first before each pass.

    Raises:
        ConfigError: graphs need a GPU, and one rank.
    """

    def __init__(
        self,
        model: Classifier,
        kind: str = "eager",
        precision: str = "float32",
        device: torch.device = CPU,
        make_graph: type = CudaGraph,
        ranks: Ranks = ALONE,
        share_buffers: bool = False,
    ):
        self.is_graphed = "graphed" in kind
        if self.is_graphed and device.type != "cuda" and make_graph is CudaGraph:
            raise ConfigError(f"numerics.engine={kind} needs a GPU; use eager, compiled or auto")
        if self.is_graphed and ranks.size > 1:
            raise ConfigError(f"numerics.engine={kind} cannot share a run; use eager, compiled or auto")
        self.model = model
        self.device = device
        self.make_graph = make_graph
        self.uses_bfloat16 = precision == "bfloat16"
        self.is_warming_up = False
        self._compiled = torch.compile(model.run, dynamic=False) if "compiled" in kind else None
        self._compiled_shapes: set[tuple] = set()
        self._ranks = ranks
        self._share_buffers = share_buffers

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Compile and capture every shape that comes inside."""
        self.is_warming_up = True
        yield
        self.is_warming_up = False

    def run(self, inputs: Tensor) -> Forward:
        """Return logits (n, C) and features (n, D) of one pass through the network, in the engine's precision."""
        if not self.uses_bfloat16:
            return self._pass(inputs)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self._pass(inputs)

    def captured(
        self, function: Callable[[Given], Tensors], parameters: Sequence[nn.Parameter] = ()
    ) -> Callable[[Given], Tensors]:
        """Return `function`, or a stand-in that replays it.

        The function maps a batch or draw to named tensors without host reads. It may write the gradients of
        `parameters`. The caller may keep the returned tensors: replays do not overwrite them.
        """
        return Captured(self, function, parameters) if self.is_graphed else function

    @cached_property
    def _pass(self) -> Callable[[Tensor], Forward]:
        return self._ranks.averaged(self.model, self._run, self._share_buffers)

    def _run(self, inputs: Tensor) -> Forward:
        run = self._compiled if self._compiled is not None and self._is_compiled(inputs) else self.model.run
        return run(inputs)

    def _is_compiled(self, inputs: Tensor) -> bool:
        key = (inputs.shape, self.model.training, torch.is_grad_enabled())
        if self.is_warming_up:
            self._compiled_shapes.add(key)
        return key in self._compiled_shapes


class Captured(Generic[Given]):
    """A function of a batch or draw, with one graph for each set of shapes that came during the warm-up."""

    def __init__(self, engine: Engine, function: Callable[[Given], Tensors], parameters: Sequence[nn.Parameter]):
        self.engine = engine
        self.function = function
        self.parameters = parameters
        self.graphs: dict[Shapes, tuple[Tensors, CudaGraph, list[Tensor | None]]] = {}

    def __call__(self, given: Given) -> Tensors:
        tensors = given.tensors()
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items())
        if shapes not in self.graphs:
            if not self.engine.is_warming_up:
                return self.function(given)
            inputs = {name: tensor.clone() for name, tensor in tensors.items()}
            graph = self.engine.make_graph(self.function, type(given).of(inputs))
            self.graphs[shapes] = (inputs, graph, [p.grad for p in self.parameters])
        inputs, graph, gradients = self.graphs[shapes]
        torch._foreach_copy_(list(inputs.values()), list(tensors.values()))
        outputs = graph.replay()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return {name: output.clone() for name, output in outputs.items()}
