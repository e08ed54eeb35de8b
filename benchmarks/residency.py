"""The cost of a data set in the host's memory or on a disk, compared with one on the device.

Random batches are fetched (gathered, shifted, mirrored, normalised), and LeNet is trained. On a CPU, host and device
are the same. For cold pages the system is told to drop a file from memory before a few batches are gathered from it.
isbench asks for all rows of a batch together; this is compared with one row after another, in their order and sorted.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Row, Work, race, ratios, seconds
from benchmarks.runs import MNIST, isbench_loop, make_parts, random_images
from isbench.data.augment import Shift
from isbench.data.cache import on_disk, read_ahead
from isbench.data.resident import ResidentDataset
from isbench.data.source import Residency, Source

CASES = (((3, 32, 32), 128, 50_000), ((3, 224, 224), 64, 4_000))  # shape, b, N
COLD_BATCHES = 2  # few: a small row brings the pages around it, so soon all are in memory
GOAL = 1.05


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    rounds = 3 if quick else 9
    with TemporaryDirectory() as folder:
        os.environ["ISBENCH_CACHE"] = folder
        for shape, batch, count in CASES:
            options: dict[str, Any] = {"num_examples": count // 8 if quick else count, "num_test": 1, "shape": shape}
            source = random_images(Path(), **options)
            mapped = partial(on_disk, partial(random_images, Path(), **options), random_images, options, Path())
            name = f"{shape[1]} x {shape[2]}, b={batch}"
            yield from fetching(name, {"device": source, "host": source, "disk": mapped()}, batch, device, rounds)
            yield from cold_gathers(name, mapped, batch, rounds)
        yield from training(device, rounds)


def fetching(
    name: str, sources: dict[Residency, Source], batch: int, device: torch.device, rounds: int
) -> Iterator[Row]:
    """Compare fetches from each place, with all pages in memory."""
    generator = torch.Generator(device).manual_seed(0)

    def work(residency: Residency) -> Work:
        dataset = ResidentDataset(sources[residency], Shift(4, "zeros", flip=True), device, residency=residency)

        def fetch(count: int) -> None:
            for _ in range(count):
                indices = torch.randint(dataset.num_examples, (batch,), device=device, generator=generator)
                dataset.fetch(indices, dataset.draw_views(batch, generator))

        return fetch

    times = dict(zip(sources, race([work(residency) for residency in sources], rounds, wall=True), strict=True))
    for residency in measured(device):
        yield Row(f"{name}: {residency}", "", [batch / s for s in times[residency]], "images/s", note="for information")
    for residency in measured(device)[1:]:
        over = ratios(times[residency], times["device"])
        yield Row(f"{name}: {residency}", "device", over, note="of a fetch; a step is below")


def cold_gathers(name: str, mapped: Callable[[], Source], batch: int, rounds: int) -> Iterator[Row]:
    """Compare ways to gather rows that are only on the disk."""

    def together(images: Tensor, indices: Tensor) -> None:
        read_ahead(images, indices)
        images.index_select(0, indices)

    def alone(images: Tensor, indices: Tensor) -> None:
        images.index_select(0, indices)

    def in_order(images: Tensor, indices: Tensor) -> None:
        images.index_select(0, indices.sort().values)

    def passes(gather: Callable[[Tensor, Tensor], None]) -> float:
        for path in Path(os.environ["ISBENCH_CACHE"]).glob("*/train_inputs.npy"):
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        images = mapped().train_inputs
        batches = torch.randint(len(images), (COLD_BATCHES, batch))

        def gather_all(_: int) -> None:
            for indices in batches:
                gather(images, indices)

        return seconds(gather_all, 1, wall=True) / COLD_BATCHES

    times = list(zip(*([passes(way) for way in (together, alone, in_order)] for _ in range(rounds)), strict=True))
    speeds = [batch / s for s in times[0]]
    yield Row(f"{name}: disk, cold pages, gathered together", "", speeds, "images/s", note="for information")
    for what, spent in (("one after another", times[1]), ("sorted, one after another", times[2])):
        yield Row(
            f"{name}: disk, cold pages, {what}", "together", ratios(spent, times[0]), note="not what isbench does"
        )


def training(device: torch.device, rounds: int) -> Iterator[Row]:
    """Compare steps of LeNet, which is so cheap that fetching matters."""
    runs = [
        make_parts(device, *MNIST, "model=lenet", "numerics.threads=1", f"dataset.residency={residency}")
        for residency in measured(device)
    ]
    first, *others = race([isbench_loop(parts) for parts in runs], rounds)
    for residency, spent in zip(measured(device)[1:], others, strict=True):
        yield Row(f"a step of LeNet, b=128: {residency}", "device", ratios(spent, first), at_most=GOAL)


def measured(device: torch.device) -> tuple[Residency, ...]:
    """Return the places that differ on this device."""
    return ("device", "disk") if device.type == "cpu" else ("device", "host", "disk")
