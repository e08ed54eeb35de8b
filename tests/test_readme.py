"""The tables of README and docs/gpu.md are generated, and what README tells a reader to type exists."""

import re
from pathlib import Path

import pytest

from scripts import readme

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("path", readme.FILES, ids=lambda path: path.name)
def test_generated_tables_are_up_to_date(path: Path) -> None:
    text = path.read_text()
    assert text.count("<!-- /") and readme.filled(text) == text, "run `python scripts/readme.py`"
    assert "| ? |" not in text, "a sampler's docstring lacks one of its four lines"


def test_links_and_targets_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
