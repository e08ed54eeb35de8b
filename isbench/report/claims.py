"""Published claims against our runs: a number per seed, its 95 % interval over seeds, a verdict and a sentence.

Ratios are averaged as logs (geometric mean), everything else as it is. Arms are paired with their baseline by seed.
Curves are interpolated between evaluations and never extrapolated. A claim that holds seconds equal uses only runs that
had the machine to themselves; only finished runs count, and for a speed-up diverged ones too, as misses.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, field
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from isbench.nodes import nearest
from isbench.recording.record import ENDED, UNIT_COLUMNS
from isbench.report.load import Runs
from isbench.report.measures import geometric_interval, ratio_of, t_interval, time_to_target, value_at
from isbench.report.tables import TIMES, number

STRICT = ConfigDict(extra="forbid")  # a field that there is not is a mistake
EQUAL = "at equal"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Claim:
    """A published number, or the sign of a published difference, and how ours is measured.

    Attributes:
        text: what the paper reports, or what it leaves open.
        quantity: one of QUANTITIES.
        of: what that quantity has to be told besides, by name.
        arm: whose number it is.
        published: None where the paper has a plot, or its number could not be had; the claim is then the direction.
        baseline: the arm that quantities of two arms compare with.
        axis: what is held equal: seconds, updates, epochs or examples.
        at: where on that axis; None is the end of the budget.
        is_open: the paper says nothing on it; the verdict is then whether the arm is better than its baseline.
    """

    text: str
    quantity: str
    of: dict[str, str | float] = field(default_factory=dict)
    arm: str
    published: float | None = None
    baseline: str = "uniform"
    axis: str = "seconds"
    at: float | None = None
    is_open: bool = False

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        if self.quantity not in QUANTITIES:
            raise ValueError(f"quantity {self.quantity}: {nearest(self.quantity, QUANTITIES)}")
        try:
            inspect.signature(QUANTITIES[self.quantity].measure).bind(None, None, self, **self.of)
        except TypeError as error:
            raise ValueError(f"of: {error}") from None
        return self


class Run(NamedTuple):
    """The evaluations and the probe rows of one run."""

    curve: pd.DataFrame
    probed: pd.DataFrame

    def end(self, claim: Claim) -> float:
        """Return where on the claim's axis the run is judged when it stands alone."""
        return self.curve[UNIT_COLUMNS[claim.axis]].max() if claim.at is None else claim.at

    def value(self, column: str, claim: Claim, place: float) -> float:
        return value_at(self.curve, place, column, UNIT_COLUMNS[claim.axis])

    def last_probed(self) -> pd.DataFrame:
        return self.probed[self.probed["updates"] == self.probed["updates"].max()]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """How a number is had from a run and its baseline of the same seed (`measure`), averaged, judged and written.

    Attributes:
        measure: of a run, the baseline's run (None without one), the claim, and what the claim says in `of`.
        neutral: its value where there is no effect, None for numbers that are compared as they are.
        gain: on which side of neutral a method is better: the direction claimed where a paper gives no number.
        is_ratio: averaged as a logarithm.
        is_paired: it needs the run of the baseline.
        is_timed: it is made of seconds, whatever is held equal.
        counts_misses: runs that diverged count, as 0.
        probe: the probe whose rows it is measured on, instead of the evaluations.
        held: how a sentence introduces the claim's axis, nothing where it plays no part.
        scale, unit: how it is written.
    """

    measure: Callable[..., float]
    neutral: float | None = None
    gain: int = 1
    is_ratio: bool = False
    is_paired: bool = False
    is_timed: bool = False
    counts_misses: bool = False
    probe: str | None = None
    held: str = ""
    scale: float = 1.0
    unit: str = ""

    def text(self, value: float) -> str:
        return f"{number(self.scale * value)}{self.unit}"


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


def _speedup(run: Run, baseline: Run, claim: Claim) -> float:
    target = baseline.value("test_error", claim, baseline.end(claim))
    if math.isnan(target):
        return math.nan
    own, other = (
        time_to_target(each.curve, "test_error", target, UNIT_COLUMNS[claim.axis]) for each in (run, baseline)
    )
    return ratio_of(other, own)


