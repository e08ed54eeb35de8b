"""Finds the images of a folder, one sub-folder per class as in torchvision.datasets.ImageFolder.

What is there by accident is passed over and counted: hidden files and folders, what isbench itself wrote, links back to
a folder that was already visited, files that are no images. What may be meant in two ways is refused, with a way to
say which: folders whose names sound like the parts of a split, and folders of folders.
"""

import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple, NoReturn

from isbench.data.decoding import NUM_THREADS
from isbench.errors import ConfigError, DataError
from isbench.files import RECORD, RUNS

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
DECODING = 2  # raise it when the code makes other pixels of the same file
# Folders of systems and archivers, besides hidden ones.
ASIDE = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
# Files by which a folder of isbench's own is known: of a run, collected runs, a report, the cache of decoded data.
OWN = ({RECORD}, {RUNS}, {"report.html", "rows.csv"}, {"train_inputs.npy"})
OWN_FOLDERS = "folders of isbench's own"
SPLIT_WORDS = set(
    "train training trainset test testing testset val valid validation valset dev eval evaluation holdout".split()
)
INPUT_WORDS = {"image", "images", "img", "imgs"}
ANNOTATION_WORDS = set("mask masks label labels annotation annotations segmentation gt groundtruth".split())

Inode = tuple[int, int]  # device and number


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
    passed_over: Counter[str] = field(default_factory=Counter)  # what is no image: how many of each kind

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with the split and with every name, size and time."""
        hasher = hashlib.blake2b(b"%d" % DECODING, digest_size=8)
        for images in (self.train, self.test):
            hasher.update(b"%d" % len(images))
            for image in images:
                hasher.update(repr(tuple(image)).encode())
        return hasher.hexdigest()


@dataclass(frozen=True)
class ClassFolder:
    """The images of one class; `subfolders` are those of its folder in which they lie, "" for the folder itself."""

    path: Path
    images: list[ImageFile]
    subfolders: set[str]


def find_images(root: Path, test_share: float, splits: Sequence[str] | None = None) -> ImageTree:
    """Return the images of `root`. It holds one folder per class, or train/ and val/ (or test/) with such folders.

    Without train/, `test_share` of each class's images are held out, evenly spaced in their order.

    Args:
        splits: the names of two folders to take for train/ and val/; none if all folders are classes.

    Raises:
        ConfigError: `splits` are not two folders of `root`.
        DataError: there are fewer than two classes, the classes of the two parts differ, or the names say something
            else than folders of classes.
    """
    if not root.is_dir():
        raise DataError(f"dataset.path: there is no folder {root}; unless absolute, it is looked for in data_dir")
    parts = find_splits(root, splits)
    passed_over: Counter[str] = Counter()
    if parts:
        train, test = (_all(_classes(root / part, passed_over)) for part in parts)
        split = " and ".join(parts)
        beside = [path for path in root.iterdir() if path.is_dir() and not (path.name in parts or _is_aside(path.name))]
        if beside:
            passed_over[f"folders beside {split}"] = len(beside)
    else:
        classes = _classes(root, passed_over)
        if splits is None:
            check_names(root, classes)
        train, test = [], []
        for images in (each.images for each in classes):
            for rank, image in enumerate(images):
                is_test = int((rank + 1) * test_share) > int(rank * test_share)
                (test if is_test else train).append(image)
        split = f"{test_share:g} of each class held out"
    labels = sorted({image.label for image in train})
    if len(labels) < 2:
        raise DataError(f"{root} has one class only, {labels[0]}: a folder for each of two classes is needed")
    unknown = sorted({image.label for image in test} - set(labels))
    if unknown:
        raise DataError(f"{root / parts[1] / unknown[0]}: {root / parts[0]} has no such class; add or remove it")
    if not test:
        raise DataError(f"{root} has no class large enough to hold out dataset.test_share={test_share} of it; raise it")
    return ImageTree(labels, train, test, split, passed_over)


def find_splits(root: Path, splits: Sequence[str] | None) -> Sequence[str]:
    """Return the names of the folders to train and to test on, none if the folders of `root` are classes."""
    if splits is not None:
        given = f"dataset.splits=[{','.join(splits)}]"
        if len(set(splits)) != len(splits) or len(splits) not in (0, 2):
            raise ConfigError(f"{given}: needs the names of two folders, as in [train,val], or none")
        for name in splits:
            if not (root / name).is_dir():
                raise ConfigError(f"{given}: there is no folder {root / name}")
        return splits
    has_train = (root / "train").is_dir()
    held_out = next((name for name in ("val", "test") if (root / name).is_dir()), None)
    if has_train and held_out:
        return "train", held_out
    if has_train and _holds_folders_alone(root / "train"):
        raise DataError(
            f"{root} has train/ but neither val/ nor test/: add one of them, with the same classes, "
            "or name both folders in dataset.splits"
        )
    return ()


def _holds_folders_alone(folder: Path) -> bool:
    """Say whether there are folders in a folder, and no images beside them."""
    paths = [path for path in folder.iterdir() if not _is_aside(path.name)]
    return any(path.is_dir() for path in paths) and not any(path.name.lower().endswith(SUFFIXES) for path in paths)


def check_names(root: Path, classes: Sequence[ClassFolder]) -> None:
    """Raise DataError, with the ways out, where folders may not be meant as classes."""
    words = {each.path.name: _words(each.path.name) for each in classes}
    as_classes = "dataset.splits=[] takes them as classes"
    parts = sorted((name for name in words if words[name] & SPLIT_WORDS), key=lambda name: not _is_train(name))
    if len({frozenset(words[name] & SPLIT_WORDS) for name in parts}) > 1:
        raise DataError(
            f"{root}: {listed(parts)} sound like the parts of a split: dataset.splits=[{parts[0]},{parts[1]}] trains "
            f"on the first and tests on the second, {as_classes}"
        )
    inputs, annotations = ([n for n in words if words[n] & kind] for kind in (INPUT_WORDS, ANNOTATION_WORDS))
    if inputs and annotations:
        raise DataError(
            f"{root}: {listed(inputs)} and {listed(annotations)} sound like images and what is said of them: "
            f"isbench needs a folder for each class; {as_classes}"
        )
    nested = max(classes, key=lambda each: len(each.subfolders))
    if len(nested.subfolders) > 1 and not any("" in each.subfolders for each in classes):
        raise DataError(
            f"{root}: no image lies in {listed(words)}, only in folders in them ({listed(sorted(nested.subfolders))} "
            f"in {nested.path.name}): name the folder of the classes in dataset.path, or two in dataset.splits; "
            f"{as_classes}"
        )


def listed(names: Iterable[str], most: int = 3) -> str:
    """Return the first names, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(map(printable, names[:most]))}{more}"


