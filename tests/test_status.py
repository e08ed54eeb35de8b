"""The state of an experiment, from its records alone, and the time that it still needs."""

import fcntl
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import pytest

from isbench.config import BudgetConfig, run_folder, run_id
from isbench.grid import status
from isbench.grid.jobs import Job, compose_grid
from isbench.grid.queue import SlurmJob
from isbench.grid.sweeper import long_training
from isbench.recording.record import Record
from isbench.training.budget import Budget
from isbench.types import Progress
from tests.conftest import TINY, compose_config
from tests.test_cli import call
from tests.test_grid import choices  # noqa: F401  a fixture

BEGUN = 1_700_000_000


def write(job: Job, *fractions: float, seconds: float, ended: str = "", resumed_at: int = 0, reason: str = "") -> None:
    """Record an attempt that has spent these parts of 40 updates, the last of them after `seconds` of training.

    The file is as new as that of a copy.
    """
    path = run_folder(replace(job.config, device="cpu")) / "record.jsonl"
    record = Record(path)
    record.append("start", time=datetime.fromtimestamp(BEGUN, UTC).isoformat(timespec="seconds"), resumed_at=resumed_at)
    for fraction in fractions:
        updates = round(40 * fraction)
        trained = seconds * fraction / max(fractions[-1], 1e-9)
        record.append(
            "evaluation", updates=updates, effective_updates=updates, epoch=updates / 10, train_seconds=trained
        )
    if ended:
        record.append("end", status=ended, reason=reason)


def stands(words: list[str], queue: Mapping[str, SlurmJob] = MappingProxyType({})) -> dict[str, tuple]:
    """Return status, fraction and seconds left of each run by its label."""
    runs = [status.stand(job, queue) for job in compose_grid(words)[1]]
    return {run.job.label: (run.status, run.fraction, status.left(run, runs)) for run in runs}


def test_a_grid_says_first_how_long_it_trains(tmp_path: Path) -> None:
    words = ["seed=0,1,2", "sampler=uniform,loss,upper_bound", "budget.unit=seconds", f"runs_dir={tmp_path}"]
    said = {}
    for limit in (3600, 10):
        runs = [status.stand(job, {}) for job in compose_grid([*words, f"budget.limit={limit}"])[1]]
        said[limit] = long_training(runs)
    assert said == {3600: "grid: about 9:00:00 of training, one run after the other", 10: None}


