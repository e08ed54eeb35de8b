"""Published claims against our runs: a number per seed, its 95 % interval over seeds, a verdict and a sentence.

Ratios are averaged as logs (geometric mean), everything else as it is. Arms are paired with their baseline by seed.
Curves are interpolated between evaluations and never extrapolated. A claim that holds seconds equal uses only runs that
had the machine to themselves. A run that diverged ranks worst, a run that misses a target took longer than it ran; both
count, in the median and its interval from ranks (isbench.report.measures.Sample). isbench.report.verdicts judges.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, field
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from isbench.nodes import nearest
from isbench.recording.record import ENDED, UNIT_COLUMNS
from isbench.report.budget_curve import Shift, budget_shift, is_budget_of
from isbench.report.load import Runs
from isbench.report.measures import Bounds, Centre, Sample, ratio_bounds, ratio_of, time_bounds, value_at
from isbench.report.tables import DASH, PLUS_MINUS, TIMES, number, p_value
from isbench.report.verdicts import JUDGED, NUMBER, RANGE, ROUNDING, Evidence, decisive

STRICT = ConfigDict(extra="forbid")  # a field that there is not is a mistake
EQUAL = "at equal"
ENOUGH_EVALUATIONS = 15  # after the start: a time to a target is read between two of them


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Claim:
    """A published number, or the side of a published difference, and how ours is measured.

    Attributes:
        text: what the paper reports, or what it leaves open.
        quantity: one of QUANTITIES.
        of: what that quantity has to be told besides, by name.
        arm: whose number it is.
        published: None where the paper has a plot, or its number could not be had.
        margin: what still is the published number: a factor for ratios, else to both sides.
        smallest: the smallest effect that counts, and with it the side; of what has no neutral value, a threshold.
            Published where `published` is the same ("at least 20 %"), else our choice for a claim without a number.
        at_least: what a value that may be no effect has to reach, such as 0.9 of a speed-up: no loss beyond it.
            With none of these, nothing is there to be held against.
        baseline: the arm that quantities of two arms compare with.
        axis: what is held equal: seconds, updates, epochs or examples.
        at: where on that axis; None is the end of the budget.
        primary: the one of its experiment that is counted when chance findings are.
    """

    text: str
    quantity: str
    of: dict[str, str | float] = field(default_factory=dict)
    arm: str
    published: float | None = None
    margin: float | None = None
    smallest: float | None = None
    at_least: float | None = None
    baseline: str = "uniform"
    axis: str = "seconds"
    at: float | None = None
    primary: bool = False

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        if self.quantity not in QUANTITIES:
            raise ValueError(f"quantity {self.quantity}: {nearest(self.quantity, QUANTITIES)}")
        quantity = QUANTITIES[self.quantity]
        try:
            inspect.signature(quantity.measure).bind(None, None, self, **self.of)
        except TypeError as error:
            raise ValueError(f"of: {error}") from None
        if self.margin is None and self.published is not None and self.published == quantity.neutral:
            raise ValueError("no effect is published: give the margin within which there is none")
        if self.margin is None and self.published is not None and quantity.neutral is None:
            raise ValueError("a published number without a neutral value needs a margin")
        if self.margin is not None and (self.published is None or self.margin <= quantity.is_ratio):
            raise ValueError("a margin is around a published number: above 0, of a ratio above 1")
        if self.smallest is not None and quantity.neutral == self.smallest:
            raise ValueError("the smallest effect that counts differs from no effect")
        if self.smallest is not None and self.published not in (None, self.smallest):
            raise ValueError("published and smallest are the same where both are given: at least so much")
        if self.at_least is not None and (self.published, self.smallest) != (None, None):
            raise ValueError("at_least stands alone: no loss beyond it is claimed, and no effect")
        if self.at_least is not None and (quantity.neutral is None or self.at_least >= quantity.neutral):
            raise ValueError("at_least lies below no effect")
        return self

    def is_upward(self) -> bool:
        """Say whether the smallest effect that counts lies above no effect, or is a threshold."""
        neutral = QUANTITIES[self.quantity].neutral
        return self.smallest is not None and (neutral is None or self.smallest > neutral)

    def allows(self) -> tuple[float, float]:
        """Return the least and the most that agree with the claim; NaN where it says nothing."""
        quantity = QUANTITIES[self.quantity]
        if self.at_least is not None:
            return self.at_least, math.inf
        if self.smallest is not None:
            return (self.smallest, math.inf) if self.is_upward() else (quantity.lowest, self.smallest)
        if self.published is None:
            return math.nan, math.nan
        if quantity.is_ratio:
            return self.published / (self.margin or 1), self.published * (self.margin or 1)
        return self.published - (self.margin or 0), self.published + (self.margin or 0)


class Run(NamedTuple):
    """The evaluations and the probe rows of one run, and whether it diverged."""

    curve: pd.DataFrame
    probed: pd.DataFrame
    diverged: bool

    def end(self, claim: Claim) -> float:
        """Return where on the claim's axis the run is judged when it stands alone."""
        return self.curve[UNIT_COLUMNS[claim.axis]].max() if claim.at is None else claim.at

    def value(self, column: str, claim: Claim, place: float) -> float:
        return value_at(self.curve, place, column, UNIT_COLUMNS[claim.axis])

    def last_probed(self) -> pd.DataFrame:
        return self.probed[self.probed["updates"] == self.probed["updates"].max()]

    def is_lost(self, claim: Claim) -> bool:
        """Say whether the run diverged before it came to where the claim asks."""
        return self.diverged and (claim.at is None or claim.at > self.curve[UNIT_COLUMNS[claim.axis]].max())

    def acted(self) -> float:
        """Return the share of updates at which the method acted, NaN where nothing tells it.

        Of records that lack it: a gated sampler that has scored no example has not.
        """
        last = self.curve.iloc[-1]
        acted = last["acted_updates"]
        if math.isnan(acted) and not math.isnan(last.get("sampler/is_open", math.nan)) and not last["examples_scored"]:
            return 0.0
        return float(np.divide(acted, last["updates"]))

    def learned(self) -> float:
        """Return by how much test error fell from before the first update to the end, NaN where it is unknown."""
        first, last = self.curve.iloc[0], self.curve.iloc[-1]
        return math.nan if first["updates"] else float(first["test_error"] - last["test_error"])


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """How a number is had from a run and its baseline of the same seed (`measure`), averaged, judged and written.

    Attributes:
        measure: of a run, the baseline's run (None without one), the claim, and what the claim says in `of`. A number,
            or bounds of it.
        neutral: its value where there is no effect, None for numbers that are compared as they are.
        better: on which side a better method lies: 1 above, -1 below, 0 on neither. A diverged run is on the other.
        is_ratio: averaged as a logarithm.
        is_paired: it needs the run of the baseline.
        is_timed: it is made of seconds, whatever is held equal.
        of_budgets: it is no number per seed, but one of all runs of both arms at all their budgets.
        has_target: it is of when a target is reached, and knows itself what divergence means for it.
        probe: the probe whose rows it is measured on, instead of the evaluations.
        held: how a sentence introduces the claim's axis, nothing where it plays no part.
        scale, unit: how it is written.
    """

    measure: Callable[..., Any]
    neutral: float | None = None
    better: int = 1
    is_ratio: bool = False
    is_paired: bool = False
    is_timed: bool = False
    of_budgets: bool = False
    has_target: bool = False
    probe: str | None = None
    held: str = ""
    scale: float = 1.0
    unit: str = ""

    @property
    def lowest(self) -> float:
        return 0.0 if self.is_ratio else -math.inf

    def text(self, value: float) -> str:
        return f"{number(self.scale * value)}{self.unit}"

    def bounds(self, run: Run, baseline: Run | None, claim: Claim) -> Bounds:
        """Return what is known of the number: a lost run's is the worst, a lost baseline makes it the best."""
        lost = [each is not None and each.is_lost(claim) for each in (run, baseline)]
        if any(lost) and not self.has_target:
            if all(lost) or not self.better:
                return Bounds(self.lowest, math.inf)
            place = self.lowest if lost[0] == (self.better > 0) else math.inf
            return Bounds(place, place)
        value = self.measure(run, baseline, claim, **claim.of)
        return value if isinstance(value, Bounds) else Bounds(value, value)

    def scaled(self, value: float) -> float:
        """Return a number on the scale on which it is averaged."""
        if not self.is_ratio:
            return value
        with np.errstate(divide="ignore"):
            return float(np.log(value))

    def effect(self, value: float) -> float:
        """Return a number on that scale, with no effect at 0 where there is one."""
        return self.scaled(value) - (0.0 if self.neutral is None else self.scaled(self.neutral))


