"""The record: rows are only appended, and survive torn lines, kills, full disks and repeated attempts."""

import json
import math
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from isbench.errors import UserError
from isbench.recording.record import COLUMNS, Record, effective_rows, last_status, learning_rates, read_rows

# Appends for ever. Each row is named on standard output once `append` has returned; long rows can be torn.
WRITER = """
import sys
from pathlib import Path
from isbench.recording.record import Record
record = Record(Path(sys.argv[1]))
for updates in range(10**9):
    record.append("probe", updates=updates, epoch=0.0, filler="x" * 50_000)
    print(updates, flush=True)
"""


def evaluation(updates: int, attempt: int = 1, **values) -> dict:
    return {"kind": "evaluation", "attempt": attempt, "updates": updates, **values}


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    record = Record(tmp_path / "run" / "record.jsonl")
    assert not (tmp_path / "run").exists(), "nothing is written before the first row"
    record.append("start", resumed_at=0)
    row = record.append("evaluation", updates=3, test_error=0.1 + 0.2)
    assert row == evaluation(3, test_error=0.1 + 0.2)
    assert read_rows(record.path) == [{"kind": "start", "attempt": 1, "resumed_at": 0}, row]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.jsonl")
    config = {"clip_norm": None, "wait": math.inf}
    record.append("start", config=config)
    row = record.append("evaluation", updates=1, train_loss=math.nan, test_loss=math.inf, gain=-math.inf)
    record.append("rate", updates=[1, 2], learning_rate=[math.nan, 0.5])
    assert math.isnan(row["train_loss"]) and row["test_loss"] == math.inf, "the caller gets the values as given"

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    for line in record.path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    start, row, rate = read_rows(record.path)
    assert start["config"] == {"clip_norm": None, "wait": None}, "null is an ordinary value in a configuration"
    assert all(math.isnan(row[key]) for key in ("train_loss", "test_loss", "gain")) and row["updates"] == 1
    assert math.isnan(rate["learning_rate"][0]) and rate["learning_rate"][1] == 0.5


def test_a_row_ends_torn_or_garbled_lines(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.jsonl")
    first = record.append("evaluation", updates=1)
    second = record.append("evaluation", updates=2)
    garbled = [
        b'{"kind": "evaluation", "atte\xff\x00',
        b"\x00" * 512,
        b"3",
        b"[]",
        b'{"kind": "end"}',
        b"[" * 10_000,
        b"",
    ]
    lines = record.path.read_bytes().splitlines()
    record.path.write_bytes(b"\n".join([lines[0], *garbled, lines[1], lines[1][:-5]]))
    assert read_rows(record.path) == [first, second]
    before = record.path.read_bytes()
    third = record.append("evaluation", updates=3)
    assert read_rows(record.path) == [first, second, third]
    assert record.path.read_bytes().startswith(before), "nothing is rewritten, not even a torn line"


def test_a_whole_row_without_its_newline_counts(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.jsonl")
    first = record.append("evaluation", updates=1)
    record.path.write_bytes(record.path.read_bytes().rstrip())
    second = record.append("evaluation", updates=2)
    assert read_rows(record.path) == [first, second]


def test_a_file_that_was_deleted_is_not_begun_again(tmp_path: Path) -> None:
    record = Record(tmp_path / "run" / "record.jsonl")
    record.append("start", resumed_at=0)
    record.path.unlink()
    record.path.write_text("of another process\n")
    for _ in range(2):
        with pytest.raises(UserError, match="record.jsonl was deleted during the run"):
            record.append("evaluation", updates=1)
    assert record.path.read_text() == "of another process\n"


def test_rows_without_what_their_kind_needs_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    good = [
        {"kind": "start", "attempt": 1, "resumed_at": 0},
        evaluation(3, test_error=0.5),
        {"kind": "probe", "attempt": 1, "updates": 3, "epoch": 0.5, "signal": "loss"},
        {"kind": "end", "attempt": 1, "status": "finished", "reason": ""},
    ]
    changes = [
        {"attempt": "1"},
        {"attempt": True},
        {"attempt": 10**30},
        {"resumed_at": "0"},
        {"updates": "3"},
        {"updates": 3.5},
        {"updates": None},
        {"updates": 10**400},
        {"test_error": "low"},
        {"test_error": [0.5]},
        {"epoch": {}},
        {"status": 3},
        {"reason": None},
    ]
    bad = [{**row, **change} for change in changes for row in good if set(change) <= set(row)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*bad, *good, *bad]))
    assert read_rows(path) == good


def test_attempts_are_numbered_by_what_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    assert Record(path).attempt == 1
    path.write_text('{"kind": "start", "att')
    record = Record(path)
    assert record.attempt == 1, "a torn line starts no attempt"
    assert [record.append(kind)["attempt"] for kind in ("start", "end")] == [1, 1]
    Record(path).append("start")
    record.append("end")
    assert Record(path).attempt == 3, "one more than the highest, whatever its place"


def test_a_row_is_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "record.jsonl"
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(path.read_bytes()))
    record = Record(path)
    for updates in range(3):
        record.append("evaluation", updates=updates)
        assert synced[-1] == path.read_bytes() and synced[-1].count(b"\n") == updates + 1


