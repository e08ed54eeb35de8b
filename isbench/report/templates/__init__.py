"""The pages' templates, style sheet and scripts, and how they are filled in."""

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

TONES = {  # how the style sheet colours a verdict, an outcome or a status; the others have no colour
    **dict.fromkeys(("confirmed", "better", "faster", "finished"), "good"),
    **dict.fromkeys(("refuted", "opposite", "worse", "slower", "diverged", "failed"), "bad"),
    **dict.fromkeys(("smaller", "larger", "inconclusive", "skipped", "interrupted", "unfinished"), "between"),
}
_templates = Environment(
    loader=PackageLoader("isbench.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_templates.filters["numbers"] = lambda chart: Markup(as_json(chart))
_templates.filters["tone"] = lambda word: TONES.get(word, "")


def as_json(value: Any) -> str:
    """Return JSON, as short as it can be, that may stand in a script element whatever names it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def render(template: str, **values: Any) -> str:
    """Return a page as one string of HTML that loads nothing. Values are escaped wherever they stand."""
    return _templates.get_template(template).render(values)
