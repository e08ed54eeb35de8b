"""Decodes image files into squares of one size, in threads and with a progress display."""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from isbench.errors import DataError

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 10.0
NUM_THREADS = os.cpu_count() or 1


def read_list(path: Path, remedy: str) -> list[str]:
    """Return the lines of a list file, each <class>/<file>.

    Raises:
        DataError: the file is missing or empty.
    """
    lines = path.read_text().split("\n") if path.is_file() else []
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path.name} is missing from {path.parent}, or empty: {remedy}")
    return names


def read_images(folder: Path, names: list[str], side: int, remedy: str) -> Tensor:
    """Return the named images of `folder` as squares, (n, 3, side, side) uint8.

    Raises:
        DataError: an image is missing or damaged.
    """

    def read(name: str) -> np.ndarray:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path.name} is missing from {path.parent}: {remedy}")
        try:
            return read_square(path, side)
        except OSError as error:
            raise DataError(f"{path} is damaged ({error}); delete it, then {remedy}") from None

    images = torch.empty(len(names), 3, side, side, dtype=torch.uint8)
    with progress(f"reading {folder}", len(names)) as show:
        for position, image in enumerate(in_threads(read, names)):
            images[position] = torch.from_numpy(image)
            show(position + 1)
    return images


def read_square(path: Path, side: int) -> np.ndarray:
    """Resize an image so that its shorter side is `side`; return the centre square, (3, side, side) uint8."""
    from PIL import Image  # few data sets need this import

    with Image.open(path) as file:
        image = file.convert("RGB")
    ratio = side / min(image.size)
    width, height = (max(side, round(length * ratio)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    return np.ascontiguousarray(np.array(square).transpose(2, 0, 1))


def in_threads(function: Callable, items: Iterable) -> Iterator:
    """Yield function(item) in order, working a few items ahead. Threads help, since PIL releases the GIL."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 8 * NUM_THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many of `total` are done: in a bar on a terminal, else in lines of the log."""
    terminal = Console(file=sys.stderr)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    bar = Progress(*columns, TimeRemainingColumn(), console=terminal, disable=not terminal.is_terminal)
    task = bar.add_task(title, total=total)
    line_at = time.monotonic()

    def show(done: int) -> None:
        nonlocal line_at
        bar.update(task, completed=done)
        if not terminal.is_terminal and time.monotonic() - line_at >= SECONDS_BETWEEN_LINES:
            line_at = time.monotonic()
            log.info("%s: %d of %d", title, done, total)

    with bar:
        yield show
