"""One self-contained HTML page: the answer first, then the numbers, the curves, what was run and how to read it."""

import math
from collections.abc import Iterable
from html import escape

import pandas as pd
from plotly.offline import get_plotlyjs

from isbench.report.assets import CSS, SCRIPT, document
from isbench.report.curves import EPOCHS, ERROR, LOSS, SECONDS, Comparison, Style, comparisons, interactive, styles
from isbench.report.load import SETTINGS, Runs
from isbench.report.measures import headline, verdict
from isbench.report.tables import number, readable

# Differences in these make seconds incomparable, or the comparison one of more than samplers.
MUST_AGREE = (*SETTINGS, "checksum", "cpu", "gpu", "torch", "torch_threads", "git_commit")
LABELS = {"git_commit": "commit", "torch_threads": "threads", "checksum": "data checksum"}
TRIVIAL = {"label_smoothing": "0", "clip_norm": "none", "slots": "none"}
RESULTS = (
    "sampler",
    "speed-up",
    "verdict",
    "n",
    "test error (%)",
    "difference (points)",
    "seconds to target",
    "misses",
)
WORK = ("sampler", "train loss", "updates", "examples trained", "examples scored", "diverged")


def render(runs: Runs, table: pd.DataFrame, title: str) -> str:
    """Return the page as one string of HTML that needs no network."""
    style_of = styles(runs.runs["arm"])
    curves = {comparison.title: comparison for comparison in comparisons(runs)}
    sections = []
    for place, ((dataset, model), part) in enumerate(table.groupby(["dataset", "model"])):
        heading = f"{dataset} \N{MIDDLE DOT} {model}"
        mine = runs.runs[(runs.runs["dataset"] == dataset) & (runs.runs["model"] == model)]
        sections.append(
            f"<h2>{escape(heading)}</h2>\n{_conditions(part)}\n{_notices(disagreements(mine))}\n"
            f"{_table(readable(part), RESULTS, part, style_of)}\n{_verdicts(part)}\n"
            f"{_curves(curves[heading], style_of, place) if heading in curves else ''}\n"
            f"<h3>Train loss and work done in the same seconds</h3>\n{_table(readable(part), WORK, part, style_of)}\n"
            f"<h3>Settings</h3>\n{_settings(mine)}"
        )
    main = f"""<h1>{escape(title)}</h1>
<p class="lede">{escape(headline(table))}</p>
{_notices(runs.notices)}
{_reading(table)}
{"".join(sections)}
<h2>Runs</h2>
{_runs(runs.runs)}
"""
    return document(title, f"<style>{CSS}</style>\n<script>{get_plotlyjs()}</script>", main, SCRIPT)


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


def _notices(notices: Iterable[str]) -> str:
    lines = "".join(f"<p>{escape(notice)}</p>" for notice in notices)
    return f'<div class="notice" role="note">{lines}</div>' if lines else ""


def _conditions(part: pd.DataFrame) -> str:
    seconds, target = part["seconds"].iloc[0], part["target"].iloc[0]
    if math.isnan(seconds):
        return '<p class="soft">No run has finished yet, so there are only curves.</p>'
    goal = "" if math.isnan(target) else f" The target is a test error of <b>{target:.2%}</b>."
    return (
        f'<p class="soft">Compared after <b>{number(seconds)} s</b> of training, which every finished run has reached.'
        f"{goal}</p>"
    )


def _table(text: pd.DataFrame, columns: tuple[str, ...], part: pd.DataFrame, style_of: dict[str, Style]) -> str:
    scale = _Scale(part)
    head = "".join(f'<th scope="col"{_text_class(name)}>{escape(name)}</th>' for name in columns)
    body = []
    for (_, cells), (_, row) in zip(text.iterrows(), part.iterrows(), strict=True):
        line = [f'<th scope="row">{_swatch(style_of[row["arm"]])}{escape(row["arm"])}</th>']
        for name in columns[1:]:
            content = escape(cells[name])
            if name == "verdict":
                content = f'<span class="tag {escape(cells[name])}">{content}</span>'
            if name == "speed-up":
                content = scale.draw(row, style_of[row["arm"]].colour) + content
            line.append(f"<td{_text_class(name)}>{content}</td>")
        kind = ' class="baseline"' if row["arm"] == row["baseline"] else ""
        body.append(f"<tr{kind}>{''.join(line)}</tr>")
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _text_class(name: str) -> str:
    return ' class="text"' if name in ("sampler", "speed-up", "verdict", "run", "status", "reason") else ""


def _swatch(style: Style) -> str:
    return (
        f'<span class="swatch" style="border-top-color:{style.colour};border-top-style:{_BORDER[style.dash]}"></span>'
    )


_BORDER = {"solid": "solid", "dashed": "dashed", "dotted": "dotted", "dashdot": "dashed"}


class _Scale:
    """A common logarithmic axis for the intervals drawn beside the speed-ups, with 1 marked."""

    width, height = 92, 16

    def __init__(self, part: pd.DataFrame) -> None:
        bounds = pd.concat([part["speedup_low"], part["speedup_high"]]).dropna()
        reach = max((abs(math.log(bound)) for bound in bounds if 0 < bound < math.inf), default=0.0)
        # At least a factor of 1.25, lest noise look large; at most one of 20, lest a wild interval hide the others.
        self.reach = min(max(1.1 * reach, math.log(1.25)), math.log(20))

    def x(self, ratio: float) -> float:
        place = max(-1.0, min(1.0, math.log(ratio) / self.reach)) if ratio > 0 else -1.0
        return (1 + place) * (self.width / 2 - 4) + 4

    def draw(self, row: pd.Series, colour: str) -> str:
        middle = self.height / 2
        one = f'<path d="M{self.x(1):.1f} 0V{self.height}" stroke="#98a1b0" stroke-dasharray="2 2"/>'
        shapes = ""
        if row["arm"] != row["baseline"] and not math.isnan(row["speedup_low"]):
            low, mean, high = (self.x(row[name]) for name in ("speedup_low", "speedup", "speedup_high"))
            shapes = (
                f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="{colour}" stroke-width="2"/>'
                f'<circle cx="{mean:.1f}" cy="{middle}" r="3.5" fill="{colour}"/>'
            )
        return (
            f'<svg class="interval" width="{self.width}" height="{self.height}" aria-hidden="true">{one}{shapes}</svg>'
        )


