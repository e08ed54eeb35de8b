"""The generated parts of README.md and docs/ are up to date."""

from pathlib import Path

import pytest

from scripts import readme


@pytest.mark.parametrize("path", readme.FILES, ids=lambda path: path.stem)
def test_generated_parts_are_up_to_date(path: Path) -> None:
    text = path.read_text()
    assert text.count("<!-- /") and readme.filled(text) == text, "run `python scripts/readme.py`"
    assert "| ? |" not in text, "a sampler's docstring lacks one of its four lines"
