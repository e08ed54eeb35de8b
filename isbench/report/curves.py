"""Learning curves, twice from the same numbers: matplotlib for paper and README, plotly for the page.

A line is the mean over seeds on a common grid, a band its 95 % Student-t interval, a thin line one seed. An arm of one
seed has no mean: it is drawn with open marks. Means stop where the first seed stops. A run that shared the machine is
not drawn against seconds. Colours are from Wong's (Nature Methods 2011) and Tol's colour-blind safe sets, fixed per
sampler; a dash tells apart those whose colours are close.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from isbench.report.load import Runs
from isbench.report.measures import t_interval

Drawn = tuple[Figure, pd.DataFrame]  # a figure, and the data behind it
Drawing = Callable[[Runs], Drawn]
INK, GRID = "#1d2430", "#e4e7ec"
GRID_POINTS = 160


class Style(NamedTuple):
    """How an arm is drawn, in both back ends."""

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
}
SPARE = [
    Style(colour, dash)
    for dash in ("dashdot", "dotted")
    for colour in ("#0072b2", "#009e73", "#aa4499", "#e69f00", "#56b4e9", "#882255", "#999933", "#332288")
]
PLOTLY_DASH = {"solid": "solid", "dashed": "dash", "dotted": "dot", "dashdot": "dashdot"}


class Column(NamedTuple):
    """A column as it is drawn."""

    column: str
    label: str
    scale: float = 1.0


ERROR = Column("test_error", "Test error (%)", 100.0)
LOSS = Column("train_loss", "Train loss")
OBJECTIVE = Column("objective", "Objective")
SECONDS = Column("train_seconds", "Training time (s)")
EPOCHS = Column("epoch", "Epochs trained")

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
    """Give every arm its style: fixed for the known names, spare ones in alphabetical order for the others."""
    names = sorted(set(arms))
    spare = iter(SPARE * (1 + len(names) // len(SPARE)))
    return {name: STYLES.get(name) or next(spare) for name in names}


class Band(NamedTuple):
    """A mean over seeds with its interval, on a common grid (the bounds are NaN for a single seed)."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def band(curves: list[pd.DataFrame], x: Column, y: Column, floor: float = 0.0, is_log: bool = False) -> Band:
    """Average the seeds' curves where all of them have values. The lower bound is cut at `floor`.

    Between evaluations a seed's curve is the straight line that is drawn, on a logarithmic axis too.
    """
    known = [part for curve in curves if len(part := curve[[x.column, y.column]].dropna())]
    if not known:
        return Band(*[np.empty(0)] * 4)
    start, stop = max(c[x.column].iloc[0] for c in known), min(c[x.column].iloc[-1] for c in known)
    grid = np.linspace(start, stop, GRID_POINTS) if start < stop else np.empty(0)
    scale, inverse = (np.log, np.exp) if is_log else (np.asarray, np.asarray)
    values = np.array([inverse(np.interp(grid, c[x.column], scale(c[y.column] * y.scale))) for c in known])
    intervals = np.array([t_interval(column)[:2] for column in values.T]).reshape(-1, 2)
    mean, half_width = intervals.T
    return Band(grid, mean, np.maximum(mean - half_width, floor), mean + half_width)


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

    @property
    def title(self) -> str:
        return f"{self.dataset} \N{MIDDLE DOT} {self.model}"

    def of(self, arms: Iterable[str]) -> "Comparison | None":
        """Return the curves of some arms, None where they have none."""
        kept = {arm: curves for arm, curves in self.arms.items() if arm in set(arms)}
        return self._replace(rows=self.rows[self.rows["arm"].isin(list(kept))], arms=kept) if kept else None

    def seeds(self, arm: str, x: Column) -> list[pd.DataFrame]:
        """Return an arm's curves that may be drawn against `x`."""
        return [curve for curve in self.arms[arm] if x is not SECONDS or curve["run_id"].iloc[0] in self.alone]

    def counted(self, arm: str, x: Column) -> list[pd.DataFrame]:
        """Return those whose mean is drawn: of runs that finished, where there are any."""
        seeds = self.seeds(arm, x)
        return [curve for curve in seeds if curve["run_id"].iloc[0] in self.finished] or seeds

    def is_timed(self) -> bool:
        """Say whether every arm has a curve that may be drawn against seconds."""
        return all(self.seeds(arm, SECONDS) for arm in self.arms)

    def is_log(self, y: Column) -> bool:
        """Say whether a logarithmic axis suits `y`: all values positive, over more than one power of ten."""
        known = self.rows[y.column].dropna()
        return len(known) > 0 and known.min() > 0 and known.max() > 10 * known.min()

    def band(self, arm: str, x: Column, y: Column) -> Band:
        """Return an arm's mean, with a band that is cut at 0, or just below the data on a logarithmic axis."""
        floor = float(self.rows[y.column].min()) * y.scale / 2 if self.is_log(y) else 0.0
        return band(self.counted(arm, x), x, y, floor, self.is_log(y))


def comparisons(runs: Runs) -> list[Comparison]:
    """Split the runs into the sets of curves that belong in one figure, the baseline first within each."""
    finished = frozenset(runs.runs.loc[runs.runs["status"] == "finished", "run_id"])
    found = []
    for (dataset, model), rows in runs.rows.groupby(["dataset", "model"]):
        ids = runs.runs["run_id"].isin(rows["run_id"])
        alone = frozenset(runs.runs.loc[ids & runs.runs["alone"], "run_id"])
        names = sorted(rows["arm"].unique(), key=lambda name: (name != "uniform", name))
        arms = {name: [curve for _, curve in rows[rows["arm"] == name].groupby("run_id")] for name in names}
        found.append(Comparison(str(dataset), str(model), rows, arms, finished, alone))
    return found


