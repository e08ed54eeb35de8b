"""A pretended GPU: tensors compute on the CPU, and carry the device on which they would lie.

What goes wrong on a real one goes wrong here: tensors of two devices in one operation, generators of the wrong device,
`numpy()` of a tensor on the device, operations that refuse deterministic algorithms on CUDA and, while a graph is
captured, whatever waits for the device or copies to it. Speed, memory, streams and kernels are not simulated.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._inductor  # which lists torch's functions, so before any of them is replaced
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
READS = {"item", "tolist", "__float__", "__int__", "__bool__", "__index__", "__contains__", "is_nonzero", "equal"}
READS |= {"nonzero", "masked_select", "unique", "unique_consecutive", "allclose", "cpu"}
MOVES = {"to", "copy_", "cpu", "data", "set_"}
LOOKUPS = {"__getitem__", "__setitem__"}  # on the device, with indices of the host
# From the documentation of use_deterministic_algorithms: what throws, and what does so where it is differentiated.
REFUSED = {"scatter_reduce", "scatter_reduce_", "put_", "histc", "max_unpool1d", "max_unpool2d", "max_unpool3d"}
REFUSED_BACKWARD = {"grid_sample", "adaptive_max_pool2d", "fractional_max_pool2d", "interpolate"}


class PretendGPU(TorchFunctionMode):
    """The account. A tensor that is not in it, such as one that autograd made, may be used anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.is_capturing = False
        self.warns_of_waits = False  # CUDA's debug mode

    def set_sync_debug_mode(self, mode: str) -> None:
        self.warns_of_waits = mode == "warn"

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("device", "_parse_to"):
            return func(*args, **kwargs)
        if name == "__deepcopy__":  # its second argument is a memory of all copies
            return place(func(*args, **kwargs), place_of(args[0]))
        if name in ("__get__", "__set__"):
            name = (resolve_name(func) or "").split(".")[-2]
            if name in ("device", "is_cuda", "is_cpu"):
                device = place_of(args[0]) or GPU
                return device if name == "device" else (device == GPU) == (name == "is_cuda")

        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        asked = CPU if name == "cpu" else asked_device((args, kwargs))
        known = [found for tensor in given if (found := place_of(tensor))]
        target = asked or (known[0] if known else None if given else CPU)
        self._check_devices(name, args, kwargs, given, target)
        if GPU in known:
            self._check_gpu(name, args, kwargs, given, asked)
        if asked == GPU and (name == "tensor" or CPU in known):
            self._wait(name, kwargs, "a copy from the host")

        args, kwargs = tree_map(lambda leaf: CPU if asks_for_gpu(leaf) else leaf, (args, kwargs))
        kwargs.pop("pin_memory", None)
        result = args[0] if name == "pin_memory" else func(*args, **kwargs)
        if name == "data" and len(args) == 2:  # assigned
            place(args[0], place_of(args[1]))
        elif name in ("to", "cpu") and result is args[0] and place_of(result) != target:
            result = result.clone()
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not any(tensor is old and place_of(old) for old in given):
                place(tensor, target)
        return result

    def _check_devices(self, name: str, args: tuple, kwargs: dict, given: list[Tensor], target: Any) -> None:
        """Refuse two devices in one operation. Numbers () of the host go with all."""
        places = {place_of(tensor) for tensor in given if tensor.dim() or place_of(tensor) == GPU} - {None}
        is_lookup = name in LOOKUPS and place_of(args[0]) == GPU
        if len(places) > 1 and name not in MOVES and not is_lookup:
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found cuda:0 and cpu")
        generator = kwargs.get("generator")
        if generator is not None and generator.device != (target or generator.device):
            raise RuntimeError(f"{name}: Expected a '{target}' device type for generator")

    def _check_gpu(self, name: str, args: tuple, kwargs: dict, given: list[Tensor], asked: Any) -> None:
        """Refuse what a GPU refuses."""
        if name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        indices = [leaf for leaf in tree_leaves(args[1:2]) if isinstance(leaf, Tensor)] if name in LOOKUPS else []
        waits = (
            name in READS
            or (name in MOVES and asked == CPU)
            or (name == "copy_" and place_of(args[0]) == CPU)
            or any(index.dtype == torch.bool or place_of(index) == CPU for index in indices)
        )
        if waits:
            self._wait(name, kwargs, "the host would wait")
        is_differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
        refused = (
            name in REFUSED
            or (name == "bincount" and (len(args) > 1 or "weights" in kwargs))
            or (name == "median" and (len(args) > 1 or "dim" in kwargs))
            or (is_differentiated and name in REFUSED_BACKWARD)
            or (is_differentiated and name == "adaptive_avg_pool2d" and args[1] not in (1, (1, 1)))
        )
        if refused and torch.are_deterministic_algorithms_enabled():
            raise RuntimeError(f"{name} does not have a deterministic implementation")

    def _wait(self, name: str, kwargs: dict, reason: str) -> None:
        """Say or refuse what the host waits for, or would while a graph is captured."""
        if self.is_capturing:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing: {reason}")
        if self.warns_of_waits and not kwargs.get("non_blocking"):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=3)


