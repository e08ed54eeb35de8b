"""Write the generated tables into README.md, or with --check say whether they are up to date."""

import inspect
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import yaml

from isbench.cli import summary
from isbench.config import locate
from isbench.report.index import tally
from isbench.report.inventory import INVENTORY
from isbench.report.measures import headline

ROOT = Path(__file__).resolve().parent.parent
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
    """Return a sentence on all, and one row per experiment that has been run: its first claim, how the others fared."""
    head = ("experiment", "claim (arms)", "published", "ours [95 %]", "n", "verdict", "its other claims")
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for experiment in INVENTORY:
        path = ROOT / "results" / experiment.id / "verdicts.json"
        findings = json.loads(path.read_text()) if path.is_file() else []
        for found in findings[:1]:
            others = Counter(other["verdict"] for other in findings[1:])
            cells = (
                f"`{experiment.id}`",
                found["text"] + ("" if f"({found['arm']})" in found["text"] else f" ({found['arms']})"),
                found["reported"],
                found["ours"],
                str(found["n"]),
                found["verdict"],
                ", ".join(f"{count} {verdict}" for verdict, count in others.most_common()),
            )
            lines.append("| " + " | ".join(cells) + " |")
    return f"**{tally(INVENTORY, ROOT / 'results')}**\n\n" + "\n".join(lines)


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


def filled(text: str) -> str:
    """Return README's text with every generated block renewed."""
    tables = {
        "demo": demo_table(),
        "experiments": experiment_table(),
        "performance": performance_table(),
        "reliability": reliability_table(),
        "samplers": sampler_table(),
    }
    for name, table in tables.items():
        text = re.sub(
            rf"(<!-- {name} -->).*?(<!-- /{name} -->)", lambda m, t=table: f"{m[1]}\n{t}\n{m[2]}", text, flags=re.DOTALL
        )
    return text


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if filled(text) == text else "README.md is out of date: run `python scripts/readme.py`")
    readme.write_text(filled(text))


if __name__ == "__main__":
    main()
