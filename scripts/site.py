"""What MkDocs does not do by itself for `make docs`: pages made from the code, and links that work on the site.

A hook of mkdocs.yml. It adds a page for each yaml of conf/sampler, conf/dataset and conf/model, from the yaml, the
docstring behind it, `make bench` and results/. It adds the Markdown files outside docs/ that docs/ links to. A link to
what is not on the site becomes the path that it names. Nothing here imports torch.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from isbench.explain import summary
from isbench.report.answer import Row, rows
from isbench.report.inventory import experiments
from isbench.report.names import task, written
from scripts.documented import ROOT, Documented

FOLDERS = {"sampler": "samplers", "dataset": "datasets", "model": "models"}  # of conf, and of the site
OUTSIDE = {  # files outside docs/ that are pages, and what the pages are called
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "results/README.md": "results_log.md",
    "results/benchmarks/summary.md": "results/benchmarks/summary.md",
    "results/primary.md": "results/primary.md",
}
WIDE = (
    "results.md",
    "samplers.md",
    "screening.md",
    "gpu.md",
)  # pages whose tables need the room of the table of contents
COPIED = (
    "results/index.html",
    "results/answer.svg",
    "results/answer_dark.svg",
    "results/benchmarks/scale.svg",
    "results/demo/curves.png",
    "results/screen_choices/figure.png",
    "results/screen_mnist_rivals/figure.png",
)


def on_config(config: MkDocsConfig) -> None:
    """Name the made pages in the navigation, below the page on all of their kind."""
    for group, folder in FOLDERS.items():
        (pages,) = [part for section in config.nav or [] for part in section.values() if f"{folder}.md" in part]
        pages += [{written(path.stem): f"{folder}/{path.stem}.md"} for path in choices(group)]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are made, and the files outside docs/."""
    for group, folder in FOLDERS.items():
        for path in choices(group):
            files.append(File.generated(config, f"{folder}/{path.stem}.md", content=page(group, path)))
        if group != "sampler":
            files.append(File.generated(config, f"{folder}.md", content=overview(group)))
    for path, name in OUTSIDE.items():
        if name != "index.md":
            files.append(File.generated(config, name, content=relinked((ROOT / path).read_text(), path, name)))
    for path in COPIED:
        files.append(File(path, str(ROOT), config.site_dir, use_directory_urls=False))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links of a page of docs/ lead to pages of the site, and samplers in their table to their own."""
    name = page.file.src_uri
    if page.file.generated_by:
        return markdown
    if name in WIDE:
        page.meta["hide"] = ["toc"]
    if name == "samplers.md":
        for path in choices("sampler"):
            markdown = markdown.replace(f"\n| `{path.stem}` |", f"\n| [`{path.stem}`](samplers/{path.stem}.md) |")
    return relinked(markdown, f"docs/{name}", name)


def relinked(markdown: str, source: str, target: str) -> str:
    """Return the Markdown of the file `source` with its links as the page `target` needs them."""

    def link(found: re.Match[str]) -> str:
        text, address, anchor = found[1], found[2], found[3] or ""
        if re.match(r"\w+:", address):
            return found[0]
        path = normpath(join(dirname(source), address))
        if path in OUTSIDE or path in COPIED or path.startswith("docs/"):
            place = OUTSIDE.get(path, path.removeprefix("docs/"))
            return f"[{text}]({relpath(place, dirname(target) or '.')}{anchor})"
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    markdown = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)", link, markdown)
    return re.sub(r"!\[([^\]]+)\]\(([^)]+)\)", lambda found: picture(found[1], found[2], source, target), markdown)


def picture(text: str, address: str, source: str, target: str) -> str:
    """Return an image, and beside it its dark form where there is one."""
    path = normpath(join(dirname(source), address))
    place = relpath(path, dirname(target) or ".")
    dark = path.replace(".svg", "_dark.svg")
    if dark == path or dark not in COPIED:
        return f"![{text}]({place})"
    return f"![{text}]({place}#only-light)\n![{text}]({relpath(dark, dirname(target) or '.')}#only-dark)"


def choices(group: str) -> list[Path]:
    return sorted((ROOT / "conf" / group).glob("*.yaml"))


def overview(group: str) -> str:
    """Return the page on all choices of a group."""
    title = {"dataset": "The data sets", "model": "The models"}[group]
    lines = [(f"[`{path.stem}`]({FOLDERS[group]}/{path.stem}.md)", summary(path)) for path in choices(group)]
    return f"# {title}\n\nThe choices of `{group}=...`.\n\n{table(('name', 'what it is'), lines)}"


def page(group: str, path: Path) -> str:
    """Return the page on one choice."""
    node = yaml.safe_load(path.read_text())
    documented = Documented.of(node["_target_"])
    parts = [f"# {written(path.stem)}", f"`{group}={path.stem}`: {summary(path)}.", *map(plain, documented.prose)]
    if documented.raises:
        parts.append(f"Refuses: {plain(documented.raises)}")
    parts += options(path, node, documented)
    if documented.facts:
        parts += ["## What it costs", *costs(path.stem, documented)]
    parts += measured(group, path.stem)
    if group == "sampler":
        parts += notes(path.stem)
    parts += [
        "## Run it",
        run(group, path, node),
        f"Defined in `{documented.file}`, and in `conf/{group}/{path.name}`.",
    ]
    return "\n\n".join(parts)


def options(path: Path, node: dict[str, Any], documented: Documented) -> list[str]:
    """Return the table of a yaml's options: their defaults, and what yaml and docstring say of them."""
    remarks = dict(re.findall(r"^(\w+):[^#\n]*# (.*)$", path.read_text(), re.MULTILINE))
    lines = [
        (
            f"`{path.parent.name}.{name}`",
            f"`{json.dumps(value)}`",
            documented.arguments.get(name) or remarks.get(name, ""),
        )
        for name, value in node.items()
        if name not in ("name", "_target_")
    ]
    return ["## Options", table(("option", "default", "what it is"), lines)] if lines else []


