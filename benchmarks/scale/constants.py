"""Measures the constants of docs/scale.md: exchanges, a sampler's bookkeeping, and how long scores stay true.

Exchanges between two processes over loopback are wall-clock seconds; bookkeeping is CPU seconds of one thread. Other
programs may share the machine, so kinds and payloads take turns, and medians are over rounds.
"""

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.measure import race
from benchmarks.runs import isbench_loop, make_parts
from benchmarks.scale.formulas import GATHER, REDUCE
from benchmarks.summary import FACTS
from isbench.recording.environment import environment

CPU = torch.device("cpu")
PAYLOADS = tuple(2**k for k in (3, 6, 9, 12, 15, 18, 21, 24, 26))  # bytes
ROUNDS = 31
BATCHES = 128, 1024, 8192
SMALL, LARGE = 2**17, 2**21  # examples of the sets for bookkeeping
FIT_EXAMPLES = 20_000  # |D| of `rais`
BOOKS = "prioritized", "rais"
EPOCHS = 3
SEEDS = 0, 1, 2
SIGNALS = "loss", "logit_gradient_norm"
RESOLUTION = 2.0**-23  # smaller float32 scores are noise, but their logarithms would rule the correlation
POOL_OVER_BATCH = 5  # in the theme break_even
STATES = "uniform", "infobatch", "prioritized", "rais", "upper_bound"  # samplers whose memory is shown


def measure() -> dict[str, Any]:
    """Return all measurements."""
    torch.set_num_threads(1)
    facts = environment("cpu")
    books = [bookkeeping(sampler, batch, SMALL) for sampler in BOOKS for batch in BATCHES]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": {name: facts[name] for name in FACTS if facts[name] is not None},
        "load_average": facts["load_average"],
        "rounds": ROUNDS,
        "exchanges": exchanges(),
        "bookkeeping": [*books, bookkeeping("rais", BATCHES[-1], LARGE)],
        "visits": visits(),
    }


def taken(results: Path) -> dict[str, Any]:
    """Return the measurements of other benchmarks."""
    themes = json.loads((results / "summary.json").read_text())["cpu"]
    medians = {row["what"]: row["median"] for theme in ("memory", "break_even") for row in themes[theme]["rows"]}
    taus = {name: value for name, value in medians.items() if name.endswith(": break-even tau")}
    structures = json.loads((results / "data_structures.json").read_text())["rows"]
    trees = [row for row in structures if row["structure"] == "sum tree, stratified"]
    return {
        "bytes_per_example": {name: medians[f"{name}: memory"] for name in STATES},
        "forward_share": {name.partition(":")[0]: (tau - 1) / POOL_OVER_BATCH for name, tau in taus.items()},
        "over_uniform": {row["what"]: row["median"] for row in themes["samplers"]["rows"] if row["what"] in BOOKS},
        "tree": [(row["num_examples"], (row["draw_us"] + row["update_us"]) * 1e-6 / 128) for row in trees],
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"seconds": median, "low": low, "high": high}


