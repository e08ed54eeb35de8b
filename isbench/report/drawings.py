"""The figures of experiments, one drawing function per kind: from runs to a matplotlib figure and the data behind it.

Lines are means over seeds with their 95 % Student-t band, thin lines single seeds, as in isbench.report.curves.
Figures of scores show the last measurement of the lowest seed; the numbers above them are means over seeds.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from isbench.recording.record import ENDED, UNIT_COLUMNS
from isbench.report.budget_curve import SMALLEST, budget_shift, final_errors, whole
from isbench.report.curves import (
    AXES,
    EPOCHS,
    INK,
    LOSS,
    OBJECTIVE,
    SECONDS,
    UPDATES,
    Band,
    Column,
    Comparison,
    Drawing,
    Drawn,
    Style,
    band,
    comparisons,
    draw_band,
    draw_comparison,
    label_lines,
    styles,
)
from isbench.report.load import KEYS, Runs, last_measurements
from isbench.report.measures import t_interval
from isbench.report.names import task, written

REFERENCE = "per_example_gradient_norm"  # what a score stands for
GAIN = Column("gain_percent", "Gain ratio \N{MINUS SIGN} 1 (%)")
OVERHEAD = Column("overhead_percent", "Time overhead (%)")
EQUIVALENT = Column("epochs_equivalent", "Epochs equivalent")
SPEEDUP = Column("speedup", "Speed-up over uniform, in seconds")
FINAL = Column("final_error", "Final test error (%)", 100.0)
RELATIVE = Column("relative", "Gradient distance relative to uniform")
BOUND_MARKS = {"at least": "^", "at most": "v"}  # of speed-ups that are known from one side alone
SHOWN = 2000  # points of a scatter plot at most: more only make it darker


def curves(runs: Runs, baseline: str = "uniform") -> Drawn:
    """Test error, its difference to the baseline's, train loss and objective, against seconds where all were timed.

    And against epochs; the data have updates too.
    """
    return _stacked(runs, _draw_curves, baseline=baseline)


def overhead_and_gain(runs: Runs) -> Drawn:
    """What a method gains per update and what it costs, and the objective against epochs equivalent (RAIS, Figure 4).

    Gain and overhead are averages between consecutive evaluations, overhead over uniform with the same seed.
    """
    return _stacked(runs, _draw_gains)


def curves_and_gain(runs: Runs) -> Drawn:
    """The curves, and below them what a method gains and costs (RAIS, Figures 3 and 4)."""
    return _stacked(runs, _draw_curves, _draw_gains)


def _stacked(runs: Runs, *drawings: Callable[..., list[pd.DataFrame]], baseline: str = "uniform") -> Drawn:
    """Draw each comparison in each way, one below the other."""
    found, style_of = comparisons(runs, baseline), styles(runs.runs["arm"])
    rows = [(drawing, comparison) for comparison in found for drawing in drawings]
    heights = [2.8 * (len(_axes(comparison)) if drawing is _draw_curves else 1) for drawing, comparison in rows] or [
        2.8
    ]
    columns = max((len(comparison.quantities()) for comparison in found), default=2)
    figure = Figure(figsize=(4.4 * (3 if _draw_gains in drawings else columns), sum(heights)))
    figure.set_layout_engine("constrained", w_pad=0.12)  # room beside the names of lines
    parts = figure.subfigures(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    tables = [
        table.assign(dataset=comparison.dataset, model=comparison.model)
        for part, (drawing, comparison) in zip(parts, rows, strict=False)
        for table in drawing(part, comparison, style_of)
    ]
    return figure, _joined(tables, ["dataset", "model", "arm"])


def _axes(comparison: Comparison) -> list[Column]:
    return [x for x in comparison.axes() if x is not UPDATES]


def _draw_curves(part: Any, comparison: Comparison, style_of: dict[str, Style]) -> list[pd.DataFrame]:
    places, quantities = _axes(comparison), comparison.quantities()
    panels = part.subplots(len(places), len(quantities), squeeze=False)
    for row, x in zip(panels, places, strict=True):
        for panel, y in zip(row, quantities, strict=True):
            draw_comparison(panel, comparison, x, y, style_of)
    untimed = "" if comparison.is_timed() else " (not timed: the runs shared the machine)"
    part.suptitle(comparison.title + untimed, fontweight="bold")
    return curve_tables(comparison)


def curve_tables(comparison: Comparison) -> list[pd.DataFrame]:
    """Return the curves of a comparison as data: every quantity and arm against every axis."""
    return [
        _band_table(
            comparison.band(arm, x, y), x, y, len(comparison.counted(comparison.lines(arm, x, y))), comparison.is_log(y)
        ).assign(arm=arm)
        for x, y in product(comparison.axes(), comparison.quantities())
        for arm in comparison.names(y)
    ]


def _draw_gains(part: Any, comparison: Comparison, style_of: dict[str, Style]) -> list[pd.DataFrame]:
    goal, tables = OBJECTIVE if OBJECTIVE in comparison.quantities() else LOSS, []
    paced = {arm: list(map(_paced, seeds)) for arm, seeds in comparison.arms.items()}
    overheads = {arm: list(_overheads(comparison, arm)) for arm in comparison.arms if arm != "uniform"}
    gains = {arm: seeds for arm, seeds in paced.items() if arm != "uniform"}
    drawn = [(GAIN, EPOCHS, gains), (OVERHEAD, EPOCHS, overheads), (goal, EQUIVALENT, paced)]
    drawn = [(y, x, found) for y, x, found in drawn if any(found.values())]
    for panel, (y, x, found) in zip(part.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        for arm, seeds in found.items():
            if seeds:
                mean = band(seeds, x, y, 0.0 if y is goal else -np.inf)
                draw_band(panel, written(arm), seeds, mean, x, y, style_of[arm])
                tables.append(_band_table(mean, x, y, len(seeds)).assign(arm=arm))
        panel.set(xlabel=x.label, ylabel=y.label)
        label_lines(panel)
    part.suptitle(comparison.title, fontweight="bold")
    return tables


def budget_curves(runs: Runs) -> Drawn:
    """Final test error by budget, each run at the end of its own schedule, and what each budget's shift comes to.

    Errors are means of logarithms. Speed-ups are those of isbench.report.budget_curve, one for each budget.
    """
    data = _joined(list(_budgets(runs)), ["dataset", "model", "arm"])
    settings = data[["dataset", "model"]].drop_duplicates()
    figure = Figure(figsize=(10.4, 3.9 * max(1, len(settings))))
    figure.set_layout_engine("constrained", w_pad=0.12)
    style_of = styles(data["arm"])
    for part, (dataset, model) in zip(
        figure.subfigures(max(1, len(settings)), squeeze=False)[:, 0], settings.to_numpy(), strict=False
    ):
        part.suptitle(task(dataset, model), fontweight="bold")
        mine = data[data["dataset"].eq(dataset) & data["model"].eq(model)]
        for panel, y in zip(part.subplots(1, 2), (FINAL, SPEEDUP), strict=True):
            for arm, points in mine[mine["quantity"].eq(y.column)].groupby("arm", sort=False):
                style, ends = style_of[str(arm)], points[["low", "high"]].T.fillna(points["mean"]).to_numpy()
                shown = np.minimum(ends, 1.3 * ends[np.isfinite(ends)].max())  # a bound may be infinite
                panel.vlines(points["x"], *shown, color=style.colour, alpha=0.5, linewidth=1)
                colour = {"color": style.colour}
                known = points[~points["censored"].isin(BOUND_MARKS)]
                panel.plot(known["x"], known["mean"], "o", linestyle=style.dash, markersize=3.5, **colour)
                for side, mark in BOUND_MARKS.items():
                    if len(bounds := points[points["censored"].eq(side)]):
                        panel.plot(bounds["x"], bounds["mean"], mark, markersize=8, **colour)
                panel.plot(points["x"], points["mean"], linestyle="none", label=written(str(arm)), **colour)
            x = next(column for column in AXES if column.column == mine["axis"].iloc[0])
            panel.set(xscale="log", yscale="log", xlabel=f"Budget: {x.label.lower()}", ylabel=y.label)
            _spell_out(panel.xaxis)
            _spell_out(panel.yaxis)
            if y is SPEEDUP:
                panel.axhline(1, color=INK, linewidth=0.8)
            label_lines(panel)
    return figure, data


def _budgets(runs: Runs) -> Iterator[pd.DataFrame]:
    """Yield, per data set, network and arm, the errors and the speed-ups at its budgets, in the form of the figure."""
    told = ("low", "high", "n", "censored")  # of a speed-up, besides it
    for (dataset, model), group in runs.runs.groupby(["dataset", "model"]):
        mine, unit = replace(runs, runs=group), str(group["budget_unit"].iloc[0])
        arms = sorted(whole(group["arm"]).unique(), key=lambda name: (name != "uniform", name))
        for arm in arms:
            ended = final_errors(mine, arm, unit)
            ended["place"] = ended.groupby("budget")["place"].transform("median")
            errors = _error_means(ended, "place")
            shifts = [
                {"x": place, "mean": shift.speedup, **{name: getattr(shift, name) for name in told}}
                for place, budget in sorted(set(zip(ended["place"], ended["budget"], strict=True)))
                if arm != "uniform" and (shift := budget_shift(mine, arm, axis=unit, budget=budget)).n
            ]
            for quantity, table in ((FINAL.column, errors), (SPEEDUP.column, pd.DataFrame(shifts))):
                names = {"dataset": dataset, "model": model, "arm": arm}
                yield table.assign(axis=UNIT_COLUMNS[unit], quantity=quantity, scale="log", **names)


def _error_means(ended: pd.DataFrame, x: str) -> pd.DataFrame:
    """Return, at each value of a column, the mean over runs of the logarithm of `error`, as errors in per cent."""
    means = _points_table([ended.assign(logs=np.log(ended["error"].clip(SMALLEST)))], x, "logs")
    means[["mean", "low", "high"]] = FINAL.scale * np.exp(means[["mean", "low", "high"]])
    return means


def ends(runs: Runs) -> Drawn:
    """The test error that each arm ends with, the lowest first: means of logarithms over seeds; 1 if it diverged."""
    last = runs.rows.drop_duplicates("run_id", keep="last")[["run_id", "test_error"]]
    ended = runs.runs[runs.runs["status"].isin(ENDED)].merge(last, on="run_id")
    ended["error"] = ended["test_error"].where(ended["status"].eq("finished"), 1.0)
    data = _error_means(ended, "arm").sort_values("mean", ignore_index=True)
    figure = Figure(figsize=(6.4, 0.9 + 0.24 * len(data)), layout="constrained")
    panel = figure.subplots()
    panel.hlines(data.index, data["low"], data["high"], color=INK, linewidth=1)
    panel.plot(data["mean"], data.index, "o", color=INK, markersize=4)
    panel.set_yticks(data.index, map(written, data["x"]))
    panel.set(xlabel=FINAL.label)
    if len(data):  # a log axis needs a number
        panel.set_ylim(len(data) - 0.5, -0.5)  # from above
        panel.set_xscale("log")
        _spell_out(panel.xaxis)
    return figure, data.rename(columns={"x": "arm"})


def gradient_variance(runs: Runs) -> Drawn:
    """Distance of a resampled batch's gradient to the pool's, by signal (Katharopoulos and Fleuret 2018, Figure 1)."""
    figure, panels = _panels(runs.probes["arm"])
    x, tables = UPDATES, []
    for arm, signal in product(panels, runs.probes["signal"].unique()):
        measured = runs.probes[(runs.probes["arm"] == arm) & (runs.probes["signal"] == signal)]
        seeds, style = [seed for _, seed in measured.groupby("run_id")], signal_style(signal)
        draw_band(panels[arm], written(signal), seeds, band(seeds, x, RELATIVE), x, RELATIVE, style)
        tables.append(_points_table(seeds, "updates", "relative").assign(arm=arm, signal=signal))
    for panel in panels.values():
        panel.set(xlabel=x.label, ylabel=RELATIVE.label)
        label_lines(panel)
    return figure, _joined(tables, ["arm", "signal"])


def loss_patterns(runs: Runs) -> Drawn:
    """Share of a loss decile's examples that stayed in it to the last measurement, by first one (SGD on Steroids)."""
    last = last_measurements(runs.probes)
    figure, panels = _panels(last["arm"])
    tables = []
    for arm, panel in panels.items():
        measured = last[last["arm"] == arm]
        firsts = sorted(measured["first_epoch"].unique())
        width = 0.8 / len(firsts)
        for place, first in enumerate(firsts):
            seeds = [part for _, part in measured[measured["first_epoch"] == first].groupby("run_id")]
            table = _points_table(seeds, "decile", "share")
            centres = table["x"] + (place - (len(firsts) - 1) / 2) * width
            spread = 100 * (table["high"] - table["mean"]).fillna(0)
            shade = colormaps["Blues"](0.3 + 0.6 * (place + 1) / len(firsts))
            label = f"since epoch {first:.3g}"
            panel.bar(centres, 100 * table["mean"], width, yerr=spread, color=shade, label=label, ecolor=INK)
            tables.append(table.assign(arm=arm, first_epoch=first))
        panel.set(xlabel="Decile of the loss (1: highest)", ylabel="Share still in it (%)", ylim=(0, 100))
        panel.set_xticks(sorted(measured["decile"].unique()))
        panel.grid(axis="x", visible=False)
        panel.legend(loc="upper center")
    return figure, _joined(tables, ["arm", "first_epoch"])