def costs(name: str, documented: Documented) -> Iterator[str]:
    """Yield what a sampler's docstring says that it costs, and what `make bench` measured."""
    yield table(("what", "as its docstring says"), documented.facts.items())
    summary = json.loads((ROOT / "results" / "benchmarks" / "summary.json").read_text())["cpu"]["samplers"]
    timed = [
        (f"`{row['what']}`", row["against"], f"{row['median']:.3f} ({row['low']:.3g} to {row['high']:.3g})")
        for row in summary["rows"]
        if row["what"].split()[0] == name
    ]
    if timed:
        yield (
            f"Seconds of an update over those of what it is compared with, median and quartiles ({summary['date']}, "
            "`python -m benchmarks samplers`: LeNet, b = 128, one thread of a CPU):"
        )
        yield table(("what", "against", "ratio"), timed)


@cache
def found() -> list[Row]:
    return rows(experiments(), ROOT / "results")


def measured(group: str, name: str) -> list[str]:
    """Return our results on a method, or on a data set or a model."""
    ids = {"sampler": "method", "dataset": "dataset", "model": "model"}
    mine = [row for row in found() if getattr(row, ids[group]) == name]
    if not mine:
        return ["## What we measured", "Nothing yet beside uniform sampling."]
    head = ("experiment", "method", "task", "measure", "uniform over method [95 %]", "n", "outcome")
    lines = [
        (
            f"`{row.experiment}`",
            written(row.method),
            task(row.dataset, row.model),
            f"{row.measure}, by {row.axis}",
            *(row.text, str(row.n), row.outcome),
        )
        for row in mine
    ]
    return [
        "## What we measured",
        "Beside uniform sampling, paired by seed. Above 1 the method is better. 'Neither' means that the interval "
        "holds 1, or that the seeds carry no 95 % interval.",
        table(head, lines),
        "[What isbench found](../results.md) has the published claims and their verdicts.",
    ]


def notes(name: str) -> list[str]:
    """Return when to use a sampler, and what its paper leaves open, from docs/samplers.md."""
    text = (ROOT / "docs" / "samplers.md").read_text()
    (when,) = re.findall(rf"^\| [^|]*`{name}`[^|]* \| ([A-Z].*) \|$", text, re.MULTILINE)
    parts = ["## When to use it", when]
    for part in text.split("\n### ")[1:]:
        heading, _, body = part.partition("\n")
        if f"`{name}`" in heading:
            parts += [
                "## What the paper leaves open",
                relinked(body.strip(), "docs/samplers.md", f"samplers/{name}.md"),
            ]
    return parts


def run(group: str, path: Path, node: dict[str, Any]) -> str:
    """Return a command that trains with a choice, and needs no other data."""
    needed = " dataset.download=true" * ("download" in node) + " dataset.path=FOLDER" * ("path" in node)
    words = {
        "sampler": f"sampler={path.stem} dataset=mnist5k model=lenet",
        "dataset": f"dataset={path.stem}{needed} model=mlp",
        "model": f"model={path.stem} dataset=synthetic 'dataset.shape=[3,32,32]'",
    }
    return f"```sh\npython -m isbench {words[group]} budget.unit=updates budget.limit=100\n```"


def plain(text: str) -> str:
    """Return words of a docstring as Markdown: what is no code has no markup."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;").replace("*", "\\*") for part in parts)


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a table of Markdown; what is said in its cells is words of docstrings."""
    rows = [list(head), *([plain(cell).replace("|", "\\|") for cell in line] for line in lines)]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
