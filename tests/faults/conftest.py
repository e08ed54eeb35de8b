"""What the fault tests share: a seed, undisturbed runs to compare with, and an account of the faults that struck.

`make test` runs a few faults of each kind from seed 0, `make test-faults` all of them from a new seed, which it prints.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from isbench.recording.record import read_rows
from tests.commands import count_calls, record_in
from tests.conftest import SAMPLERS, final_rows, tiny_overrides
from tests.faults.summary import KINDS

SEED = os.environ.get("ISBENCH_FAULT_SEED", "0")


def share(values: Iterable[Any], few: int) -> list[Any]:
    """Return the values of a parametrised test: the first few for `make test`, the others for `make test-faults`."""
    return [pytest.param(v, marks=() if i < few else pytest.mark.faults) for i, v in enumerate(values)]


def run_words(sampler: str, folder: Path) -> list[str]:
    """Return the words of a tiny run that evaluates and saves ten times."""
    return [
        *tiny_overrides(sampler),
        "device=cpu",
        "evaluation.points=10",
        "checkpoint.seconds=0",
        f"runs_dir={folder}",
    ]


@dataclass(frozen=True)
class Undisturbed:
    """What a run leaves when nothing happens to it, the calls it makes and the seconds it takes."""

    rows: list[dict[str, Any]]
    calls: dict[str, int]
    seconds: float


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Undisturbed]:
    @cache
    def run(sampler: str) -> Undisturbed:
        folder = tmp_path_factory.mktemp("undisturbed")
        started = time.monotonic()
        calls = count_calls(run_words(sampler, folder), folder / "log")
        seconds = time.monotonic() - started
        rows = final_rows(record_in(folder))
        assert len(rows) == 11
        return Undisturbed(rows, calls, seconds)

    return run


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Return a source of random numbers that depends on the seed and on the test alone."""
    print(f"seed {SEED}")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def sampler(chance: random.Random) -> str:
    return chance.choice(SAMPLERS)


@pytest.fixture
def struck(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """Return what a test calls once its fault has struck: with the kind, and how many there were."""

    def strike(kind: str, count: int = 1) -> None:
        assert kind in KINDS, kind
        record_property("struck", (kind, count))

    return strike


def lost_and_doubled(record: Path, expected: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Count the expected rows that a record lacks, and the rows that an attempt wrote twice or nobody expected."""
    found, rows = final_rows(record), read_rows(record)
    evaluations = Counter((row["attempt"], row["updates"]) for row in rows if row["kind"] == "evaluation")
    doubled = sum(evaluations.values()) - len(evaluations)
    return sum(row not in found for row in expected), doubled + sum(row not in expected for row in found)


@pytest.fixture
def same_as(record_property: Callable[[str, Any], None]) -> Callable[[Path, Undisturbed], None]:
    """Return what compares a record with the undisturbed one, row by row."""

    def compare(record: Path, expected: Undisturbed) -> None:
        lost, doubled = lost_and_doubled(record, expected.rows)
        record_property("rows", (len(expected.rows), lost, doubled))
        assert (lost, doubled) == (0, 0)
        assert final_rows(record) == expected.rows

    return compare
