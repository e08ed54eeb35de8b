"""The page on a group of runs: the answer first, then the numbers, the curves, what was run and how to read it."""

import math
from typing import Any

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from isbench.report.curves import EPOCHS, ERROR, LOSS, SECONDS, Comparison, Style, comparisons, interactive, styles
from isbench.report.load import SETTINGS, Runs
from isbench.report.measures import common_baseline, headline, verdict
from isbench.report.tables import number, readable, setting_of
from isbench.report.templates import render

# Differences in these make seconds incomparable, or the comparison one of more than samplers.
MUST_AGREE = (*SETTINGS, "checksum", "cpu", "gpu", "torch", "torch_threads", "git_commit")
LABELS = {"git_commit": "commit", "torch_threads": "threads", "checksum": "data checksum"}
TRIVIAL = {"label_smoothing": "0", "clip_norm": "none", "slots": "none"}
AXES = ({"name": "seconds", **SECONDS._asdict()}, {"name": "epochs", **EPOCHS._asdict()})


def render_page(runs: Runs, table: pd.DataFrame, title: str) -> str:
    """Return the page as one string of HTML that needs no network."""
    style_of = styles(runs.runs["arm"])
    curves = {(each.dataset, each.model): each for each in comparisons(runs)}
    parts: list[dict[str, Any]] = []
    for (dataset, model, _), part in table.groupby(["dataset", "model", "baseline"]):
        mine = runs.runs[
            runs.runs["dataset"].eq(str(dataset))
            & runs.runs["model"].eq(str(model))
            & runs.runs["arm"].isin(part["arm"])
        ]
        comparison = curves.get((str(dataset), str(model)))
        comparison = comparison and comparison.of(part["arm"])
        seconds, epochs, target = (part[name].iloc[0] for name in ("seconds", "epochs", "target"))
        parts.append(
            {
                "title": setting_of(part).replace(", ", " \N{MIDDLE DOT} ", 2),
                "seconds": "" if math.isnan(seconds) else number(seconds),
                "epochs": "" if math.isnan(epochs) else number(epochs),
                "target": "" if math.isnan(target) else f"{target:.2%}",
                "disagreements": disagreements(mine),
                "arms": _arms(part, style_of),
                "curves": comparison and _curves(comparison, style_of, len(parts)),
                "settings": _settings(mine),
            }
        )
    counts = runs.runs["status"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return render(
        "page.html",
        title=title,
        plotly=get_plotlyjs(),
        headline=headline(table),
        notices=runs.notices,
        baseline=common_baseline(table),
        parts=parts,
        counts=", ".join(f"{count} {status}" for status, count in counts.items()),
        runs=_runs(runs.runs),
    )


def disagreements(runs: pd.DataFrame) -> list[str]:
    """Return what keeps the runs of one comparison from being comparable, one sentence each."""
    started = runs[runs["status"] != "skipped"]
    found = []
    for key in MUST_AGREE:
        values = sorted({str(value) for value in started[key].dropna()})
        if len(values) > 1:
            found.append(f"The runs do not share one {_label(key)}: {'; '.join(values)}.")
    if not started["alone"].all():
        found.append(f"{(~started['alone']).sum()} runs shared the machine with others: their seconds are left out.")
    units = set(started["budget_unit"]) - {"seconds", ""}
    if units:
        found.append(
            f"The budget counts {' and '.join(sorted(units))}: samplers that need longer for them are in the middle of "
            "their learning-rate schedule at equal seconds. A budget in seconds compares them at the end of it."
        )
    return found


def _label(key: str) -> str:
    return LABELS.get(key, key.replace("_", " "))


def _arms(part: pd.DataFrame, style_of: dict[str, Style]) -> list[dict]:
    """Return the rows of the tables of one setting: the cells, how the arm is drawn, and the verdict in words."""
    return [
        {
            **cells,
            "style": style_of[row["arm"]],
            "is_baseline": row["arm"] == row["baseline"],
            "interval": places,
            "sentence": verdict(row).removeprefix(f"{row['arm']}: "),
        }
        for cells, (_, row), places in zip(
            readable(part).to_dict("records"), part.iterrows(), _places(part), strict=True
        )
    ]


def _places(part: pd.DataFrame) -> list[dict | None]:
    """Return low, mean and high of every speed-up on one logarithmic scale from -1 to 1, with a ratio of 1 at 0."""
    columns = {"speedup_low": "low", "speedup": "mean", "speedup_high": "high"}
    with np.errstate(divide="ignore"):
        logs = part[list(columns)].rename(columns=columns).transform(np.log)
    bounds = logs[["low", "high"]].to_numpy()
    widest = np.abs(bounds[np.isfinite(bounds)]).max(initial=0.0)
    # At least a factor of 1.25, lest noise look large; at most one of 20, lest a wild interval hide the others.
    places = (logs / np.clip(1.1 * widest, np.log(1.25), np.log(20))).clip(-1, 1)
    has_interval = part["speedup_low"].notna() & (part["arm"] != part["baseline"])
    return [row if known else None for row, known in zip(places.to_dict("records"), has_interval, strict=True)]


def _curves(comparison: Comparison, style_of: dict[str, Style], place: int) -> dict[str, Any]:
    config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    return {
        "arms": [(arm, style_of[arm]) for arm in comparison.arms],
        "axes": AXES if comparison.is_timed() else AXES[::-1],
        "plots": [
            interactive(comparison, quantity, style_of).to_html(
                full_html=False, include_plotlyjs=False, div_id=f"{quantity.column}-{place}", config=config
            )
            for quantity in (ERROR, LOSS)
        ],
    }


def _settings(runs: pd.DataFrame) -> dict[str, str]:
    """Return what was run, by name; what has no value or a trivial one is left out."""
    values = {key: _values(runs, key) for key in SETTINGS}
    dirty = " with uncommitted changes" if runs["git_dirty"].eq(True).any() else ""
    found = {
        "data set": _values(runs, "dataset", "provenance", "num_examples"),
        "model": _values(runs, "model"),
        **{_label(key): value for key, value in values.items() if value != TRIVIAL.get(key)},
        "machine": _values(runs, "gpu", "cpu"),
        "software": f"torch {_values(runs, 'torch')}, Python {_values(runs, 'python')}",
        "threads": _values(runs, "torch_threads"),
        "commit": (_values(runs, "git_commit") or "not recorded") + dirty,
        "data checksum": _values(runs, "checksum"),
    }
    return {name: value for name, value in found.items() if value}


def _values(runs: pd.DataFrame, *columns: str) -> str:
    """Join the distinct values of columns, each run's together."""
    known = runs[runs["status"] != "skipped"]
    texts = {
        ", ".join(_value(name, run[name]) for name in columns if not pd.isna(run[name])) for _, run in known.iterrows()
    }
    return "; ".join(sorted(texts - {""}))


def _value(column: str, value: Any) -> str:
    if column == "num_examples":
        return f"{int(value):,} training examples"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _runs(runs: pd.DataFrame) -> list[dict]:
    """Return the rows of the table of runs, those that did not finish first."""
    ordered = runs.assign(order=runs["status"].eq("finished")).sort_values(["order", "path"])
    return [
        {**run, "seconds": number(run["seconds"] or math.nan)}
        for run in ordered[["path", "status", "reason", "seconds", "attempts"]].to_dict("records")
    ]