def test_each_state_and_what_is_left(choices: Path, tmp_path: Path, monkeypatch, capsys) -> None:  # noqa: F811
    tiny = [word for word in TINY if word != "budget.limit=40"]
    choices.write_text(choices.read_text().replace(", budget.limit=20", "").replace("range(2)", "range(3)"))
    words = ["experiment=tiny", *tiny, "budget.limit=40", f"runs_dir={tmp_path}/runs"]
    jobs = {job.label: job for job in compose_grid(words)[1]}
    write(jobs["uniform seed=0"], 0, 0.5, 1, seconds=100, ended="finished")
    write(jobs["uniform seed=1"], 0, 0.25, seconds=30)  # 120 in all, at this speed: 90 left
    write(jobs["small_pool seed=0"], 0, 0.5, seconds=1000, ended="interrupted", reason="a signal")
    write(jobs["small_pool seed=0"], 0.75, seconds=180, resumed_at=20, ended="interrupted", reason="a signal")
    write(jobs["small_pool seed=1"], 0, 0.1, seconds=5, ended="diverged", reason="not finite")
    write(jobs["large_pool seed=0"], seconds=0, ended="skipped", reason="does not suit")
    write(jobs["large_pool seed=1"], 0, seconds=7, ended="failed", reason="RuntimeError: no memory")
    lock = open(jobs["uniform seed=1"].folder / "lock", "w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = stands(words)
    assert found["uniform seed=0"] == ("finished", 1.0, 0.0)
    assert found["uniform seed=1"] == ("running", 0.25, pytest.approx(90))
    assert found["uniform seed=2"] == ("missing", 0.0, pytest.approx(100)), "as the finished run of the arm"
    assert found["small_pool seed=0"] == ("interrupted", 0.75, pytest.approx(60))
    assert found["small_pool seed=1"] == ("diverged", 0.1, 0.0)
    assert found["small_pool seed=2"] == ("missing", 0.0, pytest.approx((240 + 50) / 2)), "as the others of the arm"
    everywhere = (100 + 120 + 240 + 50) / 4
    assert found["large_pool seed=0"] == ("skipped", 0.0, 0.0)
    assert found["large_pool seed=1"] == ("failed", 0.0, pytest.approx(everywhere))
    assert found["large_pool seed=2"] == ("missing", 0.0, pytest.approx(everywhere))
    assert stands(words)["uniform seed=1"][0] == "interrupted", "nobody holds it any more"

    queue = {
        run_id(replace(jobs[label].config, device="cuda")): SlurmJob("7_0", state, "Priority")
        for label, state in {
            "uniform seed=0": "COMPLETING",
            "uniform seed=1": "PENDING",
            "uniform seed=2": "PENDING",
            "large_pool seed=1": "RUNNING",
        }.items()
    }
    found = stands(words, queue)
    assert found["uniform seed=0"][0] == "finished", "whatever SLURM still has to do with its job"
    assert found["uniform seed=1"] == ("queued", 0.25, pytest.approx(90))
    assert found["uniform seed=2"][0] == "queued" and found["large_pool seed=1"][0] == "running"
    assert found["small_pool seed=0"][0] == "interrupted"

    monkeypatch.setattr(sys, "argv", ["status", "tiny", *words[1:-1], "--runs-dir", f"{tmp_path}/runs"])
    status.main()
    said = capsys.readouterr().out
    left = 90 + 100 + 60 + 145 + 2 * everywhere
    assert "failed: RuntimeError: no memory" in said and "skipped: does not suit" in said
    assert said.endswith(
        "runs: 1 finished, 1 diverged, 1 skipped, 1 failed, 2 interrupted, 3 missing; "
        f"{status.duration(100 + 30 + 180 + 5)} trained, {status.duration(left)} left\n"
    )
    monkeypatch.setattr(sys, "argv", ["status", *words[1:-1], "--runs-dir", f"{tmp_path}/runs"])
    some = [choice for choice in status.choices("experiment") if choice in ("demo", "is/is_cifar10", "tiny")]
    monkeypatch.setattr(status, "choices", lambda group: some)  # all of them take half a minute
    status.main()
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["tiny"] == ["9", "1", "1", "1", "1", "2", "3", status.duration(left)]
    assert lines["demo"] == ["9", "9", "?"], "results/ has runs of demo, but not these"
    assert lines["experiment"][-3:] == ["interrupted", "missing", "left"] and "queued" not in lines["experiment"]
    choices.write_text(choices.read_text().replace("sampler=uniform", "sampler=uniform, lr=1"))
    status.main()
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("tiny: unknown key lr: ")


def test_nothing_begun(choices: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ["experiment=tiny", *TINY, f"runs_dir={tmp_path}"]
    assert {(state, left) for state, _, left in stands(words).values()} == {("missing", None)}
    limited = [word for word in words if not word.startswith("budget")] + ["budget=seconds_60", "arm=uniform"]
    assert [left for _, _, left in stands(limited).values()] == [60, 60], "a budget in seconds is known beforehand"
    assert status.duration(None) == "?"


@pytest.mark.parametrize("unit", ["updates", "epochs", "examples", "seconds"])
@pytest.mark.parametrize("effective", [False, True])
def test_the_fraction_is_that_of_training(unit: str, effective: bool) -> None:
    if unit == "seconds" and effective:
        pytest.skip("no such budget")
    progress = Progress(
        1000, updates=30, effective_updates=45.5, seconds=12.5, examples_trained=4096, examples_scored=9
    )
    row = {
        "updates": 30,
        "effective_updates": 45.5,
        "epoch": 4.096,
        "train_seconds": 12.5,
        "examples_trained": 4096,
    }
    expected = Budget(unit, 70, effective).fraction(progress)
    assert status.spent(row, BudgetConfig("", unit, 70, effective)) == pytest.approx(expected)


def test_real_runs_are_found(tmp_path: Path, monkeypatch, capsys) -> None:
    words = ["budget.limit=0.2", "budget.unit=epochs", "evaluation.points=2", "logging=off", "numerics.threads=1"]
    grid = ["-m", "experiment=demo", *words, f"runs_dir={tmp_path}"]
    assert call(monkeypatch, *grid, "seed=0") is None
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["status", "demo", *words, "seed=0,1", f"--runs-dir={tmp_path}"])
    status.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    states = {tuple(row[:2]): row[2:] for row in rows[2:-1]}
    for sampler in ("uniform", "upper_bound", "screen"):
        state, share, seconds, left = states["seed=0", f"sampler={sampler}"]
        assert (state, share, left) == ("finished", "100%", "0:00:00") and float(seconds) > 0
        state, share, seconds, left = states["seed=1", f"sampler={sampler}"]
        assert (state, share, seconds) == ("missing", "0%", "0.0") and left != "?"
    assert rows[-1][:5] == ["runs:", "3", "finished,", "3", "missing;"]
    ending = rows[-1]
    monkeypatch.setattr(sys, "argv", ["status", *grid, "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=3"])
    status.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[-1] == ending, "the words of the grid are understood too"


@pytest.mark.parametrize("experiment", ["demo", "is/is_cifar10"])  # whose runs in results/ are a CPU's, and a GPU's
def test_both_views_count_what_results_hold(experiment: str, tmp_path: Path) -> None:
    overrides = [f"runs_dir={tmp_path}"]
    _, _, *counts, left = status.summary(experiment, overrides, {})
    told = ", ".join(f"{count} {state}" for state, count in zip(status.STATUSES, counts, strict=True) if count)
    last = status.table("", [f"experiment={experiment}", *overrides]).splitlines()[-1]
    assert "finished" in told and last.startswith(f"runs: {told}; ") and last.endswith(f" trained, {left} left")


def test_a_device_left_open_is_where_the_record_is(tmp_path: Path) -> None:
    config = compose_config(*TINY, f"runs_dir={tmp_path}")
    job = Job([], "", lambda words: config)
    assert job.folder == run_folder(replace(config, device="cpu"))
    gpu = run_folder(replace(config, device="cuda"))
    gpu.mkdir(parents=True)
    (gpu / "record.jsonl").touch()
    assert job.folder == gpu


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["dem"], "isbench: dem: no such experiment; did you mean demo?"),
        (["demo", "seedd=1"], "isbench: unknown key seedd: did you mean seed?"),
        (["demo", "arm=rais"], "isbench: arm=rais: no such arm; this grid has no arms"),
        (["demo", "batch_size=0"], "isbench: batch_size=0: must be greater than or equal to 1"),
    ],
)
def test_mistakes_are_one_line(words: list[str], complaint: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["status", *words])
    with pytest.raises(SystemExit) as stop:
        status.main()
    assert stop.value.code == complaint


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; sys.argv = ['status', 'demo']; from isbench.status import main; main();"
        "assert not {'torch', 'wandb'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "9 missing" in result.stdout or "finished" in result.stdout
