"""docs/tour.md names files and arrows that exist."""

import re
from pathlib import Path

from tests.test_architecture import SPINE

ROOT = Path(__file__).resolve().parent.parent
TOUR = (ROOT / "docs" / "tour.md").read_text()


def arrows() -> set[tuple[str, str]]:
    """Return the arrows of the tour's picture, in which `a --> b & c --> d` is four arrows."""
    (picture,) = re.findall(r"```mermaid\nflowchart TD\n(.*?)```", TOUR, re.DOTALL)
    found = set()
    for line in picture.splitlines():
        stops = [stop.split("&") for stop in line.split("-->")]
        for ones, others in zip(stops, stops[1:], strict=False):
            found |= {(one.strip(), other.strip()) for one in ones for other in others}
    return found


def test_every_path_exists() -> None:
    paths = set(re.findall(r"\]\(\.\./([^)]+)\)", TOUR)) | set(re.findall(r"`(\w+/[\w/]+\.py)`", TOUR))
    assert len(paths) > 15 and all((ROOT / path).is_file() for path in paths), paths


def test_every_method_named_is_in_a_file_named_with_it() -> None:
    sources = "\n".join((ROOT / path).read_text() for path in set(re.findall(r"`(isbench/[\w/]+\.py)`", TOUR)))
    methods = re.findall(r"`([A-Z]\w+)\.(\w+)`", TOUR)
    assert len(methods) > 7
    for owner, method in methods:
        assert re.search(rf"^class {owner}\b", sources, re.MULTILINE), owner
        assert re.search(rf"^    def {method}\b", sources, re.MULTILINE), method


def test_the_picture_is_the_spine() -> None:
    assert {"cli", "grid", "run", "loop", "build", "samplers", "training", "data", "models"} <= set(sum(arrows(), ()))
    for above, below in arrows():
        assert below in SPINE[above], f"{above} --> {below}"


def test_every_part_has_a_line() -> None:
    parts = re.findall(r"^\| `(\w+)` \| ", TOUR, re.MULTILINE)
    assert sorted(parts) == sorted(part for part in SPINE if not part.startswith("__"))


def test_the_folders_exist_and_stand_in_their_order() -> None:
    (tree,) = re.findall(r"```\n(isbench/.*?)```", TOUR, re.DOTALL)
    paths = [line.split()[0] for line in tree.splitlines()]
    assert len(paths) > 10 and all((ROOT / path).exists() for path in paths), paths
    parts = [Path(path).stem for path in paths if path.startswith("isbench/")]
    for position, part in enumerate(parts):
        assert not SPINE[part] & set(parts[:position]), part
