"""What can be done to every data set: examples held out, wrong labels; one line for bad values, and identities."""

from pathlib import Path
from typing import Any

import pytest
import torch

from isbench.build import load_source
from isbench.config import run_id
from isbench.data.source import Source
from isbench.errors import ConfigError
from tests.conftest import TINY, build_parts, compose_config

N, TEST = 500, 60


def source(folder: Path, **options: Any) -> Source:
    node = {"name": "synthetic", "_target_": "isbench.data.readers.synthetic", "num_examples": N, "num_test": TEST}
    return load_source(node | options, str(folder))


def rows(inputs: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in inputs}


@pytest.mark.parametrize(("validation", "count"), [(0.2, 100), (100, 100), (1, 1), (0.998, 499)])
def test_the_held_out_part_takes_the_place_of_the_test_set(tmp_path: Path, validation: float, count: int) -> None:
    whole, split = source(tmp_path), source(tmp_path, validation=validation)
    assert len(split.test_targets) == len(split.test_inputs) == count
    assert len(split.train_targets) == len(split.train_inputs) == N - count
    train, held = rows(split.train_inputs), rows(split.test_inputs)
    assert not train & held and train | held == rows(whole.train_inputs), "nothing is lost, doubled or of the test set"
    labels = {
        row.numpy().tobytes(): int(label) for row, label in zip(whole.train_inputs, whole.train_targets, strict=True)
    }
    for inputs, targets in ((split.train_inputs, split.train_targets), (split.test_inputs, split.test_targets)):
        assert [labels[row.numpy().tobytes()] for row in inputs] == targets.tolist()
    assert f"{count} training examples held out" in split.provenance and split.checksum() != whole.checksum()
    again = source(tmp_path, validation=validation)
    assert again.checksum() == split.checksum() and torch.equal(again.test_inputs, split.test_inputs)


def test_the_held_out_part_is_no_single_class(tmp_path: Path) -> None:
    counts = source(tmp_path, validation=200).test_targets.bincount(minlength=10)
    assert (counts >= 8).all() and (counts <= 35).all()  # 20 of each are expected


def test_wrong_labels_are_as_many_as_asked_and_any_other_class(tmp_path: Path) -> None:
    whole, noisy = (source(tmp_path, num_examples=4000, label_noise=share) for share in (0.0, 0.3))
    is_wrong = noisy.train_targets != whole.train_targets
    assert int(is_wrong.sum()) == 1200
    steps = (noisy.train_targets - whole.train_targets)[is_wrong] % 10
    counts = steps.bincount(minlength=10)
    assert counts[0] == 0 and (counts[1:] > 80).all() and (counts[1:] < 190).all()  # 133 of each are expected
    for name in ("train_inputs", "test_inputs", "test_targets"):
        assert torch.equal(getattr(noisy, name), getattr(whole, name))
    assert "1200 training labels wrong" in noisy.provenance and noisy.checksum() != whole.checksum()


def test_held_out_labels_stay_right(tmp_path: Path) -> None:
    clean, noisy = (source(tmp_path, validation=0.4, label_noise=share) for share in (0.0, 0.5))
    assert torch.equal(clean.test_targets, noisy.test_targets) and torch.equal(clean.train_inputs, noisy.train_inputs)
    assert int((clean.train_targets != noisy.train_targets).sum()) == 150


def test_on_disk_it_is_the_same_data(tmp_path: Path) -> None:
    changes = {"validation": 0.2, "label_noise": 0.1}
    expected = source(tmp_path, **changes)
    for _ in range(2):  # written, then mapped
        mapped = source(tmp_path, residency="disk", **changes)
        assert mapped.checksum() == expected.checksum() and mapped.provenance == expected.provenance
    assert source(tmp_path, residency="disk").checksum() == source(tmp_path).checksum() != expected.checksum()


def test_what_keeps_itself_on_disk_is_not_copied(tmp_path: Path) -> None:
    node = {"name": "x", "_target_": "isbench.data.readers.image_folder", "path": "x", "residency": "disk"}
    with pytest.raises(ConfigError, match="image_folder cannot be split on disk; use residency=host"):
        load_source(node | {"validation": 0.1}, str(tmp_path))


def test_a_run_is_measured_on_what_was_held_out(tmp_path: Path) -> None:
    parts = build_parts(*TINY, "dataset.validation=40", "dataset.label_noise=0.25")
    assert (parts.dataset.num_examples, parts.dataset.num_test) == (120, 40)
    clean = build_parts(*TINY, "dataset.validation=40")
    assert int((parts.workspace.targets != clean.workspace.targets).sum()) == 30


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("validation=0", "dataset.validation=0: must be greater than 0"),
        ("validation=160", "dataset.validation=160.0: holds out 160 of 160 training examples"),
        ("validation=0.001", "dataset.validation=0.001: holds out 0 of 160 training examples"),
        ("validation=1.5", "dataset.validation=1.5: must be a share below 1, or a whole number"),
        ("validation=some", "dataset.validation=some: must be a valid number"),
        ("label_noise=1", "dataset.label_noise=1: must be less than 1"),
        ("label_noise=-0.1", "dataset.label_noise=-0.1: must be greater than or equal to 0"),
    ],
)
def test_bad_values_are_one_line(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_parts(*TINY, f"dataset.{override}")
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_one_class_has_no_wrong_label() -> None:
    with pytest.raises(ConfigError, match="needs two classes"):
        build_parts(*TINY, "dataset.num_classes=1", "dataset.label_noise=0.1")


def test_they_are_in_the_identity_where_they_are_used() -> None:
    plain = run_id(compose_config("dataset=mnist"))
    unused = ("dataset.validation=null", "dataset.label_noise=0")
    used = ("dataset.validation=0.1", "dataset.validation=10000", "dataset.label_noise=0.1")
    assert {run_id(compose_config("dataset=mnist", word)) for word in unused} == {plain}
    assert len({plain, *(run_id(compose_config("dataset=mnist", word)) for word in used)}) == 4
