"""Decodes image files into squares of one size, in threads and with a progress display.

An image is read as a viewer shows it: turned as its EXIF orientation says, white where it is transparent, in 8 bits.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isbench.errors import DataError, OutOfMemory, UserError
from isbench.progress_bar import ProgressBar

NUM_THREADS = os.cpu_count() or 1
ELONGATED = 16  # an image so many times as long as it is wide is cropped before it is resized, to save memory
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF's tags, and a value of the second


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
        except UserError:
            raise
        except Exception as error:  # PIL raises almost anything for a damaged file
            raise DataError(f"{path} is damaged ({error}); delete it, then {remedy}") from None

    images = torch.empty(len(names), 3, side, side, dtype=torch.uint8)
    with closing(ProgressBar(f"reading {folder}", len(names))) as bar:
        for position, image in enumerate(in_threads(read, names)):
            images[position] = torch.from_numpy(image)
            bar.count(position + 1)
    return images


def read_square(path: Path, side: int) -> np.ndarray:
    """Resize an image so that its shorter side is `side`; return the centre square, (3, side, side) uint8.

    Raises:
        OutOfMemory: the image is too large.
        Exception: of any kind that PIL raises for a damaged file; ValueError for one without a range of its own.
    """
    from PIL import Image  # few data sets need this import

    with Image.open(path) as file:
        try:
            square = _centre(_in_colour(file), side)
        except MemoryError:
            width, height = file.size
            raise OutOfMemory(f"{path}: {width:,} x {height:,} pixels are more than the memory holds") from None
    return np.ascontiguousarray(np.array(square).transpose(2, 0, 1))


def _centre(image: Any, side: int) -> Any:
    """Return the centre square of an image whose shorter side becomes `side`."""
    from PIL.Image import Resampling

    ratio = side / min(image.size)
    width, height = (max(side, round(length * ratio)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    if max(width, height) <= ELONGATED * side:
        return image.resize((width, height), Resampling.BILINEAR).crop((left, top, left + side, top + side))
    across, down = image.width / width, image.height / height
    box = left * across, top * down, min((left + side) * across, image.width), min((top + side) * down, image.height)
    return image.resize((side, side), Resampling.BILINEAR, box=box)


def _in_colour(file: Any) -> Any:
    """Return an open image file as 8-bit RGB, upright, and white where it is transparent.

    Raises:
        ValueError: grey values of 32 bits, of which no file says what is white.
    """
    from PIL import Image, ImageOps

    file.load()
    try:
        ImageOps.exif_transpose(file, in_place=True)
    except MemoryError:
        raise
    except Exception:  # a damaged EXIF block; the pixels are good
        pass
    if file.mode in ("I", "F") or file.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(file)).convert("RGB")
    if file.has_transparency_data:
        image = file.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return file.convert("RGB")


def _eight_bits(file: Any) -> np.ndarray:
    """Return grey values of 9 to 16 bits in the upper 8 of them, (H, W) uint8: as PIL does for colour."""
    if file.mode == "F" or (file.mode == "I" and file.format not in ("PNG", "PPM")):  # these two have 16 bits
        raise ValueError("grey values of 32 bits or with a sign: save it in 8 or 16 bits")
    tags = getattr(file, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    values = (np.asarray(file) >> (bits - 8)).astype(np.uint8)
    return 255 - values if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else values


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
