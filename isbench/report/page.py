"""The page on a group of runs: the answer first, then the numbers, the curves, what was run and how to read it."""

import math
from typing import Any

import pandas as pd

from isbench.report.bars import bars
from isbench.report.charts import chart_of
from isbench.report.curves import Style, comparisons, styles
from isbench.report.load import SETTINGS, Runs
from isbench.report.measures import common_baseline, headline, verdict
from isbench.report.methods import AXES
from isbench.report.names import counted, written
from isbench.report.tables import number, readable, setting_of, work
from isbench.report.templates import render

# Differences in these make seconds incomparable, or the comparison one of more than samplers.
MUST_AGREE = (*SETTINGS, "checksum", "cpu", "gpu", "torch", "torch_threads", "git_commit")
LABELS = {"git_commit": "commit", "torch_threads": "threads", "checksum": "data checksum"}
TRIVIAL = {"label_smoothing": "0", "clip_norm": "none", "slots": "none"}
WIDEST = 20.0  # the factor to which the bars of speed-ups reach at most


def render_page(runs: Runs, table: pd.DataFrame, title: str) -> str:
    """Return the page as one string of HTML that needs no network."""
    style_of = styles(runs.runs["arm"])
    curves = {(each.dataset, each.model): each for each in comparisons(runs)}
    parts: list[dict[str, Any]] = []
    for (dataset, model, baseline), part in table.groupby(["dataset", "model", "baseline"]):
        mine = runs.runs[
            runs.runs["dataset"].eq(str(dataset))
            & runs.runs["model"].eq(str(model))
            & runs.runs["arm"].isin(part["arm"])
        ]
        comparison = curves.get((str(dataset), str(model)))
        comparison = comparison and comparison.of(part["arm"], str(baseline))
        seconds, epochs, target = (part[name].iloc[0] for name in ("seconds", "epochs", "target"))
        parts.append(
            {
                "title": setting_of(part),
                "seconds": "" if math.isnan(seconds) else number(seconds),
                "epochs": "" if math.isnan(epochs) else number(epochs),
                "target": "" if math.isnan(target) else f"{target:.2%}",
                "disagreements": disagreements(mine),
                "arms": _arms(part, style_of),
                "chart": comparison and chart_of(comparison, style_of),
                "settings": _settings(mine),
            }
        )
    counts = runs.runs["status"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return render(
        "page.html",
        title=title,
        headline=headline(table),
        work=work(table),
        notices=runs.notices,
        baseline=written(common_baseline(table)),
        axes=AXES,
        first_axis=AXES[0] if table["epochs"].isna().any() else AXES[-1],
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
        found.append(f"{counted((~started['alone']).sum(), 'run')} shared the machine: their seconds are left out.")
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
    columns = {"speedup": "value", "speedup_low": "low", "speedup_high": "high"}
    places = part[list(columns)].rename(columns=columns).where(part["arm"] != part["baseline"])
    known = [{**{str(name): value for name, value in row.items()}, "neutral": 1.0} for row in places.to_dict("records")]
    return [
        {
            **cells,
            "name": written(row["arm"]),
            "style": style_of[row["arm"]],
            "is_baseline": row["arm"] == row["baseline"],
            "bar": bar,
            "sentence": verdict(row).removeprefix(f"{written(row['arm'])}: "),
        }
        for cells, (_, row), bar in zip(
            readable(part).to_dict("records"), part.iterrows(), bars(known, True, WIDEST), strict=True
        )
    ]


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
