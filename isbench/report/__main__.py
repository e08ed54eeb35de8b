"""`python -m isbench.report FOLDER`: tables, figures and one page from the records below a folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from isbench.errors import UserError
from isbench.report.figures import save_static
from isbench.report.load import load_runs
from isbench.report.measures import headline, summary_table
from isbench.report.page import render
from isbench.report.tables import to_markdown


def report(
    folder: Path, out: Path | None = None, target: float | None = None, title: str = "", baseline: str = "uniform"
) -> Path:
    """Write report.html, table.md, table.csv, rows.csv, curves.png and curves.svg; return the path of the page."""
    out = out or folder / "report"
    runs = load_runs(folder)
    if baseline not in set(runs.runs["sampler"]):
        known = ", ".join(sorted(set(runs.runs["sampler"])))
        print(f"no runs of the baseline {baseline}: speed-ups stay empty (samplers here: {known})", flush=True)
    print(f"read {len(runs.runs)} runs with {len(runs.rows)} evaluations", flush=True)
    table = summary_table(runs, baseline, target)
    print(headline(table), flush=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text(to_markdown(table), encoding="utf-8")
        table.to_csv(out / "table.csv", index=False, lineterminator="\n")
        runs.rows.to_csv(out / "rows.csv", index=False, lineterminator="\n")
        print(f"wrote table.md, table.csv and rows.csv to {out}", flush=True)
        save_static(runs, out)
        print("wrote curves.png and curves.svg", flush=True)
        page = out / "report.html"
        page.write_text(render(runs, table, title or f"Importance sampling: {folder.resolve().name}"), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write the report to {out}: {error.strerror}; choose another folder with --out"
        ) from error
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m isbench.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder that holds the runs, at any depth")
    parser.add_argument("--out", type=Path, help="where to write (default: FOLDER/report)")
    parser.add_argument(
        "--target", type=float, help="test error to reach, in (0, 1); default: what every baseline run reaches"
    )
    parser.add_argument("--title", default="", help="title of the page")
    parser.add_argument("--baseline", default="uniform", help="the sampler to compare with (default: uniform)")
    given = parser.parse_args(arguments)
    try:
        if given.target is not None and not 0 < given.target < 1:
            raise UserError(f"--target {given.target:g} must be a fraction between 0 and 1: 0.05 is 5 % test error")
        page = report(given.folder, given.out, given.target, given.title, given.baseline)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