def place_of(tensor: Tensor) -> torch.device | None:
    """Return where a tensor would lie, None if it is not in the account."""
    return vars(tensor).get("place")


def place(tensor: Tensor, device: torch.device | None) -> Tensor:
    vars(tensor)["place"] = device
    return tensor


def asks_for_gpu(leaf: object) -> bool:
    return (isinstance(leaf, torch.device) or isinstance(leaf, str)) and str(leaf).partition(":")[0] == "cuda"


def asked_device(arguments: Any) -> torch.device | None:
    """Return the device that an operation is asked for, if it is."""
    for leaf in tree_leaves(arguments):
        if asks_for_gpu(leaf):
            return GPU
        if isinstance(leaf, torch.device | str) and str(leaf) == "cpu":
            return CPU
    return None


class Recording(TorchDispatchMode):
    """Every operation inside it, with its arguments and results; `replay` repeats them in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            # Nothing is differentiated again, but an LSTM's forward pass must keep what its backward pass reads.
            with torch._C.DisableTorchFunction(), torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old is not new:
                        old.copy_(new)


class Tape:
    """One call, recorded: what stands in for isbench.training.engine.CudaGraph."""

    made = 0

    def __init__(self, function: Callable[[Any], dict[str, Tensor]], given: Any):
        self.recording = Recording()
        with self.recording:
            self.outputs = function(given)
        Tape.made += 1

    def replay(self) -> dict[str, Tensor]:
        self.recording.replay()
        return self.outputs


class PretendGenerator(torch.Generator):
    """A generator of the CPU's numbers that belongs to a device."""

    def __new__(cls, device: Any = CPU) -> "PretendGenerator":
        return super().__new__(cls)

    def __init__(self, device: Any = CPU) -> None:
        super().__init__()
        self._device = asked_device(device) or CPU

    @property
    def device(self) -> torch.device:
        return self._device


@contextmanager
def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch find one GPU."""
    gpu = PretendGPU()

    @contextmanager
    def capture(graph: Recording) -> Iterator[None]:
        gpu.is_capturing = True
        try:
            with graph:
                yield
        finally:
            gpu.is_capturing = False

    def nothing(*args: Any) -> None:
        pass

    group = clip_grad._group_tensors_by_device_and_dtype

    def on_the_gpu(tensors: list) -> dict:  # compiled code, which sees where they lie in truth
        return {(GPU, dtype): found for (_, dtype), found in group(tensors).items()}

    join_group = dist.init_process_group
    autocast = torch.autocast
    properties = SimpleNamespace(name="pretended", uuid="pretended")
    stream = SimpleNamespace(wait_stream=nothing)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "Generator", PretendGenerator)
        patch.setattr(torch.nn.RNNBase, "flatten_parameters", nothing)  # cuDNN's
        patch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", nothing)
        patch.setattr(clip_grad, "_group_tensors_by_device_and_dtype", on_the_gpu)
        patch.setattr(torch, "autocast", lambda device, dtype: autocast("cpu", dtype))  # the GPU's asks for its driver
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(torch.cuda, "set_sync_debug_mode", gpu.set_sync_debug_mode)
        patch.setattr(dist, "init_process_group", lambda backend: join_group("gloo"))  # NCCL wants a real one
        patch.setattr(torch.cuda, "synchronize", nothing)
        patch.setattr(torch.cuda, "get_rng_state", lambda device=None: torch.get_rng_state())
        patch.setattr(torch.cuda, "set_rng_state", lambda state, device=None: torch.set_rng_state(state))
        patch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        patch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=nothing, synchronize=nothing))
        patch.setattr(torch.cuda, "Stream", lambda: stream)
        patch.setattr(torch.cuda, "current_stream", lambda: stream)
        patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        patch.setattr(torch.cuda, "CUDAGraph", Recording)
        patch.setattr(torch.cuda, "graph", capture)
        with gpu:
            yield
