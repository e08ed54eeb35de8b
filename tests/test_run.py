"""Runs as processes: killed, stopped, resumed, locked; what is left must be what an undisturbed run leaves."""

import signal
from pathlib import Path

import pytest

from isbench.recording.record import COLUMNS, effective_rows, last_status, read_rows
from isbench.types import Progress
from tests.commands import Command, record_in
from tests.conftest import compose_config, final_rows, wait_for_rows

RUN = (
    "dataset=mnist5k",
    "model=mlp",
    "sampler=upper_bound",
    "sampler.tau_threshold=1.2",
    "augmentation=crop",
    "budget.limit=200",
    "evaluation.points=20",
    "evaluation.train_examples=200",
    "checkpoint.seconds=0",
    "numerics.threads=1",
    "logging=off",
)


def start(folder: Path, *overrides: str, afresh: bool = False) -> Command:
    folder.mkdir(exist_ok=True)
    return Command([*RUN, f"runs_dir={folder}", *overrides], folder / "log", afresh=afresh)


def finish(folder: Path, *overrides: str) -> Path:
    command = start(folder, *overrides)
    assert command.wait() == 0, command.output
    return record_in(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    return finish(tmp_path_factory.mktemp("undisturbed"))


def test_a_record_has_the_documented_rows(undisturbed: Path) -> None:
    rows = read_rows(undisturbed)
    assert [row["kind"] for row in rows][0] == "start" and rows[-1]["kind"] == "end"
    evaluations = effective_rows(rows)
    assert [row["updates"] for row in evaluations] == list(range(0, 201, 10))
    for row in evaluations:
        assert list(row)[: 2 + len(COLUMNS)] == ["kind", "attempt", *COLUMNS]
        assert row["epoch"] == row["examples_trained"] / 4000 and row["examples_trained"] == 128 * row["updates"]
    seconds = [row["train_seconds"] for row in evaluations]
    assert seconds == sorted(seconds) and seconds[0] == 0 < seconds[-1]
    assert evaluations[-1]["examples_scored"] > 0 and evaluations[-1]["sampler/tau"] > 1
    assert evaluations[-1]["test_error"] < 0.15
    start_row = rows[0]
    assert start_row["config"]["sampler"]["name"] == "upper_bound" and start_row["data"]["num_examples"] == 4000
    rates = {
        u: r for row in rows if row["kind"] == "rate" for u, r in zip(row["updates"], row["learning_rate"], strict=True)
    }
    assert sorted(rates) == list(range(1, 201)) and rates[1] == 0.02


@pytest.mark.parametrize(("rows", "afresh"), [(3, False), (7, True), (12, False)])
def test_kill_minus_nine_then_the_same_command(rows: int, afresh: bool, undisturbed: Path, tmp_path: Path) -> None:
    command = start(tmp_path, afresh=afresh)
    wait_for_rows(tmp_path, rows)
    assert command.kill() == -signal.SIGKILL
    record = finish(tmp_path)
    assert final_rows(record) == final_rows(undisturbed)
    attempts = [row for row in read_rows(record) if row["kind"] == "start"]
    assert len(attempts) == 2 and attempts[1]["resumed_at"] >= 10 * (rows - 2)
    seconds = [row["train_seconds"] for row in effective_rows(read_rows(record))]
    assert seconds == sorted(seconds), "seconds go on, they do not start again"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_stops(number: signal.Signals, undisturbed: Path, tmp_path: Path) -> None:
    command = start(tmp_path, "checkpoint.seconds=1000", afresh=number == signal.SIGINT)
    record = wait_for_rows(tmp_path, 5)
    command.signal(number)
    assert command.wait(30) == 1
    assert "the same command continues it" in command.output and "Traceback" not in command.output
    assert last_status(read_rows(record))[0] == "interrupted"
    finish(tmp_path, "checkpoint.seconds=1000")
    assert final_rows(record) == final_rows(undisturbed)
    assert last_status(read_rows(record))[0] == "finished"


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    first = start(tmp_path, "budget.limit=1000000", "evaluation.points=10000")
    record = wait_for_rows(tmp_path, 2)
    second = start(tmp_path, "budget.limit=1000000", "evaluation.points=10000")
    assert second.wait(60) == 1
    assert "in use by another process" in second.output and "Traceback" not in second.output
    assert first.kill() == -signal.SIGKILL, "the first went on"
    assert sum(row["kind"] == "start" for row in read_rows(record)) == 1


def test_other_data_is_refused_on_resume(tmp_path: Path, monkeypatch) -> None:
    from isbench.data.readers import Source
    from isbench.errors import UserError
    from isbench.run import run

    command = start(tmp_path)
    wait_for_rows(tmp_path, 4)
    command.kill()
    monkeypatch.setattr(Source, "checksum", lambda self: "other")
    with pytest.raises(UserError, match="the data set has changed"):
        run(compose_config(*RUN, f"runs_dir={tmp_path}"))


def test_the_last_checkpoint_is_kept_on_request(tmp_path: Path) -> None:
    record = finish(tmp_path, "checkpoint.keep=true", "budget.limit=20", "evaluation.points=2")
    assert (record.parent / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("dataset", "model"), [("mnist", "cnn7"), ("cifar10", "lenet"), ("cifar100", "lenet"), ("rot_mnist", "lenet")]
)
def test_real_data_trains(dataset: str, model: str, data_dir: Path, tmp_path: Path) -> None:
    folder = "MNIST" if "mnist" in dataset else f"cifar-{dataset.removeprefix('cifar')}"
    if not any(path.name.startswith(folder) for path in data_dir.iterdir()):
        pytest.skip(f"ISBENCH_DATA has no {folder}")
    overrides = [
        f"dataset={dataset}",
        f"model={model}",
        "augmentation=none",
        "optimizer=adam",
        "budget.limit=30",
        "evaluation.points=1",
    ]
    rows = effective_rows(read_rows(finish(tmp_path, *overrides)))
    assert rows[-1]["updates"] == 30 and rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_progress_counts_epochs_in_examples() -> None:
    assert Progress(num_examples=400, examples_trained=600).epoch == 1.5
