"""What the curves say: values at equal seconds, seconds to a target, speed-up over a baseline, with intervals.

Curves are interpolated linearly between evaluations and never extrapolated. All methods are compared within one data
set and model, paired by seed. A run that misses the target has infinite seconds to it: it is counted, never dropped.
Intervals are Student-t at 95 % over seeds; those of speed-ups are taken on log ratios.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from isbench.recording.record import ENDED
from isbench.report.load import Runs

AT_EQUAL_SECONDS = ("test_error", "train_loss", "updates", "examples_trained", "examples_scored")
OUTCOMES = ("faster", "slower", "no difference shown", "undecided", "not compared")


class Interval(NamedTuple):
    """A mean with the half-width of its interval (NaN below two values)."""

    mean: float
    half_width: float
    n: int


class Speedup(NamedTuple):
    """Baseline seconds over method seconds, paired by seed. The bounds are NaN unless every ratio is in (0, inf)."""

    ratio: float
    low: float
    high: float
    n: int
    baseline_misses: int


def value_at(curve: pd.DataFrame, place: float, column: str, axis: str = "train_seconds") -> float:
    """Return `column` where `axis` is `place`, interpolated linearly; NaN before the first row or after the last."""
    known = curve[[axis, column]].dropna()
    if known.empty:
        return float("nan")
    return float(np.interp(place, known[axis], known[column], left=np.nan, right=np.nan))


def time_to_target(curve: pd.DataFrame, column: str, target: float, axis: str = "train_seconds") -> float:
    """Return where on `axis` `column` first falls to `target`, interpolated between evaluations.

    It is infinity where it never does, and NaN where there is no target.
    """
    known = curve[[axis, column]].dropna()
    places, values = known[axis].to_numpy(), known[column].to_numpy()
    hits = np.flatnonzero(values <= target)
    if not len(hits):
        return float("nan" if np.isnan(target) else "inf")
    after = hits[0]
    if after == 0:
        return float(places[0])
    fraction = (values[after - 1] - target) / (values[after - 1] - values[after])
    return float(places[after - 1] + fraction * (places[after] - places[after - 1]))


def t_interval(values: Sequence[float] | np.ndarray | pd.Series, level: float = 0.95) -> Interval:
    """Return the mean of the values that are not NaN and the half-width of its Student-t interval."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    n = len(known)
    if n < 2:
        return Interval(float(known[0]) if n else float("nan"), float("nan"), n)
    quantile = stdtrit(n - 1, (1 + level) / 2)
    return Interval(float(known.mean()), float(quantile * known.std(ddof=1) / np.sqrt(n)), n)


