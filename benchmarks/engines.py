"""The gain of each `numerics.engine` and memory format over the plain one, in isbench's own loop with `uniform`."""

from collections.abc import Iterator

import torch

from benchmarks.measure import Row, race, ratios
from benchmarks.runs import CIFAR, MNIST, isbench_loop, make_parts

CASES = {"LeNet, b=128": (*MNIST, "model=lenet"), "CNN7, b=128": (*MNIST, "model=cnn7")}
GPU_CASES = {"LeNet, b=32": (*MNIST, "model=lenet", "batch_size=32"), "WRN-28-2, b=128": (*CIFAR, "model=wrn_28_2")}


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    is_cuda = device.type == "cuda"
    engines = ("compiled", "graphed", "compiled_graphed") if is_cuda else ("compiled",)
    for name, choices in (CASES | GPU_CASES if is_cuda else CASES).items():
        base = (*choices, "sampler=uniform", "numerics.threads=1")
        eager = isbench_loop(make_parts(device, *base))
        for engine in engines:
            loop = isbench_loop(make_parts(device, *base, f"numerics.engine={engine}"))
            ours, theirs = race([loop, eager], rounds=3 if quick else 9)
            yield Row(f"{name}, {engine}", "eager", ratios(ours, theirs), note="for information")
        contiguous = isbench_loop(make_parts(device, *base, "numerics.channels_last=false"))
        ours, theirs = race([eager, contiguous], rounds=3 if quick else 9)
        yield Row(f"{name}, default memory format", "channels first", ratios(ours, theirs), note="for information")