def test_kills_lose_no_finished_row(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    moments = random.Random(0)
    for attempt in range(1, 7):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "0\n"
            assert (attempt, 0) in [(row["attempt"], row["updates"]) for row in read_rows(path)], "visible to others"
            time.sleep(moments.uniform(0, 0.05))
            process.kill()
            finished = [0, *map(int, process.stdout.read().split())]
        kept = [row["updates"] for row in read_rows(path) if row["attempt"] == attempt]
        # One more may have been written but not yet named.
        assert kept == list(range(len(kept))) and len(finished) <= len(kept) <= len(finished) + 1


def test_an_attempt_supersedes_what_it_did_again() -> None:
    rows = [
        {"kind": "start", "attempt": 1, "resumed_at": 0},
        *(evaluation(updates, loss=1) for updates in (0, 10, 20, 30)),
        {"kind": "start", "attempt": 2, "resumed_at": 15},
        *(evaluation(updates, 2, loss=2) for updates in (22, 32)),
        {"kind": "rate", "attempt": 2, "updates": [40], "learning_rate": [0.1]},
        {"kind": "start", "attempt": 3, "resumed_at": 22},
        evaluation(32, 3, loss=3),
    ]
    assert [(row["updates"], row["loss"]) for row in effective_rows(rows)] == [(0, 1), (10, 1), (22, 2), (32, 3)]


def test_effective_rows_of_random_histories() -> None:
    """Against the definition: a row counts if no later attempt resumed before it or evaluated at the same place."""
    random_numbers = random.Random(1)
    for _ in range(200):
        rows: list[dict] = []
        reached = 0
        for attempt in range(1, random_numbers.randint(2, 6)):
            resumed_at = random_numbers.choice([0, random_numbers.randint(0, reached)])
            rows.append({"kind": "start", "attempt": attempt, "resumed_at": resumed_at})
            first = resumed_at if resumed_at == 0 else resumed_at + random_numbers.randint(1, 3)
            evaluated = range(first, first + random_numbers.randint(0, 12), random_numbers.randint(1, 4))
            rows += [evaluation(updates, attempt) for updates in evaluated]
            reached = max([reached, *evaluated])
        starts = [row for row in rows if row["kind"] == "start"]
        evaluations = [row for row in rows if row["kind"] == "evaluation"]
        expected = [
            row
            for row in evaluations
            if not any(s["attempt"] > row["attempt"] and s["resumed_at"] < row["updates"] for s in starts)
            and not any(e["attempt"] > row["attempt"] and e["updates"] == row["updates"] for e in evaluations)
        ]
        expected.sort(key=lambda row: row["updates"])
        assert effective_rows(rows) == expected
        assert effective_rows(sorted(rows, key=lambda row: -row["attempt"])) == expected
        assert len({row["updates"] for row in expected}) == len(expected)


def test_the_status_is_that_of_the_latest_attempt(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    assert last_status(read_rows(path)) is None
    for status in ("interrupted", "failed", "skipped", "diverged", "finished"):
        record = Record(path)
        record.append("start", resumed_at=0)
        assert last_status(read_rows(path)) is None, "running, or killed"
        record.append("end", status=status, reason=f"why {status}")
        assert last_status(read_rows(path)) == (status, f"why {status}")
    rows = read_rows(path)
    assert last_status(reversed(rows)) == ("finished", "why finished"), "the attempt decides, not the place"
    assert last_status([*rows, evaluation(0, attempt=6)]) is None


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    record = Record(tmp_path / "record.jsonl")
    record.path.symlink_to("/dev/full")
    with pytest.raises(UserError, match="cannot write .*record.jsonl: No space left on device") as error:
        record.append("start")
    assert "\n" not in str(error.value)


def test_a_disk_that_fills_up_within_a_row_keeps_the_others(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.jsonl")
    first = record.append("evaluation", updates=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (record.path.stat().st_size + 10, hard))
    try:
        with pytest.raises(UserError, match="cannot write"):
            record.append("evaluation", updates=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not record.path.read_bytes().endswith(b"\n"), "the row is torn"
    assert read_rows(record.path) == [first]
    third = record.append("evaluation", updates=3)
    assert read_rows(record.path) == [first, third]


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Give up the rights of root, for whom no file is protected."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.fixture
def protected() -> Iterator[Path]:
    """Return a file that nobody may read, in a folder that nobody may write."""
    with TemporaryDirectory() as folder:  # pytest's own are for the owner alone
        path = Path(folder, "record.jsonl")
        path.touch(0)
        path.parent.chmod(0o555)
        yield path
        path.parent.chmod(0o755)


def test_protected_files_are_one_line(protected: Path, ordinary_user: None) -> None:
    for read in (Record, read_rows):
        with pytest.raises(UserError, match="cannot read .*record.jsonl: Permission denied") as error:
            read(protected)
        assert "\n" not in str(error.value)
    for path in (protected.with_name("other.jsonl"), protected.parent / "new" / "record.jsonl"):
        record = Record(path)
        with pytest.raises(UserError, match="cannot write .*jsonl: Permission denied") as error:
            record.append("start")
        assert "\n" not in str(error.value)


def test_learning_rates_are_those_of_the_updates_that_count(tmp_path: Path) -> None:
    """The second attempt repeats what came after update 4, at other rates."""
    record = Record(tmp_path / "record.jsonl")
    record.append("start", resumed_at=0)
    record.append("rate", updates=[1, 3], learning_rate=[0.4, 0.3])
    record.append("evaluation", **{name: 4 for name in COLUMNS})
    record.append("rate", updates=[5, 6], learning_rate=[9.0, 8.0])
    record.append("evaluation", **{name: 6 for name in COLUMNS})
    record = Record(tmp_path / "record.jsonl")
    record.append("start", resumed_at=4)
    record.append("rate", updates=[5, 7], learning_rate=[0.2, 0.1])
    record.append("evaluation", **{name: 7 for name in COLUMNS})
    record.append("rate", updates=[8], learning_rate=[0.0])  # of no evaluation yet
    assert learning_rates(read_rows(tmp_path / "record.jsonl")) == [0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1]
