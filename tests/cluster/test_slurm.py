"""Grids on a real SLURM: submitted once, checked, interrupted in every way SLURM knows, and continued bit for bit."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isbench.recording.record import effective_rows, last_status, read_rows
from tests.conftest import final_rows
from tests.test_run import RUN
from tests.test_wandb_sink import history, mirrored, read_back

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

WORDS = (
    *(word for word in RUN if not word.startswith("sampler")),
    "budget.limit=1000",
    "evaluation.points=50",
    "checkpoint.seconds=1000",  # none but those that a signal asks for
    "device=cpu",
    "launcher=slurm",
    "hydra.launcher.partition=normal",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
)
SECONDS_TO_SAVE = 10  # generous for a busy machine; the checkpoint of these runs takes less than one
grids: list[subprocess.Popen] = []  # those that this test has started


def command(module: str, folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", module, "-m", *WORDS, f"runs_dir={folder}/runs", *words]


def submit(folder: Path, *words: str) -> subprocess.Popen:
    """Start a grid, which waits for its jobs."""
    words = command("isbench", folder, *words)
    grids.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return grids[-1]


def status(folder: Path, *words: str) -> str:
    return subprocess.run(command("isbench.status", folder, *words), capture_output=True, text=True, check=True).stdout


def finish(process: subprocess.Popen, code: int = 0) -> str:
    said, _ = process.communicate(timeout=400)
    assert process.returncode == code and "Traceback" not in said, said
    return said


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def wait_until(done: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.05)


def record_of(folder: Path, rows: int = 3) -> Path:
    """Wait until a run has evaluations; return its record."""

    def found() -> list[Path]:
        return [path for path in folder.rglob("record.jsonl") if path.read_text().count('"evaluation"') >= rows]

    wait_until(found)
    return found()[0]


def in_training(folder: Path, sampler: str) -> Path:
    """Wait until a sampler's run has begun and not ended; return its record."""

    def found() -> list[Path]:
        begun = [path for path in folder.glob(f"runs/*/{sampler}-*/record.jsonl") if '"rate"' in path.read_text()]
        return [path for path in begun if last_status(read_rows(path)) is None]

    wait_until(found)
    return found()[0]


def job_of(record: Path) -> str:
    """Return the id of the job that has noted the run."""
    notes = record.parents[2].glob(".submitit/*/run")
    return next(note.parent.name for note in notes if record.parent.name.endswith(note.read_text()))


def process_of(record: Path) -> int:
    """Return the process that holds the lock of a run."""
    inode = (record.parent / "lock").stat().st_ino
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines() if " FLOCK " in line]
    return next(int(words[-4]) for words in locks if words[-3].endswith(f":{inode}"))


def node_of(job: str) -> str:
    found = re.search(r"BatchHost=(\S+)", slurm("scontrol", "show", "job", job))
    assert found
    return found[1]


