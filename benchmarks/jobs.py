"""Many small runs on one machine: two jobs at once, and four seeds as one batched model.

Two processes at once, one thread each, are compared with the same two runs one after the other, two threads each. Four
seeds as one model with torch.func (stacked parameters, vmap) are compared with four separate loops.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from benchmarks.measure import Row, Work, race, ratios
from benchmarks.runs import MNIST, bare_loop, isbench_loop, make_parts
from isbench.build import Parts

SEEDS = 4
UPDATES = {"lenet": 100, "cnn7": 5}


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    for model, updates in UPDATES.items():
        jobs = {threads: [Job(model, threads) for _ in range(2)] for threads in (1, 2)}

        def at_once(count: int, jobs=jobs) -> None:
            for job in jobs[1]:
                job.begin(count)
            for job in jobs[1]:
                job.wait()

        def in_turn(count: int, jobs=jobs) -> None:
            for job in jobs[2]:
                job.begin(count)
                job.wait()

        both, each = race([at_once, in_turn], rounds=2 if quick else 7, steps=updates, wall=True)
        for job in [*jobs[1], *jobs[2]]:
            job.close()
        note = "above 1: side by side wins"
        what = f"{model}: two jobs at once, 1 thread each"
        yield Row(what, "in turn, 2 threads each: updates/s", ratios(each, both), note=note, threads=2)
    for model in ("lenet", "mlp"):
        runs = runs_of(device, *MNIST, f"model={model}")
        apart, together = race([separate_loops(runs), StackedSeeds(runs).steps], rounds=3 if quick else 11)
        what = f"{model}: {SEEDS} seeds as one model"
        yield Row(what, "separate loops: updates/s", ratios(apart, together), note="worth building in above 1.5")


class Job:
    """A process that trains a number of updates on request."""

    def __init__(self, model: str, threads: int):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.jobs", model, str(threads)],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin and self.process.stdout
        self.orders, self.answers = self.process.stdin, self.process.stdout
        self.wait()  # for its first answer, which says that it is ready

    def begin(self, updates: int) -> None:
        self.orders.write(f"{updates}\n")
        self.orders.flush()

    def wait(self) -> None:
        if not self.answers.readline():
            raise RuntimeError("a training process has ended early")

    def close(self) -> None:
        self.orders.close()
        self.process.wait()
        self.answers.close()


def serve(model: str, threads: int) -> None:
    """Read numbers from standard input; train that many updates for each and answer with a line."""
    device = torch.device("cpu")
    train = isbench_loop(make_parts(device, *MNIST, f"model={model}", f"numerics.threads={threads}"))
    train(2)
    print("ready", flush=True)
    for order in sys.stdin:
        train(int(order))
        print("done", flush=True)


def runs_of(device: torch.device, *choices: str) -> list[Parts]:
    """Return one run for each seed."""
    return [make_parts(device, *choices, f"seed={seed}", "numerics.threads=1") for seed in range(SEEDS)]


def separate_loops(runs: Sequence[Parts]) -> Work:
    """Return the work of one bare update of each run in turn."""
    loops = [bare_loop(parts) for parts in runs]

    def steps(count: int) -> None:
        for loop in loops:
            loop(count)

    return steps


class StackedSeeds:
    """The networks of several runs as one, trained by stochastic gradient descent with momentum on a batch each."""

    def __init__(self, runs: Sequence[Parts]):
        model, dataset = runs[0].model, runs[0].dataset
        self.parameters, self.buffers = stack_module_state([parts.model for parts in runs])
        self.velocities = [torch.zeros_like(value) for value in self.parameters.values()]
        group = runs[0].optimizer.param_groups[0]
        self.rate, self.momentum = group["lr"], group["momentum"]
        indices = torch.arange(len(runs) * runs[0].workspace.batch_size, device=dataset.device).view(len(runs), -1)
        self.batches = [torch.stack(part) for part in zip(*map(dataset.plain, indices), strict=True)]

        def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(model, (parameters, buffers), (inputs,)), targets)

        self.gradients = vmap(grad(loss))

    @torch.no_grad()
    def steps(self, count: int) -> None:
        values = list(self.parameters.values())
        for _ in range(count):
            gradients = list(self.gradients(self.parameters, self.buffers, *self.batches).values())
            torch._foreach_mul_(self.velocities, self.momentum)
            torch._foreach_add_(self.velocities, gradients)
            torch._foreach_add_(values, self.velocities, alpha=-self.rate)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
