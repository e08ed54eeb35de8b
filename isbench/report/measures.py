"""What the curves say: values at equal seconds, seconds to a target, speed-up over a baseline, with intervals.

Curves are interpolated linearly between evaluations and never extrapolated. All methods are compared within one data
set and model, paired by seed. A run that misses the target is counted, never dropped: its time is at least what it ran.
Intervals are Student-t at 95 % over seeds, of ratios on their logs. Where a value is known by bounds alone, or a run
diverged, they are those of the median, from ranks. Where no run had the machine to itself, seconds say nothing, and
runs are compared at equal epochs.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import bdtr, stdtr, stdtrit

from isbench.recording.record import ENDED
from isbench.report.load import AT, Runs
from isbench.report.names import task, written

AT_ONE_PLACE = ("test_error", "train_loss", "updates", "examples_trained", "examples_scored")
OUTCOMES = ("faster", "slower", "inconclusive", "one seed", "not timed", "not run")


class Interval(NamedTuple):
    """A mean with the half-width of its interval (NaN below two values)."""

    mean: float
    half_width: float
    n: int


class Bounds(NamedTuple):
    """The least and the most that a value can be: equal where it is known."""

    least: float
    most: float


UNKNOWN = Bounds(float("nan"), float("nan"))


class Centre(NamedTuple):
    """A mean, or a median, with its interval at `level` (NaN below two values)."""

    least: float
    most: float
    low: float
    high: float
    level: float
    is_median: bool = False

    @property
    def value(self) -> float:
        """The centre where it is known, else NaN."""
        return self.least if self.least == self.most else float("nan")


class Sample:
    """Values of one quantity over seeds, each between bounds; those that are NaN are left out.

    Where all are known, the centre is their mean and the interval Student's, of ratios on logs. Else it is the median,
    with the narrowest interval between order statistics that reaches 95 %; below six values the widest, at its level.
    """

    def __init__(self, values: Sequence[tuple[float, float]], is_ratio: bool = False) -> None:
        known = np.array(values, dtype=float).reshape(-1, 2)
        self.is_ratio = is_ratio
        self.least, self.most = self._scaled(known[~np.isnan(known).any(axis=1)]).T
        self.is_known = bool(np.isfinite(self.least).all() and (self.least == self.most).all())
        self.n = len(self.least)

    def centre(self, level: float = 0.95) -> Centre:
        if self.is_known:
            mean, half_width, _ = t_interval(self.least, level)
            least = most = mean
            low, high = mean - half_width, mean + half_width
        else:
            lower, upper = np.sort(self.least), np.sort(self.most)
            first, second = (self.n - 1) // 2, self.n // 2
            if np.isinf(lower[first]) or np.isinf(upper[second]):
                least, most = lower[first], upper[second]  # between which any median of theirs lies
            else:
                least, most = (lower[first] + lower[second]) / 2, (upper[first] + upper[second]) / 2
            levels = [float(1 - 2 * bdtr(depth, self.n, 0.5)) for depth in range((self.n + 1) // 2)]
            depth = max((depth for depth, reached in enumerate(levels) if reached >= level), default=0)
            low, high = (lower[depth], upper[-1 - depth]) if self.n > 1 else (np.nan, np.nan)
            level = levels[depth]
        if self.is_ratio:
            least, most, low, high = np.exp((least, most, low, high))
        return Centre(float(least), float(most), float(low), float(high), level, not self.is_known)

    def p_beyond(self, bound: float, side: int) -> float:
        """Return the one-sided p of the centre lying above `bound` (side 1) or below (-1), by t or by signs."""
        place = float(self._scaled(np.array(bound)))
        if self.n < 2:
            return float("nan")
        if not self.is_known:
            beyond = self.least > place if side > 0 else self.most < place
            return float(bdtr(self.n - np.count_nonzero(beyond), self.n, 0.5))
        difference, error = side * (self.least.mean() - place), self.least.std(ddof=1) / np.sqrt(self.n)
        return float(stdtr(self.n - 1, -difference / error)) if error else float(difference <= 0)

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(values) if self.is_ratio else values


class Speedup(NamedTuple):
    """Baseline seconds over method seconds, paired by seed. The bounds are NaN where the seeds carry no 95 % interval.

    `ratio` is NaN where misses leave it unknown.
    """

    ratio: float
    low: float
    high: float
    n: int
    baseline_misses: int


def value_at(curve: pd.DataFrame, place: float, column: str, axis: str = "train_seconds") -> float:
    """Return `column` where `axis` is `place`, interpolated linearly; NaN before the first row or after the last."""
    places, values = (curve[name].to_numpy(float) for name in (axis, column))
    known = ~(np.isnan(places) | np.isnan(values))
    if not known.any():
        return float("nan")
    return float(np.interp(place, places[known], values[known], left=np.nan, right=np.nan))


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


def time_bounds(curve: pd.DataFrame, column: str, target: float, axis: str, diverged: bool) -> Bounds:
    """Return bounds of where `column` falls to a target: after the end for a miss, never after divergence."""
    reached = time_to_target(curve, column, target, axis)
    if np.isinf(reached) and not diverged:
        return Bounds(float(curve[axis].max()), reached)
    return Bounds(reached, reached)


def ratio_of(baseline: float, method: float) -> float:
    """Return baseline / method; 1 where they are equal, also at 0 / 0, and infinity over 0."""
    if baseline == method:
        return 1.0
    return float(np.divide(baseline, method)) if method else float("inf")


def ratio_bounds(baseline: Bounds, method: Bounds) -> Bounds:
    """Return the bounds of baseline / method from those of two times."""
    if np.isnan(baseline.least) or np.isnan(method.least):
        return UNKNOWN
    least = 0.0 if np.isinf(method.most) else ratio_of(baseline.least, method.most)
    return Bounds(least, float("inf") if np.isinf(baseline.most) else ratio_of(baseline.most, method.least))


def speedup_over(baseline_times: pd.Series, method_times: pd.Series) -> Speedup:
    """Compare bounds of the seconds to the target, both indexed by seed, over their common seeds."""
    pairs = pd.concat([baseline_times, method_times], axis=1, join="inner", keys=["baseline", "method"]).dropna()
    sample = Sample([ratio_bounds(*pair) for pair in pairs.itertuples(index=False)], is_ratio=True)
    centre = sample.centre()
    low, high = (centre.low, centre.high) if centre.level >= 0.95 else (float("nan"), float("nan"))
    misses = sum(bool(np.isinf(bounds.most)) for bounds in pairs["baseline"])
    return Speedup(centre.value, low, high, sample.n, misses)


def compare_arms(runs: Runs, baseline: str = "uniform", target: float | None = None) -> pd.DataFrame:
    """Return one row per (dataset, model, arm), the baseline first. Errors are fractions, `n` counts seeds.

    `seconds` is what every finished run has reached. There, error, loss, `updates`, `examples_trained` and
    `examples_scored` are means over seeds. `seconds_to_target` is the median, which stays defined while fewer than half
    of the runs miss. Runs that shared the machine with others are not counted: their seconds are not their own. Where
    all did, `epochs` stands in for `seconds`, which is NaN then, and nothing is said about speed.

    `paired` counts the seeds at which both it and its baseline ended, alone on the machine or not.

    Where settings were swept, an arm is compared with the baseline at its own settings; see `baselines`.

    Args:
        target: test error; None is the highest among the baseline's runs at equal seconds. Their mean would be missed
            by about half of them, and most speed-ups would have no interval.
    """
    lines: list[dict[str, Any]] = []
    for _, group in runs.runs.groupby(["dataset", "model"]):
        for reference, comparison in group.groupby(group["arm"].map(baselines(group["arm"], baseline))):
            lines += _compare(comparison, runs.rows, str(reference), target)
    return pd.DataFrame(lines)


def baselines(arms: Iterable[str], baseline: str) -> dict[str, str]:
    """Return the arm that each is compared with: where settings were swept, the baseline at the same settings.

    If only the baseline was run, all are compared with `baseline`, which may name settings too.
    """
    names = set(arms)
    own = {arm: AT.join([baseline, *arm.split(AT)[1:]]) for arm in names}
    return dict.fromkeys(names, baseline) if baseline in names or names <= set(own.values()) else own


def _compare(
    comparison: pd.DataFrame, rows: pd.DataFrame, baseline: str, target: float | None
) -> Iterator[dict[str, Any]]:
    """Yield a row of `compare_arms` for each arm of runs that are compared with one baseline."""
    ended = comparison[comparison["status"].isin(ENDED)]
    seeds = ended.groupby("arm")["seed"].agg(set)
    finished = ended[ended["status"] == "finished"]
    is_timed = finished.empty or bool(finished["alone"].any())
    axis = "train_seconds" if is_timed else "epoch"
    if is_timed:
        ended, finished = ended[ended["alone"]], finished[finished["alone"]]
    place = float(rows.groupby("run_id")[axis].max().reindex(finished["run_id"]).min())
    found = [rows[rows["run_id"] == run_id] for run_id in ended["run_id"]]
    values = [[value_at(curve, place, column, axis) for column in AT_ONE_PLACE] for curve in found]
    counted = ended.join(pd.DataFrame(values, index=ended.index, columns=list(AT_ONE_PLACE), dtype=float))
    is_baseline = counted["arm"] == baseline
    goal = float(counted.loc[is_baseline, "test_error"].max()) if target is None else target
    goal = goal if is_timed else float("nan")
    times = [
        time_bounds(curve, "test_error", goal, "train_seconds", status == "diverged")
        for curve, status in zip(found, ended["status"], strict=True)
    ]
    counted["time"] = pd.Series(times, ended.index, object)
    for arm in sorted(comparison["arm"].unique(), key=lambda name: (name != baseline, name)):
        statuses, mine = comparison.loc[comparison["arm"] == arm, "status"], counted[counted["arm"] == arm]
        yield {
            "dataset": comparison["dataset"].iloc[0],
            "model": comparison["model"].iloc[0],
            "arm": arm,
            "baseline": baseline,
            "seconds": place if is_timed else float("nan"),
            "target": goal,
            **_line(mine.set_index("seed"), counted[is_baseline].set_index("seed")),
            "diverged": int(statuses.eq("diverged").sum()),
            "not_counted": len(statuses) - len(mine),
            "paired": len(seeds.get(arm, set()) & seeds.get(baseline, set())),
            "epochs": float("nan") if is_timed else place,
        }


def _line(mine: pd.DataFrame, reference: pd.DataFrame) -> dict[str, Any]:
    difference = (mine["test_error"] - reference["test_error"]).dropna()
    intervals: dict[str, float] = {}
    lost = mine["status"].eq("diverged") & mine["test_error"].isna()  # it ranks worst, and leaves no mean
    for name, values in {**mine[["test_error"]], "error_difference": difference, **mine[["train_loss"]]}.items():
        intervals[name], intervals[f"{name}_half_width"], _ = t_interval(values)
        if lost.any():
            worst = [np.inf] * int(lost.sum())
            intervals[name], intervals[f"{name}_half_width"] = float(np.median([*values.dropna(), *worst])), np.nan
    speedup = speedup_over(reference["time"], mine["time"])
    seconds = np.array([bounds.most for bounds in mine["time"]], dtype=float)
    return {
        "n": int(mine["test_error"].count()),
        **intervals,
        "seconds_to_target": float(pd.Series(seconds).median()),
        "misses": int(np.isinf(seconds).sum()),
        "speedup": speedup.ratio,
        "speedup_low": speedup.low,
        "speedup_high": speedup.high,
        "speedup_n": speedup.n,
        "baseline_misses": speedup.baseline_misses,
        **{column: float(mine[column].mean()) for column in AT_ONE_PLACE[2:]},
    }


def outcome(row: pd.Series) -> str:
    """Return faster or slower where the interval of the speed-up excludes 1, else what is known instead."""
    if not row["speedup_n"]:
        return "not timed" if row["paired"] else "not run"
    if np.isnan(row["speedup_low"]):
        return "one seed" if row["speedup_n"] == 1 else "inconclusive"
    if row["speedup_low"] > 1:
        return "faster"
    return "slower" if row["speedup_high"] < 1 else "inconclusive"


def verdict(row: pd.Series) -> str:
    """Return one sentence on a row of `compare_arms`. It claims nothing that an interval does not show."""
    name, baseline, n = written(row["arm"]), written(row["baseline"]), row["speedup_n"]
    decided = outcome(row)
    if decided == "not run":
        return f"{name}: not run, no seed has runs of both this sampler and {baseline} that count."
    if decided == "not timed":
        return f"{name}: not timed, its runs or those of {baseline} shared the machine{_error_shown(row)}."
    if np.isnan(row["speedup_low"]):
        return f"{name}: {decided}, {_why_undecided(row)}."
    interval = f"95 % interval {row['speedup_low']:.2f} to {row['speedup_high']:.2f}"
    centre = "median speed-up unknown" if np.isnan(row["speedup"]) else f"speed-up {row['speedup']:.2f}"
    shown = f"{centre}, {interval}, n\u00a0=\u00a0{n}"
    if decided == "inconclusive":
        return f"{name}: inconclusive, neither clearly faster nor slower than {baseline} ({shown})."
    return f"{name}: {decided} than {baseline} to {row['target']:.2%} test error ({shown})."


def _why_undecided(row: pd.Series) -> str:
    baseline, n = written(row["baseline"]), row["speedup_n"]
    if row["misses"] or row["baseline_misses"]:
        return (
            f"{row['misses']} of its {n} runs and {row['baseline_misses']} of {baseline}'s never reach "
            f"{row['target']:.2%} test error{_error_shown(row)}"
        )
    return "one seed gives no interval" if n == 1 else "a run starts at the target, which leaves no ratio of seconds"


def _error_shown(row: pd.Series) -> str:
    gap, half_width = row["error_difference"], row["error_difference_half_width"]
    place = "at equal seconds" if np.isnan(row["epochs"]) else f"after {row['epochs']:.4g} epochs"
    if np.isnan(half_width):
        return ""
    if abs(gap) <= half_width:
        return f"; {place} the test errors do not clearly differ"
    return f"; {place} its test error is {abs(gap) * 100:.2f} points {'lower' if gap < 0 else 'higher'}"


def common_baseline(table: pd.DataFrame) -> str:
    """Return what all of `compare_arms` is compared with; where settings were swept, without them."""
    names = list(table["baseline"].unique())
    return str(names[0]).partition(AT)[0] if len(names) > 1 else str(names[0])


def headline(table: pd.DataFrame) -> str:
    """Return one sentence on all of `compare_arms`."""
    methods = table[table["arm"] != table["baseline"]]
    baseline = written(common_baseline(table))
    outcomes = methods.apply(outcome, axis=1) if len(methods) else pd.Series(dtype=object)
    if outcomes.eq("not run").all():
        return f"Nothing to compare yet: no seed has both a sampler and {baseline} finished."
    settings = methods[["dataset", "model"]].drop_duplicates()
    swept = methods["baseline"].nunique()
    where, what = task(*settings.iloc[0]), "samplers"
    if len(settings) > 1:
        where, what = f"{len(settings)} pairs of data set and model", "comparisons"
    elif swept > 1:
        where, what = f"{where} at {swept} settings", "comparisons"
    counts = {name: int((outcomes == name).sum()) for name in OUTCOMES}
    if counts["not timed"] == len(methods) - counts["not run"]:
        if methods["epochs"].isna().any():
            return f"On {where}, seconds are not compared: no seed has a sampler and {baseline} alone on the machine."
        gaps, half_widths = methods["error_difference"], methods["error_difference_half_width"]
        lower, higher = int((gaps + half_widths < 0).sum()), int((gaps - half_widths > 0).sum())
        return (
            f"On {where}, the runs shared the machine, so that seconds are not compared; after equal epochs, "
            f"{lower} of {len(methods)} {what} have a lower test error than {baseline}, and {higher} a higher one."
        )
    if not counts["faster"]:
        first = f"no sampler reaches the target error clearly sooner than {baseline}"
    else:
        best = methods[outcomes == "faster"].sort_values("speedup", ascending=False).iloc[0]
        first = (
            f"{counts['faster']} of {len(methods)} {what} reach the target error sooner than {baseline}, "
            f"{written(best['arm'])} soonest ({best['speedup']:.2f}\N{MULTIPLICATION SIGN}, "
            f"95 % interval {best['speedup_low']:.2f} to {best['speedup_high']:.2f}, n\u00a0=\u00a0{best['speedup_n']})"
        )
    words = {"inconclusive": "inconclusive (neither clearly faster nor slower)", "one seed": "with one seed alone"}
    others = [f"{counts[name]} {words.get(name, name)}" for name in OUTCOMES[1:] if counts[name]]
    return f"On {where}, {first}" + (f"; {', '.join(others)}." if others else ".")
