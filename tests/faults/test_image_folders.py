"""Folders of images in generated odd states: every image is read once, under its class, or there is one line.

An image is of one colour, which says what it is: its class in red, its number in green.
"""

import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from isbench.data.readers import image_folder
from isbench.errors import UserError
from tests.faults.conftest import SEED

NAMES = ["ant", "bee", "cow", "dœ", "eel, or 'two'", "2", "10", "train", "Ω"]
OTHER = 7  # the colour of what must not be read
Change = Callable[[Path, Path], object]  # of the folder of images, and of one of its classes


def write(path: Path, label: int = OTHER, number: int = OTHER, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 11), (20 * label, 20 * number, 0)).save(path, **options)


def write_bytes(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def own(*names: str) -> Change:
    """Return a change that puts a folder with these files, and a picture, among the classes."""

    def change(root: Path, label: Path) -> None:
        for name in names:
            write_bytes(root / "runs" / "g" / name)
        write((root / "runs" / "g" / names[0]).with_name("curves.png"))

    return change


# What must make no difference.
HARMLESS: dict[str, Change] = {
    "hidden class": lambda root, label: write(root / ".ipynb_checkpoints" / "x.png"),
    "hidden folder": lambda root, label: write(label / ".thumbs" / "x.png"),
    "hidden image": lambda root, label: write(label / ".x.png"),
    "AppleDouble": lambda root, label: write_bytes(label / "._0.png"),
    "archiver's folder": lambda root, label: write(root / "__MACOSX" / label.name / "x.png"),
    "thumbnails": lambda root, label: write(label / "@eaDir" / "0.png" / "x.jpg"),
    "run": own("m/u-s0/record.jsonl"),
    "report": own("report/report.html", "report/rows.csv"),
    "results": own("runs.parquet"),
    "cache": own("c-8-0/train_inputs.npy"),
    "run in a class": lambda root, label: (write_bytes(label / "runs" / "record.jsonl"), write(label / "runs/x.png")),
    "link to itself": lambda root, label: (label / "self").symlink_to("."),
    "link to the root": lambda root, label: (label / "up").symlink_to(root),
    "link to all data": lambda root, label: (label / "away").symlink_to(root.parent),
    "other file": lambda root, label: write_bytes(label / "notes.txt"),
    "image beside the classes": lambda root, label: write(root / "x.png"),
    "pipe": lambda root, label: os.mkfifo(label / "pipe.png"),
    "link to nothing": lambda root, label: (root / "gone").symlink_to("/not/mounted"),
    "empty folder": lambda root, label: (label / "empty").mkdir(),
    "damaged EXIF block": lambda root, label: write(label / "0.png", *colour(label), exif=b"Exif\0\0II*\0\xff\xff"),
    "another time": lambda root, label: os.utime(label / "0.png", (1e9, 1e9)),
    "in a sub-folder": lambda root, label: move(label / "1.png", label / "more" / "1.png"),
    "linked": lambda root, label: (label / "2.png").symlink_to(move(label / "2.png", root.parent / "store" / "2.png")),
    "other suffix": lambda root, label: move(label / "3.png", label / "3.JPG"),
}
# What must be refused.
FATAL: dict[str, Change] = {
    "class without images": lambda root, label: (root / "void").mkdir(),
    "truncated": lambda root, label: write_bytes(label / "0.png", (label / "0.png").read_bytes()[:50]),
    "of no bytes": lambda root, label: write_bytes(label / "0.png", b""),
    "a page": lambda root, label: write_bytes(label / "0.png", b"<html>404</html>"),
    "floats": lambda root, label: Image.fromarray(np.zeros((9, 9), np.float32)).save(label / "0.png", "TIFF"),
    "link to no image": lambda root, label: (label / "y.png").symlink_to("nothing"),
    "class by two names": lambda root, label: (root / "twin").symlink_to(label),
    "parts of a split": lambda root, label: (write(root / "Train" / "a" / "x.png"), write(root / "Test/a/x.png")),
    "annotations": lambda root, label: (write(root / "images" / "x.png"), write(root / "masks" / "x.png")),
    "one class": lambda root, label: [shutil.rmtree(path) for path in classes_of(root) if path != label],
    "a folder above": lambda root, label: [move(path, root / "archive" / path.name) for path in classes_of(root)],
    "nothing": lambda root, label: [shutil.rmtree(path) for path in classes_of(root)],
}


def move(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return source.rename(target)


def classes_of(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir() and path.name in NAMES]


def colour(label: Path) -> tuple[int, int]:
    return NAMES.index(label.name), 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tries", [8, pytest.param(120, marks=pytest.mark.faults)])
def test_a_folder_in_an_odd_state(tries: int, struck, tmp_path: Path) -> None:
    tried: set[tuple] = set()
    numbers = count()

    @seed(SEED)
    @settings(max_examples=tries, deadline=None, database=None, suppress_health_check=HealthCheck)
    @given(
        st.lists(st.sampled_from(NAMES), min_size=2, max_size=4, unique=True),
        st.lists(st.sampled_from(sorted(HARMLESS)), max_size=5, unique=True),
        st.none() | st.sampled_from(sorted(FATAL)),
        st.sampled_from([(), ("train", "val"), ("train", "test")]),
    )
    def check(labels: list[str], harmless: list[str], fatal: str | None, parts: tuple[str, ...]) -> None:
        tried.add((*labels, *harmless, fatal, parts))
        data_dir = tmp_path / str(next(numbers))
        root = data_dir / "photos"
        if fatal in ("parts of a split", "annotations"):
            parts = ()  # of these only folders of classes are asked
        top = root / parts[0] if parts else root
        for part in parts or ("",):
            for label in labels:
                for number in range(10):
                    write(root / part / label / f"{number}.png", NAMES.index(label), number)
        for name in harmless:
            HARMLESS[name](top, top / labels[0])
        if fatal:
            FATAL[fatal](top, top / labels[0])
            with pytest.raises(UserError) as error:
                image_folder(data_dir, "photos", side=8)
            assert "\n" not in str(error.value) and len(str(error.value)) > 15
            return
        source = image_folder(data_dir, "photos", side=8)
        read = []
        for inputs, targets in (
            (source.train_inputs, source.train_targets),
            (source.test_inputs, source.test_targets),
        ):
            for image, target in zip(inputs, targets.tolist(), strict=True):
                red, green, _ = (round(float(channel.float().mean()) / 20) for channel in image)
                read.append((sorted(labels)[target], NAMES[red], green))
        assert all(label == told for label, told, _ in read), "an image is under another class"
        expected = [(label, number) for label in labels for number in range(10)] * (len(parts) or 1)
        assert sorted((label, number) for label, _, number in read) == sorted(expected), "images are lost or doubled"
        assert source.classes == tuple(sorted(labels))
        if not parts:
            assert not any("test images" in remark for remark in source.remarks)

    try:
        check()
    finally:
        struck("image folder in an odd state", len(tried))
