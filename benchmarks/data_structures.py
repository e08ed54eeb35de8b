"""The cost of drawing 128 examples and of updating 128 weights, by data structure and number of examples.

`python -m benchmarks.data_structures` prints a table and writes it to results/benchmarks (CPU, one thread). It compares
the sum tree of `prioritized`, the ranks of `online_batch_selection`, torch.multinomial and numpy's choice over weights,
and torchrl's C++ sum trees if torchrl is installed. A draw includes its random numbers. An update of the ranks includes
its share of the ten sorts in a pass.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isbench.recording.environment import environment
from isbench.samplers.base import last_of_repeats
from isbench.samplers.online_batch_selection import SORTS_PER_PASS, draw_ranks
from isbench.samplers.sum_tree import SumTree

K = 128
REPEATS = 31
MIN_REPEAT_SECONDS = 0.01
ROW = "| {:>11} | {:<20} | {:>26} | {:>26} |"


class Given:
    """Weights of N examples, and updates of them: batches of indices, which take turns, and new weights."""

    def __init__(self, n: int):
        self.n = n
        self.generator = torch.Generator().manual_seed(0)
        self.weights = torch.rand(n, dtype=torch.float64, generator=self.generator)
        self.values = torch.rand(K, dtype=torch.float64, generator=self.generator)
        self._batches = list(torch.randint(n, (256, K), generator=self.generator))
        self._turn = 0

    def indices(self) -> Tensor:
        self._turn = (self._turn + 1) % len(self._batches)
        return self._batches[self._turn]


Operations = tuple[Callable[[], object], Callable[[], object], float]  # draw, update, further seconds per update


def sum_tree(given: Given, stratified: bool) -> Operations:
    tree = SumTree(given.n)
    tree.fill(given.weights)
    draw = partial(tree.draw, K, given.generator, stratified=stratified)
    return draw, lambda: tree.update(given.indices(), given.values), 0.0


def ranks(given: Given) -> Operations:
    losses = given.weights.float()
    start = time.process_time()
    ranking = losses.argsort(descending=True, stable=True)
    seconds_per_sort = time.process_time() - start

    def update() -> None:
        indices = given.indices()
        losses[indices] = last_of_repeats(indices, given.values.float())

    share = seconds_per_sort / (given.n // (SORTS_PER_PASS * K))
    return lambda: ranking[draw_ranks(K, given.n, 100.0, given.generator)], update, share


def multinomial(given: Given) -> Operations:
    def update() -> None:
        given.weights[given.indices()] = given.values

    draw = partial(torch.multinomial, given.weights, K, replacement=True, generator=given.generator)
    return draw, update, 0.0


def numpy_choice(given: Given) -> Operations:
    weights, random = given.weights.numpy(), np.random.default_rng(0)

    def update() -> None:
        weights[given.indices().numpy()] = given.values.numpy()

    return lambda: random.choice(given.n, K, p=weights / weights.sum()), update, 0.0


def torchrl_tree(given: Given, name: str, dtype: torch.dtype) -> Operations:
    from torchrl.data.replay_buffers import samplers

    tree, values = getattr(samplers, name)(given.n), given.values.to(dtype)
    tree[torch.arange(given.n)] = given.weights.to(dtype)

    def draw() -> Tensor:
        masses = torch.rand(K, dtype=dtype, generator=given.generator) * tree.query(0, given.n)
        return tree.scan_lower_bound(masses)

    return draw, lambda: tree.__setitem__(given.indices(), values), 0.0


STRUCTURES: dict[str, Callable[[Given], Operations]] = {
    "sum tree": partial(sum_tree, stratified=False),
    "sum tree, stratified": partial(sum_tree, stratified=True),
    "ranks": ranks,
    "torch.multinomial": multinomial,
    "numpy choice": numpy_choice,
    "torchrl float64 tree": partial(torchrl_tree, name="SumSegmentTreeFp64", dtype=torch.float64),
    "torchrl float32 tree": partial(torchrl_tree, name="SumSegmentTreeFp32", dtype=torch.float32),
}


def measure(operation: Callable[[], object]) -> list[float]:
    """Return the CPU microseconds per call, one value for each of `REPEATS` repeats (3 if a call takes a second)."""
    start = time.process_time()
    operation()
    first = time.process_time() - start
    calls = max(1, min(1000, int(MIN_REPEAT_SECONDS / first)))
    times = []
    for _ in range(REPEATS if first < 1 else 3):
        start = time.process_time()
        for _ in range(calls):
            operation()
        times.append((time.process_time() - start) / calls * 1e6)
    return times


def benchmark(name: str, n: int) -> dict[str, str | int | float]:
    """Return median and quartiles of a structure's draw and update, in microseconds, or why it was not measured."""
    row: dict[str, str | int | float] = {"num_examples": n, "structure": name}
    if name.startswith("torchrl") and importlib.util.find_spec("torchrl") is None:
        return row | {"missing": "not installed"}
    if name == "torch.multinomial" and n > 2**24:
        return row | {"missing": "at most 2^24"}
    draw, update, share = STRUCTURES[name](Given(n))
    for key, operation, extra in (("draw", draw, 0.0), ("update", update, share * 1e6)):
        low, median, high = statistics.quantiles(measure(operation), n=4)
        row |= {f"{key}_us": median + extra, f"{key}_us_low": low + extra, f"{key}_us_high": high + extra}
    return row


def table_line(row: dict) -> str:
    def cell(key: str) -> str:
        median, low, high = (row[f"{key}_us{end}"] for end in ("", "_low", "_high"))
        return f"{median:,.1f} ({low:,.1f} to {high:,.1f})"

    cells = [row.get("missing") or cell(key) for key in ("draw", "update")]
    return ROW.format(f"{row['num_examples']:,}", row["structure"], *cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[60_000, 600_000, 10_000_000, 100_000_000])
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = {key: environment("cpu")[key] for key in ("cpu", "os", "python", "torch")}
    if importlib.util.find_spec("torchrl"):
        machine["torchrl"] = importlib.metadata.version("torchrl")
    lines = [
        f"CPU microseconds for {K} examples, median (quartiles) of {REPEATS} repeats; one thread of {machine['cpu']}, "
        + ", ".join(f"{name} {machine[name]}" for name in machine if name.startswith("torch")),
        "",
        ROW.format("N", "structure", "draw", "update"),
        "|---:|---|---:|---:|",
    ]
    print("\n".join(lines))
    rows = []
    for n in arguments.sizes:
        for name in STRUCTURES:
            rows.append(benchmark(name, n))
            lines.append(table_line(rows[-1]))
            print(lines[-1], flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "data_structures.md").write_text("\n".join(lines) + "\n")
    (arguments.out / "data_structures.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