def geometric_interval(ratios: Sequence[float] | np.ndarray | pd.Series) -> tuple[float, float, float]:
    """Return the geometric mean and the bounds of its Student-t interval on logs, NaN unless all are in (0, inf).

    The mean of ratios among which is a 0 is 0, or infinity where one is infinite; where both are, it is NaN.
    """
    known = np.asarray(ratios, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(known[~np.isnan(known)])
        centre = float(logs.mean()) if len(logs) else float("nan")
    half_width = t_interval(logs).half_width if np.isfinite(logs).all() else float("nan")
    low, high = np.exp((centre - half_width, centre + half_width)) if np.isfinite(half_width) else (np.nan, np.nan)
    return float(np.exp(centre)), float(low), float(high)


def ratio_of(baseline: float, method: float) -> float:
    """Return baseline / method of two times to a target: 0 and infinity for a miss of one, NaN where both miss.

    Equal times are a ratio of 1 also at 0 / 0: both stand at the target from their first evaluation.
    """
    if baseline == method:
        return 1.0 if np.isfinite(method) else float("nan")
    return float(np.divide(baseline, method)) if method else float("inf")


def speedup_over(baseline_times: pd.Series, method_times: pd.Series) -> Speedup:
    """Compare seconds to the target, both indexed by seed: the geometric mean of baseline / method over common seeds.

    A method that misses where the baseline arrives has ratio 0, and so has the mean; the reverse gives infinity. Where
    both miss, or the two cases mix, nothing is known of the mean and it is NaN.
    """
    pairs = pd.concat([baseline_times, method_times], axis=1, join="inner", keys=["baseline", "method"]).dropna()
    baseline, method = pairs["baseline"].to_numpy(float), pairs["method"].to_numpy(float)
    ratios = np.array(list(map(ratio_of, baseline, method)))
    ratio, low, high = (np.nan,) * 3 if np.isnan(ratios).any() else geometric_interval(ratios)
    return Speedup(ratio, low, high, len(pairs), int(np.isinf(baseline).sum()))


def compare_arms(runs: Runs, baseline: str = "uniform", target: float | None = None) -> pd.DataFrame:
    """Return one row per (dataset, model, arm), the baseline first. Errors are fractions, `n` counts seeds.

    `seconds` is what every finished run has reached. There, error, loss, `updates`, `examples_trained` and
    `examples_scored` are means over seeds. `seconds_to_target` is the median, which stays defined while fewer than half
    of the runs miss. Runs that shared the machine with others are not counted: their seconds are not their own.

    Args:
        target: test error; None is the highest among the baseline's runs at equal seconds. Their mean would be missed
            by about half of them, and most speed-ups would have no interval.
    """
    curves = {str(run_id): curve for run_id, curve in runs.rows.groupby("run_id")}
    lines = []
    for (dataset, model), comparison in runs.runs.groupby(["dataset", "model"]):
        ended = comparison[comparison["status"].isin(ENDED) & comparison["alone"]]
        seconds = float(ended.loc[ended["status"] == "finished", "seconds"].min())
        found = [curves.get(run_id, runs.rows.iloc[:0]) for run_id in ended["run_id"]]
        values = [[value_at(curve, seconds, column) for column in AT_EQUAL_SECONDS] for curve in found]
        counted = ended.join(pd.DataFrame(values, index=ended.index, columns=list(AT_EQUAL_SECONDS), dtype=float))
        is_baseline = counted["arm"] == baseline
        goal = float(counted.loc[is_baseline, "test_error"].max()) if target is None else target
        counted["time"] = pd.Series([time_to_target(curve, "test_error", goal) for curve in found], ended.index, float)
        for arm in sorted(comparison["arm"].unique(), key=lambda name: (name != baseline, name)):
            statuses, mine = comparison.loc[comparison["arm"] == arm, "status"], counted[counted["arm"] == arm]
            lines.append(
                {
                    "dataset": dataset,
                    "model": model,
                    "arm": arm,
                    "baseline": baseline,
                    "seconds": seconds,
                    "target": goal,
                    **_line(mine.set_index("seed"), counted[is_baseline].set_index("seed")),
                    "diverged": int(statuses.eq("diverged").sum()),
                    "not_counted": len(statuses) - len(mine),
                }
            )
    return pd.DataFrame(lines)


def _line(mine: pd.DataFrame, reference: pd.DataFrame) -> dict[str, Any]:
    difference = (mine["test_error"] - reference["test_error"]).dropna()
    intervals: dict[str, float] = {}
    for name, values in {**mine[["test_error"]], "error_difference": difference, **mine[["train_loss"]]}.items():
        intervals[name], intervals[f"{name}_half_width"], _ = t_interval(values)
    speedup = speedup_over(reference["time"], mine["time"])
    return {
        "n": int(mine["test_error"].count()),
        **intervals,
        "seconds_to_target": float(mine["time"].median()),
        "misses": int(np.isinf(mine["time"]).sum()),
        "speedup": speedup.ratio,
        "speedup_low": speedup.low,
        "speedup_high": speedup.high,
        "speedup_n": speedup.n,
        "baseline_misses": speedup.baseline_misses,
        **{column: float(mine[column].mean()) for column in AT_EQUAL_SECONDS[2:]},
    }


def outcome(row: pd.Series) -> str:
    """Return faster or slower where the interval of the speed-up excludes 1, else what is known instead."""
    if not row["speedup_n"]:
        return "not compared"
    if np.isnan(row["speedup_low"]):
        return "undecided"
    if row["speedup_low"] > 1:
        return "faster"
    return "slower" if row["speedup_high"] < 1 else "no difference shown"


def verdict(row: pd.Series) -> str:
    """Return one sentence on a row of `compare_arms`. It claims nothing that an interval does not show."""
    name, baseline, n = row["arm"], row["baseline"], row["speedup_n"]
    decided = outcome(row)
    if decided == "not compared":
        return f"{name}: not compared, no seed has runs of both this sampler and {baseline} that count."
    if decided == "undecided":
        return f"{name}: undecided, {_why_undecided(row)}."
    interval = f"95 % interval {row['speedup_low']:.2f} to {row['speedup_high']:.2f}"
    shown = f"speed-up {row['speedup']:.2f}, {interval}, n\u00a0=\u00a0{n}"
    if decided == "no difference shown":
        return f"{name}: no difference in speed from {baseline} is shown at this n ({shown})."
    return f"{name}: {decided} than {baseline} to {row['target']:.2%} test error ({shown})."


def _why_undecided(row: pd.Series) -> str:
    baseline, n = row["baseline"], row["speedup_n"]
    if row["misses"] or row["baseline_misses"]:
        return (
            f"a target of {row['target']:.2%} test error is missed in {row['misses']} of its runs and in "
            f"{row['baseline_misses']} of {n} runs of {baseline}{_error_shown(row)}"
        )
    return "one seed gives no interval" if n == 1 else "a run starts at the target, which leaves no ratio of seconds"


def _error_shown(row: pd.Series) -> str:
    gap, half_width = row["error_difference"], row["error_difference_half_width"]
    if np.isnan(half_width):
        return ""
    if abs(gap) <= half_width:
        return "; at equal seconds no difference in test error is shown"
    return f"; at equal seconds its test error is {abs(gap) * 100:.2f} points {'lower' if gap < 0 else 'higher'}"


def headline(table: pd.DataFrame) -> str:
    """Return one sentence on all of `compare_arms`."""
    methods = table[table["arm"] != table["baseline"]]
    baseline = table["baseline"].iloc[0]
    if methods.empty or not methods["speedup_n"].any():
        return f"Nothing to compare yet: no seed has both a sampler and {baseline} finished."
    outcomes = methods.apply(outcome, axis=1)
    settings = methods[["dataset", "model"]].drop_duplicates()
    where, what = " with ".join(settings.iloc[0]), "samplers"
    if len(settings) > 1:
        where, what = f"{len(settings)} pairs of data set and model", "comparisons"
    counts = {name: int((outcomes == name).sum()) for name in OUTCOMES}
    if not counts["faster"]:
        first = f"no sampler is shown to reach the target error in less time than {baseline}"
    else:
        best = methods[outcomes == "faster"].sort_values("speedup", ascending=False).iloc[0]
        first = (
            f"{counts['faster']} of {len(methods)} {what} reach the target error in less time than {baseline}, "
            f"{best['arm']} soonest ({best['speedup']:.2f}\N{MULTIPLICATION SIGN}, "
            f"95 % interval {best['speedup_low']:.2f} to {best['speedup_high']:.2f}, n\u00a0=\u00a0{best['speedup_n']})"
        )
    others = [f"{counts[name]} {name.replace('no ', 'without a ')}" for name in OUTCOMES[1:] if counts[name]]
    return f"On {where}, {first}" + (f"; {', '.join(others)}." if others else ".")
