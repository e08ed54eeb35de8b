"""Files from others are data: a checkpoint runs no code, a record's strings stay strings, wrong values are left out."""

import csv
import hashlib
import io
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from isbench.errors import UserError
from isbench.grid.jobs import compose_grid
from isbench.grid.kept import collected_runs
from isbench.report import __main__ as report
from isbench.report.answer import rows
from isbench.report.collect import collect
from isbench.report.index import render_index
from isbench.report.inventory import experiments
from isbench.report.load import read_results
from isbench.training.checkpoint import NAMES
from tests.commands import Command, record_in
from tests.conftest import TINY
from tests.faults.conftest import run_words, share
from tests.faults.test_machine import complaint
from tests.report_samples import write_run

SCRIPT = "<script>harm(1)</script>"
STRINGS = [
    SCRIPT,
    '"><img src=x onerror=harm(1)>',
    "'><svg onload=harm(1)>",
    "</script><script>harm(1)</script>",
    "</title><body onload=harm(1)>",
    '=HYPERLINK("http://127.0.0.1/","x")',
    "+1+cmd|' /C calc'!A0",
    "@SUM(1+1)",
    r"$\frac{1}{",
    "$x",
    "{{7*7}} ${seed} %{x}",
    "a|b\nc",
    "\u202egnp.exe",
    "\ud800 caf\udce9",
    "x" * 5000,
    "",
]
VALUES: list[Any] = [*STRINGS, None, True, [], {}, [[1]], {"a": 1}, 10**30, -(10**400), 1e308, -1, 0, float("inf")]


class Program:
    """What a pickle can hold: a call to make when it is read."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.folder / "ran"),)


@pytest.mark.parametrize("number", share(range(6), few=1))
def test_a_checkpoint_that_is_a_program(number: int, chance, sampler, struck, tmp_path: Path) -> None:
    words = run_words(sampler, tmp_path)
    command = Command(words, tmp_path / "log", [("record write", 12)])
    command.wait_until_halted()
    command.kill()
    folder, buffer = record_in(tmp_path).parent, io.BytesIO()
    state: Any = Program(tmp_path)
    if number % 2:  # hidden in one that is otherwise right
        good = (folder / NAMES[0]).read_bytes()[32:]
        state = torch.load(io.BytesIO(good), weights_only=True) | {"parts": state}
    torch.save(state, buffer)
    data = buffer.getvalue()
    for name in NAMES[: 1 + number % 3 % 2]:
        (folder / name).write_bytes(hashlib.sha256(data).digest() + data)
    command = Command(words, tmp_path / "log")
    assert command.wait() == 1
    assert "is not a checkpoint of isbench and was not loaded" in complaint(command.output)
    assert not (tmp_path / "ran").exists()
    struck("checkpoint that is a program")


@pytest.mark.parametrize(
    "state",
    share(
        [
            {},
            [],
            3,
            {"parts": {}, "data_checksum": ""},
            {"parts": 3, "data_checksum": "x", "own_streams": []},
            {"parts": {"progress": {}}, "data_checksum": "x"},
        ],
        few=1,
    ),
)
def test_a_checkpoint_of_something_else(state: Any, sampler, struck, tmp_path: Path) -> None:
    words = run_words(sampler, tmp_path)
    command = Command(words, tmp_path / "log", [("record write", 12)])
    command.wait_until_halted()
    command.kill()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    path = record_in(tmp_path).with_name(NAMES[0])
    path.write_bytes(hashlib.sha256(data).digest() + data)
    command = Command(words, tmp_path / "log")
    assert command.wait() == 1
    complaint(command.output)
    struck("hostile record, table or weights")


TABLES: dict[str, Callable[[Path], Any]] = {
    "a program": Program,
    "a dictionary": lambda folder: {"irreducible": torch.zeros(160)},
    "another size": lambda folder: torch.zeros(3),
    "not a number": lambda folder: torch.full((160,), float("nan")),
    "complex": lambda folder: torch.zeros(160, dtype=torch.complex64),
    "sparse": lambda folder: torch.zeros(160).to_sparse(),
    "words": lambda folder: ["x"] * 160,
}


@pytest.mark.parametrize("content", share(TABLES, few=1))
@pytest.mark.parametrize("key", ["sampler.table", "model.weights"])
def test_a_table_or_weights_of_something_else(key: str, content: str, struck, tmp_path: Path) -> None:
    torch.save(TABLES[content](tmp_path), tmp_path / "file.pt")
    own = ["sampler=rho_loss"] if key == "sampler.table" else ["model=resnet50", "dataset.shape=[3,32,32]"]
    words = [word for word in TINY if not (word.startswith("model") and "resnet50" in own[0])]
    command = Command([*words, *own, f"{key}={tmp_path}/file.pt", f"runs_dir={tmp_path}/runs"], tmp_path / "log")
    assert command.wait() == 1
    assert key in complaint(command.output)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "runs").exists()
    struck("hostile record, table or weights")


def places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """Walk to every value of a nested row."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places(value, (*path, key))
    yield path


def put(row: dict[str, Any], path: tuple, value: Any) -> None:
    *first, last = path
    for key in first:
        row = row[key]
    row[last] = value


class Page(HTMLParser):
    """What a browser would make of a page: nothing in it may run what a record holds."""

    def __init__(self, text: str):
        super().__init__()
        self.is_script = False
        self.feed(text)

    def handle_data(self, data: str) -> None:
        assert not (self.is_script and "harm(1)" in data)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.is_script = tag == "script" and ("type", "application/json") not in attributes
        for name, value in attributes:
            assert not name.startswith("on") and not (value or "").startswith("javascript:"), (tag, name, value)


