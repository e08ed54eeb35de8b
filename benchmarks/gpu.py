"""On a GPU: images per second by precision and engine, seconds of published budgets, and shares of kernel time.

The seconds of an epoch and of 50,000 updates are extrapolated from the timed updates.
"""

from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import Row, Work, race, seconds
from benchmarks.runs import CIFAR, experiment_numerics, isbench_loop, make_parts

BATCH = 128
MODELS = ("wrn_28_2", "resnet18")
TF32 = experiment_numerics(torch.device("cuda"))
NUMERICS = {
    "float32": ("numerics.engine=graphed",),
    "tf32": TF32,  # as the experiments run
    "tf32, eager": ("numerics.precision=tf32",),
    "tf32, channels first": (*TF32, "numerics.channels_last=false"),
    "bfloat16": ("numerics.engine=graphed", "numerics.precision=bfloat16"),
    "tf32, fast": ("numerics=fast",),
}
ROUNDS, UPDATES = 10, 50
PROFILED, KERNELS = 20, 6


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    if device.type != "cuda":
        print("no GPU is available: nothing to measure")
        return
    updates = 5 if quick else UPDATES
    for model in MODELS:
        for name, numerics in NUMERICS.items():
            loop = isbench_loop(make_parts(device, *CIFAR, *numerics, f"model={model}", "augmentation=flip_crop"))
            (times,) = race([loop], ROUNDS, steps=updates)
            what, note = f"{model}, {name}, b=128", f"from {ROUNDS * updates} updates"
            yield Row(what, "", [BATCH / s for s in times], "images/s", note=note)
            yield Row(what, "", [s * 50_000 / BATCH for s in times], "s an epoch of CIFAR-10", note=note)
            if model == "wrn_28_2":
                yield Row(what, "", [s * 50_000 for s in times], "s for 50,000 updates", note=f"extrapolated {note}")
            yield from shares(what, loop)


def shares(what: str, loop: Work) -> Iterator[Row]:
    """Yield the share of the time in which kernels run, and the shares of the longest kernels in it."""
    whole = seconds(loop, PROFILED)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        seconds(loop, PROFILED)
    kernels = {event.key: event.self_device_time_total / 1e6 for event in profiler.key_averages()}
    busy = sum(kernels.values())
    yield Row(f"{what}: kernels", "all time", [busy / whole], note="torch.profiler; near 1: the GPU is never idle")
    for name in sorted(kernels, key=kernels.__getitem__, reverse=True)[:KERNELS]:
        yield Row(f"{what}: {name[:60]}", "time of all kernels", [kernels[name] / busy], note="torch.profiler")