def _epochs_equivalent(run: Run, baseline: None, claim: Claim) -> float:
    last = run.curve.iloc[-1]
    return last["effective_updates"] * last["epoch"] / last["updates"]


def _gain_ratio(run: Run, baseline: None, claim: Claim) -> float:
    return run.curve["effective_updates"].iloc[-1] / run.curve["updates"].iloc[-1]


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


QUANTITIES: dict[str, Quantity] = {
    "test_error": Quantity(measure=_own("test_error"), scale=100, unit="%"),
    "train_loss": Quantity(measure=_own("train_loss")),
    "objective": Quantity(measure=_own("objective")),
    "test_loss": Quantity(measure=_own("test_loss")),
    "objective_ratio": _ratio("objective"),
    "train_loss_ratio": _ratio("train_loss"),
    "test_error_ratio": _ratio("test_error"),
    "test_error_difference": Quantity(measure=_error_difference, neutral=0, is_paired=True, held=EQUAL, unit=" points"),
    "speedup": Quantity(
        measure=_speedup, neutral=1, is_ratio=True, is_paired=True, counts_misses=True, held="in", unit=TIMES
    ),
    "epochs_equivalent": Quantity(measure=_epochs_equivalent),
    "gain_ratio": Quantity(measure=_gain_ratio, neutral=1, is_ratio=True),
    "time_overhead": Quantity(measure=_time_overhead, is_paired=True, is_timed=True, scale=100, unit="%"),
    "correlation": Quantity(measure=_correlation, neutral=0, probe="scores"),
    "squared_error_ratio": Quantity(measure=_squared_error_ratio, neutral=1, is_ratio=True, probe="scores", unit=TIMES),
    "relative_variance": Quantity(
        measure=_relative_variance, neutral=1, gain=-1, is_ratio=True, probe="gradient_variance"
    ),
    "share": Quantity(measure=_share, probe="loss_patterns", scale=100, unit="%"),
}
OPEN = {"reproduced": "better", "opposite sign": "worse", "not reproduced": "no difference shown"}  # claims of no paper


class Finding(NamedTuple):
    """What our runs say on a claim. The bounds are NaN below two seeds, and where a run missed its target.

    `misses` of the n seeds never reached the target of a speed-up, which makes its mean 0.
    """

    claim: Claim
    value: float
    low: float
    high: float
    n: int
    misses: int
    verdict: str
    sentence: str

    @property
    def quantity(self) -> Quantity:
        return QUANTITIES[self.claim.quantity]

    def ours(self) -> str:
        """Write our number with its interval."""
        if not self.n:
            return "\N{EN DASH}"
        if self.misses:
            return f"0{TIMES} ({self.misses} of {self.n} never get there)"
        low, high = (number(self.quantity.scale * bound) for bound in (self.low, self.high))
        return self.quantity.text(self.value) + ("" if math.isnan(self.low) else f" [{low}, {high}]")

    def arms(self) -> str:
        """Name the arm, and what it is compared with."""
        return self.claim.arm + (f" against {self.claim.baseline}" if self.quantity.is_paired else "")

    def published(self) -> str:
        """Write the published number."""
        return "\N{EN DASH}" if self.claim.published is None else self.quantity.text(self.claim.published)


def check(claim: Claim, runs: Runs) -> Finding:
    """Measure a claim on every seed that has what it needs, and judge it."""
    quantity = QUANTITIES[claim.quantity]
    is_timed = quantity.is_timed or (claim.axis == "seconds" and (quantity.is_paired or claim.at is not None))
    statuses = ENDED if quantity.counts_misses else ("finished",)
    involved = runs.runs[runs.runs["arm"].isin([claim.arm, *([claim.baseline] if quantity.is_paired else [])])]
    usable = involved[involved["alone"] | (involved["budget_unit"].ne("seconds") & (not is_timed))]
    arms = _by_seed(runs, usable[usable["arm"].eq(claim.arm) & usable["status"].isin(statuses)], quantity.probe)
    finished = usable[usable["arm"].eq(claim.baseline) & usable["status"].eq("finished")]
    baselines = _by_seed(runs, finished, None) if quantity.is_paired else dict.fromkeys(arms)
    values = np.array(
        [quantity.measure(run, baselines[key], claim, **claim.of) for key, run in arms.items() if key in baselines]
    )
    values = values[~np.isnan(values)]
    if quantity.is_ratio:
        value, low, high = geometric_interval(values)
    else:
        value, half_width, _ = t_interval(values)
        low, high = value - half_width, value + half_width
    left_out = {
        "did not count (diverged, failed or unfinished)": (~involved["status"].isin(statuses)).sum(),
        "shared the machine": len(involved) - len(usable),
    }
    misses = int((values == 0).sum()) if quantity.counts_misses else 0
    verdict = judge(quantity, claim.published, low, high, len(values))
    verdict = OPEN.get(verdict, verdict) if claim.is_open else verdict
    if not len(values) and left_out["shared the machine"]:
        verdict = "not timed"
    finding = Finding(claim, value, low, high, len(values), misses, verdict, "")
    return finding._replace(sentence=_sentence(finding, involved, left_out))


