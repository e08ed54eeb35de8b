"""Training at the rates of another run."""

from pathlib import Path

import pytest

from isbench.config import run_id
from isbench.errors import ConfigError
from isbench.recording.record import learning_rates, read_rows
from isbench.run import run
from tests.conftest import compose_config, tiny_overrides

REPLAY = ("sampler=uniform", "sampler@rates_of=rais", "rates_of.fit_examples=64", "schedule=cosine")


def replay_overrides(*overrides: str) -> list[str]:
    return [*tiny_overrides("uniform"), *REPLAY, "budget.limit=60", *overrides]


def record_of(folder: Path, sampler: str) -> list[dict]:
    (path,) = folder.rglob(f"{sampler}-*/record.jsonl")
    return read_rows(path)


def test_the_rates_are_those_of_the_other_run_which_is_trained_first(tmp_path: Path) -> None:
    run(compose_config(*replay_overrides(f"runs_dir={tmp_path}")))
    theirs, ours = (learning_rates(record_of(tmp_path, name)) for name in ("rais", "uniform"))
    assert len(theirs) == 60 and theirs == ours
    plain = [row for row in record_of(tmp_path, "uniform") if row["kind"] == "evaluation"]
    assert all(row["effective_updates"] == row["updates"] for row in plain)
    raised = [row for row in record_of(tmp_path, "rais") if row["kind"] == "evaluation"][-1]
    assert raised["effective_updates"] > 60.1, "the test needs rates that differ from the schedule's"
    rows = len(record_of(tmp_path, "rais"))
    (tmp_path / "moved").mkdir()
    next(tmp_path.rglob("uniform-*")).rename(tmp_path / "moved" / "replay")
    run(compose_config(*replay_overrides(f"runs_dir={tmp_path}")))
    assert len(record_of(tmp_path, "rais")) == rows, "a finished run is not trained again"


def test_the_other_run_is_part_of_the_identity() -> None:
    choices = ([], ["rates_of.smoothing=0.5"], ["rates_of=null"])
    assert len({run_id(compose_config(*replay_overrides(*words))) for words in choices}) == 3


def test_a_run_that_ends_early_has_no_rates(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rates_of=rais: .*diverged"):
        run(compose_config(*replay_overrides(f"runs_dir={tmp_path}", "optimizer.lr=1e20")))
    with pytest.raises(ConfigError, match="rates_of=rais: needs a budget of updates"):
        run(compose_config(*replay_overrides(f"runs_dir={tmp_path}", "budget.unit=seconds")))
