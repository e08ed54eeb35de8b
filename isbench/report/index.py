"""results/index.html: the answer, every method beside uniform sampling, and a card for each published table or figure.

It is made from the inventory and the files of results/ alone, and needs no network: style and script are inside.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from isbench.errors import UserError
from isbench.files import PROVENANCE, RUNS, VERDICTS
from isbench.report.answer import ERROR, MEASURES, SPEEDUP, Row, answer, reading, shared_tasks
from isbench.report.bars import Bar, bars
from isbench.report.charts import CHARTS, Chart, examples
from isbench.report.claims import QUANTITIES
from isbench.report.inventory import PAPERS, Experiment
from isbench.report.load import Runs, read_json, read_results
from isbench.report.methods import AXES, add_bars, methods
from isbench.report.names import OWN, task, written
from isbench.report.tables import DASH, clocks, p_value
from isbench.report.templates import render
from isbench.report.verdicts import RULES, holm

FINISHED = "finished"
NAMES = ("dataset", "model", "arm", "signal")  # columns of the data of a figure that hold names, even "1"
# Of the bars of the answer: their ticks, the ends of which they reach.
SCALES = ((0.5, 0.7, 1.0, 1.4, 2.0), (0.25, 0.5, 1.0, 2.0, 4.0), (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0))


def render_index(inventory: Sequence[Experiment], results: Path, found: Sequence[Row]) -> str:
    """Return the page as one string of HTML; `found` are the rows of the answer."""
    survivors = holm(family(inventory, results))
    has_run = [experiment for experiment in inventory if (results / experiment.id / RUNS).is_file()]
    runs = {experiment.id: read_results(results / experiment.id) for experiment in has_run}
    papers = {experiment.paper: PAPERS[experiment.paper] for experiment in inventory}
    return render(
        "index.html",
        answer=answer(found),
        reading=reading(found),
        tally=tally(inventory, results),
        measures=MEASURES,
        shown=SPEEDUP if any(row.measure == SPEEDUP for row in found) else ERROR,
        shared=shared_tasks(found),
        forests={measure: _forest([row for row in found if row.measure == measure]) for measure in MEASURES},
        axes=AXES,
        first_axis=AXES[0],
        methods=_methods(has_run, runs, results),
        papers=papers,
        cards=[_card(each, runs[each.id], results / each.id, each.id in survivors) for each in has_run],
        to_run=[each for each in inventory if each not in has_run],
        rules=RULES,
    )


def family(inventory: Sequence[Experiment], results: Path) -> dict[str, float]:
    """Return the p value of each experiment's primary claim, where an interval judges it."""
    return {
        experiment.id: found["p"]
        for experiment in inventory
        for found in _findings(results / experiment.id)
        if found["primary"] and found["p"] is not None
    }


def primary_markdown(inventory: Sequence[Experiment], results: Path) -> str:
    """Return a table of the primary claims, with those that survive Holm's correction over all of them."""
    tests = family(inventory, results)
    survivors = holm(tests)
    head = ("experiment", "primary claim", "ours [95 %]", "n", "verdict", "p", "survives Holm at 5 %")
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for experiment in inventory:
        for found in _findings(results / experiment.id):
            if found["primary"]:
                p = p_value(tests.get(experiment.id))
                holds = ("yes" if experiment.id in survivors else "no") if experiment.id in tests else DASH
                cells = (experiment.id, found["text"], found["ours"], str(found["n"]), found["verdict"], p, holds)
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def tally(inventory: Sequence[Experiment], results: Path) -> str:
    """Say how many experiments are finished or have begun, and how many claims met which verdict."""
    folders = [results / experiment.id for experiment in inventory]
    states = [_state(folder, read_results(folder)) for folder in folders if (folder / RUNS).is_file()]
    verdicts = Counter(found["verdict"] for experiment in inventory for found in _findings(results / experiment.id))
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    done = states.count(FINISHED)
    begun = f", {len(states) - done} have begun" if done < len(states) else ""
    start = f"{done} of {len(inventory)} experiments are finished{begun}"
    if not counts:
        return f"{start}."
    tests = family(inventory, results)
    survivors = holm(tests)
    own = sum(experiment.paper == OWN and experiment.id in survivors for experiment in inventory)
    return (
        f"{start}. Verdicts on their claims: {counts}. Of {len(tests)} primary claims that an interval judges, "
        f"{len(survivors)} survive Holm's correction at 5 %, {own} of them on isbench's own method."
    )