def judge(quantity: Quantity, published: float | None, low: float, high: float, n: int) -> str:
    """Return the verdict that the interval [low, high] of n seeds allows."""
    if n < 2:
        return "one seed" if n else "not run"
    if quantity.neutral is None or published == quantity.neutral:
        if published is None:
            return "no number published"
        return "agrees" if low <= published <= high else "differs"
    # Mirrored where the published effect lies below neutral, so that more effect is always more.
    sign = quantity.gain if published is None else math.copysign(1, published - quantity.neutral)
    least, most = sorted((sign * (low - quantity.neutral), sign * (high - quantity.neutral)))
    if most < 0:
        return "opposite sign"
    if not least > 0:  # NaN bounds included: a miss is no effect shown
        return "not reproduced"
    is_reached = published is None or most >= abs(published - quantity.neutral)
    return "reproduced" if is_reached else "same direction, smaller"


def _by_seed(runs: Runs, chosen: pd.DataFrame, probe: str | None) -> dict[tuple[str, str, int], Run]:
    """Return the runs that have evaluations (rows of a probe, where one is named), by data set, model and seed."""
    found = {}
    for _, run in chosen.iterrows():
        curve = runs.rows[runs.rows["run_id"] == run["run_id"]]
        probed = runs.probes[runs.probes["run_id"] == run["run_id"]]
        if len(probed if probe else curve):
            found[run["dataset"], run["model"], run["seed"]] = Run(curve, probed)
    return found


def _sentence(finding: Finding, involved: pd.DataFrame, left_out: dict[str, int]) -> str:
    claim = finding.claim
    text = claim.text if f"({claim.arm})" in claim.text else f"{claim.text} ({finding.arms()})"
    without = ", ".join(f"{count} of {len(involved)} runs {why}" for why, count in left_out.items() if count)
    if not finding.n:
        return f"{text}: {finding.verdict}{f' ({without})' if without else ''}."
    place = "" if claim.at is None else f" ({claim.at:g})"
    held = f" {finding.quantity.held} {claim.axis}{place}" if finding.quantity.held else ""
    setting = f"On {setting_of(involved, finding.n)}: {text}: {finding.ours()}{held}"
    published = f", published {finding.published()}" if claim.published is not None else ""
    verdict = "one seed, no interval" if finding.verdict == "one seed" else finding.verdict
    return f"{setting}{published}: {verdict}.{f' {without}.' if without else ''}"


def setting_of(runs: pd.DataFrame, n: int) -> str:
    """Name data, model, budget, n and hardware of runs, for a sentence."""
    started = runs[runs["status"] != "skipped"]
    data = (started["dataset"] + " (" + started["provenance"] + ")").unique()
    hardware = {_hardware(run) for _, run in started.iterrows()}
    parts = [*sorted(data), *sorted(started["model"].unique()), *sorted(started["budget"].unique())]
    return ", ".join([*parts, f"n={n}", *sorted(hardware)])


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
                "claim": finding.claim.text,
                "arms": finding.arms(),
                "published": finding.published(),
                "ours [95 %]": finding.ours(),
                "n": str(finding.n),
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
            **{key: _plain(getattr(finding, key)) for key in ("value", "low", "high")},
            "n": finding.n,
            "misses": finding.misses,
            "arms": finding.arms(),
            "ours": finding.ours(),
            "reported": finding.published(),
            "verdict": finding.verdict,
            "sentence": finding.sentence,
        }
        for finding in findings
    ]


def _plain(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
