"""The shift of the budget curve: the budget that uniform needs for a method's final error, over the method's own.

Every run is trained to the end of its own schedule, so the statistic hangs on no first hit of a target. Between budgets
the logarithm of the error is linear in the logarithm of the budget, seed by seed; nothing is extrapolated.

A factor f is judged by gaps: seed by seed, the logarithm of uniform's error at f times the method's budget, less that
of the method's error. The interval reaches from the lowest to the highest f at which a t-test of the gaps over seeds
shows no difference. At the true f that test is exact whatever the slope of the curve, so the interval needs no large n,
and it is open where it reaches an end of uniform's curve. The estimate is where the mean gap is 0, once its values are
put in falling order. Several budgets of a method share one f: a seed's gap is their mean, over those for which f is on
the curve. A run that diverged has a rank but no logarithm: with one of them a sign test takes the t-test's place.

Where the truth is known the 95 % interval holds it in 95.7, 95.0 and 95.3 % of 4,000 experiments of 3, 5 and 10 seeds:
python -c "from tests.test_budget_curve import coverage; print([coverage(n, 4000) for n in (3, 5, 10)])"
"""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import bdtr, stdtrit

from isbench.recording.record import ENDED, UNIT_COLUMNS
from isbench.report.load import Runs
from isbench.report.measures import Centre, Sample

STEP = 0.005  # between the factors tested, in logarithms
ROUNDING = 1e-9  # what of a gap in logarithms is no gap
SMALLEST = 1e-6  # stands for an error of 0, which has no logarithm


class Shift(NamedTuple):
    """A speed-up over a baseline, its interval, the number of paired seeds, and the level that the interval attains.

    Where `censored` is "at least" or "at most" the curves do not meet: `speedup` is the last factor on the baseline's
    curve. An interval without an end within the curve has the bound 0 or infinity. Below two seeds bounds are NaN. `p`
    is two-sided, of a factor of `null`; it is NaN where that is not on the curve. With `is_ranked` the speed-up is a
    median, and the interval is from ranks.
    """

    speedup: float
    low: float
    high: float
    n: int
    censored: str
    level: float
    p: float
    is_ranked: bool = False

    def centre(self) -> Centre:
        """Return the speed-up as a centre with its interval; where the curves do not meet, by its bounds."""
        least = 0.0 if self.censored == "at most" else self.speedup
        most = np.inf if self.censored == "at least" else self.speedup
        return Centre(least, most, self.low, self.high, self.level, is_median=self.is_ranked)


def curve_shift(baseline: pd.DataFrame, method: pd.DataFrame, level: float = 0.95, null: float = 1.0) -> Shift:
    """Return how far the curve of final errors of `method` lies before that of `baseline`, as a factor of budget.

    Both have one row per run: `seed`, `budget` (its name), `place` (what it cost, in the same unit in both) and `error`
    (a fraction; 1 if it diverged). A seed that lacks one of the budgets, or the place of a run, is left out.

    Raises ValueError where a seed has two runs of one budget.
    """
    wide = [table.pivot(index="seed", columns="budget", values=["place", "error"]) for table in (baseline, method)]
    pairs = pd.concat(wide, axis=1, join="inner", keys=["baseline", "method"]).dropna()
    n = len(pairs)
    nothing = Shift(np.nan, np.nan, np.nan, 0, "", np.nan, np.nan)
    if not n:
        return nothing
    curve, own = pairs["baseline"], pairs["method"]
    errors = pd.concat([curve["error"], own["error"]], axis=1).to_numpy()
    factors, gaps = _gaps(*(_logs(side[name]) for side in (curve, own) for name in ("place", "error")))
    if not len(factors):  # of one budget, when the seeds' places differ
        return nothing
    is_ranked = bool(((errors <= 0) | (errors >= 1)).any())
    centre, lower, upper, attained = _over_seeds(gaps, is_ranked, level)
    # The length over which the mean gap is above 0, which is where it crosses 0 once its values are put in order.
    above = np.maximum(centre, 0)
    shares = (above[:-1] + above[1:]) / np.maximum(abs(centre[:-1]) + abs(centre[1:]), ROUNDING)
    first, last = factors[[0, -1]]
    crossing = first + shares @ np.diff(factors)
    least, most = _fall(factors, lower, -np.inf, last), -_fall(-factors[::-1], -upper[::-1], -np.inf, -first)
    speedup, low, high = np.exp([crossing, least, most]).tolist()
    if n == 1:
        low = high = attained = np.nan
    censored = "at least" if centre.min() > ROUNDING else "at most" if centre.max() < -ROUNDING else ""
    at_null = [np.interp(np.log(null), factors, own, np.nan, np.nan) for own in gaps]
    if is_ranked:
        sample = Sample([(-np.inf, gap) if gap < 0 else (gap, np.inf) for gap in at_null])
    else:
        sample = Sample([(gap, gap) for gap in at_null])
    p = float(np.clip(2 * min(sample.p_beyond(0, 1), sample.p_beyond(0, -1)), 0, 1))
    return Shift(speedup, low, high, n, censored, attained, p, is_ranked and n > 1)


def _logs(values: pd.DataFrame) -> np.ndarray:
    """Return logarithms, rounded so that equal budgets stay equal when they are shifted and shifted back."""
    return np.round(np.log(np.clip(values.to_numpy(float), SMALLEST, None)), 12)


