"""Learning curves over seeds, and how matplotlib draws them; pages draw the same numbers (isbench.report.charts).

A line is the mean over seeds on a common grid, a band its 95 % Student-t interval, a thin line one seed. On a
logarithmic axis both are of logarithms. An arm of one seed has no mean: it is drawn with open marks. Means stop where
the first seed stops. A run that shared the machine is not drawn against seconds. The untrained network is left out
where it would take most of the axis. Colours are from Wong's (Nature Methods 2011) and Tol's colour-blind safe sets,
fixed per sampler; a dash tells apart those whose colours are close.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from isbench.report.load import Runs
from isbench.report.measures import t_interval
from isbench.report.names import counted, task, written

Drawn = tuple[Figure, pd.DataFrame]  # a figure, and the data behind it
Drawing = Callable[[Runs], Drawn]
INK, GRID = "#1d2430", "#e4e7ec"
GRID_POINTS = 81
MARKS = 16  # on the line of one seed at most


class Style(NamedTuple):
    """How an arm is drawn, in figures and on pages."""

    colour: str
    dash: str  # matplotlib's name


STYLES = {
    "uniform": Style("#222222", "solid"),
    "upper_bound": Style("#0072b2", "solid"),
    "loss": Style("#d55e00", "solid"),
    "gradient_norm": Style("#009e73", "solid"),
    "rais": Style("#aa4499", "solid"),
    "impon": Style("#e69f00", "solid"),
    "impon_low": Style("#e69f00", "dashed"),
    "online_batch_selection": Style("#56b4e9", "solid"),
    "selective_backprop": Style("#882255", "solid"),
    "prioritized": Style("#999933", "solid"),
    "p_sgd": Style("#332288", "dashed"),
    "c_sgd": Style("#44aa99", "dashed"),
    "sgd_s": Style("#cc6677", "dashed"),
    "oracle": Style("#777777", "dotted"),
    "loss_predictor": Style("#d55e00", "dotted"),
    "rho_loss": Style("#117733", "dashed"),
    "infobatch": Style("#56b4e9", "dashed"),
    "screen": Style("#cc3311", "solid"),
    "order_dp": Style("#999933", "dotted"),
}
SPARE = [
    Style(colour, dash)
    for dash in ("dashdot", "dotted")
    for colour in ("#0072b2", "#009e73", "#aa4499", "#e69f00", "#56b4e9", "#882255", "#999933", "#332288")
]


class Column(NamedTuple):
    """A column as it is drawn."""

    column: str
    label: str
    scale: float = 1.0


ERROR = Column("test_error", "Test error (%)", 100.0)
LOSS = Column("train_loss", "Train loss")
OBJECTIVE = Column("objective", "Objective")
DIFFERENCE = Column("error_difference", "Difference in test error (points)", 100.0)
SECONDS = Column("train_seconds", "Training time (s)")
UPDATES = Column("updates", "Updates")
EPOCHS = Column("epoch", "Epochs")
AXES = (SECONDS, UPDATES, EPOCHS)

MATPLOTLIB: Any = {
    "svg.hashsalt": "isbench",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#98a1b0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": "#5b6675",
    "ytick.color": "#5b6675",
    "legend.frameon": False,
}


def styles(arms: Iterable[str]) -> dict[str, Style]:
    """Give every arm its style: fixed for the known names; spare ones, unused colours first, for the others by name."""
    names = sorted(set(arms))
    used = {STYLES[name].colour for name in names if name in STYLES}
    spare = cycle(sorted(SPARE, key=lambda style: style.colour in used))
    return {name: STYLES.get(name) or next(spare) for name in names}


class Band(NamedTuple):
    """A mean over seeds with its interval, on a common grid (the bounds are NaN for a single seed)."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def band(curves: Sequence[pd.DataFrame], x: Column, y: Column, floor: float = -np.inf, is_log: bool = False) -> Band:
    """Average the seeds' curves where all of them have values, of their logarithms with `is_log`.

    Between evaluations a seed's curve is the straight line that is drawn. The lower bound is cut at `floor`.
    """
    known = [part for curve in curves if len(part := curve[[x.column, y.column]].dropna())]
    if not known:
        return Band(*[np.empty(0)] * 4)
    start, stop = max(c[x.column].iloc[0] for c in known), min(c[x.column].iloc[-1] for c in known)
    grid = np.linspace(start, stop, GRID_POINTS) if start < stop else np.empty(0)
    scale, inverse = (np.log, np.exp) if is_log else (np.asarray, np.asarray)
    values = np.array([np.interp(grid, c[x.column], scale(c[y.column] * y.scale)) for c in known])
    intervals = np.array([t_interval(column)[:2] for column in values.T]).reshape(-1, 2)
    mean, half_width = intervals.T
    low, high = inverse(mean - half_width), inverse(mean + half_width)
    return Band(grid, inverse(mean), np.maximum(low, floor), high)


