"""Write the generated parts of README.md and docs/, or with --check say whether they are up to date."""

import json
import math
import re
import sys
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from isbench.explain import summary
from isbench.files import EVALUATIONS, RUNS, VERDICTS
from isbench.grid import spend
from isbench.grid.jobs import compose_grid
from isbench.report import answer
from isbench.report.budget_curve import whole
from isbench.report.curves import SECONDS
from isbench.report.drawings import SPEEDUP
from isbench.report.index import tally
from isbench.report.inventory import experiments
from isbench.report.load import describe, read_results
from isbench.report.measures import headline
from isbench.report.names import OWN, task, written
from isbench.report.tables import work
from isbench.report.verdicts import LEAST_ACTED, RULES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for what lies beside the package, imported where it is needed

FILES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("gpu", "index", "overhead", "results", "robustness", "samplers", "screening")
    ),
)
FACTORS = (0.35, 0.5, 1)  # of the whole budget, at which screening is judged
DEMO_COLUMNS = ("sampler", "n", "speed-up", "verdict", "test error (%)", "train loss", "seconds to target", "updates")


@cache
def rows() -> list[answer.Row]:
    return answer.rows(experiments(), ROOT / "results")


def rule_table() -> str:
    """Return the rules that judge a claim, in their order."""
    lines = [f"| {rule.name} | {rule.about} | {rule.sentence} |" for rule in RULES]
    return "\n".join(["| verdict | the claim is about | our result |", "| --- | --- | --- |", *lines])


