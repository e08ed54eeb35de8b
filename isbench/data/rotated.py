"""Rotated MNIST (Larochelle et al. 2007): reads the published sample, or makes one like it from MNIST.

The published sample is two text files of 12,000 and 50,000 rows: 784 values in [0, 1], image row by image row, then the
label. The authors saved some variations of MNIST transposed; public readers treat this one as upright. The values are
interpolated, not multiples of 1/256; they are kept as round(255 x), so inputs / 255 is within 0.002 of the file.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isbench.data.augment import rotate
from isbench.errors import DataError

TRAIN, TEST = "mnist_all_rotation_normalized_float_train_valid.amat", "mnist_all_rotation_normalized_float_test.amat"
NUM_ROWS = {TRAIN: 12_000, TEST: 50_000}
FOLDERS = ("rot_mnist", "mnist-rot")
REMEDY = (
    "put the two files of mnist_rotation_new.zip (SHA-1 e67f72fa42029f62fd8eb92b0638c1b9761c9a63) there, "
    "or use dataset.sample=generated"
)


def find_published(data_dir: Path) -> Path | None:
    """Return the folder that holds both published files, if any."""
    folders = (data_dir / name for name in FOLDERS)
    return next((folder for folder in folders if all((folder / name).is_file() for name in NUM_ROWS)), None)


def read_published(data_dir: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return train images (uint8), train labels, test images and test labels of the published sample.

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = find_published(data_dir)
    if folder is None:
        raise DataError(f"{TRAIN} and {TEST} are missing from {data_dir / FOLDERS[0]}: {REMEDY}")
    return *_read_amat(folder / TRAIN), *_read_amat(folder / TEST)


def generate(images: Tensor, labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn each image, (N, 1, 28, 28) uint8, by a random angle; the first 12,000 train, the next 50,000 test."""
    num_train, num_test = NUM_ROWS.values()
    images, labels = images[: num_train + num_test], labels[: num_train + num_test]
    angles = torch.from_numpy(np.random.RandomState(seed).uniform(0, 2 * np.pi, len(images))).float()
    chunks = zip(images.split(2000), angles.split(2000), strict=True)
    turned = torch.cat([rotate(chunk, angle).round().to(torch.uint8) for chunk, angle in chunks])
    return turned[:num_train], labels[:num_train], turned[num_train:], labels[num_train:]


def _read_amat(path: Path) -> tuple[Tensor, Tensor]:
    try:
        rows = np.loadtxt(path, dtype=np.float32, ndmin=2)
    except ValueError:
        rows = np.empty((0, 0), np.float32)
    expected = (NUM_ROWS[path.name], 28 * 28 + 1)
    if rows.shape != expected or not 0 <= rows[:, :-1].min() <= rows[:, :-1].max() <= 1:
        raise DataError(
            f"{path} is damaged: expected {expected[0]} rows of {expected[1]} numbers with pixels in [0, 1]; "
            f"delete it, then {REMEDY}"
        )
    pixels, labels = torch.from_numpy(rows).split([28 * 28, 1], dim=1)
    return (255 * pixels).round().to(torch.uint8).view(-1, 1, 28, 28), labels.flatten().long()