def _forest(found: list[Row]) -> dict[str, Any]:
    """Return the rows of one measure with a bar each, on the closest of SCALES that holds them all, and its ticks."""
    numbers = [
        abs(math.log(value)) for row in found for value in (row.ratio, row.low, row.high) if 0 < value < math.inf
    ]
    scale = next((scale for scale in SCALES if max(numbers, default=0) <= math.log(scale[-1])), SCALES[-1])
    places: list[dict[str, float | None]] = [{"value": row.ratio, "low": row.low, "high": row.high} for row in found]
    ticks: list[dict[str, float | None]] = [{"value": tick} for tick in scale]
    drawn = bars([*places, *ticks], is_ratio=True, widest=scale[-1])
    texts = [f"{tick:g}\N{MULTIPLICATION SIGN}" for tick in scale]
    return {
        "ticks": [(text, bar.value) for text, bar in zip(texts, drawn[len(found) :], strict=True)],
        "even": drawn[len(found) + scale.index(1.0)].value,
        "rows": [
            (row, f"{written(row.method)} on {task(row.dataset, row.model)}", bar)
            for row, bar in zip(found, drawn, strict=False)
        ],
    }


def _methods(has_run: Sequence[Experiment], runs: dict[str, Runs], results: Path) -> list[dict[str, Any]]:
    """Return the rows of the table of methods."""
    found = [(experiment, method) for experiment in has_run for method in methods(runs[experiment.id])]
    add_bars([method for _, method in found])
    return [
        {
            "experiment": experiment,
            "method": method,
            "name": written(method.arm),
            "task": task(method.dataset, method.model),
            "verdict": _verdict_on(method.arm, _findings(results / experiment.id)),
        }
        for experiment, method in found
    ]


def _verdict_on(arm: str, findings: list[dict[str, Any]]) -> str:
    """Return the verdict on the first claim on a method, the primary one before all others."""
    of_arm = [each for each in findings if each["arm"] == arm and QUANTITIES[each["quantity"]].is_paired]
    return next((each["verdict"] for each in sorted(of_arm, key=lambda each: not each["primary"])), "")


def _card(experiment: Experiment, runs: Runs, folder: Path, survives: bool) -> dict[str, Any]:
    findings = [
        {
            **each,
            "bar": _claim_bar(each),
            "p_text": p_value(each["p"]),
            "about": _about(each),
            "survives": survives and each["primary"],
        }
        for each in sorted(_findings(folder), key=lambda each: not each["primary"])
    ]
    return {
        "experiment": experiment,
        "state": _state(folder, runs),
        "findings": findings,
        "verdicts": list(dict.fromkeys(each["verdict"] for each in findings)),
        "seconds": [f"The seconds of {written(arm)} are not comparable: {why}." for arm, why in clocks(runs).items()],
        "charts": _charts(experiment, runs, folder),
        "examples": examples(runs) if experiment.figure == "examples" and len(runs.probes) else [],
    }


def _state(folder: Path, runs: Runs) -> str:
    planned = read_json(folder / PROVENANCE, dict, {"planned_runs"})["planned_runs"]
    finished = (runs.runs["status"] == "finished").sum()
    return FINISHED if finished == planned else f"{finished} of {planned} runs finished"


def _about(found: dict[str, Any]) -> str:
    """Name what a claim is about, where its text does not."""
    names = " against ".join(map(written, found["arms"].split(" against ")))
    return "" if f"({found['arm']})" in found["text"] or " than with " in found["text"] else f"({names})"


def _charts(experiment: Experiment, runs: Runs, folder: Path) -> list[Chart]:
    path, make = folder / "figure.csv", CHARTS.get(experiment.figure)
    if not make or not path.is_file():
        return []
    try:
        return make(runs, pd.read_csv(path, dtype=dict.fromkeys(NAMES, str)))
    except (LookupError, OSError, TypeError, ValueError) as error:
        again = f"python -m isbench.report {experiment.id}"
        raise UserError(f"{path} is no data of its figure: {again} makes it again") from error


def _claim_bar(found: dict[str, Any]) -> Bar:
    """Return our number and its interval beside what is published and what agrees with the claim."""
    quantity = QUANTITIES[found["quantity"]]
    least, most = found["allowed"]
    known = {
        "value": found["value"],
        "low": found["low"],
        "high": found["high"],
        "neutral": quantity.neutral,
        "published": found["published"],
        "least": least,
        "most": most,
    }
    return bars([known], quantity.is_ratio)[0]


def _findings(folder: Path) -> list[dict[str, Any]]:
    path = folder / VERDICTS
    needed = {"text", "arm", "quantity", "arms", "primary", "p", "ours", "reported", "allowed", "n", "verdict", "rule"}
    return read_json(path, list, needed) if path.is_file() else []