def demo_table() -> str:
    """Return what the demo found, its table with the columns that fit a page, and the notes below it."""
    table, _, notes = (ROOT / "results" / "demo" / "table.md").read_text().strip().partition("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    kept = [rows[0].index(column) for column in DEMO_COLUMNS]
    lines = ["| " + " | ".join("---" if i == 1 else row[k] for k in kept) + " |" for i, row in enumerate(rows)]
    found = pd.read_csv(ROOT / "results" / "demo" / "table.csv")
    return f"{work(found)} **{headline(found)}**\n\n" + "\n".join(lines) + "\n\n" + notes


def experiment_table() -> str:
    """Return a sentence on all, and one row per experiment that has been run: its primary claim, how the others fared.

    What has no primary claim has its first. One seed's number is no headline.
    """
    head = ("experiment", "claim (variants)", "published", "ours [95 %]", "n", "verdict", "other results")
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
            config, jobs = compose_grid([f"experiment={choice}"])
            cells = (
                f"`{choice}`",
                experiment.shows,
                experiment.needs.removesuffix("a GPU").removesuffix(" and "),
                str(len(jobs)),
                describe({**config.budget}),
                f"{cost.minutes:g} on {cost.machine}" + (", estimated" if cost.is_estimate else ""),
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def queue_table() -> str:
    """Return one row per line of scripts/gpu.list: its runs, and their part of what their experiment costs."""
    lines = ["| words | runs | minutes | until then |", "| --- " * 4 + "|"]
    known = {f"{experiment.paper}/{experiment.id}": experiment for experiment in experiments()}
    total = 0.0
    for words in spend.read(ROOT / "scripts" / "gpu.list"):
        choice = words[0].removeprefix("experiment=")
        runs, all_runs = (len(compose_grid(some)[1]) for some in (words, words[:1]))
        minutes = known[choice].cost.minutes * runs / all_runs
        total += minutes
        shown = " ".join([f"`{choice}`", *(word for word in words[1:] if word != "logging=off")])
        lines.append(f"| {shown} | {runs} | {minutes:.0f} | {total:.0f} |")
    return "\n".join(lines)


def sampler_table() -> str:
    """Return one row per yaml of conf/sampler, from its first line and the docstring of its class."""
    from scripts.documented import FACTS, Documented

    lines = ["| Sampler | Method | " + " | ".join(FACTS) + " |", "| --- " * 6 + "|"]
    for path in sorted((ROOT / "conf" / "sampler").glob("*.yaml")):
        facts = Documented.of(yaml.safe_load(path.read_text())["_target_"]).facts
        cells = [facts.get(fact, "?").rstrip(".").replace("|", "\\|") for fact in FACTS]
        lines.append(f"| `{path.stem}` | {summary(path)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def screening_table() -> str:
    """Return what screening saves, by budget: how many times its seconds uniform sampling takes to the same error."""
    found = [
        (experiment, pd.read_csv(path).set_index(["quantity", "arm"]).loc[[(SPEEDUP.column, OWN)]])
        for experiment in experiments()
        if experiment.figure == "budget_curves" and (path := ROOT / "results" / experiment.id / "figure.csv").is_file()
    ]
    head = ("task", "1x is", "n", *(f"{factor:g}x" for factor in FACTORS))
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for experiment, points in found:
        longest, is_timed = points["x"].max(), points["axis"].eq(SECONDS.column).any()
        found_at = {round(row.x / longest, 2): row for row in points.itertuples()}
        cells = (
            f"{task(*points[['dataset', 'model']].iloc[0])} (`{experiment.id}`)",
            f"{longest:.0f} s" if is_timed else f"{longest:,.0f} updates",
            str(points["n"].max()),
            *(shift(found_at[factor]) if factor in found_at else "\N{EN DASH}" for factor in FACTORS),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rivals_table() -> str:
    """Return what uniform sampling, screening and published methods come to in the same updates, and the speed-up."""
    head = ("task", "method", "n", "test error (%)", "time of an update", "speed-up")
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for experiment in experiments():
        path = ROOT / "results" / experiment.id / VERDICTS
        shifts = [each for each in json.loads(path.read_text()) if "budget" in each["of"]] if path.is_file() else []
        methods = {each["arm"]: each for each in shifts if each["of"] == shifts[0]["of"]}  # those of the primary claim
        if len(methods) < 2:
            continue
        runs = read_results(path.parent)
        columns = ["run_id", "test_error", "train_seconds", "updates", "acted_updates"]
        last = runs.rows.drop_duplicates("run_id", keep="last")[columns]
        ends = runs.runs[runs.runs["budget"].eq(shifts[0]["of"]["budget"])].merge(last, on="run_id")
        of_arm = dict(iter(ends.groupby(whole(ends["arm"]))))
        alone = {arm: mine.loc[mine["alone"], ["train_seconds", "updates"]].sum() for arm, mine in of_arm.items()}
        cost = {arm: sums["train_seconds"] / sums["updates"] for arm, sums in alone.items() if sums["updates"]}
        for arm in ("uniform", *methods):
            acted = of_arm[arm]["acted_updates"].sum() / of_arm[arm]["updates"].sum()
            speedup = methods[arm]["ours"] if arm in methods else "\N{EN DASH}"
            cells = (
                f"{task(*of_arm[arm][['dataset', 'model']].iloc[0])} (`{experiment.id}`)",
                written(arm),
                str(len(of_arm[arm])),
                f"{100 * of_arm[arm]['test_error'].mean():.2f}",
                f"{cost[arm] / cost['uniform']:.2f}\N{MULTIPLICATION SIGN}" if arm in cost else "\N{EN DASH}",
                speedup if acted >= LEAST_ACTED else "did not act",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def claims_of(experiment: str) -> str:
    """Return the claims of an experiment, each with its number and its interval."""
    path = ROOT / "results" / experiment / "verdicts.json"
    if not path.is_file():
        return "Nothing has run yet."
    lines = [f"| {found['text']} | {found['ours']} | {found['n']} |" for found in json.loads(path.read_text())]
    return "\n".join([f"| `{experiment}` | ours [95 %] | n |", "| --- | --- | --- |", *lines])


def shift(found: Any) -> str:
    """Write a speed-up with its interval; where the curves do not meet, the last that uniform's curve tells."""
    side = {"at least": "above ", "at most": "below "}.get(found.censored, "")
    high = "\N{INFINITY}" if math.isinf(found.high) else f"{found.high:.2f}"
    is_open = side and found.mean in (found.low, found.high)
    return f"{side}{found.mean:.2f}" + ("" if is_open else f" [{found.low:.2f}, {high}]")


def performance_table() -> str:
    """Return what `make bench` found, the worst case per goal."""
    from benchmarks.summary import headline

    return headline(json.loads((ROOT / "results" / "benchmarks" / "summary.json").read_text()))


def card_table() -> str:
    """Return one row per experiment, card and variant of the runs on GPUs: the time of an update, what was scored."""
    measured = ("updates per second", "milliseconds per update", "scored per trained")
    head = ("experiment", "card", "variant", "runs", *measured)
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for experiment in experiments():
        folder = ROOT / "results" / experiment.id
        if not (folder / RUNS).is_file():
            continue
        runs = pd.read_parquet(folder / RUNS)
        last = pd.read_parquet(folder / EVALUATIONS).drop_duplicates("run_id", keep="last").set_index("run_id")
        on_gpu = runs[runs["gpu"].notna() & runs["alone"] & runs["status"].eq("finished")]
        for (card, arm), mine in on_gpu.groupby(["gpu", "arm"], sort=False):
            ends = last.loc[mine["run_id"]].sum(numeric_only=True)
            cells = (
                f"`{experiment.id}`",
                card,
                arm,
                str(len(mine)),
                f"{ends['updates'] / ends['train_seconds']:.0f}",
                f"{1000 * ends['train_seconds'] / ends['updates']:.2f}",
                f"{ends['examples_scored'] / ends['examples_trained']:.2f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def reliability_table() -> str:
    """Return what `make test-faults` found, kind by kind."""
    from tests.faults.summary import headline, markdown

    path = ROOT / "results" / "reliability" / "summary.json"
    if not path.is_file():
        return "Not measured yet."
    found = json.loads(path.read_text())
    return f"**{headline(found)}**\n\n{markdown(found)}"


def answer_text() -> str:
    verdict, *said = answer.answer(rows())
    return "\n".join([f"**{verdict}**", "", *(f"- {sentence}" for sentence in said)])


TABLES = {
    "answer": answer_text,
    "cards": card_table,
    "demo": demo_table,
    "experiments": experiment_table,
    "gpu": gpu_table,
    "performance": performance_table,
    "queue": queue_table,
    "reading": lambda: answer.reading(rows()),
    "reliability": reliability_table,
    "rivals": rivals_table,
    "rules": rule_table,
    "samplers": sampler_table,
    "screening": screening_table,
    "screening_choices": partial(claims_of, "screen_choices"),
    "screening_redundancy": partial(claims_of, "screen_redundancy"),
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