def _own(column: str) -> Callable[..., float]:
    return lambda run, baseline, claim: run.value(column, claim, run.end(claim))


def _both(column: str) -> Callable[..., tuple[float, float]]:
    """Return a function for the values of arm and baseline at the same place, the last that both reached."""

    def values(run: Run, baseline: Run, claim: Claim) -> tuple[float, float]:
        place = min(run.end(claim), baseline.end(claim))
        return run.value(column, claim, place), baseline.value(column, claim, place)

    return values


def _ratio(column: str) -> Quantity:
    def ratio(run: Run, baseline: Run, claim: Claim) -> float:
        own, other = _both(column)(run, baseline, claim)
        return ratio_of(other, own)

    return Quantity(measure=ratio, neutral=1, is_ratio=True, is_paired=True, held=EQUAL, unit=TIMES)


def _error_difference(run: Run, baseline: Run, claim: Claim) -> float:
    own, other = _both("test_error")(run, baseline, claim)
    return 100 * (other - own)


def _speedup(run: Run, baseline: Run, claim: Claim, target: float, column: str = "test_error") -> Bounds:
    axis = UNIT_COLUMNS[claim.axis]
    own, other = (time_bounds(each.curve, column, target, axis, each.diverged) for each in (run, baseline))
    return ratio_bounds(other, own)


