"""Reads a folder of images, one sub-folder per class as in torchvision.datasets.ImageFolder, into the cache on disk.

Images are decoded once, in parallel, and written row after row: if the process is killed, the next one continues after
the last whole row. All images are decoded again when one was added, removed, or changed in size or time.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from isbench.data.cache import ARRAYS, digest, growing, map_array, mapped
from isbench.data.decoding import NUM_THREADS, in_threads, read_square
from isbench.data.source import Residency, Source
from isbench.errors import ConfigError, DataError
from isbench.progress_bar import ProgressBar

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
DECODING = 1  # raise it when the code makes other pixels of the same file
NUM_NAMED = 3  # damaged images that a message names


class ImageFile(NamedTuple):
    """An image file, with the size and time that reveal a change."""

    label: str
    path: str
    size: int
    changed_ns: int


@dataclass(frozen=True)
class ImageTree:
    """The images of a folder, class after class; `split` says in words how they were divided."""

    classes: list[str]
    train: list[ImageFile]
    test: list[ImageFile]
    split: str

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with the split and with every name, size and time."""
        hasher = hashlib.blake2b(b"%d" % DECODING, digest_size=8)
        for images in (self.train, self.test):
            hasher.update(b"%d" % len(images))
            for image in images:
                hasher.update(repr(tuple(image)).encode())
        return hasher.hexdigest()


def kept(root: Path, side: int, test_share: float, cache_dir: Path, residency: Residency) -> Source:
    """Return the images of `root`, from the cache if it has them; mapped for residency "disk", else in memory.

    The source's mean and std are left empty.

    Raises:
        ConfigError: the images do not fit into memory.
        DataError: there are fewer than two classes, or some images are damaged.
    """
    root = root.resolve()  # one cache for all names of a folder
    tree = find_images(root, test_share)
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
    return Source("image_folder", **arrays, num_classes=len(tree.classes), mean=(), std=(), provenance=provenance)


def find_images(root: Path, test_share: float) -> ImageTree:
    """Return the images of `root`. It holds one folder per class, or train/ and val/ (or test/) with such folders.

    Without train/, `test_share` of each class's images are held out, evenly spaced in their order.

    Raises:
        DataError: there are fewer than two classes, or the classes of the two parts differ.
    """
    if not root.is_dir():
        raise DataError(f"dataset.path: there is no folder {root}; unless absolute, it is looked for in data_dir")
    held_out = next((name for name in ("val", "test") if (root / name).is_dir()), None)
    has_train = (root / "train").is_dir()
    if has_train and held_out:
        train, test = (list(chain.from_iterable(_images_by_class(root / name))) for name in ("train", held_out))
        split = f"train and {held_out}"
    elif has_train and any(path.is_dir() for path in (root / "train").iterdir()):
        raise DataError(f"{root} has train/ but neither val/ nor test/: add one of them, with the same classes")
    else:
        train, test = [], []
        for images in _images_by_class(root):
            for rank, image in enumerate(images):
                is_test = int((rank + 1) * test_share) > int(rank * test_share)
                (test if is_test else train).append(image)
        split = f"{test_share:g} of each class held out"
    classes = sorted({image.label for image in train})
    if len(classes) < 2:
        raise DataError(f"{root} has one class only, {classes[0]}: a folder for each of two classes is needed")
    unknown = sorted({image.label for image in test} - set(classes))
    if unknown:
        raise DataError(f"{root / str(held_out) / unknown[0]}: {root / 'train'} has no such class; add or remove it")
    if not test:
        raise DataError(f"{root} has no class large enough to hold out dataset.test_share={test_share} of it; raise it")
    return ImageTree(classes, train, test, split)


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


def _images_by_class(folder: Path) -> list[list[ImageFile]]:
    """Return the images of each class (sub-folder) in order. Threads, since stat calls may wait for a network disk."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise DataError(f"{folder} has no folders of images, one for each class")
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(_images_of_class, classes))


def _images_of_class(folder: Path) -> list[ImageFile]:
    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None

    images = []
    for parent, _, names in sorted(os.walk(folder, onerror=refuse, followlinks=True)):
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES):
                path = os.path.join(parent, name)
                try:
                    status = os.stat(path)
                except OSError as error:
                    refuse(error)
                images.append(ImageFile(folder.name, path, status.st_size, status.st_mtime_ns))
    if not images:
        raise DataError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    return images
