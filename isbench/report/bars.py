"""Intervals as bars: where everything on a bar lies, in percent of its width."""

import math
from collections.abc import Callable
from typing import NamedTuple


class Bar(NamedTuple):
    """Places from 0 to 100; None for what there is not, or for what is not known.

    Attributes:
        value: our number.
        low, high: its interval; where a bound is not known it reaches to the edge.
        neutral: no effect.
        published: the published number.
        least, most: what agrees with a claim.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    neutral: float | None = None
    published: float | None = None
    least: float | None = None
    most: float | None = None


def bars(rows: list[dict[str, float | None]], is_ratio: bool, widest: float = math.inf) -> list[Bar]:
    """Return bars on one scale, logarithmic for ratios, that holds all their numbers; each row has fields of Bar.

    Args:
        widest: how far the scale reaches from no effect at most: a factor for ratios, else a difference. What lies
            beyond ends at the edge.
    """
    to: Callable[[float], float] = math.log if is_ratio else float
    known = [to(value) for row in rows for value in row.values() if _is_finite(value, is_ratio)]
    if not known:
        return [Bar(None)] * len(rows)
    neutral, reach = to(1.0) if is_ratio else 0.0, to(widest) if widest < math.inf else math.inf
    start, end = max(min(known), neutral - reach), min(max(known), neutral + reach)
    margin = 0.08 * (end - start) or 0.1
    start, end = start - margin, end + margin

    def place(value: float | None) -> float | None:
        if value is None or math.isnan(value):
            return None
        if not _is_finite(value, is_ratio):
            return 100.0 if value > 0 else 0.0
        return round(100 * min(max((to(value) - start) / (end - start), 0.0), 1.0), 2)

    return [Bar(**{"value": None, **{name: place(value) for name, value in row.items()}}) for row in rows]


def _is_finite(value: float | None, is_ratio: bool) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not is_ratio)