def _budget_shift(runs: Runs, _: None, claim: Claim, budget: str | None = None) -> Shift:
    return budget_shift(runs, claim.arm, claim.baseline, claim.axis, budget, claim.at_least or 1.0)


def _epochs_equivalent(run: Run, baseline: None, claim: Claim) -> float:
    last = run.curve.iloc[-1]
    return last["effective_updates"] * last["epoch"] / last["updates"]


def _gain_ratio(run: Run, baseline: None, claim: Claim) -> float:
    return run.curve["effective_updates"].iloc[-1] / run.curve["updates"].iloc[-1]


def _gain_rise(run: Run, baseline: None, claim: Claim) -> float:
    """Return the mean gain of the last quarter of the updates over that of the second."""
    last = run.curve["updates"].max()
    quarters = np.diff([value_at(run.curve, last * k / 4, "effective_updates", "updates") for k in (1, 2, 3, 4)])
    return float(quarters[2] / quarters[0])


def _alignment(run: Run, baseline: Run, claim: Claim) -> float:
    """Return the ratio of objectives where both have as many epochs equivalent."""
    own, other = (
        each.curve.assign(
            equivalent=(each.curve["effective_updates"] * (each.curve["epoch"] / each.curve["updates"]).max())
        )
        for each in (run, baseline)
    )
    place = min(own["equivalent"].max(), other["equivalent"].max())
    return ratio_of(*(value_at(each, place, "objective", "equivalent") for each in (other, own)))


def _audited(run: Run) -> pd.DataFrame:
    """Return the rows of the probe `gain` at which the method acts; before, there is nothing to gain or to estimate."""
    return run.probed[run.probed["acts"].astype(bool)]


def _gain_accuracy(run: Run, baseline: None, claim: Claim) -> float:
    looks = _audited(run)
    return float(np.exp(np.log(looks["estimated"] / looks["true"]).mean()))


def _true_gain(run: Run, baseline: None, claim: Claim) -> float:
    return float(_audited(run)["true"].mean())


def _time_overhead(run: Run, baseline: Run, claim: Claim) -> float:
    own, other = (each.curve["train_seconds"].iloc[-1] / each.curve["updates"].iloc[-1] for each in (run, baseline))
    return own / other - 1


def _correlation(run: Run, baseline: None, claim: Claim, x: str, y: str) -> float:
    scores = run.last_probed().iloc[0]
    return float(np.corrcoef(scores[x], scores[y])[0, 1])


def _squared_error_ratio(run: Run, baseline: None, claim: Claim, score: str, other: str, reference: str) -> float:
    scores = run.last_probed().iloc[0]
    p, q, r = (
        np.asarray(scores[name], dtype=float) / np.sum(scores[name], dtype=float) for name in (score, other, reference)
    )
    return float(((p - r) ** 2).sum() / ((q - r) ** 2).sum())


