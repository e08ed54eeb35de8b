"""Images in folders, one per class, named by a list file: decoded, shortened to one side and cropped to a square."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isbench.errors import DataError

log = logging.getLogger(__name__)


def read_list(path: Path, remedy: str) -> list[str]:
    """Return the lines of a list file, each <class>/<file>.

    Raises: DataError where it is missing or empty.
    """
    lines = path.read_text().split("\n") if path.is_file() else []
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path.name} is missing from {path.parent}, or empty: {remedy}")
    return names


def read_images(folder: Path, names: list[str], side: int, remedy: str) -> Tensor:
    """Return (len(names), 3, side, side) uint8. The threads decode in parallel, since PIL lets go of the interpreter.

    Raises: DataError where an image is missing or damaged.
    """
    images = torch.empty(len(names), 3, side, side, dtype=torch.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for position, image in enumerate(pool.map(lambda name: _read_square(folder / name, side, remedy), names)):
            images[position] = image
            if (position + 1) % 500 == 0:
                log.info("read %d of %d images from %s", position + 1, len(names), folder)
    return images


def _read_square(path: Path, side: int, remedy: str) -> Tensor:
    from PIL import Image  # only this data set needs it

    if not path.is_file():
        raise DataError(f"{path.name} is missing from {path.parent}: {remedy}")
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError as error:
        raise DataError(f"{path} is damaged ({error}); delete it, then {remedy}") from None
    ratio = side / min(image.size)
    width, height = (max(side, round(length * ratio)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)
