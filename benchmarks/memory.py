"""Memory: a run's peak compared with what it must hold, and the bytes that each sampler keeps per example.

A fresh process trains a few updates with `uniform`. Its peak is the resident memory above the level of a tiny run,
which has loaded all code; on a GPU it is the peak of torch's allocator. A run must hold parameters, gradients,
optimizer state, the data set on the device, and one step's activations. Activations are all tensors that autograd saves
for the backward pass, without parameters and each storage once, plus the largest again, for the gradient that flows
back.

Bytes per example are measured at two sizes of the training set: by how much the tensors of the sampler and of its
candidate stream grow, after a first draw.
"""

import inspect
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import Row
from benchmarks.runs import CIFAR, MNIST, isbench_loop, make_parts
from isbench.build import resolve_device
from isbench.config import config_folder

GOAL = 1.15
CASES = {
    "LeNet, b=128, MNIST's size": (*MNIST, "model=lenet"),
    "WRN-28-2, b=128, CIFAR-10's size": (*CIFAR, "model=wrn_28_2"),
    "ResNet-18, b=128, CIFAR-10's size": (*CIFAR, "model=resnet18"),
}
SIZES = 2560, 5120
LARGE = 10**8
UPDATES = 3
MINIATURE = ("dataset.num_examples=8", "dataset.num_test=8", "model=lenet", "batch_size=1", "numerics.threads=1")


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    for name in list(CASES)[: 1 if quick else None]:
        command = [sys.executable, "-m", "benchmarks.memory", name]
        found = [json.loads(subprocess.check_output(command, text=True)) for _ in range(1 if quick else 3)]
        needed = found[0]["needed"]
        note = ", ".join(f"{part} {size / 2**20:,.0f}" for part, size in needed.items()) + " MiB"
        yield Row(
            name, "what it needs", [run["peak"] / sum(run["needed"].values()) for run in found], at_most=GOAL, note=note
        )
    for path in sorted((config_folder() / "sampler").glob("*.yaml")):
        yield bytes_per_example(path.stem)


def peak(device: torch.device) -> int:
    """Return the largest number of bytes that this process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(case: str) -> dict:
    """Train a few updates in this process; return its peak and what it must hold, in bytes."""
    device = resolve_device("auto")
    isbench_loop(make_parts(device, *MNIST, *MINIATURE))(1)
    baseline = peak(device) if device.type == "cpu" else 0
    parts = make_parts(device, *CASES[case], "numerics.threads=1")
    isbench_loop(parts)(UPDATES)
    held = peak(device) - baseline
    model, dataset = parts.model, parts.dataset
    optimizer_state = [value for state in parts.optimizer.state.values() for value in state.values()]
    needed = {
        "parameters": num_bytes([*model.parameters(), *model.buffers()]),
        "gradients": num_bytes(p.grad for p in model.parameters()),
        "optimizer": num_bytes(optimizer_state),
        "data": num_bytes(vars(dataset).values()),
        "activations": saved_bytes(model, parts.take_update),
    }
    return {"peak": held, "needed": needed}


def num_bytes(values: Iterable[object]) -> int:
    """Return the size of the storages of all tensors among `values`, each once."""
    storages = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def saved_bytes(model: nn.Module, step: Callable[[], object]) -> int:
    """Return the bytes that autograd saves during `step`, without parameters, plus the largest tensor once more."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(saved.values()) + max(saved.values(), default=0)


def bytes_per_example(sampler: str) -> Row:
    """Return the measured bytes per example, with the statement of the sampler's docstring as a note."""
    small, large = (held_bytes(sampler, size) for size in SIZES)
    value = (large[0] - small[0]) / (SIZES[1] - SIZES[0])
    note = f"{value * LARGE / 1e9:.1f} GB at 100 million; docstring: {large[1]}"
    return Row(f"{sampler}: memory", "", [value], "bytes per example", note=note)


def held_bytes(sampler: str, num_examples: int) -> tuple[int, str]:
    """Return the bytes that sampler and candidate stream hold after a draw, and the docstring's line on memory."""
    data = (f"dataset.num_examples={num_examples}", "dataset.num_test=8", "dataset.shape=[1,4,4]")
    parts = make_parts(torch.device("cpu"), *MNIST[:1], *data, "model=mlp", "model.hidden=[4]", f"sampler={sampler}")
    parts.sampler.draw()
    stream = parts.workspace.state_dict()
    size = num_bytes([*parts.sampler.buffers(), *vars(parts.sampler).values(), *stream.values()])
    memory = re.search(r"^Memory: ((?:.|\n(?!\w[\w ]*:|\n))*)", inspect.getdoc(type(parts.sampler)) or "", re.MULTILINE)
    return size, " ".join(memory[1].split()) if memory else "?"


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