def is_single(mean: Band) -> bool:
    """Say whether a mean is of one seed."""
    return bool(len(mean.x) and np.isnan(mean.low).all())


class Comparison(NamedTuple):
    """The curves of one data set and model, by arm; `finished` and `alone` are the run_ids of which that is true."""

    dataset: str
    model: str
    rows: pd.DataFrame
    arms: dict[str, list[pd.DataFrame]]
    finished: frozenset[str]
    alone: frozenset[str]
    baseline: str = "uniform"

    @property
    def title(self) -> str:
        return task(self.dataset, self.model)

    def quantities(self) -> tuple[Column, ...]:
        """Return what there is to draw: differences where there is a baseline, the objective where it has a penalty."""
        has_penalty = (self.rows["objective"] - self.rows["train_loss"]).abs().gt(0).any()
        objective = (OBJECTIVE,) if has_penalty else ()
        return (ERROR, *([DIFFERENCE] if self.baseline in self.arms and len(self.arms) > 1 else []), LOSS, *objective)

    def names(self, y: Column) -> list[str]:
        """Return the arms of which `y` is drawn: differences of all but the baseline."""
        return [arm for arm in self.arms if y is not DIFFERENCE or arm != self.baseline]

    def of(self, arms: Iterable[str], baseline: str) -> "Comparison | None":
        """Return the curves of some arms, those of `baseline` first; None where they have none."""
        names = sorted(set(arms) & set(self.arms), key=lambda name: (name != baseline, name))
        rows = self.rows[self.rows["arm"].isin(names)]
        return (
            self._replace(rows=rows, arms={arm: self.arms[arm] for arm in names}, baseline=baseline) if names else None
        )

    def seeds(self, arm: str, x: Column) -> list[pd.DataFrame]:
        """Return an arm's curves that may be drawn against `x`."""
        return [curve for curve in self.arms[arm] if x is not SECONDS or curve["run_id"].iloc[0] in self.alone]

    def lines(self, arm: str, x: Column, y: Column) -> list[pd.DataFrame]:
        """Return what is drawn of an arm's seeds."""
        if y is DIFFERENCE:
            return list(self._differences(arm, x))
        curves = self.seeds(arm, x)
        return [curve[curve["updates"] > 0] for curve in curves] if self.skips_start(y) else curves

    def counted(self, lines: list[pd.DataFrame]) -> list[pd.DataFrame]:
        """Return those whose mean is drawn: of runs that finished, where there are any."""
        known = [line for line in lines if len(line)]
        return [line for line in known if line["run_id"].iloc[0] in self.finished] or known

    def axes(self) -> tuple[Column, ...]:
        """Return what the curves may be drawn against."""
        return AXES if self.is_timed() else (UPDATES, EPOCHS)

    def is_timed(self) -> bool:
        """Say whether every arm has a curve that may be drawn against seconds."""
        return all(self.seeds(arm, SECONDS) for arm in self.arms)

    def is_log(self, y: Column) -> bool:
        """Say whether a logarithmic axis suits `y`: all positive, those after the start over a factor of four."""
        if y is DIFFERENCE:
            return False
        updates, values = self._recorded(y)
        later = values[updates > 0]
        return len(later) > 0 and bool(values.min() > 0 and later.max() > 4 * later.min())

    def skips_start(self, y: Column) -> bool:
        """Say whether the untrained network would take more than a quarter of the axis."""
        updates, values = self._recorded(y)
        values = np.log(values) if self.is_log(y) else values
        later = values[updates > 0]
        return len(later) > 1 and bool(np.ptp(values) > 4 / 3 * np.ptp(later) > 0)

    def _recorded(self, y: Column) -> tuple[np.ndarray, np.ndarray]:
        """Return the updates and values of all evaluations that have one."""
        updates, values = (self.rows[name].to_numpy(float) for name in ("updates", y.column))
        is_known = ~np.isnan(values)
        return updates[is_known], values[is_known]

    def band(self, arm: str, x: Column, y: Column) -> Band:
        """Return an arm's mean, with its band."""
        floor = -np.inf if y is DIFFERENCE else 0.0
        return band(self.counted(self.lines(arm, x, y)), x, y, floor, self.is_log(y))

    def _differences(self, arm: str, x: Column) -> Iterable[pd.DataFrame]:
        """Yield, per seed, the test error minus that of the baseline where both have one, up to the first one's end."""
        start = {curve["seed"].iloc[0]: curve for curve in self.lines(self.baseline, x, ERROR) if len(curve)}
        for own in self.lines(arm, x, ERROR):
            other = start.get(own["seed"].iloc[0]) if len(own) else None
            if other is not None:
                places = own[x.column].clip(upper=other[x.column].iloc[-1])
                error = [np.interp(places, c[x.column], c[ERROR.column], left=np.nan) for c in (own, other)]
                found = own.assign(**{x.column: places, DIFFERENCE.column: error[0] - error[1]})
                yield found.dropna(subset=[DIFFERENCE.column]).drop_duplicates(x.column)