def exchanges(payloads: Sequence[int] = PAYLOADS, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Return the seconds of each exchange between two processes, by kind and bytes."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_exchange, (folder, payloads, rounds), nprocs=2)
        return json.loads(Path(folder, "points.json").read_text())


def _exchange(rank: int, folder: str, payloads: Sequence[int], rounds: int) -> None:
    """Be one of two processes; the first writes the seconds to a file."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    times: dict[tuple[str, int], list[float]] = {}
    for size in [*payloads] * rounds:
        whole, part = torch.zeros(size // 4), torch.zeros(size // 8)
        for kind, call in (
            (REDUCE, partial(dist.all_reduce, whole)),
            (GATHER, partial(dist.all_gather_into_tensor, whole, part)),
        ):
            for _ in range(max(1, min(20, 2**21 // size))):
                start = time.perf_counter()
                call()
                times.setdefault((kind, size), []).append(time.perf_counter() - start)
    dist.destroy_process_group()
    if rank == 0:
        points = [{"kind": kind, "bytes": size, **quartiles(values)} for (kind, size), values in times.items()]
        Path(folder, "points.json").write_text(json.dumps(points))


def bookkeeping(name: str, batch: int, num_examples: int, rounds: int = 7) -> dict[str, Any]:
    """Return the seconds per update of a sampler's draw, observe and gain, minus those of a uniform draw.

    They are measured after every example was drawn, over whole periods of the fits of `rais`.
    """
    parts = make_parts(
        CPU,
        "dataset._target_=benchmarks.runs.random_images",
        f"dataset.num_examples={num_examples}",
        "dataset.num_test=8",
        "dataset.shape=[1,2,2]",
        "model=mlp",
        "model.hidden=[4]",
        f"batch_size={batch}",
        f"sampler={name}",
        *(["sampler.calibration=none"] if name == "rais" else []),  # it calibrates by forward passes
        "numerics.threads=1",
    )
    sampler, workspace, progress = parts.sampler, parts.workspace, parts.progress
    generator = torch.Generator().manual_seed(0)
    hardness = torch.randn(num_examples, generator=generator).exp()

    def signals(indices: Tensor) -> dict[str, Tensor]:
        scores = hardness[indices] * torch.rand(batch, generator=generator).add(0.5)
        return {**dict.fromkeys(sampler.observes, scores), "gradient_norm": scores[0]}

    def keep_books(count: int) -> None:
        for _ in range(count):
            draw = sampler.draw()
            sampler.observe(draw, signals(draw.batch.indices))
            sampler.gain()
            progress.updates += 1
            progress.examples_trained += batch

    def draw_uniformly(count: int) -> None:
        for _ in range(count):
            signals(workspace.fetch(workspace.uniform(batch)).indices)

    keep_books(2 * num_examples // batch)
    ours, theirs = race([keep_books, draw_uniformly], rounds, steps=math.ceil(FIT_EXAMPLES / batch))
    seconds = [a - b for a, b in zip(ours, theirs, strict=True)]
    return {"what": name, "batch": batch, "examples": num_examples, **quartiles(seconds)}


def visits() -> list[dict[str, Any]]:
    """Train LeNet for some epochs with uniform batches; compare all examples' scores at the ends of epochs."""
    dataset, rows = "mnist" if os.environ.get("ISBENCH_DATA") else "mnist5k", []
    for seed in SEEDS:
        parts = make_parts(CPU, f"dataset={dataset}", "model=lenet", f"seed={seed}", "numerics.threads=1")
        loop, ends = isbench_loop(parts), []
        updates = round(parts.dataset.num_examples / parts.workspace.batch_size)
        for _ in range(EPOCHS):
            loop(updates)
            scores = {signal: parts.workspace.score_dataset(signal).double() for signal in SIGNALS}
            ends.append({signal: values.clamp(min=RESOLUTION).numpy() for signal, values in scores.items()})
        for signal in SIGNALS:
            for first, last in ((1, 2), (2, 3), (1, 3)):
                key = {"dataset": dataset, "seed": seed, "signal": signal, "from": first, "to": last}
                found = compared(ends[first - 1][signal], ends[last - 1][signal])
                rows.append({**key, "updates_per_epoch": updates, **found})
    return rows


def compared(before: np.ndarray, now: np.ndarray) -> dict[str, float]:
    """Return the gain that the scores (N,) `before` would bring `now`, and the parameters of the formulas."""
    rho = float(np.corrcoef(np.log(before), np.log(now))[0, 1])
    tau2 = float((now**2).mean() / now.mean() ** 2)
    exponents = np.linspace(0, 1, 41)
    gains = [remembered_gain(before, now, exponent) for exponent in exponents]
    best = int(np.argmax(gains))
    return {
        "tau2": tau2,
        "rho": rho,
        "at_rho": remembered_gain(before, now, rho),
        "at_one": gains[-1],
        "best": gains[best],
        "best_exponent": float(exponents[best]),
        "effective_rho": math.sqrt(math.log(gains[best]) / math.log(tau2)),
    }


def remembered_gain(before: np.ndarray, now: np.ndarray, exponent: float) -> float:
    """Return by which factor a draw in proportion to `before` ** exponent divides the mean square of `now`; (N,)."""
    scores = before**exponent
    return float((now**2).mean() / (scores.mean() * (now**2 / scores).mean()))