def _relative_variance(run: Run, baseline: None, claim: Claim, signal: str) -> float:
    later = run.probed[run.probed["updates"] > run.probed["updates"].min()]
    return float(later.loc[later["signal"] == signal, "relative"].mean())


def _share(run: Run, baseline: None, claim: Claim, first_epoch: float, decile: float) -> float:
    rows = run.last_probed()
    rows = rows[rows["decile"] == decile]
    is_first = rows["first_epoch"].round().eq(first_epoch)  # an epoch need not be a whole number of updates
    return float(rows.loc[is_first, "share"].mean())


def _share_difference(run: Run, baseline: Run, claim: Claim, first_epoch: float, decile: float) -> float:
    own, other = (_share(each, None, claim, first_epoch, decile) for each in (run, baseline))
    return own - other


def _variance_ratio(run: Run, baseline: None, claim: Claim, signal: str, reference: str) -> float:
    return _relative_variance(run, None, claim, signal) / _relative_variance(run, None, claim, reference)


QUANTITIES: dict[str, Quantity] = {
    "test_error": Quantity(measure=_own("test_error"), better=-1, scale=100, unit="%"),
    "train_loss": Quantity(measure=_own("train_loss"), better=-1),
    "objective": Quantity(measure=_own("objective"), better=-1),
    "test_loss": Quantity(measure=_own("test_loss"), better=-1),
    "objective_ratio": _ratio("objective"),
    "train_loss_ratio": _ratio("train_loss"),
    "test_error_ratio": _ratio("test_error"),
    "test_error_difference": Quantity(measure=_error_difference, neutral=0, is_paired=True, held=EQUAL, unit=" points"),
    "speedup": Quantity(
        measure=_speedup, neutral=1, is_ratio=True, is_paired=True, has_target=True, held="in", unit=TIMES
    ),
    "budget_shift": Quantity(
        measure=_budget_shift, neutral=1, is_ratio=True, is_paired=True, of_budgets=True, unit=TIMES
    ),
    "epochs_equivalent": Quantity(measure=_epochs_equivalent),
    "gain_ratio": Quantity(measure=_gain_ratio, neutral=1, is_ratio=True),
    "gain_rise": Quantity(measure=_gain_rise, neutral=1, is_ratio=True, unit=TIMES),
    "gain_accuracy": Quantity(measure=_gain_accuracy, neutral=1, better=0, is_ratio=True, probe="gain", unit=TIMES),
    "true_gain": Quantity(measure=_true_gain, neutral=1, is_ratio=True, probe="gain"),
    "alignment": Quantity(measure=_alignment, neutral=1, is_ratio=True, is_paired=True, unit=TIMES),
    "time_overhead": Quantity(
        measure=_time_overhead, neutral=0, better=-1, is_paired=True, is_timed=True, scale=100, unit="%"
    ),
    "correlation": Quantity(measure=_correlation, probe="scores"),
    "squared_error_ratio": Quantity(measure=_squared_error_ratio, neutral=1, is_ratio=True, probe="scores", unit=TIMES),
    "relative_variance": Quantity(
        measure=_relative_variance, neutral=1, better=-1, is_ratio=True, probe="gradient_variance"
    ),
    "variance_ratio": Quantity(
        measure=_variance_ratio, neutral=1, better=0, is_ratio=True, probe="gradient_variance", unit=TIMES
    ),
    "share": Quantity(measure=_share, better=0, probe="loss_patterns", scale=100, unit="%"),
    "share_difference": Quantity(
        measure=_share_difference,
        neutral=0,
        better=0,
        is_paired=True,
        probe="loss_patterns",
        scale=100,
        unit=" points",
    ),
}


class Measured(NamedTuple):
    """The values of a claim by (data set, model, seed), and what they are from.

    `arms` and `baselines` are the runs behind them. Of the runs involved, `unusable` shared the machine. At `misses` of
    the seeds a run did not reach the target, at `diverged` of them a run diverged before it had a value.
    """

    values: dict[tuple[str, str, int], Bounds]
    arms: list[Run]
    baselines: list[Run]
    involved: pd.DataFrame
    unusable: int
    misses: int
    diverged: int


