"""What a run reads is said on its first lines, stands in its record, and is compared with what is there later."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isbench.build import _source, load_source
from isbench.config import run_folder, run_id
from isbench.data.source import Source, checked
from isbench.errors import ConfigError, DataError, UserError
from isbench.recording.record import Outcome, read_rows
from isbench.run import compare_data, run
from isbench.training.forecast import forecast, seconds_of_training
from tests.conftest import TINY, build_parts, compose_config
from tests.test_image_folder import write_classes, write_image

SHORT = ("model=mlp", "model.hidden=[4]", "batch_size=4", "budget.limit=2", "evaluation.points=1", "logging=off")


@pytest.fixture(autouse=True)
def afresh() -> None:
    _source.cache_clear()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_classes(tmp_path / "photos", {"ant": 10, "bee": 5})
    return tmp_path / "photos"


def train(photos: Path, *overrides: str) -> Outcome:
    _source.cache_clear()
    words = ("dataset=image_folder", "dataset.side=8", f"dataset.path={photos}", f"runs_dir={photos.parent}/runs")
    return run(compose_config(*SHORT, *words, f"data_dir={photos.parent}", *overrides))


def test_classes_and_counts_are_said_and_recorded(photos: Path, caplog) -> None:
    (photos / "ant" / "list.txt").write_text("")
    shutil.copy(photos / "ant" / "00.png", photos / "ant" / "zz.png")
    shutil.copy(photos / "ant" / "04.png", photos / "bee" / "04.png")
    caplog.set_level("INFO")
    outcome = train(photos)
    said = [
        "images of photos, 0.2 of each class held out, centre 8 x 8; 13 to train and 3 to test on, 2 classes: "
        "ant 9 + 2, bee 4 + 1",
        "passed over: 1 .txt",
        "1 images are in several classes",
    ]
    assert [line for line in caplog.messages if line.startswith("data: ")] == [f"data: {line}" for line in said]
    data = read_rows(outcome.folder / "record.jsonl")[0]["data"]
    assert data["classes"] == {"ant": [9, 2], "bee": [4, 1]} and data["remarks"] == said[1:]


def test_an_image_of_both_splits_is_said(tmp_path: Path, caplog) -> None:
    write_classes(tmp_path / "photos" / "train", {"ant": 4, "bee": 4})
    shutil.copytree(tmp_path / "photos" / "train" / "ant", tmp_path / "photos" / "val" / "ant")
    write_image(tmp_path / "photos" / "val" / "ant" / "new.png", seed=9)
    caplog.set_level("INFO")
    for _ in range(2):  # written to the cache, and read from it
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        caplog.clear()
        train(tmp_path / "photos")
        assert "data: 4 of 5 test images are training images too" in caplog.messages


def test_the_numbers_of_other_data_are_recorded_too(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    outcome = run(compose_config(*TINY, "budget.limit=1", "dataset.num_classes=2", f"runs_dir={tmp_path}"))
    assert "data: synthetic patterns, fixed seed; 160 to train and 256 to test on, 2 classes" in caplog.messages
    assert read_rows(outcome.folder / "record.jsonl")[0]["data"]["classes"] == {"0": [80, 128], "1": [80, 128]}


def test_a_finished_run_knows_its_images(photos: Path) -> None:
    first = train(photos)
    assert train(photos) == first
    for path in photos.rglob("*.png"):
        path.touch()
    assert train(photos) == first, "the same images, with other times"
    write_image(photos / "ant" / "00.png", seed=77)
    with pytest.raises(UserError, match="the data set has changed since this run began; restore it, delete the folder"):
        train(photos)
    assert train(photos, "group=again").status == "finished"
    shutil.rmtree(photos)
    assert train(photos) == first, "without the data there is nothing to compare"


def test_a_finished_run_knows_the_files_that_it_read(tmp_path: Path) -> None:
    table = tmp_path / "table.pt"
    words = (*TINY, "budget.limit=2", "evaluation.points=1", "sampler=rho_loss", "sampler.pool_size=32")
    words += (f"sampler.table={table}", f"runs_dir={tmp_path}/runs")
    torch.save(torch.zeros(160), table)
    first = run(compose_config(*words))
    assert run(compose_config(*words)) == first
    torch.save(torch.ones(160), table)
    with pytest.raises(UserError, match="sampler.table has changed since this run began"):
        run(compose_config(*words))


def test_nothing_is_downloaded_for_a_run_that_has_ended(tmp_path: Path, caplog) -> None:
    config = compose_config("dataset=mnist", "dataset.download=true", f"data_dir={tmp_path}")
    caplog.set_level("INFO")
    compare_data(config, tmp_path)
    assert "its data cannot be compared with what is here: train-images-idx3-ubyte (MD5" in caplog.text


def test_a_folder_has_one_identity_however_it_is_spelt(photos: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    monkeypatch.chdir(photos.parent)
    spellings = ["photos", "photos/", "./photos", str(photos), f"{photos}/", "~/photos", "~/x/../photos"]
    for data_dir in (".", str(photos.parent), "~", f"{photos.parent}/"):
        ids = {
            run_id(compose_config("dataset=image_folder", f"dataset.path='{path}'", f"data_dir='{data_dir}'"))
            for path in spellings
        }
        assert len(ids) == 1
    outside = [
        run_id(compose_config("dataset=image_folder", f"dataset.path={path}", "data_dir=data"))
        for path in (photos, "../photos")
    ]
    assert len(set(outside)) == 1


def test_home_is_a_folder_that_is_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for runs_dir in ("'~/x'", "'$HOME/x'", "${oc.env:HOME}/x"):
        assert run_folder(compose_config(f"runs_dir={runs_dir}")).is_relative_to(tmp_path / "x")
    assert compose_config("data_dir='~/data'").data_dir == str(tmp_path / "data")
    assert compose_config("sampler=rho_loss", "sampler.table='~/t.pt'").sampler["table"] == str(tmp_path / "t.pt")
    with pytest.raises(ConfigError, match="runs_dir=~nobody_there/x: there is no home folder ~nobody_there"):
        compose_config("runs_dir='~nobody_there/x'")


# Readers of one's own.

READER = """
from pathlib import Path
import torch
from isbench.data.source import Source

