"""On a GPU: images per second by precision and engine, and where the time of an update goes.

The seconds of an epoch and of 50,000 updates are extrapolated from the timed updates. Where the time goes is told by
torch.profiler, by kernel and by what isbench does. A graph hides what its kernels are for, so that the latter is
measured with the same kernels launched one by one. What the host does for an update is counted as experiments run.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import profile, record_function, supported_activities

from benchmarks.measure import Row, Work, race, ratios, seconds
from benchmarks.runs import CIFAR, MNIST, experiment_numerics, isbench_loop, make_parts
from benchmarks.samplers import hold_open
from isbench.build import Parts
from isbench.samplers.presample import GatedPresample

BATCH = 128
MODELS = ("wrn_28_2", "resnet18")
FAST = experiment_numerics(torch.device("cuda"))
NUMERICS = {
    "as the experiments": FAST,
    "bfloat16, not compiled": (*FAST, "numerics.engine=graphed"),
    "tf32": (*FAST, "numerics.precision=tf32"),
    "tf32, not compiled": (*FAST, "numerics.precision=tf32", "numerics.engine=graphed"),
    "tf32, eager": (*FAST, "numerics.precision=tf32", "numerics.engine=eager"),
    "float32, not compiled": (*FAST, "numerics.precision=float32", "numerics.engine=graphed"),
}
ROUNDS, UPDATES = 10, 50
SECONDS = 60.0  # the goal for 50,000 updates of WRN-28-2
OPEN_GATE = 1.6  # the goal for an update with an open gate over a uniform one
PROFILED, KERNELS = 20, 6
NETWORKS = {"LeNet": (*MNIST, "model=lenet"), "WRN-28-2": (*CIFAR, "model=wrn_28_2", "augmentation=flip_crop")}
SAMPLERS = ("uniform", "upper_bound")
# What isbench does in an update. Where one is within another, the first of this list counts.
PARTS = ("fetch", "score", "optimizer", "forward", "backward")
REST = "sampler and the rest"
HOST = {  # what the host calls, by how their names begin
    "launches of kernels": ("cudaLaunchKernel", "cuLaunchKernel"),
    "launches of graphs": ("cudaGraphLaunch",),
    "copies": ("cudaMemcpy", "cudaMemset"),
    "waits for the GPU": ("cudaStreamSynchronize", "cudaEventSynchronize"),
}


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    if device.type != "cuda":
        print("no GPU is available: nothing to measure")
        return
    updates = 5 if quick else UPDATES
    for model in MODELS:
        for name, numerics in NUMERICS.items():
            loop = isbench_loop(make_parts(device, *CIFAR, *numerics, f"model={model}", "augmentation=flip_crop"))
            (times,) = race([loop], ROUNDS, steps=updates)
            what, note = f"{model}, {name}, b={BATCH}", f"from {ROUNDS * updates} updates"
            yield Row(what, "", [BATCH / s for s in times], "images/s", note=note)
            yield Row(what, "", [s * 50_000 / BATCH for s in times], "s an epoch of CIFAR-10", note=note)
            if model == "wrn_28_2":
                goal = SECONDS if numerics == FAST else None
                yield Row(what, "", [s * 50_000 for s in times], "s for 50,000 updates", goal, note=note)
    for network, choices in NETWORKS.items():
        made = [working(partial(make_parts, device, *choices, *FAST), sampler) for sampler in SAMPLERS]
        ours, uniform = race([isbench_loop(parts) for parts in reversed(made)], ROUNDS, steps=updates)
        goal = OPEN_GATE if network == "WRN-28-2" else None
        yield Row(f"{network}: upper_bound, gate open", "uniform", ratios(ours, uniform), at_most=goal, note="B=640")
        for sampler, parts in zip(SAMPLERS, made, strict=True):
            yield from by_kernel(f"{network}, {sampler}", isbench_loop(parts))
            one_by_one = partial(make_parts, device, *choices, *FAST, "numerics.engine=compiled")
            yield from by_part(f"{network}, {sampler}", working(one_by_one, sampler))


def working(make: Callable[..., Parts], sampler: str) -> Parts:
    """Return the objects of a run with a sampler, which is at work from the first update on."""
    parts = make(f"sampler={sampler}")
    if isinstance(parts.sampler, GatedPresample):
        hold_open(parts.sampler)
    return parts


class Done(NamedTuple):
    """What a device did: a kernel or a copy; on a CPU, an operation."""

    name: str
    start: float  # when the host asked for it
    seconds: float

    @property
    def is_copy(self) -> bool:
        return self.name.startswith(("Memcpy", "Memset", "aten::copy_"))


def profiled(loop: Work) -> tuple[float, list[Any]]:
    """Return the seconds of `PROFILED` updates, and the events of as many more."""
    whole = seconds(loop, PROFILED)
    with profile(activities=supported_activities(), acc_events=True) as profiler:
        seconds(loop, PROFILED)
    return whole, list(profiler.events())


def done(events: Sequence[Any]) -> list[Done]:
    """Return what the device did: the GPU, if it did anything. A call of the host and its kernels share an id."""
    host = [event for event in events if event.device_type == DeviceType.CPU]
    calls = {event.id: event for event in host if event.name.startswith("cu")}
    found = [
        Done(event.name, calls[event.id].time_range.start, event.time_range.elapsed_us() / 1e6)
        for event in events
        if event.device_type == DeviceType.CUDA and event.id in calls and not event.is_user_annotation
    ]
    return found or [
        Done(event.name, event.time_range.start, event.self_cpu_time_total / 1e6)
        for event in host
        if event.name.startswith("aten::")
    ]


def by_kernel(what: str, loop: Work) -> Iterator[Row]:
    """Yield the share of the time in which kernels run, the longest kernels' shares of it, and the host's calls."""
    whole, events = profiled(loop)
    times: dict[str, float] = defaultdict(float)
    for each in done(events):
        times[each.name] += each.seconds
    busy, note = sum(times.values()), "torch.profiler"
    yield Row(f"{what}: kernels", "all time", [busy / whole], note=f"{note}; near 1: the GPU is never idle")
    for name in sorted(times, key=times.__getitem__, reverse=True)[:KERNELS]:
        yield Row(f"{what}: {name[:60]}", "time of all kernels", [times[name] / busy], note=note)
    for kind, begins in HOST.items():
        calls = sum(event.name.startswith(begins) for event in events)
        yield Row(f"{what}: {kind}", "", [calls / PROFILED], "an update", note="by the host")


def by_part(what: str, parts: Parts) -> Iterator[Row]:
    """Yield what each part of an update takes of the kernels' time, and how many kernels and copies it has."""
    name_parts(parts)
    _, events = profiled(isbench_loop(parts))
    for part, (share, kernels, copies) in shares(events).items():
        note = f"{kernels:g} kernels and {copies:g} copies an update"
        yield Row(f"{what}: {part}", "time of all kernels", [share], note=note)