def comparisons(runs: Runs, baseline: str = "uniform") -> list[Comparison]:
    """Split the runs into the sets of curves that belong in one figure, the baseline first within each."""
    finished = frozenset(runs.runs.loc[runs.runs["status"] == "finished", "run_id"])
    found = []
    for (dataset, model), rows in runs.rows.groupby(["dataset", "model"]):
        ids = runs.runs["run_id"].isin(rows["run_id"])
        alone = frozenset(runs.runs.loc[ids & runs.runs["alone"], "run_id"])
        names = sorted(rows["arm"].unique(), key=lambda name: (name != baseline, name))
        arms = {name: [curve for _, curve in rows[rows["arm"] == name].groupby("run_id")] for name in names}
        found.append(Comparison(str(dataset), str(model), rows, arms, finished, alone, baseline))
    return found


def draw_comparison(panel: Axes, comparison: Comparison, x: Column, y: Column, style_of: dict[str, Style]) -> None:
    """Draw the arms of a comparison on one pair of axes, and say how many runs are left out."""
    arms = comparison.names(y)
    bands = {arm: comparison.band(arm, x, y) for arm in arms}
    for arm in reversed(arms):  # the baseline on top
        draw_band(panel, written(arm), comparison.lines(arm, x, y), bands[arm], x, y, style_of[arm])
    left_out = sum(len(comparison.arms[arm]) - len(comparison.seeds(arm, x)) for arm in comparison.arms)
    if left_out:
        title = f"without {counted(left_out, 'run')} that shared the machine"
        panel.set_title(title, fontsize="small", color="#5b6675")
    if comparison.is_log(y):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set(xlabel=x.label, ylabel=y.label)
    panel.set_xlim(left=0)
    if y is DIFFERENCE:
        panel.axhline(0, color=INK, linewidth=0.8)
        panel.set_ylim(later_range(list(bands.values())))
    else:
        panel.set_ylim(line_range(panel, comparison.is_log(y)))
    label_lines(panel)


def later_range(bands: Sequence[Band]) -> tuple[float, float] | None:
    """Return limits that hold the bands after the first quarter of the axis: differences begin large and end small."""
    end = max((band.x[-1] for band in bands if len(band.x)), default=0.0)
    late = [
        np.nan_to_num(side[band.x >= end / 4], posinf=0, neginf=0)
        for band in bands
        for side in (band.low, band.mean, band.high)
    ]
    values = np.concatenate([*late, [0.0]])
    return widened(values.min(), values.max(), 0.05)