def runs_in(folder: Path, seeds: Iterable[int] = (0, 1)) -> list[Path]:
    curve = [(float(t), 0.9 - 0.05 * t) for t in range(1, 9)]
    return [write_run(folder, sampler, seed, curve, arm=sampler) for sampler in ("uniform", "loss") for seed in seeds]


def spoil(path: Path, chance: random.Random, values: list[Any], count: int) -> None:
    """Put something else in the place of some values of a record."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for _ in range(count):
        row = rows[0] if chance.random() < 0.6 else chance.choice(rows)
        where = chance.choice([place for place in places(row) if place])
        try:
            put(row, where, chance.choice(values))
        except (KeyError, TypeError):
            continue  # its parent is gone already
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_without_harm(folder: Path) -> None:
    """Make all reports of a folder of runs, and look through them."""
    page = report.report(str(folder), folder / "report")
    Page(page.read_text())
    for table in ("table.csv", "rows.csv"):
        with open(folder / "report" / table, newline="") as file:
            for row in csv.reader(file):
                assert not any(cell[:1] in ("=", "@", "+") for cell in row), row


@pytest.mark.parametrize("number", share(range(30), few=3))
def test_a_record_of_strings_is_escaped(number: int, chance, struck, tmp_path: Path) -> None:
    runs = runs_in(tmp_path, range(6))
    for path in runs[:3] + runs[-3:]:  # of other seeds, lest two with one name be refused; the others make a page
        spoil(path, chance, STRINGS[number % len(STRINGS) :][:1], chance.randint(1, 12))
    read_without_harm(tmp_path)
    struck("hostile record, table or weights")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, on numbers that no run can have
@pytest.mark.parametrize("number", share(range(40), few=3))
def test_a_record_of_wrong_types_is_left_out(number: int, chance, struck, tmp_path: Path) -> None:
    for path in runs_in(tmp_path)[:3]:  # the last is good, and makes a page
        spoil(path, chance, VALUES, chance.randint(1, 5))
    read_without_harm(tmp_path)
    struck("hostile record, table or weights")


@pytest.mark.parametrize("number", share(range(20), few=2))
def test_collected_tables_of_something_else(number: int, chance, struck, tmp_path: Path, capsys) -> None:
    results = tmp_path / "results"
    runs_in(tmp_path / "runs")
    collect(tmp_path / "runs", results / "demo")
    for name in ("evaluations.parquet", "runs.parquet"):
        frame = pd.read_parquet(results / "demo" / name)
        column = chance.choice(list(frame))
        if chance.random() < 0.5:
            frame = frame.drop(columns=column)
        else:
            text = str(chance.choice(STRINGS)).encode(errors="replace").decode()  # what Parquet can hold
            frame[column] = [text] * len(frame)
        frame.to_parquet(results / "demo" / name)
    code = report.main(["demo", "--results", str(results)])
    complaints = capsys.readouterr().err.splitlines()
    assert len(complaints) == code, complaints
    if code == 0:
        Page((results / "index.html").read_text())
    struck("foreign or hostile results/")


FOREIGN: list[Any] = [
    b"",
    b"PAR1",
    b"not a table",
    b"\xff\xfe{}",
    b"[" * 10_000,
    b"null",
    b"{}",
    b'[{"primary": 1}]',
    b'{"planned_runs": "all"}',
    {"price": [1.5, None]},
    {"run_id": [1], "status": ["finished"], "reason": [None], "seconds": ["soon"]},
    {"run_id": [None], "status": [["finished"]], "reason": [b"\xff"], "seconds": [True]},
    "a folder",
    "a link in a circle",
]


def put_in_place(path: Path, content: Any) -> None:
    """Leave something else under the name of a file."""
    path.unlink(missing_ok=True)
    if content == "a folder":
        path.mkdir()
    elif isinstance(content, str):
        path.symlink_to(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pd.DataFrame(content).to_parquet(path)


def statuses(folder: Path) -> None:
    """Look how the runs of a grid stand, as the grid itself does."""
    collected_runs.cache_clear()
    for job in compose_grid([f"experiment={folder.name}", "runs_dir=nowhere", "seed=0"])[1]:
        job.status({})


@pytest.mark.parametrize("content", share(FOREIGN, few=3))
@pytest.mark.parametrize(
    "name", ["runs.parquet", "evaluations.parquet", "probes.parquet", "provenance.json", "verdicts.json"]
)
def test_files_of_something_else_in_results(name: str, content: Any, struck, tmp_path: Path, monkeypatch) -> None:
    """A grid, a report, the index and a collection: each works, or says in one line what is in the way."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results", "rais_rot_mnist")
    runs_in(Path("runs"))
    collect(Path("runs"), folder)
    path = folder / name
    put_in_place(path, content)
    for attempt in (
        lambda: statuses(folder),
        lambda: read_results(folder),
        lambda: render_index(experiments(), folder.parent, rows(experiments(), folder.parent)),
        lambda: collect(Path("runs"), folder),
    ):
        try:
            attempt()
        except (OSError, UserError) as error:
            assert str(folder) in str(error) and "\n" not in str(error), error
    if name == "runs.parquet" and isinstance(content, bytes) and content:
        assert path.read_bytes() == content, "it stays until somebody moves it away"
    struck("foreign or hostile results/")
