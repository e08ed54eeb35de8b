"""Runs on one device count each other."""

import math
import os
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from isbench.recording.record import effective_rows, read_rows
from isbench.training import device_load
from isbench.training.device_load import counted
from tests.commands import SERVER, fork
from tests.conftest import wait_for_rows
from tests.test_run import finish, start


def be_at_work(folder: Path, found: Connection) -> None:
    with counted(folder) as count:
        found.send(count())
        time.sleep(100)


def hold(folder: Path) -> tuple[BaseProcess, int]:
    """Start a process that is at work on the device; return it with the number that it found."""
    found, theirs = SERVER.Pipe(duplex=False)
    process = fork(be_at_work, folder, theirs)
    return process, found.recv()


def test_each_learns_of_all_that_came_while_it_was_there(tmp_path: Path) -> None:
    with counted(tmp_path) as first:
        assert first() == 1
        with counted(tmp_path) as second:
            assert (first(), second()) == (2, 2)
            with counted(tmp_path) as third:
                assert (first(), second(), third()) == (3, 3, 3)
        with counted(tmp_path) as fourth:
            assert fourth() == 2, "it has seen only the first"
        assert first() == 3, "the largest number counts, not the last"
    with counted(tmp_path) as alone:
        assert alone() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["door"]


def test_a_killed_process_counts_no_more(tmp_path: Path) -> None:
    process, found = hold(tmp_path)
    assert found == 1
    with counted(tmp_path) as count:
        assert count() == 2
    process.kill()
    process.join()
    assert len(list(tmp_path.glob("*.run"))) == 1, "nobody was there to remove its file"
    with counted(tmp_path) as count:
        assert count() == 1
    assert not list(tmp_path.glob("*.run"))


def test_an_error_ends_the_presence(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), counted(tmp_path):
        raise RuntimeError
    with counted(tmp_path) as count:
        assert count() == 1


def test_records_say_who_was_not_alone(tmp_path: Path, monkeypatch) -> None:
    """A neighbour comes and goes: rows from then on say two, those of a later attempt too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the rest of this machine stays out of it
    folder = tmp_path / "one"
    command = start(folder)
    record = wait_for_rows(folder, 5)
    (at_work,) = tmp_path.glob("isbench-*/at-work/*")
    neighbour, found = hold(at_work)
    assert found == 2
    neighbour.kill()
    neighbour.join()
    wait_for_rows(folder, sum(row["kind"] == "evaluation" for row in read_rows(record)) + 3)
    command.kill()
    finish(folder)
    rows = read_rows(record)
    numbers = [row["concurrent_runs"] for row in effective_rows(rows)]
    assert numbers[0] == 1 and numbers[-1] == 2 and numbers == sorted(numbers)
    assert rows[-1]["kind"] == "end" and rows[-1]["concurrent_runs"] == 2
    alone = finish(tmp_path / "two", "budget.limit=20", "evaluation.points=2")
    assert {row["concurrent_runs"] for row in effective_rows(read_rows(alone))} == {1}


def test_the_wait_for_a_core_is_that_of_the_thread_that_waited_most(monkeypatch) -> None:
    readings = [{"1": 1.0, "2": 0.0}, {"1": 1.0, "2": 0.0}, {"1": 1.5, "2": 2.0, "3": 0.25}, {"2": 9.0}, {"2": 9.5}]
    monkeypatch.setattr(device_load, "waits", lambda: readings.pop(0))
    wait = device_load.CoreWait()
    assert wait.seconds == 0
    wait.start()
    wait.stop()
    assert wait.seconds == 2, "of thread 2, and not 2.75 of all"
    wait.start()
    wait.stop()
    assert wait.seconds == 2.5, "what was waited in between does not count"
    monkeypatch.setattr(device_load, "waits", dict)
    assert math.isnan(device_load.CoreWait().seconds), "a system that does not tell"


@pytest.mark.skipif(sys.platform != "linux", reason="torch has another OpenMP there")
def test_threads_that_wait_soon_leave_the_core_to_others() -> None:
    """What OpenMP says of itself as torch brings it in: nothing may import torch before the variable is set."""
    words = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    words["OMP_DISPLAY_ENV"] = "VERBOSE"
    command = [sys.executable, "-c", "import isbench.cli, isbench.run"]
    done = subprocess.run(command, env=words, capture_output=True, text=True)
    assert "GOMP_SPINCOUNT = '1000'" in done.stderr
