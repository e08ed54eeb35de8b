"""Write the generated tables into README.md and docs/gpu.md, or with --check say whether they are up to date."""

import inspect
import json
import re
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import yaml

from isbench.config import locate
from isbench.explain import summary
from isbench.grid.jobs import compose_grid
from isbench.report.index import tally
from isbench.report.inventory import experiments
from isbench.report.load import describe
from isbench.report.measures import headline

ROOT = Path(__file__).resolve().parent.parent
FILES = (ROOT / "README.md", ROOT / "docs" / "gpu.md")
FACTS = ("Estimator", "Memory", "Cost", "Host reads")
DEMO_COLUMNS = ("sampler", "n", "speed-up", "verdict", "test error (%)", "train loss", "seconds to target", "updates")


def demo_table() -> str:
    """Return what the demo found, its table with the columns that fit a page, and the notes below it."""
    table, _, notes = (ROOT / "results" / "demo" / "table.md").read_text().strip().partition("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    kept = [rows[0].index(column) for column in DEMO_COLUMNS]
    lines = ["| " + " | ".join("---" if i == 1 else row[k] for k in kept) + " |" for i, row in enumerate(rows)]
    finding = headline(pd.read_csv(ROOT / "results" / "demo" / "table.csv"))
    return f"**{finding}**\n\n" + "\n".join(lines) + "\n\n" + notes


def experiment_table() -> str:
    """Return a sentence on all, and one row per experiment that has been run: its primary claim, how the others fared.

    What has no primary claim has its first. One seed's number is no headline.
    """
    head = ("experiment", "claim (arms)", "published", "ours [95 %]", "n", "verdict", "its other claims")
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for experiment in experiments():
        path = ROOT / "results" / experiment.id / "verdicts.json"
        findings = json.loads(path.read_text()) if path.is_file() else []
        for found in [found for found in findings if found["primary"]][:1] or findings[:1]:
            others = Counter(other["verdict"] for other in findings if other is not found)
            cells = (
                f"`{experiment.id}`",
                found["text"] + ("" if f"({found['arm']})" in found["text"] else f" ({found['arms']})"),
                found["reported"],
                "\N{EN DASH}" if found["verdict"] == "one seed" else found["ours"],
                str(found["n"]),
                found["verdict"],
                ", ".join(f"{count} {verdict}" for verdict, count in others.most_common()),
            )
            lines.append("| " + " | ".join(cells) + " |")
    return f"**{tally(experiments(), ROOT / 'results')}**\n\n" + "\n".join(lines)


def gpu_table() -> str:
    """Return one row per experiment that needs a GPU: what it shows, its runs, their budget and their cost."""
    head = ("`experiment=`", "shows", "needs besides", "runs", "budget of a run", "minutes in all")
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for experiment in experiments():
        if "a GPU" in experiment.needs:
            choice, cost = f"{experiment.paper}/{experiment.id}", experiment.cost
            _, jobs = compose_grid([f"experiment={choice}"])
            cells = (
                f"`{choice}`",
                experiment.shows,
                experiment.needs.removesuffix("a GPU").removesuffix(" and "),
                str(len(jobs)),
                describe(asdict(jobs[0].config.budget)),
                f"{cost.minutes:g} on {cost.machine}" + (", estimated" if cost.is_estimate else ""),
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sampler_table() -> str:
    """Return one row per yaml of conf/sampler, from its first line and the docstring of its class."""
    lines = ["| sampler | method | " + " | ".join(fact.lower() for fact in FACTS) + " |", "| --- " * 6 + "|"]
    for path in sorted((ROOT / "conf" / "sampler").glob("*.yaml")):
        documentation = inspect.getdoc(locate(yaml.safe_load(path.read_text())["_target_"])) or ""
        facts = [re.search(rf"^{fact}: ((?:.|\n(?!\w[\w ]*:|\n))*)", documentation, re.MULTILINE) for fact in FACTS]
        cells = [" ".join(fact[1].split()).rstrip(".").replace("|", "\\|") if fact else "?" for fact in facts]
        lines.append(f"| `{path.stem}` | {summary(path)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def performance_table() -> str:
    """Return what `make bench` found, the worst row for each goal."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.summary import headline  # beside the package, not in it

    return headline(json.loads((ROOT / "results" / "benchmarks" / "summary.json").read_text()))


def reliability_table() -> str:
    """Return what `make test-faults` found, kind by kind."""
    sys.path.insert(0, str(ROOT))
    from tests.faults.summary import headline, markdown

    path = ROOT / "results" / "reliability" / "summary.json"
    if not path.is_file():
        return "Not measured yet."
    found = json.loads(path.read_text())
    return f"**{headline(found)}**\n\n{markdown(found)}"


TABLES = {
    "demo": demo_table,
    "experiments": experiment_table,
    "gpu": gpu_table,
    "performance": performance_table,
    "reliability": reliability_table,
    "samplers": sampler_table,
}


def filled(text: str) -> str:
    """Return a text with every generated block renewed."""
    return re.sub(
        rf"(<!-- ({'|'.join(TABLES)}) -->).*?(<!-- /\2 -->)",
        lambda block: f"{block[1]}\n{TABLES[block[2]]()}\n{block[3]}",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    texts = {path: path.read_text() for path in FILES}
    renewed = {path: filled(text) for path, text in texts.items()}
    if "--check" in sys.argv[1:]:
        old = [path.name for path in FILES if renewed[path] != texts[path]]
        sys.exit(f"out of date, run `python scripts/readme.py`: {', '.join(old)}" if old else 0)
    for path, text in renewed.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
