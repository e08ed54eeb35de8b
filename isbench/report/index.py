"""results/index.html: every published table and figure, what state ours is in, what it shows and how to run it.

One page that needs no network: pictures and style are inside it. It is made from the inventory and the files of
results/ alone.
"""

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from isbench.report.assets import CSS, FILTER, INDEX_CSS, document
from isbench.report.inventory import PAPERS, Experiment
from isbench.report.load import FILES, read_results

PLAIN = " =:/;,'()[]{}@!$*+?|"  # what stands for itself in the address of a picture
KINDS = {  # of verdicts, as the style sheet calls them
    "reproduced": "finished",
    "agrees": "finished",
    "same direction, smaller": "skipped",
    "opposite sign": "failed",
    "not reproduced": "failed",
    "differs": "failed",
    "better": "finished",
    "no difference shown": "skipped",
    "worse": "failed",
}


def render_index(inventory: Sequence[Experiment], results: Path) -> str:
    """Return the page as one string of HTML."""
    found = {experiment.id: _findings(results / experiment.id) for experiment in inventory}
    papers = [paper for paper in PAPERS if any(experiment.paper == paper for experiment in inventory)]
    buttons = "".join(
        f'<button type="button" aria-pressed="false" data-paper="{paper}">{escape(PAPERS[paper][0])}</button>'
        for paper in papers
    )
    sections = "".join(
        f'<section class="paper" data-paper="{paper}"><h2>{escape(PAPERS[paper][0])}</h2>'
        f'<p class="soft">{escape(PAPERS[paper][1])}</p>'
        + "".join(_experiment(each, results / each.id, found[each.id]) for each in inventory if each.paper == paper)
        + "</section>"
        for paper in papers
    )
    main = f"""<h1>Published results, and ours</h1>
<p class="lede">{escape(lede(inventory, results))}</p>
<div class="controls" role="group" aria-label="paper"><button type="button" aria-pressed="true" data-paper="">All papers
</button>{buttons}</div>
{_overview(inventory, results, found)}
{sections}
<aside class="reading"><h3>How to read this</h3><ul>
<li>Intervals are 95 % Student-t intervals over seeds, of ratios on their logs; arms are paired by seed.</li>
<li><b>reproduced</b>: the interval excludes no effect, in the published direction, and reaches the published size.
<b>same direction, smaller</b>: it excludes no effect, and stays below. <b>not reproduced</b>: it includes no effect.
<b>agrees</b>: a published value lies in the interval. <b>better</b>, <b>worse</b>, <b>no difference shown</b>: on what
no paper claims.</li>
<li>A run that shared the machine with another never enters a comparison by seconds.</li>
</ul></aside>
"""
    head = f'<meta name="color-scheme" content="light dark">\n<style>{CSS}{INDEX_CSS}</style>'
    return document("isbench: published results, and ours", head, main, FILTER)


def _state_tag(experiment: Experiment, folder: Path) -> str:
    """Say how far an experiment is: its runs that finished, or what it waits for."""
    if not (folder / FILES[1]).is_file():
        kind, text = ("skipped", f"needs {experiment.needs}") if experiment.needs else ("", "ready to run")
    else:
        planned = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["planned_runs"]
        finished = (read_results(folder).runs["status"] == "finished").sum()
        kind = "finished" if finished == planned else "skipped"
        text = f"{finished} of {planned} runs finished"
    return f'<span class="tag {kind}">{escape(text)}</span>'


def _findings(folder: Path) -> list[dict]:
    path = folder / "verdicts.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def lede(inventory: Sequence[Experiment], results: Path) -> str:
    """Say how many experiments have been run, and how many claims met which verdict."""
    run = sum((results / experiment.id / FILES[1]).is_file() for experiment in inventory)
    verdicts = Counter(found["verdict"] for experiment in inventory for found in _findings(results / experiment.id))
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    subject = "experiments, on published tables and figures and on what they leave open,"
    start = f"{run} of {len(inventory)} {subject} have been run here"
    return f"{start}. Verdicts on their claims: {counts}." if counts else f"{start}."


def _overview(inventory: Sequence[Experiment], results: Path, found: dict[str, list[dict]]) -> str:
    rows = "".join(
        f'<tr data-paper="{each.paper}"><th scope="row"><a href="#{each.id}">{each.id}</a></th>'
        f'<td class="text wrap">{escape(each.shows)}</td><td class="text">{_state_tag(each, results / each.id)}</td>'
        f'<td class="text wrap">{_tags(found[each.id])}</td></tr>'
        for each in inventory
    )
    return _table({"id": "text", "shows": "text", "state": "text", "verdicts": "text"}, rows)


def _experiment(experiment: Experiment, folder: Path, findings: list[dict]) -> str:
    if findings:
        sentences = "".join(f"<li>{escape(finding['sentence'])}</li>" for finding in findings)
        claims = f"{_claims(findings)}<details><summary>In words</summary><ul>{sentences}</ul></details>"
    else:
        claims = "".join(f"<li>{escape(claim.text)}</li>" for claim in experiment.claims)
        claims = f'<ul class="soft">{claims}</ul>' if claims else ""
    return f"""<article id="{experiment.id}">
<h3>{escape(experiment.shows)} {_state_tag(experiment, folder)}</h3>
{f'<p class="soft">{escape(experiment.remarks)}</p>' if experiment.remarks else ""}
{_picture(folder / "figure.svg", experiment.shows)}
{claims}
<pre><code>python -m isbench -m experiment={experiment.paper}/{experiment.id}</code></pre>
</article>
"""


def _claims(findings: list[dict]) -> str:
    names = {
        "claim": "text",
        "arms": "text",
        "published": "",
        "ours [95 %]": "",
        "n": "",
        "verdict": "text",
    }
    rows = "".join(
        f'<tr><th scope="row" class="wrap">{escape(finding["text"])}</th>'
        f'<td class="text">{escape(finding["arms"])}</td>'
        f'<td data-label="published">{escape(finding["reported"])}</td>'
        f'<td data-label="ours">{escape(finding["ours"])}</td>'
        f'<td data-label="n">{escape(str(finding["n"]))}</td><td class="text">{_tag(finding["verdict"])}</td></tr>'
        for finding in findings
    )
    return _table(names, rows)


def _table(names: dict[str, str], rows: str) -> str:
    head = "".join(f'<th scope="col" class="{kind}">{name}</th>' for name, kind in names.items())
    return f'<div class="scroll"><table class="stack"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _picture(path: Path, alternative: str) -> str:
    if not path.is_file():
        return ""
    data = quote(" ".join(path.read_text(encoding="utf-8").split()), safe=PLAIN)  # a quarter less than base64
    return f'<img alt="{escape(alternative)}" loading="lazy" src="data:image/svg+xml,{data}">'


def _tag(verdict: str, count: str = "") -> str:
    return f'<span class="tag {KINDS.get(verdict, "")}">{count}{escape(verdict)}</span>'


def _tags(findings: list[dict]) -> str:
    counts = Counter(finding["verdict"] for finding in findings)
    return " ".join(_tag(verdict, f"{count} " if len(findings) > 1 else "") for verdict, count in counts.items())
