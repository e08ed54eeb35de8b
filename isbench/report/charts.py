"""The figures of a page, as numbers that templates/chart.js draws: what isbench.report.drawings draws, and its data.

A chart has panels of lines, each a mean over seeds with its interval, against one axis of several; or of points. Thin
lines are single seeds. Numbers have four significant digits, which is more than a screen shows.
"""

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.image import imsave

from isbench.report.curves import (
    AXES,
    DIFFERENCE,
    ERROR,
    LOSS,
    OBJECTIVE,
    Column,
    Comparison,
    Style,
    comparisons,
    styles,
)
from isbench.report.drawings import (
    EQUIVALENT,
    FINAL,
    GAIN,
    OVERHEAD,
    RELATIVE,
    SPEEDUP,
    Scatter,
    curve_tables,
    probabilities,
    scatters,
    scores,
    signal_style,
)
from isbench.report.load import Runs, last_measurements
from isbench.report.names import task, written

Chart = dict[str, Any]
QUANTITIES = {y.column: y for y in (ERROR, DIFFERENCE, LOSS, OBJECTIVE, GAIN, OVERHEAD)}
PLACES = {x.column: x for x in (*AXES, EQUIVALENT)}
KEYS = {"train_seconds": "seconds", "epoch": "epochs"}  # axes as the switch of a page calls them, where columns do not
POINTS = 600  # of a cloud at most


def curves(runs: Runs, data: pd.DataFrame) -> list[Chart]:
    """Return a chart per data set and model, from the data of its figure and the runs behind them."""
    style_of = styles(runs.runs["arm"])
    return [
        _comparison(each, data[data["dataset"].eq(each.dataset) & data["model"].eq(each.model)], style_of)
        for each in comparisons(runs)
    ]


def chart_of(comparison: Comparison, style_of: dict[str, Style]) -> Chart:
    """Return the chart of curves that no figure has been drawn of yet."""
    return _comparison(comparison, pd.concat(curve_tables(comparison), ignore_index=True), style_of)


def _comparison(comparison: Comparison, data: pd.DataFrame, style_of: dict[str, Style]) -> Chart:
    arms = list(comparison.arms)
    panels = []
    # what has an axis of its own is a panel of its own
    own = data["axis"].where(~data["axis"].isin([axis.column for axis in AXES]), "")
    for (quantity, _), part in data.groupby(["quantity", own], sort=False):
        y = QUANTITIES[str(quantity)]
        lines = [
            {
                "line": arms.index(str(arm)),
                "n": int(mine["n"].max()),
                "axes": {_key(str(axis)): _band(points) for axis, points in mine.groupby("axis", sort=False)},
                "seeds": [] if y.column not in comparison.rows else _seeds(comparison, str(arm), y),
            }
            for arm, mine in part.groupby("arm", sort=False)
        ]
        is_log = bool(part["scale"].eq("log").any())
        panels.append(
            _panel(y.label, sorted(lines, key=lambda line: line["line"]), is_log, 0 if y is DIFFERENCE else None)
        )
    return {
        "title": comparison.title,
        "axes": {_key(x.column): x.label for x in PLACES.values() if x.column in set(data["axis"])},
        "lines": [
            {
                **_line(written(arm), style_of[arm]),
                "seeds": [
                    {
                        _key(x.column): _short(curve[x.column])
                        for x in comparison.axes()
                        if _is_drawn(comparison, curve, x)
                    }
                    for curve in comparison.arms[arm]
                ],
            }
            for arm in arms
        ],
        "panels": panels,
    }


def _key(axis: str) -> str:
    return KEYS.get(axis, axis)


def _is_drawn(comparison: Comparison, curve: pd.DataFrame, x: Column) -> bool:
    return x.column != "train_seconds" or curve["run_id"].iloc[0] in comparison.alone