def read(data_dir, {signature}):
    inputs, targets = torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.arange(20) % 2
    facts = dict(name="mine", num_classes=2, mean=(0.5,), std=(0.5,), provenance="mine")
    parts = dict(train_inputs=inputs, train_targets=targets, test_inputs=inputs[:4], test_targets=targets[:4])
    {change}
    return Source(**facts, **parts)
"""


def own(tmp_path: Path, monkeypatch, change: str = "", signature: str = "", **options: object) -> None:
    """Load the data set of a reader that is written here."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"mine_{abs(hash((change, signature)))}"
    (tmp_path / f"{name}.py").write_text(READER.format(change=change or "pass", signature=signature))
    load_source({"name": "mine", "_target_": f"{name}.read", **options}, str(tmp_path))


WRONG = {
    "parts['train_targets'] = targets + 1": "train_targets go from 1 to 2; num_classes=2 needs 0 to 1",
    "parts['test_targets'] = targets[:4] - 100": "test_targets go from -100 to -99",
    "parts['train_inputs'] = inputs / 255": "train_inputs are torch.float32; they need to be torch.uint8, 0..255",
    "parts['train_inputs'] = inputs.numpy()": "train_inputs is a ndarray; it needs to be a tensor",
    "parts['train_targets'] = targets[:-1]": "train_inputs of shape (20, 1, 8, 8) and train_targets of shape (19,)",
    "parts['train_targets'] = targets.int()": "train_targets are torch.int32; they need to be torch.int64",
    "parts['train_targets'] = torch.eye(2).long()[targets]": "and train_targets of shape (20, 2)",
    "parts['test_inputs'] = inputs[:4, :, :4]": "train_inputs are of shape (1, 8, 8), test_inputs of shape (1, 4, 8)",
    "facts['mean'] = (0.5, 0.5, 0.5)": "mean=(0.5, 0.5, 0.5): needs 1 finite numbers",
    "facts['std'] = (0.0,)": "std=(0.0,): needs numbers above 0",
    "facts['num_classes'] = 0": "num_classes=0: needs a whole number from 1",
    "facts['classes'] = ('a',)": "1 names in classes; num_classes=2",
    "return inputs, targets": "its reader returns a tuple; it needs to be an isbench.data.source.Source",
}