def line_range(panel: Axes, is_log: bool) -> tuple[float, float] | None:
    """Return limits that hold the lines, so that no wide band squeezes them."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in panel.lines] or [np.empty(0)])
    known = drawn[np.isfinite(drawn)]
    if len(known) < 2:
        return None
    return widened(known.min(), known.max(), 0.08, is_log)


def widened(low: float, high: float, share: float, is_log: bool = False) -> tuple[float, float] | None:
    """Return limits with a margin, a share of what lies between them; None where that is nothing or too much."""
    scale, inverse = (np.log, np.exp) if is_log else (np.asarray, np.asarray)
    margin = share * (scale(high) - scale(low))
    limits = float(inverse(scale(low) - margin)), float(inverse(scale(high) + margin))
    return limits if low < high and np.isfinite(limits).all() else None


def draw_band(
    panel: Axes, name: str, seeds: list[pd.DataFrame], mean: Band, x: Column, y: Column, style: Style
) -> None:
    """Draw a mean with its band, and the seeds as thin lines; or one seed with open marks."""
    if is_single(mean):
        marks: dict[str, Any] = {"marker": "o", "markersize": 3, "markerfacecolor": "none", "linewidth": 0.7}
        marks |= {"color": style.colour, "linestyle": style.dash}
        for place, curve in enumerate(seeds):
            label, every = "_" if place else f"{name}, one seed", 1 + len(curve) // MARKS
            panel.plot(curve[x.column], curve[y.column] * y.scale, label=label, markevery=every, **marks)
        return
    for curve in seeds:
        panel.plot(curve[x.column], curve[y.column] * y.scale, color=style.colour, alpha=0.25, linewidth=0.6)
    panel.fill_between(mean.x, mean.low, mean.high, color=style.colour, alpha=0.14, linewidth=0)
    panel.plot(mean.x, mean.mean, color=style.colour, linestyle=style.dash, linewidth=1.7, label=name)


def label_lines(panel: Axes) -> None:
    """Write the name of every labelled line beside its end, no two on top of each other."""
    panel.get_ylim()  # settles the limits
    place = panel.transScale + panel.transLimits
    drawn = [(np.asarray(line.get_xydata()), line) for line in panel.lines if str(line.get_label())[0] != "_"]
    ends = [(float(place.transform(points[-1])[1]), line) for points, line in drawn if len(points)]
    gap = min(0.075, 1 / max(1, len(ends)))
    ends.sort(key=lambda end: end[0])
    heights = spread([height for height, _ in ends], gap)
    for height, (_, line) in zip(heights, ends, strict=True):
        text = str(line.get_label())
        panel.text(1.015, height, text, transform=panel.transAxes, color=line.get_color(), fontsize=7.5, va="center")


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move ascending places in [0, 1] apart to at least `gap`, upwards, then down from the top."""
    moved: list[float] = []
    for place in places:
        moved.append(max(min(max(place, 0.0), 1.0), moved[-1] + gap if moved else 0.0))
    top = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], top)
        top = moved[i] - gap
    return moved


def save(drawing: Drawing, runs: Runs, stem: Path, formats: tuple[str, ...]) -> pd.DataFrame:
    """Draw, write stem.<format> for each, without dates, and return the data."""
    dates: dict[str, dict[str, Any]] = {
        "svg": {"Date": None, "Creator": None},
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    with rc_context(MATPLOTLIB):
        figure, data = drawing(runs)
        _settle(figure)
        for name in formats:
            figure.savefig(stem.with_suffix(f".{name}"), dpi=160, metadata=dates[name])
    return data


def _settle(figure: Figure) -> None:
    """Lay a figure out, then round where its parts are: the solver does not repeat the last bits."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    parts = list(figure.subfigs)
    for part in parts:
        parts += part.subfigs
        part.bbox_relative.set_points(part.bbox_relative.get_points().round(6))
    for panel in figure.axes:
        panel.set_position(np.round(panel.get_position().bounds, 6).tolist())
