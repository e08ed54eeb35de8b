"""What a folder holds by accident is passed over and counted; what its names may mean in two ways is asked about."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from isbench.data.image_files import ImageTree, find_images
from isbench.errors import ConfigError, DataError


def touch(root: Path, *names: str) -> Path:
    """Make files, of which nothing but the names matters here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def images(folder: str, count: int = 5, suffix: str = "png") -> list[str]:
    return [f"{folder}/{number}.{suffix}" for number in range(count)]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return touch(tmp_path / "pets", *images("cat"), *images("dog"))


def find(root: Path, splits: Iterable[str] | None = None) -> ImageTree:
    return find_images(root, 0.2, None if splits is None else list(splits))


def names(tree: ImageTree, root: Path) -> list[str]:
    return sorted(os.path.relpath(image.path, root) for image in tree.train + tree.test)


def test_what_is_hidden_is_passed_over(pets: Path) -> None:
    before = names(find(pets), pets)
    touch(pets, *images(".ipynb_checkpoints"), *images("cat/.thumbs"), *images("@eaDir"), *images("dog/@eaDir/x.jpg"))
    touch(pets, "__MACOSX/cat/._1.png", "cat/._1.png", ".DS_Store", "cat/.DS_Store", ".git/x.png")
    tree = find(pets)
    assert names(tree, pets) == before and tree.classes == ["cat", "dog"]
    assert tree.passed_over == {"hidden": 9}


OWN = {
    "a run": ["g/synthetic-mlp/uniform-s0-1/record.jsonl", "g/synthetic-mlp/uniform-s0-1/media/x.png"],
    "a report": ["g/report/report.html", "g/report/rows.csv", "g/report/curves.png"],
    "results": ["demo/runs.parquet", "demo/figure.png"],
    "a cache": ["cache/pets-224-01/train_inputs.npy", "cache/pets-224-01/manifest.json", "cache/pets-224-01.lock"],
}


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
@pytest.mark.parametrize("place", ["runs", "cat/runs", "."])
def test_what_isbench_wrote_is_no_data(own: list[str], place: str, pets: Path) -> None:
    before = names(find(pets), pets)
    touch(pets / place, *own)
    tree = find(pets)
    assert names(tree, pets) == before and tree.classes == ["cat", "dog"]
    assert tree.passed_over["folders of isbench's own"] == 1


@pytest.mark.parametrize(
    ("link", "target"),
    [("cat/self", "."), ("cat/up", ".."), ("cat/away", "../.."), ("cat/twin", "more"), ("cat/other", "../dog")],
)
def test_every_folder_is_read_once(link: str, target: str, pets: Path) -> None:
    touch(pets, *images("cat/more"))
    touch(pets.parent, "other/x.png")
    before = names(find(pets), pets)
    (pets / link).symlink_to(target)
    tree = find(pets)
    assert names(tree, pets) == before
    assert tree.passed_over["links to folders that were read"] == 1


def test_one_folder_is_not_two_classes(pets: Path) -> None:
    (pets / "hound").symlink_to("dog")
    with pytest.raises(DataError, match="hound is the folder dog by another name"):
        find(pets)


def test_files_that_are_no_images_are_counted(pets: Path) -> None:
    touch(pets, *images("cat", 3, "HEIC"), *images("dog", 2, "gif"), "cat/README", "alone.jpg", "labels.csv")
    os.mkfifo(pets / "cat" / "pipe.png")
    (pets / "cow").symlink_to("/not/mounted")
    assert find(pets).passed_over == {
        ".heic": 3,
        ".gif": 2,
        "without a suffix": 1,
        "images beside the folders of the classes": 1,
        "pipes and devices": 1,
        "links to nothing": 1,
    }


def test_a_class_of_other_files_is_named_with_what_it_holds(pets: Path) -> None:
    touch(pets, *images("cow", 4, "heic"))
    with pytest.raises(DataError, match=r"cow holds no images \(.*\), but 4 .heic; delete it, or add"):
        find(pets)