class Finding(NamedTuple):
    """What our runs say on a claim.

    At `misses` of the n seeds an arm did not reach its target, at `diverged` of them a run diverged, and ranks worst.
    `p` is NaN where no interval judges. `rule` is what the verdict was given for.
    """

    claim: Claim
    centre: Centre
    n: int
    misses: int
    diverged: int
    p: float
    verdict: str
    rule: str
    sentence: str

    @property
    def quantity(self) -> Quantity:
        return QUANTITIES[self.claim.quantity]

    def ours(self) -> str:
        """Write our number with its interval."""
        if not self.n:
            return DASH
        text, centre = self.quantity.text, self.centre
        if centre.least == centre.most:
            value = text(centre.least)
        elif centre.least == self.quantity.lowest:
            value = "unknown" if math.isinf(centre.most) else f"below {text(centre.most)}"
        else:
            value = f"above {text(centre.least)}"
        low, high = (number(self.quantity.scale * bound) for bound in (centre.low, centre.high))
        interval = "" if math.isnan(centre.low) else f" [{low}, {high}]"
        if not centre.is_median:
            return value + interval
        level = f" ({100 * centre.level:.4g} %)" if interval else ""
        if self.misses == self.n:
            return f"target never reached ({self.n} of {self.n}); median {value}{interval}{level}"
        counts = {"missed the target": self.misses, "diverged": self.diverged}
        why = " and ".join(f"{count} of {self.n} seeds {what}" for what, count in counts.items() if count)
        return f"median {value}{interval}{level}{f', {why}' if why else ''}"

    def arms(self) -> str:
        """Name the arm, and what it is compared with."""
        return self.claim.arm + (f" against {self.claim.baseline}" if self.quantity.is_paired else "")

    def published(self) -> str:
        """Write what ours is held against."""
        claim, text = self.claim, self.quantity.text
        if claim.at_least is not None:
            return f"our threshold: at least {text(claim.at_least)}"
        if claim.smallest is not None:
            side = "at least" if claim.is_upward() else "at most"
            own = "" if claim.published is not None else "our threshold: "
            return f"{own}{side} {text(claim.smallest)}"
        if claim.published is None:
            return DASH
        size = text(claim.published)
        if claim.margin is None:
            return size
        if self.quantity.is_ratio:
            return f"{size} within a factor of {claim.margin:g}"
        return f"{size} {PLUS_MINUS} {number(self.quantity.scale * claim.margin, 2)}"


def measure(claim: Claim, runs: Runs) -> Measured:
    """Measure a claim on every seed that has what it needs."""
    quantity = QUANTITIES[claim.quantity]
    if quantity.of_budgets:
        return _measure_budgets(claim, runs)
    in_arm, in_baseline = (runs.runs["arm"].eq(name) for name in (claim.arm, claim.baseline))
    is_timed = quantity.is_timed or (claim.axis == "seconds" and (quantity.is_paired or claim.at is not None))
    involved = runs.runs[in_arm | (in_baseline & quantity.is_paired)]
    usable = involved[involved["alone"] | (involved["budget_unit"].ne("seconds") & (not is_timed))]
    ended = usable[usable["status"].isin(ENDED)]
    arms = _by_seed(runs, ended[in_arm[ended.index]], quantity.probe)
    baselines = _by_seed(runs, ended[in_baseline[ended.index]], quantity.probe) if quantity.is_paired else {}
    values = {
        key: quantity.bounds(run, baselines.get(key), claim)
        for key, run in arms.items()
        if key in baselines or not quantity.is_paired
    }
    known = {key: bounds for key, bounds in values.items() if not math.isnan(bounds.least)}
    not_known = [key for key, (least, most) in known.items() if least != most or least in (quantity.lowest, math.inf)]
    diverged = sum(arms[key].diverged or (key in baselines and baselines[key].diverged) for key in not_known)
    return Measured(
        values=known,
        arms=[arms[key] for key in known],
        baselines=[baselines[key] for key in known if key in baselines],
        involved=involved,
        unusable=len(involved) - len(usable),
        misses=len(not_known) - diverged,
        diverged=diverged,
    )


