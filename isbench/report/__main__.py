"""`isbench report [ID ...]`: tables, figures and verdicts of collected experiments, and the index of all.

Without arguments, of all that are collected. `isbench report FOLDER` makes one page of a folder of runs, and
`isbench report wandb:ENTITY/PROJECT/GROUP` of the runs that W&B keeps; `wandb:FOLDER` reads W&B's files on the disk.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from isbench.errors import UserError
from isbench.files import RUNS, VERDICTS
from isbench.recording.record import escaped
from isbench.report.answer import rows
from isbench.report.claims import check, claims_table, findings_json
from isbench.report.curves import save
from isbench.report.drawings import DRAWINGS, curves
from isbench.report.forest import save_answer
from isbench.report.index import primary_markdown, render_index
from isbench.report.inventory import Experiment, experiments, target_of
from isbench.report.load import Runs, load_runs, read_results
from isbench.report.measures import compare_arms, headline
from isbench.report.page import render_page
from isbench.report.tables import arms_table, comparison_markdown, latex, markdown, work
from isbench.report.wandb_runs import load_wandb
from isbench.terminal import outlive_terminal

WANDB = "wandb:"  # before what is not the name of a folder of records


def report(
    place: str, out: Path | None = None, target: float | None = None, title: str = "", baseline: str = "uniform"
) -> Path:
    """Write report.html, table.md, table.csv, rows.csv, curves.png and curves.svg; return the path of the page.

    Args:
        place: a folder of runs, or `wandb:` and where W&B keeps them.
        out: where to write; else the folder `report` among the runs, for a server's reports/ENTITY/PROJECT/GROUP.
    """
    name = place.removeprefix(WANDB)
    runs = load_runs(Path(name)) if name == place else load_wandb(name)
    out = out or (Path(name, "report") if Path(name).is_dir() else Path("reports", name))
    for notice in runs.notices:
        print(notice, file=sys.stderr)
    print(f"read {len(runs.runs)} runs with {len(runs.rows)} evaluations", flush=True)
    table = compare_arms(runs, baseline, target)
    if not set(table["baseline"]) & set(table["arm"]):
        known = ", ".join(f"'{arm}'" for arm in sorted(set(table["arm"])))
        print(f"no runs of the baseline {baseline}: speed-ups stay empty (--baseline NAME, of {known})", flush=True)
    for line in filter(None, (work(table), headline(table))):
        print(line, flush=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_comparison(runs, table, out)
        runs.rows.to_csv(out / "rows.csv", index=False, lineterminator="\n")
        print(escaped(f"wrote table.md, table.csv, rows.csv, curves.png and curves.svg to {out}"), flush=True)
        page = out / "report.html"
        title = title or f"Importance sampling: {Path(name).resolve().name}"
        page.write_text(render_page(runs, table, escaped(title)), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write the report to {out}: {error.strerror}; choose another folder with --out"
        ) from error
    return page


def write_comparison(runs: Runs, table: pd.DataFrame, out: Path) -> None:
    """Write a comparison at equal seconds: table.md, table.csv, curves.png and curves.svg."""
    (out / "table.md").write_text(comparison_markdown(table), encoding="utf-8")
    table.to_csv(out / "table.csv", index=False, lineterminator="\n", float_format="%.6g")
    save(partial(curves, baseline=table["baseline"].iloc[0]), runs, out / "curves", ("png", "svg"))


def write_experiment(experiment: Experiment, out: Path) -> None:
    """Write tables, figure and verdicts of an experiment from what is collected in `out`."""
    runs = read_results(out)
    findings = [check(claim, runs) for claim in experiment.claims]
    arms, claims = arms_table(runs), claims_table(findings)
    reading = "Mean ± half-width of the 95 % t interval over n seeds, at the end of the runs that finished."
    (out / "table.md").write_text(f"{markdown(arms)}\n\n{reading}\n\n{markdown(claims)}\n", encoding="utf-8")
    (out / "table.tex").write_text(f"% {experiment.shows}\n{latex(arms)}\n{latex(claims)}", encoding="utf-8")
    verdicts = json.dumps(findings_json(findings), indent=2, ensure_ascii=False)
    (out / VERDICTS).write_text(f"{verdicts}\n", encoding="utf-8")
    (out / "verdicts.md").write_text("".join(f"- {finding.sentence}\n" for finding in findings), encoding="utf-8")
    data = save(DRAWINGS[experiment.figure], runs, out / "figure", ("svg", "png", "pdf"))
    data.to_csv(out / "figure.csv", index=False, lineterminator="\n", float_format="%.6g")


def report_results(ids: Sequence[str], results: Path) -> Path:
    """Write the reports of collected experiments, all without `ids`, and the index; return the path of the index.

    Raises UserError where an experiment is not collected.
    """
    if not results.is_dir():
        raise UserError(
            f"{results} is not a folder: python -m isbench.report.collect makes it from experiments that were run; "
            "for a folder of runs, name that"
        )
    known = {experiment.id: experiment for experiment in experiments()}
    for name in ids or sorted(path.parent.name for path in results.glob(f"*/{RUNS}")):
        out = results / name
        if name in known:
            write_experiment(known[name], out)
        else:
            runs = read_results(out)
            write_comparison(runs, compare_arms(runs, target=target_of(name)), out)
        print(f"wrote {out}", flush=True)
    index = results / "index.html"
    found = rows(experiments(), results)
    index.write_text(render_index(experiments(), results, found), encoding="utf-8")
    (results / "primary.md").write_text(primary_markdown(experiments(), results), encoding="utf-8")
    save_answer(found, results / "answer")
    return index


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    outlive_terminal()
    parser = argparse.ArgumentParser(prog="isbench report", description=__doc__)
    parser.add_argument(
        "what", nargs="*", help="experiments in RESULTS; or one folder that holds runs at any depth, or wandb:PLACE"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="the collected experiments")
    options = parser.add_argument_group("for a folder of runs, or those of W&B")
    options.add_argument("--out", type=Path, help="where to write (default: FOLDER/report, or reports/PLACE)")
    options.add_argument(
        "--target", type=float, help="test error to reach, in (0, 1); default: what every baseline run reaches"
    )
    options.add_argument("--title", default="", help="title of the page")
    options.add_argument("--baseline", default="uniform", help="the sampler to compare with (default: uniform)")
    given = parser.parse_args(arguments)
    collected = {path.parent.name for path in given.results.glob(f"*/{RUNS}")}
    try:
        known = {experiment.id for experiment in experiments()} | collected
        if given.target is not None and not 0 < given.target < 1:
            raise UserError(f"--target {given.target:g} must be a fraction between 0 and 1: 0.05 is 5 % test error")
        if known.issuperset(given.what):
            page = report_results(given.what, given.results)
        elif len(given.what) > 1:
            unknown = ", ".join(name for name in given.what if name not in known)
            raise UserError(f"no experiment is called {unknown}; a folder of runs is reported on alone")
        elif not (folder := Path(given.what[0])).exists() and folder.name in known:
            raise UserError(
                f"{folder} is not there: no run of {folder.name} was trained here; "
                f"those in {given.results}: python -m isbench.report {folder.name}"
            )
        else:
            page = report(given.what[0], given.out, given.target, given.title, given.baseline)
    except (OSError, UserError) as error:
        print(f"isbench: {error}", file=sys.stderr)
        return 1
    print(escaped(f"report: {page}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
