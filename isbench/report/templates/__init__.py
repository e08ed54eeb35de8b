"""The pages' templates, style sheet and scripts, and how they are filled in."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_templates = Environment(
    loader=PackageLoader("isbench.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **values: Any) -> str:
    """Return a page as one string of HTML that loads nothing. Values are escaped wherever they stand."""
    return _templates.get_template(template).render(values)