def _seeds(comparison: Comparison, arm: str, y: Column) -> list[list[float | None]]:
    skipped = 0 if comparison.skips_start(y) else -1  # updates of rows that are not drawn
    return [_short(curve[y.column].where(curve["updates"] > skipped) * y.scale) for curve in comparison.arms[arm]]


def budget_curves(runs: Runs, data: pd.DataFrame) -> list[Chart]:
    """Return a chart per data set and model: final errors by budget, and speed-ups."""
    style_of = styles(data["arm"])
    charts = []
    for (dataset, model), part in data.groupby(["dataset", "model"], sort=False):
        arms, axis = list(dict.fromkeys(part["arm"])), part["axis"].iloc[0]
        panels = [
            _panel(
                y.label,
                [
                    {
                        "line": arms.index(arm),
                        "n": int(mine["n"].max()),
                        "axes": {_key(axis): _band(mine)},
                        "seeds": [],
                    }
                    for arm, mine in part[part["quantity"].eq(y.column)].groupby("arm", sort=False)
                ],
                is_log=True,
                level=1 if y is SPEEDUP else None,
                has_bars=True,
            )
            for y in (FINAL, SPEEDUP)
        ]
        charts.append(
            {
                "title": task(str(dataset), str(model)),
                "axes": {_key(axis): f"Budget: {PLACES[axis].label.lower()}"},
                "lines": [{**_line(written(arm), style_of[arm]), "seeds": []} for arm in arms],
                "panels": panels,
            }
        )
    return charts


def gradient_variance(runs: Runs, data: pd.DataFrame) -> list[Chart]:
    """Return a chart per arm, with a line per signal."""
    return [
        _of_lines(
            written(str(arm)),
            part,
            "signal",
            {"updates": "Updates"},
            RELATIVE.label,
            lambda signal, _: (written(signal), signal_style(signal)),
        )
        for arm, part in data.groupby("arm", sort=False)
    ]


def loss_patterns(runs: Runs, data: pd.DataFrame) -> list[Chart]:
    """Return a chart per arm, with a line per first epoch."""

    def drawn(first: float, place: float) -> tuple[str, Style]:
        return f"since epoch {first:.3g}", Style(to_hex(colormaps["viridis"](0.85 * place)), "solid")

    shares = data.assign(**{name: 100 * data[name] for name in ("mean", "low", "high")})
    label = "Share of examples still in their decile (%)"
    return [
        _of_lines(written(str(arm)), part, "first_epoch", {"decile": "Decile of the loss (1: highest)"}, label, drawn)
        for arm, part in shares.groupby("arm", sort=False)
    ]


def _of_lines(
    title: str,
    data: pd.DataFrame,
    by: str,
    axes: dict[str, str],
    label: str,
    drawn: Callable[[Any, float], tuple[str, Style]],
) -> Chart:
    """Return a chart of one panel on one axis, with a line for every value of a column."""
    values = list(dict.fromkeys(data[by]))
    axis = next(iter(axes))
    lines = [
        {"line": place, "n": int(mine["n"].max()), "axes": {axis: _band(mine)}, "seeds": []}
        for place, (_, mine) in enumerate(data.groupby(by, sort=False))
    ]
    return {
        "title": title,
        "axes": axes,
        "lines": [
            {**_line(*drawn(value, place / max(1, len(values) - 1))), "seeds": []} for place, value in enumerate(values)
        ],
        "panels": [_panel(label, lines)],
    }


def score_scatter(runs: Runs, data: pd.DataFrame) -> list[Chart]:
    """Return a chart per arm, with a cloud per signal."""
    return _clouds(scatters(runs, scores))


def probability_scatter(runs: Runs, data: pd.DataFrame) -> list[Chart]:
    """Return a chart per arm, with a cloud per signal."""
    return _clouds(scatters(runs, probabilities))


