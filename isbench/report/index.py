"""results/index.html: every published table and figure, what state ours is in, what it shows and how to run it.

It is made from the inventory and the files of results/ alone, and needs no network: pictures and style are inside it.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from isbench.files import PROVENANCE, RUNS, VERDICTS
from isbench.report.inventory import PAPERS, Experiment
from isbench.report.load import read_json, read_results
from isbench.report.tables import DASH, clocks, p_value
from isbench.report.templates import render
from isbench.report.verdicts import RULES, holm

VERDICTS_OF_KIND = {  # as the style sheet calls what is good, in between and bad
    "finished": ("reproduced",),
    "skipped": ("smaller", "larger", "inconclusive"),
    "failed": ("refuted", "opposite"),
}
KINDS = {verdict: kind for kind, verdicts in VERDICTS_OF_KIND.items() for verdict in verdicts}


def render_index(inventory: Sequence[Experiment], results: Path) -> str:
    """Return the page as one string of HTML."""
    survivors = holm(family(inventory, results))
    return render(
        "index.html",
        tally=tally(inventory, results),
        rules=[{**rule._asdict(), "kind": KINDS.get(rule.name, "")} for rule in RULES],
        papers=[
            {"id": paper, "name": name, "citation": citation}
            for paper, (name, citation) in PAPERS.items()
            if any(experiment.paper == paper for experiment in inventory)
        ],
        experiments=[
            _experiment(experiment, results / experiment.id, experiment.id in survivors) for experiment in inventory
        ],
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
    """Say how many experiments have been run, and how many claims met which verdict."""
    run = sum((results / experiment.id / RUNS).is_file() for experiment in inventory)
    verdicts = Counter(found["verdict"] for experiment in inventory for found in _findings(results / experiment.id))
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    subject = "experiments, on published tables and figures and on what they leave open,"
    start = f"{run} of {len(inventory)} {subject} have been run here"
    if not counts:
        return f"{start}."
    tests = family(inventory, results)
    return (
        f"{start}. Verdicts on their claims: {counts}. Of {len(tests)} primary claims that an interval judges, "
        f"{len(holm(tests))} survive Holm's correction at 5 %."
    )


def _experiment(experiment: Experiment, folder: Path, survives: bool) -> dict[str, Any]:
    findings = _findings(folder)
    counts = Counter(finding["verdict"] for finding in findings)
    return {
        "id": experiment.id,
        "paper": experiment.paper,
        "shows": experiment.shows,
        "remarks": experiment.remarks,
        "state": _state(experiment, folder),
        "verdicts": [
            (f"{count} {verdict}" if len(findings) > 1 else verdict, KINDS.get(verdict, ""))
            for verdict, count in counts.items()
        ],
        "picture": _picture(folder / "figure.svg"),
        "findings": [
            {
                **finding,
                "kind": KINDS.get(finding["verdict"], ""),
                "p": p_value(finding["p"]),
                "survives": survives and finding["primary"],
            }
            for finding in findings
        ],
        "clocks": [f"{arm} is not one clock: {why}." for arm, why in _clocks(folder).items()],
        "claims": [claim.text for claim in experiment.claims],
    }


def _state(experiment: Experiment, folder: Path) -> tuple[str, str]:
    """Say how far an experiment is, its runs that finished or what it waits for; and of which kind that is."""
    if not (folder / RUNS).is_file():
        return (f"needs {experiment.needs}", "skipped") if experiment.needs else ("ready to run", "")
    planned = read_json(folder / PROVENANCE, dict, {"planned_runs"})["planned_runs"]
    finished = (read_results(folder).runs["status"] == "finished").sum()
    return f"{finished} of {planned} runs finished", "finished" if finished == planned else "skipped"


def _clocks(folder: Path) -> dict[str, str]:
    return clocks(read_results(folder)) if (folder / RUNS).is_file() else {}


def _findings(folder: Path) -> list[dict[str, Any]]:
    path = folder / VERDICTS
    return read_json(path, list, {"text", "primary", "p", "ours", "n", "verdict"}) if path.is_file() else []


def _picture(path: Path) -> str:
    """Return an SVG as part of an address, a quarter shorter than in base64; nothing where there is none."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return quote(" ".join(text.split()), safe=" =:/;,()[]{}@!$*+?|")