def draw_comparison(panel: Axes, comparison: Comparison, x: Column, y: Column, style_of: dict[str, Style]) -> None:
    """Draw the arms of a comparison on one pair of axes, and say how many runs are left out."""
    for arm in reversed(comparison.arms):  # the baseline on top
        draw_band(panel, arm, comparison.seeds(arm, x), comparison.band(arm, x, y), x, y, style_of[arm])
    left_out = sum(len(curves) - len(comparison.seeds(arm, x)) for arm, curves in comparison.arms.items())
    if left_out:
        panel.set_title(f"{left_out} runs that shared the machine are left out", fontsize="small", color="#5b6675")
    if comparison.is_log(y):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set(xlabel=x.label, ylabel=y.label)
    panel.set_xlim(left=0)


def draw_band(
    panel: Axes, name: str, seeds: list[pd.DataFrame], mean: Band, x: Column, y: Column, style: Style
) -> None:
    """Draw a mean with its band, and the seeds as thin lines; or one seed with open marks."""
    if is_single(mean):
        marks: dict[str, Any] = {"marker": "o", "markersize": 3, "markerfacecolor": "none", "linewidth": 0.7}
        marks |= {"color": style.colour, "linestyle": style.dash}
        for place, curve in enumerate(seeds):
            label = "_" if place else f"{name}, one seed"
            panel.plot(curve[x.column], curve[y.column] * y.scale, label=label, **marks)
        return
    for curve in seeds:
        panel.plot(curve[x.column], curve[y.column] * y.scale, color=style.colour, alpha=0.25, linewidth=0.6)
    panel.fill_between(mean.x, mean.low, mean.high, color=style.colour, alpha=0.14, linewidth=0)
    panel.plot(mean.x, mean.mean, color=style.colour, linestyle=style.dash, linewidth=1.7, label=name)


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


def interactive(comparison: Comparison, y: Column, style_of: dict[str, Style]) -> go.Figure:
    """Draw one quantity for the page. Every trace says in `meta` which arm and which x axis it belongs to."""
    figure = go.Figure()
    first = SECONDS if comparison.is_timed() else EPOCHS
    for x in (SECONDS, EPOCHS):
        for arm in reversed(comparison.arms):  # the baseline on top
            for trace in _traces(comparison, arm, x, y, style_of[arm]):
                figure.add_trace(trace.update(meta={"arm": arm, "axis": x.column}, visible=x is first))
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": "#98a1b0", "ticks": "outside", "tickcolor": "#c9cfd8"}
    log_axis = {"type": "log", "dtick": "D2", "minor": {"showgrid": False}, "exponentformat": "none"}
    figure.update_layout(
        template="none",
        showlegend=False,
        hovermode="closest",
        height=360,
        margin={"l": 54, "r": 12, "t": 8, "b": 46},
        font={"family": "inherit", "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis={**axis, "title": {"text": first.label}, "rangemode": "tozero"},
        yaxis={**axis, "title": {"text": y.label}, **(log_axis if comparison.is_log(y) else {})},
    )
    return figure


def _traces(comparison: Comparison, arm: str, x: Column, y: Column, style: Style) -> list[go.Scatter]:
    seeds = [curve[[x.column, y.column]] for curve in comparison.seeds(arm, x)]
    gap = pd.DataFrame({x.column: [np.nan], y.column: [np.nan]})  # lifts the pen between seeds
    thin = pd.concat([gap, *(part for curve in seeds for part in (curve, gap))])
    middle = comparison.band(arm, x, y)
    spread = (middle.high - middle.low) / 2
    unit = " s" if x is SECONDS else " epochs"
    mean = f"<b>{arm}</b> %{{y:.4g}} \N{PLUS-MINUS SIGN} %{{customdata:.2g}}<br>at %{{x:.4g}}{unit}<extra></extra>"
    quiet = {"hoverinfo": "skip", "mode": "lines"}
    there_and_back = np.concatenate([middle.x, middle.x[::-1]]).round(4)
    outline = {"x": there_and_back, "y": np.concatenate([middle.high, middle.low[::-1]])}
    line = {"color": style.colour, "dash": PLOTLY_DASH[style.dash], "width": 2.4}
    thin_line = {"color": style.colour, "width": 0.8}
    points = {"x": middle.x.round(4), "y": middle.mean, "customdata": spread, "mode": "lines", "line": line}
    if is_single(middle):
        points = {"x": thin[x.column], "y": thin[y.column] * y.scale, "mode": "markers"}
        points["marker"] = {"symbol": "circle-open", "color": style.colour, "size": 7}
        mean = mean.replace(" \N{PLUS-MINUS SIGN} %{customdata:.2g}", ", one seed")
    return [
        go.Scatter(outline, fill="toself", fillcolor=style.colour, opacity=0.13, line={"width": 0}, **quiet),
        go.Scatter(x=thin[x.column], y=thin[y.column] * y.scale, line=thin_line, opacity=0.28, **quiet),
        go.Scatter(points, name=arm, hovertemplate=mean),
    ]