@pytest.mark.parametrize("change", WRONG)
def test_a_source_that_cannot_be_trained_on_is_one_line(change: str, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DataError) as error:
        own(tmp_path, monkeypatch, change)
    assert WRONG[change] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("signature", "value"),
    [("x", 3), ("x", [1, [2]]), ("x: list", [1, 2]), ("x: list[list[int]]", [[1], [2]]), ("x: dict", {"a": [1]})]
    + [("x: torch.tensor", 3), ("x: 'Path'", "a/b"), ("*, x=None", "a"), ("x: set", [1, 2]), ("x: None = None", None)],
)
def test_annotations_of_a_reader_are_its_own_affair(signature: str, value: object, tmp_path: Path, monkeypatch) -> None:
    own(tmp_path, monkeypatch, signature=signature, x=value)


def test_an_annotation_that_names_nothing_is_one_line(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="read: its annotations cannot be read: name 'Nothing' is not defined"):
        own(tmp_path, monkeypatch, signature="x: 'Nothing'", x=1)


def test_a_class_that_nothing_is_trained_of_is_said() -> None:
    inputs, targets = torch.zeros(6, 4, dtype=torch.uint8), torch.tensor([0, 0, 3, 3, 3, 0])
    source = Source("mine", inputs, targets, inputs[:2], torch.tensor([1, 3]), 4, (0.5,) * 4, (0.5,) * 4, "mine")
    said = "mine; 6 to train and 2 to test on, 4 classes, 2 of them without a training example"
    assert checked(source, "mine").description() == said
    named = replace(source, classes=("a", "b", "c", "d"))
    assert named.description(most=2) == f"{said}: a 3 + 0, b 0 + 1 and 2 more"


# How long it takes.


def test_a_long_run_is_said_before_it_starts(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("isbench.run.seconds_of_evaluation", lambda *_: 65.0)
    caplog.set_level("INFO")
    run(compose_config(*TINY, "budget.limit=2", "evaluation.points=2", f"runs_dir={tmp_path}"))
    [line] = [line for line in caplog.messages if line.startswith("this takes about")]
    assert line.startswith("this takes about 0:03:15 on this CPU: 0:00:00 of training, and 3 evaluations of 0:01:05")
    assert forecast(training=1e300, evaluation=1e300, points=1)


def test_what_is_short_is_not_said() -> None:
    assert forecast(training=500, evaluation=4.0, points=21) is None
    assert forecast(training=600, evaluation=0.1, points=21) and forecast(training=1, evaluation=10.0, points=2)


@pytest.mark.parametrize(
    ("unit", "limit", "seconds"),
    [("updates", 80, 40.0), ("epochs", 8, 40.0), ("examples", 1280, 40.0), ("seconds", 9, 9)],
)
def test_the_rest_of_a_budget(unit: str, limit: float, seconds: float) -> None:
    parts = build_parts(*TINY, f"budget.unit={unit}", f"budget.limit={limit}")  # 160 examples, in batches of 16
    assert seconds_of_training(parts.budget, parts.progress, 16, 0.5) == seconds
    parts.progress.updates, parts.progress.examples_trained, parts.progress.seconds = 40, 640, 4.5
    assert seconds_of_training(parts.budget, parts.progress, 16, 0.5) == seconds / 2


def test_deep_grey_images_train_as_their_8_bit_copies(tmp_path: Path) -> None:
    checksums = []
    for depth in (1, 257):
        for label, bright in (("dark", 0), ("light", 128)):
            for number in range(10):
                grey = np.random.default_rng(number).integers(bright, bright + 128, (9, 9)) * depth
                path = tmp_path / str(depth) / "photos" / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(grey.astype(np.uint8 if depth == 1 else np.uint16)).save(path)
        node = {"name": "x", "_target_": "isbench.data.readers.image_folder", "path": "photos", "side": 8}
        checksums.append(load_source(node, str(tmp_path / str(depth))).checksum())
    assert checksums[0] == checksums[1]