def test_letters_that_look_alike_are_alike(tmp_path: Path) -> None:
    touch(tmp_path, *images("train/café"), *images("train/tea"), *images("val/cafe\u0301"))
    tree = find(tmp_path)
    assert tree.classes == ["café", "tea"] and len(tree.test) == 5


ASKED = {
    "capitals": (["Train/cat", "Train/dog", "Test/cat", "Test/dog"], "dataset.splits=[Train,Test] trains"),
    "sets": (["test_set/cat", "training_set/cat"], "dataset.splits=[training_set,test_set] trains"),
    "years": (["train2017", "val2017"], "dataset.splits=[train2017,val2017] trains"),
    "humps": (["ValImages/a", "TrainImages/a"], "dataset.splits=[TrainImages,ValImages] trains"),
    "no train": (["val/a", "test/a"], "sound like the parts of a split"),
    "masks": (["images", "masks"], "images and masks sound like images and what is said of them"),
    "annotations": (["JPEGImages", "SegmentationClass"], "sound like images and what is said of them"),
    "folds": (["fold1/cat", "fold1/dog", "fold2/cat"], "no image lies in fold1, fold2, only in folders in them"),
    "above": (["archive/cat", "archive/dog"], "(cat, dog in archive): name the folder of the classes in dataset.path"),
}


@pytest.mark.parametrize(("folders", "complaint"), ASKED.values(), ids=ASKED)
def test_names_that_mean_something_else_are_asked_about(folders: list[str], complaint: str, tmp_path: Path) -> None:
    touch(tmp_path, *(name for folder in folders for name in images(folder)))
    with pytest.raises(DataError) as error:
        find(tmp_path)
    assert complaint in str(error.value) and "dataset.splits=[] takes them as classes" in str(error.value)
    tops = sorted({folder.partition("/")[0] for folder in folders})
    if len(tops) > 1:
        assert find(tmp_path, []).classes == tops


@pytest.mark.parametrize(
    "folders",
    [["train", "tram"], ["valid", "invalid"], ["mask", "no_mask"], ["cat/images", "dog/images"], ["test", "control"]],
)
def test_classes_may_be_called_like_it(folders: list[str], tmp_path: Path) -> None:
    touch(tmp_path, *(name for folder in folders for name in images(folder)))
    assert find(tmp_path).classes == sorted(folder.partition("/")[0] for folder in folders)


def test_splits_by_other_names(tmp_path: Path) -> None:
    touch(tmp_path, *images("Train/cat"), *images("Train/dog"), *images("Test/cat", 3), "Extra/cat/x.png")
    tree = find(tmp_path, ["Train", "Test"])
    assert tree.passed_over == {"folders beside Train and Test": 1}
    assert (tree.classes, len(tree.train), len(tree.test), tree.split) == (["cat", "dog"], 10, 3, "Train and Test")
    for wrong in (["Train"], ["Train", "Train"], ["Train", "val"], ["Train", "Test", "x"]):
        with pytest.raises(ConfigError, match=r"dataset.splits=\["):
            find(tmp_path, wrong)


LAYOUTS = {
    "another name for val": (
        ["train/a/x.png", "train/b/x.png", "validation/a/x.png"],
        "name both folders in dataset.spl",
    ),
    "val without folders": (["train/a/x.png", "train/b/x.png", "val/x.png"], "val has no folders of images"),
    "labels in the names": (["train/cat.0.jpg", "test/1.jpg"], "train has no folders of images"),
    "no folders": (["cat.0.jpg", "dog.0.jpg"], "has no folders of images"),
    "an empty class": (["train/a/x.png", "train/b/x.png", "val/a/x.png", "val/b/.gitkeep"], "val/b holds no images"),
}


@pytest.mark.parametrize(("files", "complaint"), LAYOUTS.values(), ids=LAYOUTS)
def test_other_layouts_are_one_line(files: list[str], complaint: str, tmp_path: Path) -> None:
    touch(tmp_path, *files)
    with pytest.raises(DataError) as error:
        find(tmp_path)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_an_archive_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder .*pets.zip"):
        find(touch(tmp_path, "pets.zip") / "pets.zip")