def printable(name: str) -> str:
    """Return a file's name as text that every terminal and file takes: what is not UTF-8 or not visible is escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _words(name: str) -> set[str]:
    """Return the words of a folder's name in small letters: of TrainImages_2 they are train and images."""
    return {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def _is_train(name: str) -> bool:
    return any(word.startswith("train") for word in _words(name))


def _all(classes: Iterable[ClassFolder]) -> list[ImageFile]:
    return list(chain.from_iterable(each.images for each in classes))


def _classes(folder: Path, passed_over: Counter[str]) -> list[ClassFolder]:
    """Return the classes (sub-folders) in order. Threads, since stat calls may wait for a network disk."""
    found: dict[Inode, Path] = {}
    for path in sorted(folder.iterdir()):
        if _is_aside(path.name):
            passed_over["hidden"] += 1
        elif path.is_dir():
            twin = found.setdefault(_inode(path), path)
            if twin is not path:
                raise DataError(f"{path} is the folder {twin.name} by another name: two classes need two folders")
        elif path.is_symlink() and not path.exists():
            passed_over["links to nothing"] += 1
        elif path.name.lower().endswith(SUFFIXES):
            passed_over["images beside the folders of the classes"] += 1
    # A link to one of these would put images into a class that are not of it.
    closed = {*found, *map(_inode, (folder, *folder.absolute().parents, *folder.resolve().parents))}
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = list(pool.map(lambda path: _images_of_class(path, closed), found.values()))
    classes = [each for each, _ in results if each.images]
    for each, passed in results:
        passed_over += passed if each.images else Counter({OWN_FOLDERS: passed[OWN_FOLDERS]})
    if not classes:
        raise DataError(f"{folder} has no folders of images, one for each class")
    return classes


def _images_of_class(folder: Path, closed: set[Inode]) -> tuple[ClassFolder, Counter[str]]:
    """Return the images of a class, and a count of what was passed over."""
    passed: Counter[str] = Counter()
    label = unicodedata.normalize("NFC", folder.name)  # what is typed alike is alike, whatever system wrote it
    images: list[ImageFile] = []
    subfolders: set[str] = set()
    for parent, names in sorted(_walk(folder, closed, passed)):
        before = len(images)
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if _is_aside(name):
                passed["hidden"] += 1
                continue
            if not name.lower().endswith(SUFFIXES):
                passed[printable(suffix) or "without a suffix"] += 1
                continue
            path = os.path.join(parent, name)
            try:
                status = os.stat(path)
            except OSError as error:
                _refuse(error)
            if not stat.S_ISREG(status.st_mode):
                passed["pipes and devices"] += 1  # reading one may never end
                continue
            images.append(ImageFile(label, path, status.st_size, status.st_mtime_ns))
        if len(images) > before:
            subfolders.add(parent[len(str(folder)) :].lstrip(os.sep).partition(os.sep)[0])
    if not images and not passed[OWN_FOLDERS]:
        others = f", but {counted(passed)}" if passed else ""
        raise DataError(f"{folder} holds no images ({', '.join(SUFFIXES)}){others}; delete it, or add some")
    return ClassFolder(folder, images, subfolders), passed


def _walk(folder: Path, closed: set[Inode], passed: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield folders and the names of their files, each folder once whatever links lead to it, and none of `closed`."""
    seen: set[Inode] = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        if any(own.issubset(names) for own in OWN):
            passed[OWN_FOLDERS] += 1
            folders.clear()
            continue
        within = sorted(folders, key=lambda name: (os.path.islink(os.path.join(parent, name)), name))
        folders.clear()
        for name in within:
            inode = _inode(os.path.join(parent, name))
            if _is_aside(name):
                passed["hidden"] += 1
            elif inode in seen or inode in closed:
                passed["links to folders that were read"] += 1
            else:
                folders.append(name)
                seen.add(inode)
        yield parent, names


def counted(passed_over: Counter[str]) -> str:
    """Return what was passed over in words, the most frequent first."""
    return ", ".join(f"{count:,} {what}" for what, count in passed_over.most_common())


def _is_aside(name: str) -> bool:
    return name.startswith(".") or name in ASIDE


def _inode(path: str | Path) -> Inode:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
