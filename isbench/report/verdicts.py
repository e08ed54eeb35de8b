"""What an interval says about a published claim: one ordered table of rules, the first that applies decides.

Numbers are judged as effects: on the scale on which they are averaged (logs for ratios), with no effect at 0 where
there is one, and turned so that what a claim says lies above it. A claim is about

- an effect: of a published size, with or without a margin, or of a smallest size that counts;
- a range: no effect within a margin, no loss beyond a bound, or at least a threshold where nothing would be no effect;
- a number, within a margin, where nothing would be no effect;
- nothing that ours could be held against.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

LEAST_ACTED = 0.05  # of a method's updates
LEAST_LEARNED = 0.05  # of test error, below that of the untrained network
ROUNDING = 1e-9  # of effects

EFFECT, RANGE, NUMBER, NOTHING = "an effect", "a range", "a number", "nothing"


class Evidence(NamedTuple):
    """What a verdict is made from.

    Attributes:
        n: seeds with a value.
        is_shared: some had none because their runs shared the machine.
        acted: share of its updates at which the method acted; NaN where it is unknown or plays no part.
        learned: test error that the baseline lost to its end; NaN where it is unknown or plays no part.
        low, high: the 95 % interval; without bounds where the seeds do not carry one.
        least, most: what agrees with the claim; NaN where it says nothing.
        published: the published number, where there is one.
        has_neutral: whether there is a value of no effect, which then is 0.
    """

    n: int
    is_shared: bool = False
    acted: float = math.nan
    learned: float = math.nan
    low: float = -math.inf
    high: float = math.inf
    least: float = math.nan
    most: float = math.nan
    published: float = math.nan
    has_neutral: bool = True

    @property
    def about(self) -> str:
        """What the claim is about, one of the four."""
        if math.isnan(self.least):
            return NOTHING
        if not self.has_neutral:
            return RANGE if math.isnan(self.published) else NUMBER
        return RANGE if self.least <= 0 <= self.most else EFFECT

    @property
    def holds_no_effect(self) -> bool:
        return self.low <= 0 <= self.high

    @property
    def is_below(self) -> bool:
        return self.high < self.least

    @property
    def is_above(self) -> bool:
        return self.low > self.most

    @property
    def is_beside(self) -> bool:
        return self.is_below or self.is_above

    @property
    def is_within(self) -> bool:
        return self.least <= self.low and self.high <= self.most

    @property
    def is_precise(self) -> bool:
        """Whether the interval holds the published number or lies within its margin, and is no wider than that."""
        is_narrow = self.high - self.low <= self.most - self.least
        return is_narrow and (self.low <= self.published <= self.high or self.is_within)


class Rule(NamedTuple):
    """A verdict, when it is given, for a reader (`sentence`) and for the program (`applies`), and on which claims."""

    name: str
    sentence: str
    applies: Callable[[Evidence], bool]
    about: str = "any claim"

    def decides(self, evidence: Evidence) -> bool:
        return self.about in ("any claim", evidence.about) and self.applies(evidence)


RULES: tuple[Rule, ...] = (
    Rule("not timed", "no run had the machine to itself", lambda e: not e.n and e.is_shared),
    Rule("not run", "no seed has a value", lambda e: not e.n),
    Rule(
        "not exercised",
        f"the method acted in less than {100 * LEAST_ACTED:.0f} % of its updates",
        lambda e: e.acted < LEAST_ACTED,
    ),
    Rule(
        "baseline did not learn",
        f"the baseline ends less than {100 * LEAST_LEARNED:.0f} points of test error below the untrained network",
        lambda e: e.learned < LEAST_LEARNED,
    ),
    Rule("one seed", "one seed has no interval", lambda e: e.n == 1),
    Rule(
        "confirmed",
        "the interval lies on the claimed side of no effect and reaches the claimed size",
        lambda e: e.low > 0 and not e.is_beside,
        EFFECT,
    ),
    Rule(
        "smaller",
        "the interval lies on the claimed side of no effect, below the claimed size",
        lambda e: e.low > 0 and e.is_below,
        EFFECT,
    ),
    Rule("larger", "the interval lies beyond the claimed size", lambda e: e.low > 0 and e.is_above, EFFECT),
    Rule(
        "opposite", "the interval lies on the other side of no effect: worse, not better", lambda e: e.high < 0, EFFECT
    ),
    Rule(
        "refuted",
        "the interval holds no effect and excludes the claimed size",
        lambda e: e.holds_no_effect and e.is_beside,
        EFFECT,
    ),
    Rule(
        "inconclusive",
        "the interval holds both no effect and the claimed size, or the seeds are too few for one",
        lambda e: e.holds_no_effect and not e.is_beside,
        EFFECT,
    ),
    Rule("confirmed", "the interval lies within the range", lambda e: e.is_within, RANGE),
    Rule("refuted", "the interval lies outside the range", lambda e: e.is_beside, RANGE),
    Rule(
        "inconclusive",
        "the interval lies partly within the range, partly outside",
        lambda e: not e.is_within and not e.is_beside,
        RANGE,
    ),
    Rule(
        "confirmed",
        "the interval holds the published number or lies within its margin, and is no wider than the margin",
        lambda e: e.is_precise,
        NUMBER,
    ),
    Rule("smaller", "the interval lies below the margin", lambda e: e.is_below, NUMBER),
    Rule("larger", "the interval lies above the margin", lambda e: e.is_above, NUMBER),
    Rule(
        "inconclusive",
        "the interval is wider than the margin, or reaches into it without the published number",
        lambda e: not e.is_beside and not e.is_precise,
        NUMBER,
    ),
    Rule("descriptive", "no number is published to compare with, or evaluations are too few", lambda e: True, NOTHING),
)


def decisive(evidence: Evidence) -> Rule:
    """Return the first rule that applies."""
    return next(rule for rule in RULES if rule.decides(evidence))


JUDGED = {rule.name for rule in RULES if rule.about in (EFFECT, RANGE, NUMBER)}


def holm(p_values: Mapping[str, float], level: float = 0.05) -> set[str]:
    """Return which of a family of tests find something, with a chance of at most `level` that any errs (Holm 1979)."""
    found: set[str] = set()
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        if p_values[name] > level / (len(p_values) - rank):
            break
        found.add(name)
    return found
