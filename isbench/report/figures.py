"""Learning curves, twice from the same numbers: matplotlib for paper and README, plotly for the page.

A line is the mean over seeds on a common grid, a band its 95 % Student-t interval, a thin line one seed. Means stop
where the first seed stops. Colours are from Wong's (Nature Methods 2011) and Tol's colour-blind safe sets, fixed per
sampler; a dash tells apart those whose colours are close.
"""

from collections.abc import Iterable
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

INK, GRID = "#1d2430", "#e4e7ec"
GRID_POINTS = 160


class Style(NamedTuple):
    """How a sampler is drawn, in both back ends."""

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


class Quantity(NamedTuple):
    """A column as it is drawn."""

    column: str
    label: str
    scale: float = 1.0


ERROR = Quantity("test_error", "Test error (%)", 100.0)
LOSS = Quantity("train_loss", "Train loss")
SECONDS = Quantity("train_seconds", "Training time (s)")
EPOCHS = Quantity("epoch", "Epochs trained")

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


def styles(samplers: Iterable[str]) -> dict[str, Style]:
    """Give every sampler its style: fixed for the known names, spare ones in alphabetical order for the others."""
    names = sorted(set(samplers))
    spare = iter(SPARE * (1 + len(names) // len(SPARE)))
    return {name: STYLES.get(name) or next(spare) for name in names}


class Band(NamedTuple):
    """A mean over seeds with its interval, on a common grid (the bounds are NaN for a single seed)."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def band(curves: list[pd.DataFrame], x: Quantity, y: Quantity, floor: float = 0.0) -> Band:
    """Average the seeds' curves where all of them have values. The lower bound is cut at `floor`."""
    known = [curve[[x.column, y.column]].dropna() for curve in curves]
    known = [curve for curve in known if len(curve)]
    if not known:
        return Band(*[np.empty(0)] * 4)
    start, stop = max(c[x.column].iloc[0] for c in known), min(c[x.column].iloc[-1] for c in known)
    grid = np.linspace(start, stop, GRID_POINTS) if start < stop else np.empty(0)
    values = np.array([np.interp(grid, curve[x.column], curve[y.column] * y.scale) for curve in known])
    intervals = np.array([t_interval(column)[:2] for column in values.T]).reshape(-1, 2)
    mean, half_width = intervals.T
    return Band(grid, mean, np.maximum(mean - half_width, floor), mean + half_width)


def suits_log(values: pd.Series) -> bool:
    """Say whether a logarithmic axis helps: all values positive, over more than one power of ten."""
    known = values.dropna()
    return len(known) > 0 and known.min() > 0 and known.max() > 10 * known.min()


class Comparison(NamedTuple):
    """The curves of one data set and model, by sampler. `counted` leaves out runs that did not finish, where it can."""

    title: str
    rows: pd.DataFrame
    seeds: dict[str, list[pd.DataFrame]]
    counted: dict[str, list[pd.DataFrame]]

    def floor(self, y: Quantity) -> float:
        """Return where bands are cut: 0, or just below the data on a logarithmic axis."""
        return float(self.rows[y.column].min()) * y.scale / 2 if suits_log(self.rows[y.column]) else 0.0


def comparisons(runs: Runs) -> list[Comparison]:
    """Split the runs into the sets of curves that belong in one figure, the baseline first within each."""
    finished = set(runs.runs.loc[runs.runs["status"] == "finished", "run_id"])
    found = []
    for (dataset, model), rows in runs.rows.groupby(["dataset", "model"]):
        seeds: dict[str, list[pd.DataFrame]] = {}
        counted: dict[str, list[pd.DataFrame]] = {}
        for sampler in sorted(rows["sampler"].unique(), key=lambda name: (name != "uniform", name)):
            by_run = list(rows[rows["sampler"] == sampler].groupby("run_id"))
            seeds[sampler] = [curve for _, curve in by_run]
            counted[sampler] = [curve for run_id, curve in by_run if run_id in finished] or seeds[sampler]
        found.append(Comparison(f"{dataset} \N{MIDDLE DOT} {model}", rows, seeds, counted))
    return found


def save_static(runs: Runs, folder: Path) -> list[Path]:
    """Write curves.png and curves.svg: two rows of panels (against seconds, against epochs) per comparison."""
    found = comparisons(runs)
    paths = [folder / "curves.png", folder / "curves.svg"]
    with rc_context(MATPLOTLIB):
        figure = Figure(figsize=(7.6, 5.6 * max(1, len(found))), layout="constrained")
        parts = figure.subfigures(max(1, len(found)), squeeze=False)[:, 0]
        for part, comparison in zip(parts, found, strict=False):
            drawn = styles(runs.runs["sampler"])
            panels = part.subplots(2, 2)
            for axes, x in zip(panels, (SECONDS, EPOCHS), strict=True):
                for panel, y in zip(axes, (ERROR, LOSS), strict=True):
                    _draw(panel, comparison, x, y, drawn)
            part.suptitle(comparison.title, fontweight="bold")
            handles, labels = panels[0, 0].get_legend_handles_labels()
            part.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=min(4, len(labels)))
        figure.savefig(paths[0], dpi=160, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def _draw(panel: Axes, comparison: Comparison, x: Quantity, y: Quantity, drawn: dict[str, Style]) -> None:
    for sampler, curves in reversed(comparison.seeds.items()):  # the baseline on top
        colour, dash = drawn[sampler]
        for curve in curves:
            panel.plot(curve[x.column], curve[y.column] * y.scale, color=colour, alpha=0.25, linewidth=0.6)
        middle = band(comparison.counted[sampler], x, y, comparison.floor(y))
        panel.fill_between(middle.x, middle.low, middle.high, color=colour, alpha=0.14, linewidth=0)
        panel.plot(middle.x, middle.mean, color=colour, linestyle=dash, linewidth=1.7, label=sampler)
    if suits_log(comparison.rows[y.column]):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set(xlabel=x.label, ylabel=y.label)
    panel.set_xlim(left=0)


def interactive(comparison: Comparison, y: Quantity, drawn: dict[str, Style]) -> go.Figure:
    """Draw one quantity for the page. Every trace says in `meta` which sampler and which x axis it belongs to."""
    figure = go.Figure()
    for x in (SECONDS, EPOCHS):
        for sampler in reversed(comparison.seeds):  # the baseline on top
            for trace in _traces(comparison, sampler, x, y, drawn[sampler]):
                figure.add_trace(trace.update(meta={"sampler": sampler, "axis": x.column}, visible=x is SECONDS))
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": "#98a1b0", "ticks": "outside", "tickcolor": "#c9cfd8"}
    logarithmic = {"type": "log", "dtick": "D2", "minor": {"showgrid": False}, "exponentformat": "none"}
    figure.update_layout(
        template="none",
        showlegend=False,
        hovermode="closest",
        height=360,
        margin={"l": 54, "r": 12, "t": 8, "b": 46},
        font={"family": "inherit", "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis={**axis, "title": {"text": SECONDS.label}, "rangemode": "tozero"},
        yaxis={**axis, "title": {"text": y.label}, **(logarithmic if suits_log(comparison.rows[y.column]) else {})},
    )
    return figure


def _traces(comparison: Comparison, sampler: str, x: Quantity, y: Quantity, style: Style) -> list[go.Scatter]:
    seeds = [curve[[x.column, y.column]] for curve in comparison.seeds[sampler]]
    gap = pd.DataFrame({x.column: [np.nan], y.column: [np.nan]})  # lifts the pen between seeds
    thin = pd.concat([part for curve in seeds for part in (curve, gap)])
    middle = band(comparison.counted[sampler], x, y, comparison.floor(y))
    spread = (middle.high - middle.low) / 2
    unit = " s" if x is SECONDS else " epochs"
    mean = f"<b>{sampler}</b> %{{y:.4g}} \N{PLUS-MINUS SIGN} %{{customdata:.2g}}<br>at %{{x:.4g}}{unit}<extra></extra>"
    quiet = {"hoverinfo": "skip", "mode": "lines"}
    outline = {
        "x": np.concatenate([middle.x, middle.x[::-1]]).round(4),
        "y": np.concatenate([middle.high, middle.low[::-1]]),
    }
    line = {"color": style.colour, "dash": PLOTLY_DASH[style.dash], "width": 2.4}
    return [
        go.Scatter(outline, fill="toself", fillcolor=style.colour, opacity=0.13, line={"width": 0}, **quiet),
        go.Scatter(
            x=thin[x.column],
            y=thin[y.column] * y.scale,
            line={"color": style.colour, "width": 0.8},
            opacity=0.28,
            **quiet,
        ),
        go.Scatter(
            x=middle.x.round(4),
            y=middle.mean,
            customdata=spread,
            mode="lines",
            line=line,
            name=sampler,
            hovertemplate=mean if len(seeds) > 1 else mean.replace(" \N{PLUS-MINUS SIGN} %{customdata:.2g}", ""),
        ),
    ]
