"""Decodes image files into squares of one size, in threads and with a progress display."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isbench.errors import DataError
from isbench.progress_bar import ProgressBar

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
    with closing(ProgressBar(f"reading {folder}", len(names))) as bar:
        for position, image in enumerate(in_threads(read, names)):
            images[position] = torch.from_numpy(image)
            bar.count(position + 1)
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
