"""isbench: does importance sampling make deep nets train faster? Timed, fair, resumable comparisons."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isbench.guide import attach as attach
    from isbench.guide import indexed as indexed

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import what needs torch once it is asked for."""
    if name in ("attach", "indexed"):
        from isbench import guide

        return getattr(guide, name)
    raise AttributeError(f"module 'isbench' has no attribute {name!r}")
