"""The generated parts of README.md and docs/ are up to date, and so is the picture in them."""

from pathlib import Path

import pytest

from isbench.report.forest import answer_csv
from scripts import readme


@pytest.mark.parametrize("path", readme.FILES, ids=lambda path: path.stem)
def test_generated_parts_are_up_to_date(path: Path) -> None:
    text = path.read_text()
    assert text.count("<!-- /") and readme.filled(text) == text, "run `python scripts/readme.py`"
    assert "| ? |" not in text, "a sampler's docstring lacks one of its four lines"


def test_the_picture_shows_the_rows_of_the_answer() -> None:
    kept = readme.ROOT / "results" / "answer.csv"  # written with the picture
    assert kept.read_text() == answer_csv(readme.rows()), "run `make report`"
