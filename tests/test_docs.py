"""README and docs/: every command works, every link leads somewhere, and the site is built without a network.

A command stands in a block without a language, or of `sh`. It is run here, page by page from top to bottom, or it says
what it needs that a test lacks (`# needs a GPU`); isbench's own words are then composed, not trained.
"""

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import isbench
import isbench.samplers
from isbench.grid.jobs import compose_grid
from isbench.recording.record import COLUMNS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)```", re.DOTALL | re.MULTILINE)  # a file, and what it holds
WALKED = ("docs/index", "docs/command_line", "docs/record", "docs/own_data", "docs/add_a_sampler")
ELSEWHERE = ("docs/own_loop", "docs/wandb")  # tests of their own run what they say


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a page, with the remarks behind them."""
    for block in re.findall(r"^```(?:sh)?\n(.*?)```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            command, _, remark = line.partition("  #")
            if re.match(r"(python|make|pip|torchrun|srun|source|export|wandb|isbench) ", command):
                yield " ".join(command.split()), remark.strip()


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Yield what a reader does with a page, in its order: ("python", code) and ("sh", command)."""
    files = {content for _, content in NAMED.findall(text)}
    for language, block in re.findall(r"^```(\w*)\n(.*?)```", text, re.DOTALL | re.MULTILINE):
        if language == "python" and block not in files:
            yield "python", block
        elif language in ("", "sh"):
            for command, remark in commands(f"```sh\n{block}```"):
                if "needs" not in remark and not command.startswith("make"):
                    yield "sh", command


def modules_of(command: str) -> list[str]:
    """Return the words after `python -m`, none for another command."""
    words = [os.path.expandvars(word) for word in shlex.split(command)]
    return words[2:] if words[:2] == ["python", "-m"] else []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_command_is_run_or_says_what_it_needs(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    is_run = path.relative_to(ROOT).with_suffix("").as_posix() in (*WALKED, *ELSEWHERE, "README")
    for command, remark in commands(path.read_text()):
        if target := re.match(r"make ([a-z-]+)", command):
            assert re.search(rf"^{target[1]}:", makefile, re.MULTILINE), command
            continue
        assert is_run or "needs" in remark, command
        words = modules_of(command)
        assert not words or find_spec(words[0]), command
        if words[:2] == ["isbench", "-m"] and "needs" in remark:
            compose_grid(words[2:])


def test_pages_work_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reader goes through all pages in one folder; what two of them say is done once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    packages = [*isbench.samplers.__path__, str(tmp_path / "isbench" / "samplers")]
    monkeypatch.setattr(isbench.samplers, "__path__", packages)
    done: list[tuple[str, str]] = []
    for name in WALKED:
        text = (ROOT / f"{name}.md").read_text()
        for path, content in NAMED.findall(text):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)
        for kind, what in steps(text):
            if (kind, what) not in done:
                take(kind, what, monkeypatch)
                done.append((kind, what))


def take(kind: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a step of a reader. What a page adds to a checkout's conf/ lies in conf/ here, too."""
    if kind == "python":
        exec(compile(what, "page.py", "exec"), {})
    elif words := modules_of(what):
        is_plain = words[0] == "isbench" and not {"--config-dir", "--help"} & set(words)
        own = ["--config-dir", "conf"] if is_plain and Path("conf").is_dir() else []
        # A W&B for each run of a grid takes longer than the runs; single runs have theirs.
        silent = ["logging=off"] if words[:2] == ["isbench", "-m"] else []
        run_module(words[0], [*own, *words[1:], *silent], monkeypatch)


def run_module(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do as `python -m` does, in this process."""
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    sys.modules.pop(f"{module}.__main__", None)
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"python -m {module} {' '.join(words)}: {end.code}"


def test_what_the_readme_shows_is_run_with_the_pages() -> None:
    readme = list(steps((ROOT / "README.md").read_text()))
    pages = {step for name in WALKED for step in steps((ROOT / f"{name}.md").read_text())}
    assert {step for step in readme if step[0] == "sh"} <= pages
    loop = (ROOT / "docs" / "own_loop.md").read_text().splitlines()
    assert {line for kind, code in readme if kind == "python" for line in code.splitlines()} <= set(loop)


@pytest.mark.parametrize("path", [*PAGES, ROOT / "results" / "README.md"], ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)|(?:src|srcset)=\"([^\"]+)\"", text):
        address = "".join(link)
        assert re.match(r"\w+:", address) or (path.parent / address).exists(), address


def test_every_column_of_a_record_is_explained() -> None:
    explained = re.findall(r"^\| `(\w+)` \| ", (ROOT / "docs" / "record.md").read_text(), re.MULTILINE)
    assert [name for name in explained if name in COLUMNS] == list(COLUMNS)


def test_the_version_is_the_same_everywhere() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == isbench.__version__
    newest = re.search(r"^## (?!Unreleased)(\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == isbench.__version__


def test_the_site_is_whole_and_asks_no_network(tmp_path: Path) -> None:
    words = ["-W", "default", "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    command = [sys.executable, *words]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    site = tmp_path / "site"
    for group, pages in (("sampler", "samplers"), ("dataset", "datasets"), ("model", "models")):
        names = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        assert {path.stem for path in (site / pages).glob("*.html")} == names
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?(https?:)?//", page.read_text())
        assert not loaded, page
    rais = (site / "samplers" / "rais.html").read_text()
    for part in ("What it costs", "When to use it", "What we measured", "sampler.max_gain", "Proposition 4.1"):
        assert part in rais, part
    assert "attach" in (site / "api.html").read_text()