def _clouds(found: dict[tuple[str, str], Scatter]) -> list[Chart]:
    charts: dict[str, Chart] = {}
    for (arm, signal), cloud in found.items():
        chart = charts.setdefault(arm, {"title": written(arm), "axes": {}, "lines": [], "panels": []})
        line = slice(None, None, max(1, len(cloud.line[0]) // 60))
        chart["axes"]["x"] = cloud.labels[0]
        chart["panels"].append(
            {
                **_panel(cloud.labels[1], [], cloud.is_log),
                "note": cloud.title,
                "colour": signal_style(signal).colour,
                "points": [_short(values) for values in cloud.points(POINTS)],
                "guide": [_short(values[line]) for values in cloud.line],
            }
        )
    return list(charts.values())


def examples(runs: Runs) -> list[dict[str, Any]]:
    """Return, per arm, the pictures that a sampler draws rarely and often, with their labels and predictions."""
    last = last_measurements(runs.probes)
    first = last[last["seed"] == last.groupby("arm")["seed"].transform("min")]
    return [
        {
            "name": written(str(arm)),
            "ranks": {
                rank: [
                    _picture(example) for _, example in first[first["arm"].eq(arm) & first["rank"].eq(rank)].iterrows()
                ]
                for rank in ("rarely", "often")
            },
        }
        for arm in sorted(first["arm"].unique())
    ]


def _picture(example: pd.Series) -> dict[str, Any]:
    is_right = example["label"] == example["predicted"]
    words = f"{example['label']:g}" + ("" if is_right else f", predicted {example['predicted']:g}")
    if not isinstance(example.get("pixels"), np.ndarray):
        return {"words": words, "picture": ""}
    image = example["pixels"].reshape(tuple(example["shape"].astype(int))).transpose(1, 2, 0).squeeze()
    file = io.BytesIO()
    no_version: Any = {"Software": None}
    imsave(file, image, cmap="gray", vmin=0, vmax=255, format="png", metadata=no_version)
    return {"words": words, "picture": base64.b64encode(file.getvalue()).decode()}


def _panel(
    label: str,
    lines: list[dict[str, Any]],
    is_log: bool = False,
    level: float | None = None,
    has_bars: bool = False,
) -> dict[str, Any]:
    """Return a panel.

    Args:
        level: where a method would lie that is no better than the baseline.
        has_bars: intervals are bars, one for each point, not bands.
    """
    return {"label": label, "log": is_log, "level": level, "bars": has_bars, "lines": lines}


def _line(name: str, style: Style) -> dict[str, Any]:
    return {"name": name, "colour": style.colour, "dash": style.dash}


def _band(points: pd.DataFrame) -> dict[str, Any]:
    """Return the points of a mean and its interval; of x on an even grid the ends alone. An infinite bound is None.

    `bounds` are the numbers of points of which the mean is known from below alone.
    """
    x = points["x"].to_numpy()
    is_even = len(x) > 2 and np.allclose(np.diff(x), (x[-1] - x[0]) / (len(x) - 1), rtol=1e-3)
    bounds = np.flatnonzero(points["censored"].eq("at least")).tolist() if "censored" in points else []
    return {
        "x": _short(x[[0, -1]] if is_even else x),
        **{name: _short(points[name]) for name in ("mean", "low", "high") if points[name].notna().any()},
        **({"bounds": bounds} if bounds else {}),
    }


def _short(values: Any) -> list[float | None]:
    """Round to four significant digits; None where there is no number."""
    rounded = (float(f"{value:.4g}") if np.isfinite(value) else None for value in np.asarray(values, dtype=float))
    return [int(value) if value is not None and value.is_integer() else value for value in rounded]


CHARTS: dict[str, Callable[[Runs, pd.DataFrame], list[Chart]]] = {
    "curves": curves,
    "curves_and_gain": curves,
    "overhead_and_gain": curves,
    **{
        each.__name__: each
        for each in (budget_curves, gradient_variance, loss_patterns, score_scatter, probability_scatter)
    },
}
