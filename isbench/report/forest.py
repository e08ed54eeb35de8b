"""The picture of the answer: each method beside uniform sampling on each task, by three measures, on log axes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from isbench.report.answer import BETTER, MEASURES, SPEEDUP, WORSE, Row
from isbench.report.curves import MATPLOTLIB
from isbench.report.names import task, written
from isbench.report.tables import TIMES

TICKS = (0.2, 0.5, 1, 2, 5)
LINE = 0.19  # inches
EDGE = 8.0  # of the axes; what lies beyond ends in an arrow
THEMES = {  # the name of the file's end, then ink, soft ink, lines, and the colours of better and worse, as on pages
    "": ("#1d2430", "#5b6675", "#d9dde3", "#0a6b4f", "#a3360f"),
    "_dark": ("#e6e9ef", "#9aa4b2", "#3a424d", "#6fd3ae", "#f5a682"),
}


def save_answer(rows: Sequence[Row], stem: Path) -> None:
    """Write stem.svg for a light page, stem_dark.svg for a dark one, and the numbers in them, stem.csv."""
    stem.with_suffix(".csv").write_text(answer_csv(rows), encoding="utf-8")
    for end, colours in THEMES.items() if rows else ():
        ink, soft, lines, _, _ = colours
        theme: Any = {
            "text.color": ink,
            "axes.labelcolor": soft,
            "axes.edgecolor": lines,
            "grid.color": lines,
            "xtick.color": soft,
            "ytick.color": ink,
        }
        with rc_context({**MATPLOTLIB, **theme}):
            figure = draw(rows, *colours)
            figure.savefig(
                stem.with_name(f"{stem.name}{end}.svg"), metadata={"Date": None, "Creator": None}, transparent=True
            )


def answer_csv(rows: Sequence[Row]) -> str:
    return pd.DataFrame(rows, columns=Row._fields).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def draw(rows: Sequence[Row], ink: str, soft: str, lines: str, better: str, worse: str) -> Figure:
    """Draw a line per method below the name of each task and experiment, with a panel per measure."""
    axes: dict[tuple[str, ...], str] = {
        row[:4]: row.axis for row in sorted(rows, key=lambda row: row.measure != SPEEDUP)
    }  # what was equal
    tasks: dict[tuple[str, ...], dict[str, float]] = {}  # experiment, data set and network; where each method stands
    y = 0.0
    for experiment, method, *setting in dict.fromkeys(row[:4] for row in rows):
        methods = tasks.setdefault((experiment, *setting), {})
        y -= 1 if methods else 2.4  # a task has a line for its name
        methods[method] = y
    height = LINE * (1 - y) + 1.3
    figure = Figure(figsize=(9, height))
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    figure.subplots_adjust(left=0.33, right=0.985, top=1 - 0.42 / height, bottom=0.85 / height, wspace=0.1)
    colours = {BETTER: better, WORSE: worse}
    for panel, measure in zip(panels, MEASURES, strict=True):
        _prepare(panel, measure, ink, lines)
        for row in rows:
            if row.measure == measure:
                place = tasks[row.experiment, row.dataset, row.model][row.method]
                _draw_row(panel, row, place, colours.get(row.outcome, soft))
    left, right = (panel.get_yaxis_transform() for panel in (panels[0], panels[-1]))
    words: Any = {"va": "center", "ha": "right"}
    for (experiment, *setting), methods in tasks.items():
        first = next(iter(methods))
        about, head = f"{task(*setting)}, by {axes[experiment, first, *setting]}", methods[first] + 1.1
        panels[0].text(-0.05, head, about, fontsize=7.5, color=soft, transform=left, **words)
        panels[-1].text(1, head, experiment, fontsize=6.5, color=soft, transform=right, **words)
        for method, place in methods.items():
            panels[0].text(-0.05, place, written(method), fontweight="bold", transform=left, **words)
    panels[0].set(ylim=(y - 1, 0), yticks=[])
    figure.legend(handles=_legend(soft, better, worse), loc="lower center", ncols=5, fontsize=8)
    return figure


def _prepare(panel: Axes, measure: str, ink: str, lines: str) -> None:
    panel.set_title(measure.capitalize(), fontsize=9, fontweight="bold", loc="left")
    panel.set(xscale="log", xlim=(1 / EDGE, EDGE), xlabel="worse \N{LEFTWARDS ARROW}    \N{RIGHTWARDS ARROW} better")
    panel.xaxis.label.set(fontsize=8)
    panel.xaxis.set_major_locator(FixedLocator(TICKS))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticklabels([f"{tick:g}{TIMES}" for tick in TICKS])
    panel.grid(axis="y", visible=False)
    panel.axvline(1, color=ink, linewidth=1)
    panel.spines["left"].set_visible(False)
    panel.tick_params(length=0)


def _draw_row(panel: Axes, row: Row, y: float, colour: str) -> None:
    inside = 0.96 * EDGE
    low, high = np.clip((row.low, row.high), 1 / inside, inside)
    if not np.isnan(row.low):
        panel.plot(
            (low, high), (y, y), color=colour, linewidth=2, linestyle="-" if row.level >= 0.95 else (0, (2, 1.5))
        )
        for is_beyond, end, mark in ((row.low < low, low, "<"), (row.high > high, high, ">")):
            if is_beyond:
                panel.plot(end, y, marker=mark, color=colour, markersize=5, linestyle="none")
    if 1 / EDGE < row.ratio < EDGE:
        mark = "o" if row.is_counted or row.n == 1 else "X"
        face = "none" if row.n == 1 else colour
        panel.plot(row.ratio, y, mark, color=colour, markerfacecolor=face, markersize=6.5)


def _legend(soft: str, better: str, worse: str) -> list[Line2D]:
    def mark(label: str, colour: str, **style: Any) -> Line2D:
        return Line2D([], [], color=colour, label=label, **{"marker": "o", "linewidth": 2, **style})

    return [
        mark("better", better),
        mark("worse", worse),
        mark("neither (interval holds 1, or dashed: below 95 %)", soft),
        mark("one seed", soft, markerfacecolor="none", linewidth=0),
        mark("not counted", soft, marker="X"),
    ]
