"""Plan a run too large for this machine: a sampler's memory, exchanges and bookkeeping, and which method pays.

Prints the tables of docs/scale.md and renews them there. Options say what can only be assumed about the run. The tables
follow from the measurements in results/benchmarks/scale.json; --measure renews those in some minutes.
"""

import argparse
import json
import math
from dataclasses import asdict, fields
from pathlib import Path

from matplotlib import rc_context

from benchmarks.scale.constants import measure, taken
from benchmarks.scale.formulas import simulated
from benchmarks.scale.tables import Plan, picture, renewed, tables
from isbench.report.curves import MATPLOTLIB

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "results" / "benchmarks", ROOT / "docs" / "scale.md"


def positive(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be greater than 0")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    for f in fields(Plan):
        text = f"{f.metadata['what']} (default: {f.default:g})"
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=positive, default=f.default, metavar="X", help=text)
    parser.add_argument("--measure", action="store_true", help="measure the constants again")
    parser.add_argument("--out", type=Path, default=RESULTS, help="another folder leaves results and page as they are")
    arguments = vars(parser.parse_args())
    out, is_new = arguments.pop("out"), arguments.pop("measure")
    content = {
        "plan": asdict(Plan(**arguments)),
        "measured": measure() if is_new else json.loads((RESULTS / "scale.json").read_text())["measured"],
        "taken": taken(RESULTS),
        "simulated": simulated(),
    }
    text = "\n\n".join(f"## {name}\n\n{found}" for name, found in tables(content).items())
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / "scale.json").write_text(json.dumps(content, indent=1) + "\n")
    title = "# Scale\n\n`python -m benchmarks.scale` wrote this; docs/scale.md explains it."
    (out / "scale.md").write_text(f"{title}\n\n{text}\n")
    with rc_context(MATPLOTLIB):
        picture(content).savefig(out / "scale.svg", metadata={"Date": None, "Creator": None})
    if out == RESULTS:
        PAGE.write_text(renewed(PAGE.read_text(), content))


if __name__ == "__main__":
    main()
