"""The record of a run: a file of JSON lines, to which rows are only ever appended.

Every table and figure comes from records alone. Each line is one row `{"kind", "attempt", ...}`; an attempt is one
process's work on the run. The kinds are

- `start`: time, resumed_at, run_id, config, num_parameters, data (where it is from, its checksum, its classes and how
  many examples of each are for training and for testing), files (checksums of those that choices name), environment;
- `evaluation`: COLUMNS, then `sampler/<diagnostic>`;
- `probe`: updates, epoch, and the values that the probe measured;
- `rate`: updates and learning_rate, two lists;
- `end`: status (finished, diverged, skipped, interrupted or failed), reason, and after training concurrent_runs.

JSON has no NaN or infinity, so floats that are not finite are written as null. `evaluation`, `probe` and `rate` rows
hold no other null, and there it is read back as NaN.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import finalize

from isbench.errors import UserError

Row = dict[str, Any]

COLUMNS: tuple[str, ...] = (
    "updates",
    "effective_updates",
    "acted_updates",  # at which the method had a say
    "epoch",
    "train_seconds",
    "examples_trained",
    "examples_scored",
    "learning_rate",
    "gain",
    "train_loss",
    "objective",  # train loss plus the penalty of weight decay
    "test_loss",
    "test_error",
    "concurrent_runs",  # the largest number so far on the same device; 1 is alone
    "cpu_wait",  # seconds for which a thread was ready and had no core, over those of training; NaN is unknown
)

# Above this `cpu_wait` other programs have slowed a run down so much that its seconds are not its own.
MOST_CPU_WAIT = 0.1

# The column that counts each unit of a budget.
UNIT_COLUMNS = {"updates": "updates", "epochs": "epoch", "examples": "examples_trained", "seconds": "train_seconds"}
# The statuses of runs that no command continues.
ENDED = ("finished", "diverged")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `status` is finished, diverged, skipped, or running (in another process)."""

    folder: Path
    status: str
    reason: str


class Record:
    """The record file of a run, for one attempt: the attempt's number is one more than the highest in the file.

    The file appears with the first row and stays open, so no row goes to another file that has taken its name.

    Raises:
        UserError: the file exists and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attempt = 1 + max((row["attempt"] for row in read_rows(path)), default=0)
        self._file: int | None = None  # its descriptor

    def append(self, kind: str, **values: Any) -> Row:
        """Write one row to the disk and return it.

        Raises:
            UserError: the disk is full, or the file was deleted or cannot be written.
        """
        row = {"kind": kind, "attempt": self.attempt, **values}
        line = json.dumps(_finite(row), allow_nan=False).encode() + b"\n"
        try:
            file = self._open()
            facts = os.fstat(file)
            if facts.st_nlink == 0:
                raise UserError(f"{self.path} was deleted during the run; the same command starts the run again")
            # A process that was killed while writing leaves a torn line; the new row must not continue it.
            if facts.st_size and os.pread(file, 1, facts.st_size - 1) != b"\n":
                line = b"\n" + line
            while line:
                line = line[os.write(file, line) :]
            os.fsync(file)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; "
                "make room or correct its permissions, then run the same command again"
            ) from error
        return row

    def _open(self) -> int:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            finalize(self, os.close, self._file)
        return self._file


class Unrecorded:
    """The record in a process whose run another process records."""

    def append(self, kind: str, **values: Any) -> Row:
        """Return a row as `Record.append` does, without writing it."""
        return {"kind": kind, **values}


def read_rows(path: Path) -> list[Row]:
    """Return the valid rows in order, none if there is no file. Torn or garbled lines are skipped.

    Raises:
        UserError: the file exists and cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; correct its permissions") from error
    return [row for line in lines if (row := _parse(line)) is not None]


def effective_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the evaluation rows that count, one for each value of `updates`, in that order.

    An attempt that resumes at `resumed_at` repeats everything after it, so later rows of earlier attempts do not count.
    """
    counted: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: row["attempt"]):
        if row["kind"] == "start":
            resumed_at = row.get("resumed_at") or 0
            counted = {updates: kept for updates, kept in counted.items() if updates <= resumed_at}
        elif row["kind"] == "evaluation":
            counted[row["updates"]] = row
    return [counted[updates] for updates in sorted(counted)]


def learning_rates(rows: Iterable[Row]) -> list[float]:
    """Return the learning rate of each update that counts, from the rows that tell where it changed."""
    rows = list(rows)
    changes: dict[int, float] = {}
    for row in sorted(rows, key=lambda row: row["attempt"]):
        if row["kind"] == "start":
            resumed_at = row.get("resumed_at") or 0
            changes = {updates: rate for updates, rate in changes.items() if updates <= resumed_at}
        elif row["kind"] == "rate":
            changes.update(zip(row["updates"], row["learning_rate"], strict=True))
    updates = effective_rows(rows)[-1]["updates"]
    starts = [update for update in sorted(changes) if update <= updates]
    lengths = [end - start for start, end in zip(starts, [*starts[1:], updates + 1], strict=True)]
    return [changes[start] for start, length in zip(starts, lengths, strict=True) for _ in range(length)]


def recorded_inputs(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the checksums of what the last attempt has read: of the data set, and of files by the key that named them.

    Records of older versions have fewer of them; other programs may have written anything.
    """
    start = next((row for row in reversed([*rows]) if row["kind"] == "start"), {})
    files, data = start.get("files"), start.get("data")
    read = dict(files) if isinstance(files, dict) else {}
    return read | ({"dataset": data["checksum"]} if isinstance(data, dict) and "checksum" in data else {})


def last_status(rows: Iterable[Row]) -> tuple[str, str] | None:
    """Return (status, reason) of the latest attempt, or None if it has no `end` row: it is running or was killed."""
    latest, status = 0, None
    for row in rows:
        if row["attempt"] > latest:
            latest, status = row["attempt"], None
        if row["attempt"] == latest and row["kind"] == "end":
            status = (row["status"], row["reason"])
    return status


def escaped(value: Any) -> Any:
    """Return what JSON holds with lone surrogates escaped, in all strings: they cannot be written as UTF-8.

    JSON from elsewhere may hold them, and Python has them for bytes of file names that are not UTF-8.
    """
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {escaped(key): escaped(item) for key, item in value.items()}
    return [escaped(item) for item in value] if isinstance(value, list) else value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line.decode())
        if b"\\ud" in line.lower():
            row = escaped(row)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(row, dict) and isinstance(row.get("kind"), str) and _is_whole(row.get("attempt"))):
        return None
    if row["kind"] in ("evaluation", "probe", "rate"):
        row = {key: _null_as_nan(value) for key, value in row.items()}
    return row if _has_its_values(row) else None


def _has_its_values(row: Row) -> bool:
    """Say whether a row has the values that readers of its kind need. Other programs may have written it."""
    match row["kind"]:
        case "start":
            return _is_whole(row.get("resumed_at", 0))
        case "evaluation":
            numbers = (value for key, value in row.items() if key != "kind")
            return _is_whole(row.get("updates")) and all(map(_is_number, numbers))
        case "probe":
            return _is_whole(row.get("updates")) and _is_number(row.get("epoch"))
        case "end":
            return isinstance(row.get("status"), str) and isinstance(row.get("reason"), str)
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_whole(value: Any) -> bool:
    """Say whether a value is an integer of at most 64 bits."""
    return type(value) is int and abs(value) < 2**63


def _null_as_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_null_as_nan(item) for item in value]
    return math.nan if value is None else value