def _measure_budgets(claim: Claim, runs: Runs) -> Measured:
    """Find the runs that a claim on budget curves is about: of the arm those of its budget, of the baseline all."""
    in_arm, in_baseline = (is_budget_of(runs.runs["arm"], name) for name in (claim.arm, claim.baseline))
    if "budget" in claim.of:
        in_arm &= runs.runs["budget"].eq(str(claim.of["budget"]))
    involved = runs.runs[in_arm | in_baseline]
    # Where budgets are no seconds, runs that were alone lend the others the seconds of an update.
    can_borrow = claim.axis != "seconds" and bool(involved["alone"].any())
    usable = involved[involved["alone"] | (involved["budget_unit"].ne("seconds") & can_borrow)]
    ended = usable[usable["status"].isin(ENDED)]
    arms, baselines = (
        [run for _, part in ended[rows[ended.index]].groupby("arm") for run in _by_seed(runs, part, None).values()]
        for rows in (in_arm, in_baseline)
    )
    lost = ended.loc[ended["status"].eq("diverged"), ["dataset", "model", "seed"]]
    unusable = len(involved) - len(usable)
    return Measured({}, arms, baselines, involved, unusable, misses=0, diverged=len(lost.drop_duplicates()))


def check(claim: Claim, runs: Runs) -> Finding:
    """Measure a claim, and judge it."""
    quantity, measured = QUANTITIES[claim.quantity], measure(claim, runs)
    if quantity.of_budgets:
        shift = quantity.measure(runs, None, claim, **claim.of)
        n, centre, p = shift.n, shift.centre(), shift.p
        evidence = _evidence(claim, measured, centre, n)
    else:
        sample = Sample(list(measured.values.values()), quantity.is_ratio)
        n, centre = sample.n, sample.centre()
        evidence = _evidence(claim, measured, centre, n)
        p = _p(claim, evidence, sample)
    rule = decisive(evidence)
    p = p if rule.name in JUDGED else math.nan
    finding = Finding(claim, centre, n, measured.misses, measured.diverged, p, rule.name, rule.sentence, "")
    return finding._replace(sentence=_sentence(finding, measured))


def _is_too_coarse(claim: Claim, measured: Measured) -> bool:
    """Say whether a target is looked for between too few evaluations."""
    whole = [run for run in (*measured.arms, *measured.baselines) if not run.diverged]
    counts = [(run.curve["updates"] > 0).sum() for run in whole]
    return QUANTITIES[claim.quantity].has_target and min(counts, default=ENOUGH_EVALUATIONS) < ENOUGH_EVALUATIONS


def _evidence(claim: Claim, measured: Measured, centre: Centre, n: int) -> Evidence:
    quantity = QUANTITIES[claim.quantity]
    is_interval = n > 1 and centre.level >= 0.95
    bounds = (centre.low, centre.high) if is_interval else (quantity.lowest, math.inf)
    allowed = (math.nan, math.nan) if _is_too_coarse(claim, measured) else claim.allows()
    published = math.nan if claim.published is None else claim.published
    low, high, least, most, size = (quantity.effect(value) for value in (*bounds, *allowed, published))
    if quantity.neutral is not None and most < 0:  # turned, so that what is claimed lies above no effect
        low, high, least, most, size = -high, -low, -most, -least, -size
    # A method that steps aside may still be claimed to cost no more.
    is_of_method = quantity.neutral is not None and quantity.probe is None and claim.at_least is None
    is_of_learning = quantity.is_paired and not quantity.is_timed and quantity.probe is None
    return Evidence(
        n=n,
        is_shared=measured.unusable > 0,
        acted=_mean(run.acted() for run in measured.arms) if is_of_method else math.nan,
        learned=_mean(run.learned() for run in measured.baselines) if is_of_learning else math.nan,
        low=low - ROUNDING,
        high=high + ROUNDING,
        least=least,
        most=most,
        published=size,
        has_neutral=quantity.neutral is not None,
    )


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return math.fsum(known) / len(known) if known else math.nan


def _p(claim: Claim, evidence: Evidence, sample: Sample) -> float:
    """Return the two-sided p of no effect, or for a range and a number of lying on the edge of what agrees with it."""
    quantity = QUANTITIES[claim.quantity]
    if evidence.about in (RANGE, NUMBER) or quantity.neutral is None:
        least, most = claim.allows()
        inside = max(sample.p_beyond(least, 1), sample.p_beyond(most, -1))
        return min(1.0, 2 * min(inside, sample.p_beyond(least, -1), sample.p_beyond(most, 1)))
    return min(1.0, 2 * min(sample.p_beyond(quantity.neutral, side) for side in (1, -1)))


