"""Folders of images: found as torchvision finds them, decoded once, noticed when they change."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from isbench.data import image_tree, readers
from isbench.data.decoding import read_square
from isbench.errors import ConfigError, DataError
from tests.commands import fork
from tests.conftest import build_parts, same_state, tiny_overrides, train_parts
from tests.test_readers import assert_one_line


def write_image(path, seed, side=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_classes(root, counts, suffix=".png"):
    """Write so many images for each class; `counts` maps class to number."""
    for number, (label, count) in enumerate(counts.items()):
        for i in range(count):
            write_image(root / label / f"{i:02d}{suffix}", seed=100 * number + i)


@pytest.fixture
def tree(tmp_path):
    """Three classes in train and val, one of them nested and with files that are no images."""
    root = tmp_path / "photos"
    write_classes(root / "train", {"dog": 4, "cat": 3, "ant": 2})
    write_classes(root / "val", {"cat": 2, "ant": 1})
    write_image(root / "train" / "cat" / "more" / "x.JPG", seed=9)
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / "list.csv").write_text("no class")
    return root


def read(root, **options):
    return readers.image_folder(root.parent, root.name, **{"side": 16, **options})


def refused(root, *parts, error=DataError, **options):
    with pytest.raises(error) as caught:
        read(root, **options)
    assert_one_line(caught, *parts)


def count_decoded(monkeypatch):
    """Count which images are decoded."""
    decoded = []

    def counted(path, side):
        decoded.append(path.name)
        return read_square(path, side)

    monkeypatch.setattr(image_tree, "read_square", counted)
    return decoded


def test_images_and_classes_are_torchvisions(tree):
    source = read(tree)
    for inputs, targets, part in (
        (source.train_inputs, source.train_targets, "train"),
        (source.test_inputs, source.test_targets, "val"),
    ):
        samples = [
            (path, Path(path).parts[len(tree.parts) + 1])
            for path, _ in datasets.ImageFolder(tree / part, allow_empty=True).samples
        ]
        assert targets.tolist() == [["ant", "cat", "dog"].index(label) for _, label in samples]
        expected = np.stack([read_square(Path(path), 16) for path, _ in samples])
        assert np.array_equal(inputs.numpy(), expected)
    assert source.train_inputs.shape == (10, 3, 16, 16) and source.num_classes == 3
    assert source.provenance == "images of photos, train and val, centre 16 x 16"


def test_squares_are_those_of_torchvisions_transforms(tmp_path):
    path = tmp_path / "wide.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    with Image.open(path) as image:
        expected = v2.Compose([v2.Resize(10), v2.CenterCrop(10), v2.PILToTensor()])(image)
    assert np.array_equal(read_square(path, 10), expected.numpy())


def test_a_share_is_held_out_where_there_is_one_folder(tmp_path):
    root = tmp_path / "flat"
    write_classes(root, {"a": 10, "train": 5, "c": 2})
    source = read(root)
    assert source.train_targets.bincount().tolist() == [8, 2, 4] and source.test_targets.bincount().tolist() == [
        2,
        0,
        1,
    ]
    held_out = [read_square(root / "a" / f"{i:02d}.png", 16) for i in (4, 9)]
    assert np.array_equal(source.test_inputs[:2].numpy(), np.stack(held_out))
    half = read(root, test_share=0.5)
    assert half.test_targets.bincount().tolist() == [5, 1, 2]
    assert half.checksum() != source.checksum()


def test_they_are_decoded_once(tree, monkeypatch):
    decoded = count_decoded(monkeypatch)
    first = read(tree)
    assert len(decoded) == 13
    assert {path.suffix for path in (tree.parent / "cache").rglob("*")} == {"", ".lock", ".npy", ".json"}
    again, in_memory = read(tree), read(tree, residency="device")
    assert len(decoded) == 13
    assert torch.equal(again.train_inputs, first.train_inputs)
    assert torch.equal(in_memory.train_inputs, first.train_inputs) and torch.equal(
        in_memory.test_inputs, first.test_inputs
    )
    assert first.checksum() == again.checksum() == in_memory.checksum()
    in_memory.train_inputs.zero_()  # its own
    assert again.train_inputs.any()
    read(tree, side=8)
    assert len(decoded) == 26


def test_it_is_the_same_folder_by_another_name(tree, monkeypatch):
    first = read(tree)
    decoded = count_decoded(monkeypatch)
    (tree.parent / "link").symlink_to(tree)
    monkeypatch.chdir(tree.parent)
    for name in ("link", "photos/../photos"):
        assert readers.image_folder(Path(), name, side=16).checksum() == first.checksum()
    assert not decoded


def test_mean_and_deviation_belong_to_the_checksum_but_not_to_the_cache(tree, monkeypatch):
    first = read(tree)
    decoded = count_decoded(monkeypatch)
    other = read(tree, mean=(0.5, 0.5, 0.5))
    assert not decoded
    assert first.mean == (0.485, 0.456, 0.406) and other.mean == (0.5, 0.5, 0.5)
    assert other.checksum() != first.checksum()


@pytest.mark.parametrize(
    "change",
    [
        lambda root: write_image(root / "train" / "dog" / "new.png", seed=77),
        lambda root: (root / "val" / "cat" / "01.png").unlink(),
        lambda root: write_image(root / "train" / "dog" / "02.png", seed=78),
        lambda root: os.utime(root / "train" / "dog" / "02.png"),
        lambda root: (root / "train" / "dog").rename(root / "train" / "cow"),
    ],
    ids=["added", "removed", "changed", "touched", "renamed"],
)
def test_a_changed_folder_is_noticed(tree, change, monkeypatch):
    read(tree)
    change(tree)
    decoded = count_decoded(monkeypatch)
    source = read(tree)
    assert decoded
    assert len(source.train_targets) == sum(path.suffix in (".png", ".JPG") for path in (tree / "train").rglob("*"))
    last = sorted((tree / "train").glob("*/*.png"))[-1]
    assert np.array_equal(source.train_inputs[-1].numpy(), read_square(last, 16))
    assert len([path for path in (tree.parent / "cache").iterdir() if path.is_dir()]) == 1


def test_a_short_file_is_decoded_again(tree, caplog):
    expected = read(tree).train_inputs.clone()
    [kept] = [path for path in (tree.parent / "cache").iterdir() if path.is_dir()]
    os.truncate(kept / "train_inputs.npy", 2000)
    caplog.set_level("INFO")
    assert torch.equal(read(tree).train_inputs, expected)
    assert "damaged" in caplog.text


def test_damaged_images_are_named_and_only_they_are_tried_again(tree, monkeypatch):
    bad = [tree / "train" / "dog" / f"{i:02d}.png" for i in range(4)] + [tree / "val" / "ant" / "00.png"]
    whole = {path: (path.read_bytes(), path.stat()) for path in bad}
    for path in bad:
        path.write_bytes(b"x" * len(whole[path][0]))
        os.utime(path, ns=(whole[path][1].st_atime_ns, whole[path][1].st_mtime_ns))
    refused(tree, "5 of 13 images cannot be read", bad[0], bad[2], "and 2 more", "replace or delete")
    for path in bad:  # as if a file server had been away
        path.write_bytes(whole[path][0])
        os.utime(path, ns=(whole[path][1].st_atime_ns, whole[path][1].st_mtime_ns))
    decoded = count_decoded(monkeypatch)
    source = read(tree)
    assert sorted(decoded) == sorted(path.name for path in bad)
    shutil.rmtree(tree.parent / "cache")
    assert torch.equal(read(tree).train_inputs, source.train_inputs)


def read_slowly(folder):
    def slow(path, side):
        time.sleep(0.05)
        return read_square(path, side)

    image_tree.read_square = slow
    readers.image_folder(folder, "many", side=64)


def test_a_killed_process_leaves_whole_rows_to_go_on_from(tmp_path, monkeypatch):
    root = tmp_path / "many"
    write_classes(root, {"a": 150, "b": 150})
    process = fork(read_slowly, tmp_path)
    row = 3 * 64 * 64
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size for path in tmp_path.glob("cache/*.part/train_inputs.npy")) < 20 * row:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    decoded = count_decoded(monkeypatch)
    source = read(root, side=64)
    assert 0 < len(decoded) <= 300 - 20
    shutil.rmtree(tmp_path / "cache")
    afresh = read(root, side=64)
    assert torch.equal(source.train_inputs, afresh.train_inputs) and torch.equal(source.test_inputs, afresh.test_inputs)
    assert source.checksum() == afresh.checksum()


def test_what_is_missing_is_said_in_one_line(tmp_path, tree, monkeypatch):
    refused(tmp_path / "nowhere", "dataset.path", tmp_path / "nowhere")
    with pytest.raises(ConfigError) as error:
        readers.image_folder(tmp_path)
    assert_one_line(error, "dataset.path")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path / "empty", "no folders")
    write_classes(tmp_path / "one", {"only": 5})
    refused(tmp_path / "one", "one class only, only")
    write_classes(tmp_path / "small", {"a": 2, "b": 2})
    refused(tmp_path / "small", "dataset.test_share")
    write_classes(tmp_path / "half" / "train", {"a": 2, "b": 2})
    refused(tmp_path / "half", "neither val/ nor test/")
    (tree / "train" / "void").mkdir()
    refused(tree, tree / "train" / "void", "no images")
    (tree / "train" / "void").rmdir()
    write_classes(tree / "val", {"zebra": 1})
    refused(tree, tree / "val" / "zebra", "no such class")
    (tree / "val" / "zebra" / "00.png").unlink()
    (tree / "val" / "zebra" / "00.png").symlink_to("nothing")
    refused(tree, tree / "val" / "zebra" / "00.png", "cannot be read")
    for option in ("side=0", "test_share=1.0", "mean=[0.5]", "std=[1.0,0.0,1.0]"):
        with pytest.raises(ConfigError) as error:
            build_parts("dataset=image_folder", f"dataset.path={tree}", f"dataset.{option}")
        assert_one_line(error, f"dataset.{option.partition('=')[0]}=")


def test_a_folder_that_cannot_be_listed_is_named(tree, monkeypatch):
    def scandir(path):
        if Path(path).name == "more":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    listed = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    refused(tree, tree / "train" / "cat" / "more", "Permission denied")


def test_what_does_not_fit_into_memory_is_said_before_it_is_decoded(tree, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 50)
    refused(tree, "dataset.residency=disk", error=ConfigError, residency="host")
    assert not (tree.parent / "cache").exists()
    read(tree, residency="disk")


def test_it_trains_with_the_same_bits_wherever_it_is(tree):
    overrides = [choice for choice in tiny_overrides("uniform") if not choice.startswith("dataset")]
    folder = (
        "dataset=image_folder",
        "dataset.path=photos",
        "dataset.side=16",
        f"data_dir={tree.parent}",
        "batch_size=4",
    )
    runs = []
    for residency in ("device", "host", "disk"):
        parts = build_parts(*overrides, *folder, f"dataset.residency={residency}")
        train_parts(parts)
        runs.append(parts)
    assert same_state(runs[0], runs[1]) and same_state(runs[0], runs[2])
    assert len({parts.source.checksum() for parts in runs}) == 1