def _gaps(
    places: np.ndarray, errors: np.ndarray, own: np.ndarray, own_errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return factors (G,) in ascending order and what the baseline's error there has over the method's (n, G).

    All are logarithms, those given (n, budgets). Where no budget of the method is on the curve there is no factor.
    """
    corners = (places[:, :, None] - own[:, None, :]).ravel()
    factors = np.union1d(corners, np.arange(corners.min(), corners.max(), STEP))
    order = np.argsort(places, axis=1)
    places, errors = np.take_along_axis(places, order, 1), np.take_along_axis(errors, order, 1)
    gaps = np.array(
        [
            [
                np.interp(np.round(factors + start, 12), x, y, np.nan, np.nan) - end
                for start, end in zip(*mine, strict=True)
            ]
            for x, y, *mine in zip(places, errors, own, own_errors, strict=True)
        ]
    )  # (n, budgets of the method, G)
    on_curve = ~np.isnan(gaps).any(axis=0)
    is_tested = on_curve.any(axis=0)
    means = np.where(on_curve, gaps, 0).sum(axis=1) / np.maximum(on_curve.sum(axis=0), 1)
    return factors[is_tested], means[:, is_tested]


def _over_seeds(gaps: np.ndarray, is_ranked: bool, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return the centre of each column of (n, G), the bounds of its interval, and the level which that attains.

    It is the mean with Student's t, or the median with the order statistics of the sign test: at best 75 % for n = 3.
    """
    n = len(gaps)
    if not is_ranked:
        centre = gaps.mean(axis=0)
        half_width = stdtrit(n - 1, (1 + level) / 2) * gaps.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.inf
        return centre, centre - half_width, centre + half_width, level
    ordered = np.sort(gaps, axis=0)
    attained = 1 - 2 * bdtr(np.arange((n + 1) // 2), n, 0.5)
    rank = max(int((attained >= level).sum()) - 1, 0)
    return np.median(gaps, axis=0), ordered[rank], ordered[n - 1 - rank], float(attained[rank])


def _fall(places: np.ndarray, values: np.ndarray, before: float, after: float) -> float:
    """Return where `values` first fall to 0: `before` if they start there or below, `after` if they never do."""
    hits = np.flatnonzero(values <= 0)
    if not len(hits):
        return after
    hit = hits[0]
    if hit == 0:
        return before
    share = values[hit - 1] / (values[hit - 1] - values[hit])
    return float(places[hit - 1] + share * (places[hit] - places[hit - 1]))


FACTOR = r"(_[\d.]+x)?"  # what follows the name of an arm that is another one at another budget, `uniform_0.25x`


def is_budget_of(arms: pd.Series, arm: str) -> pd.Series:
    """Say which arms are this one at some budget: it itself, or its name with a factor."""
    return arms.str.fullmatch(re.escape(arm) + FACTOR)


def whole(arms: pd.Series) -> pd.Series:
    """Return the arms without the factors of their budgets."""
    return arms.str.replace(f"{FACTOR}$", "", regex=True)


def final_errors(runs: Runs, arm: str, axis: str) -> pd.DataFrame:
    """Return the ended runs of an arm: `seed` (with data and model), `budget`, `place`, `error`, `seconds`.

    An experiment has an arm for each budget, so `uniform_0.25x`, `uniform_2x` and `uniform` all are the arm `uniform`.
    `place` is where the run ended on the axis, a key of UNIT_COLUMNS. A run that diverged has error 1 and the median
    place of the finished runs of its budget. `seconds` is NaN unless the run finished alone on the machine, and so then
    is a `place` in seconds.
    """
    last = runs.rows.drop_duplicates("run_id", keep="last")[["run_id", UNIT_COLUMNS[axis], "test_error"]]
    ended = runs.runs[is_budget_of(runs.runs["arm"], arm) & runs.runs["status"].isin(ENDED)]
    ended = ended.merge(last, on="run_id", how="left")
    finished = ended["status"].eq("finished")
    seconds = ended["seconds"].where(finished & ended["alone"])
    place = seconds if axis == "seconds" else ended[UNIT_COLUMNS[axis]].where(finished)
    usual = place.groupby([ended[name] for name in ("dataset", "model", "budget")]).transform("median")
    return pd.DataFrame(
        {
            "seed": ended["dataset"] + " " + ended["model"] + " " + ended["seed"].astype(str),
            "budget": ended["budget"],
            "place": place.where(finished, usual),
            "error": ended["test_error"].where(finished, 1.0),
            "seconds": seconds,
        }
    )


def budget_shift(
    runs: Runs,
    arm: str,
    baseline: str = "uniform",
    axis: str = "seconds",
    budget: str | None = None,
    null: float = 1.0,
) -> Shift:
    """Return the speed-up of an arm over a baseline, from runs that differ in budget.

    In seconds only runs that had the machine to themselves count. On another axis a method's budget is multiplied by
    its seconds per unit over the baseline's, both from the runs of that seed that were alone; a seed without them does
    not count.

    Args:
        budget: the one budget of the arm to judge, as `runs` describes it (`700 updates`); None takes all together,
            which blurs what a reader wants to know where their speed-ups differ.
        null: the speed-up that p tests.
    """
    curve, method = (final_errors(runs, name, axis) for name in (baseline, arm))
    if axis != "seconds":
        method["place"] *= method["seed"].map(_seconds_per_unit(method) / _seconds_per_unit(curve))
    return curve_shift(curve, method if budget is None else method[method["budget"].eq(budget)], null=null)


def _seconds_per_unit(table: pd.DataFrame) -> pd.Series:
    sums = table.dropna().groupby("seed")[["seconds", "place"]].sum()
    return sums["seconds"] / sums["place"]