def name_parts(parts: Parts) -> None:
    """Let a profile say what is done in each part of an update."""
    owners: Sequence[tuple[str, Any, str]] = (
        ("fetch", parts.workspace, "fetch"),
        ("score", parts.workspace, "score"),
        ("forward", parts.step.engine, "run"),
        ("backward", parts.step, "compute_gradient"),  # with the forward pass in it
        ("optimizer", parts.step, "update"),
    )
    for part, owner, name in owners:
        setattr(owner, name, record_function(part)(getattr(owner, name)))


def shares(events: Sequence[Any]) -> dict[str, tuple[float, float, float]]:
    """Return of each part: its share of the time, and its kernels and copies in an update."""
    spans = {
        part: [event.time_range for event in events if event.name == part and event.device_type == DeviceType.CPU]
        for part in PARTS
    }
    found: dict[str, list[Done]] = {part: [] for part in (*PARTS, REST)}
    for each in done(events):
        holds = (part for part in PARTS if any(span.start <= each.start <= span.end for span in spans[part]))
        found[next(holds, REST)].append(each)
    whole = sum(each.seconds for own in found.values() for each in own)
    return {
        part: (
            sum(each.seconds for each in own) / whole,
            sum(not each.is_copy for each in own) / PROFILED,
            sum(each.is_copy for each in own) / PROFILED,
        )
        for part, own in found.items()
        if own
    }
