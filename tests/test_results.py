"""What results/ holds is what the code makes of the collected records: tables and data byte for byte."""

import shutil
from pathlib import Path

import pytest

from isbench.report.__main__ import main

RESULTS = Path(__file__).resolve().parent.parent / "results"
COLLECTED = ("*.parquet", "provenance.json")


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/runs.parquet")))
def test_reports_are_reproduced_from_what_is_collected(tmp_path: Path, name: str) -> None:
    copy = tmp_path / name
    copy.mkdir()
    for pattern in COLLECTED:
        for path in (RESULTS / name).glob(pattern):
            shutil.copy(path, copy)
    assert main([name, "--results", str(tmp_path)]) == 0
    assert {path.name for path in copy.iterdir()} == {path.name for path in (RESULTS / name).iterdir()}
    for path in copy.iterdir():
        if path.suffix in (".md", ".tex", ".csv", ".json"):
            assert path.read_bytes() == (RESULTS / name / path.name).read_bytes(), f"{name}/{path.name}: make report"


def test_the_index_is_there() -> None:
    assert "Published results" in (RESULTS / "index.html").read_text()
