"""What the harness adds to a step: isbench's loop with `uniform`, compared with a loop written by hand.

The hand-written step is zero_grad, forward, loss, backward and optimizer step, eager, on one ready batch, with the same
model, optimizer, numerics and memory format. isbench's step also draws, gathers and normalises its batch, sets the
rate, keeps the loss and reads the clock. A second hand-written loop gathers and normalises its batches too, as any
training must. On a GPU isbench's graphed engine is compared with a replay of a CUDA graph of the whole step.
"""

from collections.abc import Callable, Iterator

import torch

from benchmarks.measure import Row, Work, race, ratios
from benchmarks.runs import CIFAR, MNIST, bare_loop, bare_step, copied, isbench_loop, make_parts
from isbench.build import Parts

GOAL = 1.02
SMALL_GOAL = 1.3  # of a graphed step of a small network, whose replay takes less than what the host does beside it
ONE = "numerics.threads=1"
CASES = {
    "LeNet, b=32": (*MNIST, "model=lenet", "batch_size=32", ONE),
    "LeNet, b=32, all cores": (*MNIST, "model=lenet", "batch_size=32"),
    "LeNet, b=128": (*MNIST, "model=lenet", ONE),
    "LSTM, b=32": (*MNIST, "model=lstm", "batch_size=32", ONE),
    "WRN-28-2, b=128": (*CIFAR, "model=wrn_28_2", ONE),
    "ResNet-18, b=128": (*CIFAR, "model=resnet18", ONE),
}


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    for name, choices in CASES.items():
        parts = make_parts(device, *choices, "sampler=uniform")
        is_small = name.startswith("LeNet")
        rounds = (5 if quick else 25) if is_small else (2 if quick else 5)
        ours, bare, fetching = race([isbench_loop(parts), bare_loop(parts), bare_loop(parts, fetches=True)], rounds)
        yield Row(name, "bare loop, eager", ratios(ours, bare), at_most=GOAL)
        yield Row(name, "bare loop that fetches its batches", ratios(ours, fetching), at_most=GOAL)
        if device.type == "cuda" and "lstm" not in name.lower():
            graphed = make_parts(device, *choices, "sampler=uniform", "numerics.engine=graphed")
            ours, bare = race([isbench_loop(graphed), graphed_loop(graphed)], rounds)
            goal = SMALL_GOAL if is_small else GOAL
            yield Row(f"{name}, graphed", "bare loop, CUDA graph", ratios(ours, bare), at_most=goal)
    yield numerics(device, quick)


def numerics(device: torch.device, quick: bool) -> Row:
    """Compare the bare loop with and without deterministic algorithms."""
    loop = bare_loop(make_parts(device, *MNIST, "model=lenet", ONE))

    def with_numerics(deterministic: bool) -> Work:
        def steps(count: int) -> None:
            torch.use_deterministic_algorithms(deterministic)
            loop(count)

        return steps

    reproducible, fast = race([with_numerics(True), with_numerics(False)], 5 if quick else 25)
    note = "the price of the same bits again"
    return Row("LeNet, b=128, deterministic algorithms", "without", ratios(reproducible, fast), note=note)


def graphed_loop(parts: Parts) -> Work:
    """Return the bare loop as the replay of one CUDA graph of forward, backward and optimizer step."""
    step = bare_step(parts, *copied(parts))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a capture needs all memory allocated before, on another stream
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    # A graph does not own the memory that its kernels were given. The step does: batch, model, optimizer. It must live
    # as long as the graph, else a replay reads what was freed and reused.
    def steps(count: int, kept: Callable[[], None] = step) -> None:
        for _ in range(count):
            graph.replay()

    return steps
