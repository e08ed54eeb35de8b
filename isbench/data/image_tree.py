"""Reads a folder of images, one sub-folder per class as in torchvision.datasets.ImageFolder, into the cache on disk.

Images are decoded once, in parallel, and written row after row: if the process is killed, the next one continues after
the last whole row. All images are decoded again when one was added, removed, or changed in size or time.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from isbench.data.cache import ARRAYS, digest, growing, map_array, mapped
from isbench.data.decoding import in_threads, read_square
from isbench.data.image_files import ImageFile, ImageTree, counted, find_images, printable
from isbench.data.source import Residency, Source
from isbench.errors import ConfigError, DataError, UserError
from isbench.progress_bar import ProgressBar

NUM_NAMED = 3  # damaged images that a message names


def kept(
    root: Path, side: int, test_share: float, splits: Sequence[str] | None, cache_dir: Path, residency: Residency
) -> Source:
    """Return the images of `root`, from the cache if it has them; mapped for residency "disk", else in memory.

    The source's mean and std are left empty.

    Raises:
        ConfigError: the images do not fit into memory.
        DataError: no folders of classes are found (see `find_images`), or some images are damaged.
    """
    root = root.resolve()  # one cache for all names of a folder
    tree = find_images(root, test_share, splits)
    num_bytes = 3 * side**2 * (len(tree.train) + len(tree.test))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if residency != "disk" and num_bytes > memory:
        raise ConfigError(
            f"dataset.residency={residency}: the images take {num_bytes / 1e9:,.1f} GB, and this machine has "
            f"{memory / 1e9:,.1f} GB of memory; use dataset.residency=disk"
        )

    folder = cache_dir / f"{root.name}-{side}-{digest(str(root), tree.split)[:8]}"
    provenance = f"images of {root.name}, {tree.split}, centre {side} x {side}"
    source = mapped(folder, tree.fingerprint(), lambda part: write(tree, side, provenance, part))
    if tree.passed_over:
        source = replace(source, remarks=(f"passed over: {counted(tree.passed_over)}", *source.remarks))
    return source if residency == "disk" else source.in_memory()


def write(tree: ImageTree, side: int, provenance: str, part: Path) -> Source:
    """Write the arrays of a tree to the folder `part`; return them, mapped."""
    number = {label: index for index, label in enumerate(tree.classes)}
    unreadable = []
    for images, split in ((tree.train, "train"), (tree.test, "test")):
        unreadable += decode(images, part / f"{split}_inputs.npy", side)
        targets = np.array([number[image.label] for image in images])
        with growing(part / f"{split}_targets.npy", targets.shape, targets.dtype) as (file, done):
            file.write(targets[done:].data)
    if unreadable:
        more = f" and {len(unreadable) - NUM_NAMED:,} more" if len(unreadable) > NUM_NAMED else ""
        raise DataError(
            f"{len(unreadable):,} of {len(tree.train) + len(tree.test):,} images cannot be read: "
            f"{', '.join(unreadable[:NUM_NAMED])}{more}; replace or delete them"
        )
    arrays: dict[str, Any] = {name: map_array(part / f"{name}.npy") for name in ARRAYS}
    return Source(
        "image_folder",
        **arrays,
        num_classes=len(tree.classes),
        mean=(),
        std=(),
        provenance=provenance,
        classes=tuple(map(printable, tree.classes)),
        remarks=tuple(repeats(**arrays)),
    )


def repeats(train_inputs: Tensor, train_targets: Tensor, test_inputs: Tensor, test_targets: Tensor) -> list[str]:
    """Say how many test images are training images too, and how many images are in several classes, if any are."""

    def keys(images: Tensor) -> list[bytes]:
        return [hashlib.blake2b(image.numpy().data, digest_size=8).digest() for image in images]

    train, test = keys(train_inputs), keys(test_inputs)
    known = set(train)
    shared = sum(key in known for key in test)
    classes: dict[bytes, set[int]] = {}
    for key, label in zip(train + test, train_targets.tolist() + test_targets.tolist(), strict=True):
        classes.setdefault(key, set()).add(label)
    twofold = sum(len(labels) > 1 for labels in classes.values())
    said = [f"{shared:,} of {len(test):,} test images are training images too"] if shared else []
    return said + ([f"{twofold:,} images are in several classes"] if twofold else [])


def decode(images: Sequence[ImageFile], path: Path, side: int) -> list[str]:
    """Write the squares of `images` to a .npy file, (N, 3, side, side) uint8, or the rows that it still lacks.

    Returns: a complaint for each image that cannot be read. The next call tries these images again.

    Raises:
        DataError: the file cannot be written.
    """
    blank = np.zeros((3, side, side), dtype=np.uint8)

    def read(image: ImageFile) -> np.ndarray | str:
        try:
            return read_square(Path(image.path), side)
        except UserError:
            raise
        except Exception as error:  # PIL raises almost anything for a damaged file
            return f"{image.path} ({error})"

    with growing(path, (len(images), *blank.shape), blank.dtype) as (file, done):
        unread = path.with_suffix(".unread")  # positions, each noted before its blank row is written
        with open(unread, "a") as note, closing(ProgressBar(f"decoding {path.stem}", len(images))) as bar:
            for position, square in enumerate(in_threads(read, images[done:]), start=done):
                if isinstance(square, str):
                    print(position, file=note, flush=True)
                    square = blank
                file.write(square.data)
                bar.count(position + 1)
        complaints = []
        for position in sorted({int(line) for line in unread.read_text().split()}):
            square = read(images[position])
            if isinstance(square, str):
                complaints.append(square)
            else:
                file.seek((position - len(images)) * blank.nbytes, os.SEEK_END)
                file.write(square.data)
        if not complaints:
            unread.unlink()
    return complaints
