"""A given time for a list of grids."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from isbench.grid import spend
from tests.commands import Command
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parent.parent


def grid(tmp_path: Path, *words: str) -> list[str]:
    return [*TINY, f"runs_dir={tmp_path}/runs", "group=lent", *words]


def test_runs_are_trained_in_the_order_of_the_list_and_once(tmp_path: Path, capfd, monkeypatch) -> None:
    def fork(command: list[str]) -> Command:
        assert command[:3] == [sys.executable, "-m", "isbench"]
        return Command(command[3:], tmp_path / "log")

    monkeypatch.setattr(spend, "subprocess", SimpleNamespace(Popen=fork, TimeoutExpired=subprocess.TimeoutExpired))
    path = tmp_path / "list"
    lines = [grid(tmp_path, "sampler=prioritized,uniform", "seed=0,1"), grid(tmp_path, "sampler=infobatch")]
    path.write_text("# what is worth most stands first\n\n" + "\n".join(" ".join(line) for line in lines))
    assert spend.read(path) == lines
    assert [len(spend.missing(line)) for line in lines] == [4, 1]
    assert spend.spend(lines, 120.0) == "5 runs finished, 0 did not fit into 0:02:00"
    done = [line.split(": finished")[0] for line in capfd.readouterr().out.splitlines() if ": finished" in line]
    assert [line.split("seed=")[1] for line in done] == ["0", "0", "1", "1", "0"]
    assert [len(spend.missing(line)) for line in lines] == [0, 0]
    assert spend.overview(lines).splitlines()[-1].split()[-2:] == ["0", "0:00:00"]


def test_a_run_that_does_not_fit_leaves_its_time_to_a_shorter_one(tmp_path: Path, monkeypatch) -> None:
    trained: list[str] = []
    monkeypatch.setattr(spend, "train", lambda words, seconds: trained.append(" ".join(words)))
    seconds = ["budget.unit=seconds"]
    long = [word for word in grid(tmp_path, *seconds, "budget.limit=300") if word != "budget.unit=updates"]
    short = [word for word in grid(tmp_path, *seconds, "budget.limit=2") if word != "budget.unit=updates"]
    assert spend.spend([long, short], 60.0).startswith("0 runs finished, 1 did not fit")
    assert len(trained) == 1 and "budget.limit=2" in trained[0]


def test_a_run_is_stopped_in_time_and_goes_on_later(tmp_path: Path) -> None:
    words = grid(tmp_path, "budget.limit=200000", "evaluation.points=2000")
    start = time.monotonic()
    spend.train(words, 8.0)
    assert time.monotonic() - start < 30
    (run,) = spend.missing(words)
    assert run.job.status({})[0] == "interrupted"
    assert list((tmp_path / "runs").rglob("checkpoint*")), "what was trained is kept"


@pytest.mark.parametrize(
    ("text", "minutes", "complaint"),
    [
        (None, [], "list: No such file"),
        ("dataset=mnst", [], "dataset=mnst"),
        ('group="mine', [], "list: No closing quotation"),
        ("", ["nan"], "MINUTES=nan: must be positive and finite"),
        ("", ["0"], "MINUTES=0: must be positive and finite"),
    ],
)
def test_mistakes_get_a_line(tmp_path: Path, text: str | None, minutes: list[str], complaint: str) -> None:
    path = tmp_path / "list"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        spend.main([str(path), *minutes])
    assert complaint in str(stop.value) and "\n" not in str(stop.value)


def test_the_command_of_its_own_is_the_same(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "isbench.spend", str(tmp_path / "list")]
    outcome = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)
    assert outcome.returncode == 1 and outcome.stderr == f"isbench: {tmp_path}/list: No such file or directory\n"


def test_the_list_for_a_gpu_names_grids() -> None:
    lines = spend.read(ROOT / "scripts" / "gpu.list")
    assert len(lines) > 10 and all(spend.compose_grid(words)[1] for words in lines)