def ends(record: Path) -> list[str]:
    return [row["status"] for row in read_rows(record) if row["kind"] == "end"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, list[dict]]:
    """Return the rows of the runs as one process makes them, by the name of their folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = [word for word in WORDS if "launcher" not in word]
    grid = [sys.executable, "-m", "isbench", "-m", *words, f"runs_dir={folder}", "sampler=uniform,upper_bound"]
    subprocess.run(grid, check=True, capture_output=True)
    return {path.parent.name: final_rows(path) for path in folder.rglob("record.jsonl")}


@pytest.fixture(autouse=True)
def empty_queue() -> Iterator[None]:
    """Leave nothing behind for the next test."""
    yield
    while grids:
        grid = grids.pop()
        grid.kill()
        grid.communicate()
    subprocess.run(["scancel", "--user=root", "--signal=KILL"], check=True)
    subprocess.run(["scancel", "--user=root"], check=True)
    for node in ("n1", "n2"):
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True)
    wait_until(lambda: not slurm("squeue", "--noheader"))
    wait_until(lambda: slurm("sinfo", "-h", "-N", "-p", "normal", "-t", "idle").count("\n") == 2)


def test_a_grid_is_submitted_once_and_outlives_its_terminal(undisturbed: dict, tmp_path: Path) -> None:
    grid = ("sampler=uniform,upper_bound", "seed=0,1")
    slurm("scontrol", "update", "nodename=n1,n2", "state=drain", "reason=test")
    parent = submit(tmp_path, *grid)
    wait_until(lambda: len(list(tmp_path.rglob(".submitit/*/run"))) == 4)
    said = status(tmp_path, *grid)
    assert "\nruns: 4 queued; " in said, said
    parent.send_signal(signal.SIGINT)
    said = finish(parent, code=1)
    assert said.endswith("isbench: no longer waiting; the jobs stay with SLURM; the same command continues it\n")
    parent = submit(tmp_path, *grid)
    slurm("scontrol", "update", "nodename=n1,n2", "state=resume")
    assert "grid: 0 of 4 runs are finished\ngrid: 0 jobs submitted, 4 to wait for\n" in finish(parent)
    again = finish(submit(tmp_path, *grid))
    assert "grid: 4 of 4 runs are finished\ngrid: 0 jobs submitted, 0 to wait for\n" in again
    assert "4 finished" in status(tmp_path, *grid)
    records = {path.parent.name: path for path in tmp_path.rglob("record.jsonl")}
    assert len(records) == 4 and all(ends(path) == ["finished"] for path in records.values())
    assert {name: final_rows(records[name]) for name in undisturbed} == undisturbed


def requeue(record: Path) -> None:
    slurm("scontrol", "requeue", job_of(record))


def preempt(record: Path) -> None:
    slurm("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")


def drain(record: Path) -> None:
    slurm("scontrol", "update", f"nodename={node_of(job_of(record))}", "state=drain", "reason=test")
    requeue(record)


def fail_node(record: Path) -> None:
    slurm("scontrol", "update", f"nodename={node_of(job_of(record))}", "state=down", "reason=test")


def send(name: str) -> Callable[[Path], None]:
    def signal_job(record: Path) -> None:
        slurm("scancel", f"--signal={name}", job_of(record))

    return signal_job


SIGNALS = [pytest.param(send(name), id=name) for name in ("USR1", "USR2", "TERM")]


@pytest.mark.parametrize("interrupt", [requeue, preempt, drain, fail_node, *SIGNALS])
def test_a_run_that_must_leave_its_node_goes_on_bit_for_bit(
    interrupt: Callable[[Path], None], undisturbed: dict, tmp_path: Path
) -> None:
    parent = submit(tmp_path, "sampler=upper_bound", "logging=offline")
    record = record_of(tmp_path)
    node = node_of(job_of(record))
    interrupt(record)
    wait_until(lambda: ends(record), SECONDS_TO_SAVE)
    assert ends(record) == ["interrupted"] and (record.parent / "checkpoint.pt").exists()
    if interrupt in (drain, fail_node):
        wait_until(lambda: read_rows(record)[-1]["attempt"] == 2)
        assert node_of(job_of(record)) != node
    said = finish(parent)
    assert re.search(r"upper_bound +1\n", said), said
    assert ends(record) == ["interrupted", "finished"]
    assert [row["resumed_at"] > 0 for row in read_rows(record) if row["kind"] == "start"] == [False, True]
    assert final_rows(record) == undisturbed[record.parent.name]
    first = [row for row in read_rows(record) if row["kind"] == "evaluation" and row["attempt"] == 1]
    attempts = [mirrored(first), mirrored(effective_rows(read_rows(record)))]
    assert [history(rows) for rows in read_back(record.parents[2])] == attempts, "W&B has every row too"


def test_the_time_limit(undisturbed: dict, tmp_path: Path) -> None:
    """SLURM warns a job before its time is up. The process is held until that wakes it, not to compute so long."""
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=40")
    parent = submit(tmp_path, "sampler=upper_bound", *limit)
    record = record_of(tmp_path)
    os.kill(process_of(record), signal.SIGSTOP)
    assert "1 running" in status(tmp_path, "sampler=upper_bound")
    wait_until(lambda: ends(record))
    assert ends(record) == ["interrupted"] and (record.parent / "checkpoint.pt").exists()
    finish(parent)
    assert set(ends(record)[:-1]) == {"interrupted"} and ends(record)[-1] == "finished"
    assert final_rows(record) == undisturbed[record.parent.name]


def test_all_that_went_wrong_is_told(undisturbed: dict, tmp_path: Path) -> None:
    grid = ("sampler=uniform,upper_bound", "optimizer.lr=0.02,-1,1e30")
    parent = submit(tmp_path, *grid)
    cancelled = in_training(tmp_path, "uniform")
    slurm("scancel", job_of(cancelled))
    os.kill(process_of(in_training(tmp_path, "upper_bound")), signal.SIGKILL)
    lines = sorted(line for line in finish(parent, code=1).splitlines() if line.startswith("isbench: "))
    expected = [
        r"diverged: sampler=uniform optimizer.lr=1e\+30: the training loss was not finite",
        r"diverged: sampler=upper_bound optimizer.lr=1e\+30: the training loss was not finite",
        r"failed: sampler=uniform optimizer.lr=-1, sampler=upper_bound optimizer.lr=-1: optimizer",
        r"failed: sampler=upper_bound optimizer.lr=0.02: SLURM job \d+_\d ended as FAILED; its log is ",
        r"interrupted: sampler=uniform optimizer.lr=0.02: SLURM job \d+_\d ended as CANCELLED; its log is ",
    ]
    assert ends(cancelled) == ["interrupted"] and (cancelled.parent / "checkpoint.pt").exists()
    assert len(lines) == len(expected), lines
    for line, pattern in zip(lines, expected, strict=True):
        assert re.match(f"isbench: {pattern}", line), line
    assert all(Path(line.rpartition(" ")[2]).exists() for line in lines[3:])
    said = finish(submit(tmp_path, *grid), code=1)
    assert "grid: 4 jobs submitted" in said, "the two that were ended, and the two that failed"
    records = {path.parent.name: path for path in tmp_path.rglob("record.jsonl")}
    assert {name: final_rows(records[name]) for name in undisturbed} == undisturbed


def test_a_refusal_of_slurm_is_one_line(tmp_path: Path) -> None:
    said = finish(submit(tmp_path, "hydra.launcher.partition=wrong"), code=1)
    assert said.splitlines()[-1].startswith(
        "isbench: launcher=slurm: sbatch: error: invalid partition specified: wrong"
    )


def test_a_run_on_two_nodes_is_requeued_and_goes_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the names of these nodes do not resolve
    few = ("sampler=upper_bound", "hydra.launcher.nodes=2", "budget.limit=300", "evaluation.points=10")
    grid = submit(tmp_path, *few)
    record = in_training(tmp_path, "upper_bound")
    slurm("scontrol", "requeue", job_of(record))
    finish(grid)
    rows = read_rows(record)
    assert [row["environment"]["ranks"] for row in rows if row["kind"] == "start"] == [2, 2]
    assert ends(record) == ["interrupted", "finished"]