def score_scatter(runs: Runs) -> Drawn:
    """Each score against the exact gradient norm, with its rolling mean over 50 examples and their correlation."""
    return _scatter(runs, scores)


def probability_scatter(runs: Runs) -> Drawn:
    """Probabilities by each score against the ideal ones (Katharopoulos and Fleuret 2018, Figure 2)."""
    return _scatter(runs, probabilities)


def examples(runs: Runs) -> Drawn:
    """Examples that a sampler draws rarely, left, and often, right (RAIS, Figure 1): label, then what was predicted."""
    last = last_measurements(runs.probes)
    first = last[last["seed"] == last.groupby("arm")["seed"].transform("min")]
    arms, count = sorted(first["arm"].unique()), int(first.groupby(["run_id", "rank"]).size().max())
    figure = Figure(figsize=(7.6, 2.4 * len(arms)), layout="constrained")
    for part, arm in zip(figure.subfigures(len(arms), squeeze=False)[:, 0], arms, strict=True):
        part.suptitle(written(arm), fontweight="bold")
        for half, rank in zip(part.subfigures(1, 2), ("rarely", "often"), strict=True):
            half.supxlabel(f"drawn {rank}", fontsize="medium")
            panels = half.subplots(2, max(1, -(-count // 2)), squeeze=False).flat
            chosen = first[(first["arm"] == arm) & (first["rank"] == rank)]
            for panel, (_, example) in zip(panels, chosen.iterrows(), strict=False):
                _draw_example(panel, example)
            for panel in half.axes:
                panel.set_axis_off()
    return figure, first[["arm", "dataset", "seed", "rank", "index", "label", "predicted", "probability"]]


def _draw_example(panel: Any, example: pd.Series) -> None:
    wrong = "" if example["label"] == example["predicted"] else f" ({example['predicted']:g})"
    panel.set_title(f"{example['label']:g}{wrong}", fontsize="small", pad=2)
    if isinstance(example.get("pixels"), np.ndarray):
        image = example["pixels"].reshape(tuple(example["shape"].astype(int))).transpose(1, 2, 0)
        panel.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
    else:
        panel.text(0.5, 0.5, f"no. {example['index']:g}", ha="center", va="center", transform=panel.transAxes)


class Scatter(NamedTuple):
    """A cloud of points with a line through it, the same scale on both axes, and what it comes to over the seeds."""

    x: np.ndarray
    y: np.ndarray
    line: tuple[np.ndarray, np.ndarray]
    labels: tuple[str, str]
    title: str
    facts: dict[str, Any]
    is_log: bool = False

    def points(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return `count` of the points at most, evenly by their place along x."""
        shown = slice(None, None, -(-len(self.x) // count))
        return self.x[shown], self.y[shown]


def scatters(runs: Runs, cloud: Callable[[pd.DataFrame, str], Scatter]) -> dict[tuple[str, str], Scatter]:
    """Return a cloud for every arm and signal."""
    last = last_measurements(runs.probes)
    signals = [name for name in last.columns if name not in (*KEYS, "updates", "epoch", "index", "label", REFERENCE)]
    return {
        (arm, signal): cloud(last[last["arm"] == arm].sort_values("seed"), signal)
        for arm, signal in product(sorted(last["arm"].unique()), signals)
    }


def _scatter(runs: Runs, cloud: Callable[[pd.DataFrame, str], Scatter]) -> Drawn:
    """Draw a row of panels per arm and a panel per signal."""
    found = scatters(runs, cloud)
    arms, signals = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    figure = Figure(figsize=(3.8 * len(signals), 3.6 * len(arms)), layout="constrained")
    panels = figure.subplots(len(arms), len(signals), squeeze=False).flat
    facts = []
    for panel, ((arm, signal), each) in zip(panels, found.items(), strict=True):
        colour = signal_style(signal).colour
        panel.scatter(*each.points(SHOWN), s=3, color=colour, alpha=0.35, linewidths=0, rasterized=True)
        panel.plot(*each.line, color=INK, linewidth=1)
        panel.set(xlabel=each.labels[0], ylabel=each.labels[1])
        if each.is_log:
            panel.set(xscale="log", yscale="log")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_minor_formatter(NullFormatter())
        title = f"{written(arm)}: {each.title}" if len(arms) > 1 else each.title
        panel.set_title(title, fontsize="medium")
        facts.append({"arm": arm, "signal": signal, "reference": REFERENCE, **each.facts})
    return figure, pd.DataFrame(facts)


def scores(measured: pd.DataFrame, signal: str) -> Scatter:
    """Return the scores of the lowest seed against exact gradient norms, with their rolling mean over 50 examples."""
    pairs = [(np.asarray(row[REFERENCE]), np.asarray(row[signal])) for _, row in measured.iterrows()]
    norms, own = (values[np.argsort(pairs[0][0], kind="stable")] for values in pairs[0])
    rolling = pd.Series(own).rolling(min(50, len(own)), center=True).mean().to_numpy()
    correlation = t_interval([np.corrcoef(*pair)[0, 1] for pair in pairs])
    facts = {"correlation": correlation.mean, "half_width": correlation.half_width, "n": correlation.n}
    labels = (written(REFERENCE), written(signal))
    title = f"correlation {correlation.mean:.2f}; line: rolling mean"
    return Scatter(norms, own, (norms, rolling), labels, title, facts)


def probabilities(measured: pd.DataFrame, signal: str) -> Scatter:
    """Return the probabilities by a signal of the lowest seed against those by gradient norm, with the diagonal."""
    pairs = [
        [np.divide(row[name], np.sum(row[name])) for name in (REFERENCE, signal)] for _, row in measured.iterrows()
    ]
    ideal, own = pairs[0]
    ends = np.array([min(ideal[ideal > 0].min(), own[own > 0].min()), max(ideal.max(), own.max())])
    squares = t_interval([float(((b - a) ** 2).sum()) for a, b in pairs])
    facts = {"squared_error": squares.mean, "half_width": squares.half_width, "n": squares.n}
    labels = (f"p by {written(REFERENCE).lower()}", f"p by {written(signal).lower()}")
    return Scatter(ideal, own, (ends, ends), labels, f"sum of squared errors {squares.mean:.2g}", facts, is_log=True)


def signal_style(signal: str) -> Style:
    """Return how a signal is drawn: as the sampler that uses it."""
    sampler = {"logit_gradient_norm": "upper_bound", REFERENCE: "gradient_norm"}.get(signal, signal)
    return styles([sampler])[sampler]


def _paced(curve: pd.DataFrame) -> pd.DataFrame:
    """Add the mean gain since the evaluation before, in per cent above 1, and the epochs equivalent."""
    gain = curve["effective_updates"].diff() / curve["updates"].diff()
    per_update = (curve["epoch"] / curve["updates"]).max()
    return curve.assign(
        gain_percent=100 * (gain - 1), epochs_equivalent=curve["effective_updates"].fillna(0) * per_update
    )


def _overheads(comparison: Comparison, arm: str) -> Iterator[pd.DataFrame]:
    """Yield, per seed, the seconds per update over those of uniform since the evaluation before, in per cent above."""
    baseline = comparison.seeds("uniform", SECONDS) if "uniform" in comparison.arms else []
    for curve, uniform in product(comparison.seeds(arm, SECONDS), baseline):
        if curve["seed"].iloc[0] == uniform["seed"].iloc[0]:
            both = curve.merge(uniform, on="updates", suffixes=("", "_uniform"))
            ratio = both["train_seconds"].diff() / both["train_seconds_uniform"].diff()
            yield both.assign(overhead_percent=100 * (ratio - 1))


def _band_table(values: Band, x: Column, y: Column, n: int, is_log: bool = False) -> pd.DataFrame:
    """Return a band over n seeds as rows of x, mean, low and high, every second point of it, with what it shows."""
    scale = "log" if is_log else "linear"
    return pd.DataFrame(values._asdict()).iloc[::2].assign(axis=x.column, quantity=y.column, n=n, scale=scale)


def _points_table(seeds: list[pd.DataFrame], x: str, y: str) -> pd.DataFrame:
    """Return mean, low and high of y over seeds where their x is the same."""
    rows = []
    for place, part in pd.concat(seeds).groupby(x):
        mean, half_width, n = t_interval(part[y])
        rows.append({"x": place, "mean": mean, "low": mean - half_width, "high": mean + half_width, "n": n})
    return pd.DataFrame(rows, columns=["x", "mean", "low", "high", "n"])


def _spell_out(axis: Any) -> None:
    """Write the numbers of a logarithmic axis as they are, without powers."""
    low, high = axis.get_view_interval()
    round_numbers = LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
    is_narrow = sum(low <= place <= high for place in round_numbers.tick_values(low, high)) < 2
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]) if is_narrow else round_numbers)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _joined(tables: list[pd.DataFrame], first: list[str]) -> pd.DataFrame:
    joined = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=first)
    return joined[[*first, *(name for name in joined.columns if name not in first)]]


def _panels(arms: pd.Series) -> tuple[Figure, dict[str, Any]]:
    """Return a figure with a panel for each arm, side by side."""
    names = sorted(arms.unique())
    figure = Figure(figsize=(5.2 * len(names), 3.6), layout="constrained")
    panels = dict(zip(names, figure.subplots(1, len(names), sharey=True, squeeze=False)[0], strict=True))
    if len(names) > 1:
        for name, panel in panels.items():
            panel.set_title(written(name), fontweight="bold", fontsize="medium")
    return figure, panels


_ALL = (
    curves,
    overhead_and_gain,
    curves_and_gain,
    budget_curves,
    ends,
    gradient_variance,
    loss_patterns,
    score_scatter,
    probability_scatter,
    examples,
)
DRAWINGS: dict[str, Drawing] = {drawing.__name__: drawing for drawing in _ALL}