def _verdicts(part: pd.DataFrame) -> str:
    methods = part[part["arm"] != part["baseline"]]
    lines = []
    for _, row in methods.iterrows():
        name, _, sentence = verdict(row).partition(": ")
        lines.append(f"<li><b>{escape(name)}</b>: {escape(sentence)}</li>")
    return f'<ul class="verdicts">{"".join(lines)}</ul>' if lines else ""


def _curves(comparison: Comparison, style_of: dict[str, Style], place: int) -> str:
    plots = "".join(
        "<div>"
        + interactive(comparison, quantity, style_of).to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=f"{quantity.column}-{place}",
            config={"displaylogo": False, "responsive": True, "displayModeBar": False},
        )
        + "</div>"
        for quantity in (ERROR, LOSS)
    )
    switch = "".join(
        f'<button type="button" aria-pressed="{"true" if axis is SECONDS else "false"}" data-axis="{axis.column}" '
        f'data-title="{axis.label}">{label}</button>'
        for axis, label in ((SECONDS, "seconds"), (EPOCHS, "epochs"))
    )
    arms = "".join(
        f'<button type="button" aria-pressed="true" data-arm="{escape(name)}">'
        f"{_swatch(style_of[name])}{escape(name)}</button>"
        for name in comparison.arms
    )
    return (
        '<section class="curves"><h3>Learning curves</h3><div class="controls">'
        f'<span class="switch" role="group" aria-label="horizontal axis">{switch}</span></div>'
        f'<div class="controls arms">{arms}</div><div class="plots">{plots}</div></section>'
    )


def _settings(runs: pd.DataFrame) -> str:
    items = {"data set": _values(runs, "dataset", "provenance", "num_examples"), "model": _values(runs, "model")}
    for key in SETTINGS:
        value = _values(runs, key)
        if value and value != TRIVIAL.get(key):
            items[_label(key)] = value
    items["machine"] = _values(runs, "gpu", "cpu")
    items["software"] = f"torch {_values(runs, 'torch')}, Python {_values(runs, 'python')}"
    items["threads"] = _values(runs, "torch_threads")
    dirty = " with uncommitted changes" if runs["git_dirty"].eq(True).any() else ""
    items["commit"] = (_values(runs, "git_commit") or "not recorded") + dirty
    items["data checksum"] = _values(runs, "checksum")
    lines = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in items.items() if value)
    return f"<dl>{lines}</dl>"


def _values(runs: pd.DataFrame, *columns: str) -> str:
    """Join the distinct values of columns, each run's together."""
    known = runs[runs["status"] != "skipped"]
    texts = {
        ", ".join(_value(name, run[name]) for name in columns if not pd.isna(run[name])) for _, run in known.iterrows()
    }
    return "; ".join(sorted(texts - {""}))


def _value(column: str, value: object) -> str:
    if column == "num_examples":
        return f"{int(str(value).partition('.')[0]):,} training examples"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _reading(table: pd.DataFrame) -> str:
    baseline = escape(table["baseline"].iloc[0])
    lines = (
        "<b>The clock</b> runs while a sampler draws, scores, fetches, trains and learns; it stands still during "
        "warm-up, evaluation, checkpoints and logging.",
        "<b>n</b> counts seeds. A seed gives all samplers the same initial weights, so speed-ups and differences are "
        f"paired by seed with {baseline}.",
        "<b>Bands and \N{PLUS-MINUS SIGN}</b> are 95 % Student-t intervals over seeds; thin lines are single seeds; "
        "nothing is extrapolated. Of twenty such intervals about one misses the truth by chance.",
        f"<b>Speed-up</b> is the seconds {baseline} needs to the target over the sampler's (geometric mean). Unless "
        f"given, the target is the error that every run of {baseline} reaches; a run that never does is a miss.",
    )
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f'<aside class="reading"><h3>How to read this</h3><ul>{items}</ul></aside>'


def _runs(runs: pd.DataFrame) -> str:
    counts = runs["status"].value_counts()
    summary = ", ".join(
        f"{counts[name]} {name}" for name in sorted(counts.index, key=lambda name: (-counts[name], name))
    )
    first = runs.assign(order=runs["status"].eq("finished")).sort_values(["order", "path"])
    columns = ("run", "status", "reason", "seconds", "attempts")
    head = "".join(f'<th scope="col"{_text_class(name)}>{name}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row" class="path">{escape(run["path"])}</th>'
        f'<td class="text"><span class="tag {escape(run["status"])}">{escape(run["status"])}</span></td>'
        f'<td class="text wrap">{escape(run["reason"])}</td>'
        f"<td>{number(run['seconds'] or math.nan)}</td><td>{run['attempts']}</td></tr>"
        for _, run in first.iterrows()
    )
    return (
        f'<p class="soft">{escape(summary)}. Diverged runs count as misses unless they reached the target before; '
        "only finished and diverged runs enter the tables.</p>"
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