def _by_seed(runs: Runs, chosen: pd.DataFrame, probe: str | None) -> dict[tuple[str, str, int], Run]:
    """Return the runs that have evaluations (rows of a probe, where one is named), by data set, model and seed."""
    found = {}
    for _, run in chosen.iterrows():
        curve = runs.rows_of.get(run["run_id"], runs.rows[:0])
        probed = runs.probes_of.get(run["run_id"], runs.probes[:0])
        if len(probed if probe else curve):
            found[run["dataset"], run["model"], run["seed"]] = Run(curve, probed, run["status"] == "diverged")
    return found


def _sentence(finding: Finding, measured: Measured) -> str:
    claim, involved = finding.claim, measured.involved
    text = claim.text if f"({claim.arm})" in claim.text else f"{claim.text} ({finding.arms()})"
    left_out = {
        "did not count (failed or unfinished)": (~involved["status"].isin(ENDED)).sum(),
        "shared the machine": measured.unusable,
    }
    without = ", ".join(f"{count} of {len(involved)} runs {why}" for why, count in left_out.items() if count)
    if not finding.n:
        return f"{text}: {finding.verdict}{f' ({without})' if without else ''}."
    place = "" if claim.at is None else f" ({claim.at:g})"
    held = f" {finding.quantity.held} {claim.axis}{place}" if finding.quantity.held else ""
    goal = number(float(claim.of["target"])) if "column" in claim.of else f"{float(claim.of.get('target', 0)):.1%}"
    target = f" ({goal})" if finding.quantity.has_target else ""
    setting = f"On {setting_of(involved, finding.n)}: {text}{target}: {finding.ours()}{held}"
    against = "published: " if claim.published is not None else ""
    published = "" if finding.published() == DASH else f", {against}{finding.published()}"
    verdict = "one seed, no interval" if finding.verdict == "one seed" else finding.verdict
    if _is_too_coarse(claim, measured):
        verdict += f", from fewer than {ENOUGH_EVALUATIONS} evaluations"
    return f"{setting}{published}: {verdict}.{f' {without}.' if without else ''}"


def setting_of(runs: pd.DataFrame, n: int) -> str:
    """Name data, model, budget, n and hardware of runs, for a sentence."""
    started = runs[runs["status"] != "skipped"]
    data = (started["dataset"] + " (" + started["provenance"] + ")").unique()
    hardware = {_hardware(run) for _, run in started.iterrows()}
    budgets = sorted(started["budget"].unique(), key=_limit)
    parts = [*sorted(data), *sorted(started["model"].unique()), *budgets]
    return ", ".join([*parts, f"n={n}", *sorted(hardware)])


def _limit(budget: str) -> float:
    number = re.match(r"\d[\d,]*(\.\d+)?", budget)
    return float(number[0].replace(",", "")) if number else 0.0


def _hardware(run: pd.Series) -> str:
    if isinstance(run["gpu"], str):
        return run["gpu"]
    threads = run["torch_threads"]
    return f"{'one thread' if threads == 1 else f'{threads:g} threads'} of {run['cpu']}"


def claims_table(findings: list[Finding]) -> pd.DataFrame:
    """Return text: what a paper reports, its number, ours with its interval, and the verdict."""
    return pd.DataFrame(
        [
            {
                "claim": finding.claim.text + (" (primary)" if finding.claim.primary else ""),
                "variants": finding.arms(),
                "published": finding.published(),
                "ours [95 %]": finding.ours(),
                "n": str(finding.n),
                "p": p_value(finding.p),
                "verdict": finding.verdict,
            }
            for finding in findings
        ]
    )


def findings_json(findings: list[Finding]) -> list[dict[str, Any]]:
    """Return findings as plain values, numbers to six significant digits, those that are not finite as null."""
    return [
        {
            **asdict(finding.claim),
            **{key: _plain(getattr(finding.centre, key)) for key in ("value", "low", "high", "level")},
            "n": finding.n,
            "misses": finding.misses,
            "diverged": finding.diverged,
            "p": _plain(finding.p),
            "arms": finding.arms(),
            "ours": finding.ours(),
            "reported": finding.published(),
            "allowed": [_plain(bound) for bound in finding.claim.allows()],
            "verdict": finding.verdict,
            "rule": finding.rule,
            "sentence": finding.sentence,
        }
        for finding in findings
    ]


def _plain(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
