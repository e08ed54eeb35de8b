"""What every probe owes, whatever it measures: one suite over all of conf/probe."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from isbench.build import Parts
from isbench.config import config_folder
from isbench.errors import Incompatible
from isbench.recording.record import Record, effective_rows, read_rows
from isbench.run import run
from tests.conftest import TINY, build_parts, comparable, compose_config, tensors, train_parts

PROBES = sorted(path.stem for path in (config_folder() / "probe").glob("*.yaml"))
# In place of the published ones.
SIZES = {"examples": 40, "pool_size": 64, "batch_size": 8, "repeats": 2, "count": 5, "batches": 3}
every_probe = pytest.mark.parametrize("probe", PROBES)


def tiny_probe(probe: str) -> list[str]:
    """Return the overrides of a tiny run that the probe can measure."""
    text = (config_folder() / "probe" / f"{probe}.yaml").read_text()
    sizes = [f"probe.{key}={value}" for key, value in SIZES.items() if f"\n{key}:" in text]
    overrides = [*TINY, "augmentation=crop", f"probe={probe}", *sizes]
    for sampler in (["sampler=uniform"], ["sampler=rais", "sampler.fit_examples=64"]):
        try:
            build_parts(*overrides, *sampler)
        except Incompatible as reason:
            assert "\n" not in str(reason)
        else:
            return [*overrides, *sampler]
    raise AssertionError(f"no sampler suits the probe {probe}")


def modes(parts: Parts) -> list[bool]:
    return [module.training for module in parts.model.modules()] + [p.requires_grad for p in parts.model.parameters()]


@every_probe
def test_measuring_leaves_no_trace(probe: str) -> None:
    parts = build_parts(*tiny_probe(probe))
    train_parts(parts)
    before, modes_before = copy.deepcopy(parts.state_dict()), modes(parts)
    parts.probe.measure(parts)
    pairs = list(zip(tensors(before), tensors(parts.state_dict()), strict=True))
    assert len(pairs) > 10
    assert all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in pairs)
    assert modes(parts) == modes_before


@every_probe
def test_rows_are_plain(probe: str) -> None:
    parts = build_parts(*tiny_probe(probe))
    assert not (parts.probe.observes and parts.probe.measure(parts)), "it has seen no training yet"
    train_parts(parts)
    rows = parts.probe.measure(parts)
    assert bool(rows) == (probe != "none")
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    for row in rows:
        assert not {"kind", "attempt", "updates", "epoch"} & set(row)
        for value in row.values():
            items = value if isinstance(value, list) else [value]
            assert all(isinstance(item, int | float | str) for item in items)


def train(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    outcome = run(compose_config(*overrides, f"runs_dir={folder}", "evaluation.points=5", "checkpoint.seconds=0"))
    assert outcome.status == "finished"
    return read_rows(outcome.folder / "record.jsonl")


def counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the probe rows that count: those beside an evaluation that does."""
    beside = {(row["attempt"], row["updates"]) for row in effective_rows(rows)}
    return [row for row in rows if row["kind"] == "probe" and (row["attempt"], row["updates"]) in beside]


@every_probe
def test_a_run_is_the_same_with_and_without(probe: str, tmp_path: Path) -> None:
    overrides = tiny_probe(probe)
    plain = train(tmp_path / "plain", *(word for word in overrides if not word.startswith("probe")))
    watched = train(tmp_path / "watched", *overrides)
    assert comparable(effective_rows(watched)) == comparable(effective_rows(plain))
    assert {row["updates"] for row in counted(watched)} <= {0, 8, 16, 24, 32, 40}
    assert all(row["epoch"] == row["updates"] * 16 / 160 for row in counted(watched))


@every_probe
@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupted_run_has_the_same_probe_rows(probe: str, at: int, tmp_path: Path, monkeypatch) -> None:
    overrides = tiny_probe(probe)
    whole = train(tmp_path / "whole", *overrides)
    original, evaluations = Record.append, []

    def append(record: Record, kind: str, **values: Any) -> dict[str, Any]:
        row = original(record, kind, **values)
        evaluations.extend([row] * (kind == "evaluation"))
        if kind == "evaluation" and len(evaluations) == at + 1:
            raise KeyboardInterrupt
        return row

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Record, "append", append)
        train(tmp_path / "parts", *overrides)
    again = train(tmp_path / "parts", *overrides)
    assert sum(row["kind"] == "start" for row in again) == 2
    assert comparable(counted(again)) == comparable(counted(whole))
    assert comparable(effective_rows(again)) == comparable(effective_rows(whole))
