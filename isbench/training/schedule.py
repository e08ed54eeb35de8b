"""Learning-rate schedules: each returns the factor on the base rate at a spent fraction of the budget.

The fraction can pass 1 where a method's updates count for more than one (see `Budget.schedule_fraction`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated

from annotated_types import Gt, Lt

from isbench.errors import ConfigError
from isbench.types import Progress

Schedule = Callable[[float], float]


def constant() -> Schedule:
    """Return a factor of 1 throughout."""
    return lambda fraction: 1.0


def step(milestones: Sequence[Annotated[float, Gt(0), Lt(1)]], factor: float) -> Schedule:
    """Return factor ** (number of milestones reached); milestones are fractions of the budget."""
    if list(milestones) != sorted(milestones):
        raise ConfigError(f"schedule.milestones={list(milestones)}: must rise")
    return lambda fraction: factor ** sum(fraction >= milestone for milestone in milestones)


def linear(final: float = 0.0) -> Schedule:
    """Return a factor that falls from 1 to `final` in a straight line."""
    return lambda fraction: 1 + (final - 1) * min(fraction, 1.0)


def cosine(final: float = 0.0) -> Schedule:
    """Return a factor that falls from 1 to `final` along half a cosine (Loshchilov and Hutter 2017)."""
    return lambda fraction: final + (1 - final) * (1 + math.cos(math.pi * min(fraction, 1.0))) / 2


def exponential(factor: float, drops: int) -> Schedule:
    """Return factor ** k in part k of `drops` equal parts of the budget (in RAIS's experiments a part is an epoch)."""
    return lambda fraction: factor ** math.floor(fraction * drops + 1e-9)  # 29 / 100 * 100 is a little below 29


def inverse_square_root(span: float) -> Schedule:
    """Return 1 / sqrt(1 + span * fraction).

    For the rate eta / sqrt(a + t) over T updates, take span = T / a and the base rate eta / sqrt(a).
    """
    return lambda fraction: 1 / math.sqrt(1 + span * fraction)


def replay(rates: Sequence[float], progress: Progress) -> Schedule:
    """Return the rates of another run, one for each update; the last one stays. Where the budget stands plays no part.

    They are rates, not factors: the base rate is then 1.
    """
    return lambda fraction: rates[min(progress.updates, len(rates) - 1)]
