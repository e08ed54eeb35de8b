"""Write the generated tables into README.md, or with --check say whether they are up to date."""

import inspect
import re
import sys
from pathlib import Path

import pandas as pd
import yaml

from isbench.build import locate
from isbench.cli import summary
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


def sampler_table() -> str:
    """Return one row per yaml of conf/sampler, from its first line and the docstring of its class."""
    lines = ["| sampler | method | " + " | ".join(fact.lower() for fact in FACTS) + " |", "| --- " * 6 + "|"]
    for path in sorted((ROOT / "conf" / "sampler").glob("*.yaml")):
        documentation = inspect.getdoc(locate(yaml.safe_load(path.read_text())["_target_"])) or ""
        facts = [re.search(rf"^{fact}: ((?:.|\n(?!\w[\w ]*:|\n))*)", documentation, re.MULTILINE) for fact in FACTS]
        cells = [" ".join(fact[1].split()).rstrip(".").replace("|", "\\|") if fact else "?" for fact in facts]
        lines.append(f"| `{path.stem}` | {summary(path)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """Return README's text with every generated block renewed."""
    for name, table in (("demo", demo_table()), ("samplers", sampler_table())):
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
