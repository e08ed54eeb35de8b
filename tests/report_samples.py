"""Synthetic records with known answers, in the format of isbench.recording.record."""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def config(sampler: str, seed: int, **changes: Any) -> dict[str, Any]:
    """Return a resolved configuration like those that runs record."""
    plain = {
        "dataset": {"name": "mnist5k", "_target_": "isbench.data.readers.mnist5k"},
        "model": {"name": "lenet", "_target_": "isbench.models.cnn.LeNet"},
        "sampler": {"name": sampler},
        "optimizer": {
            "name": "sgd_momentum",
            "_target_": "isbench.training.optimizers.sgd",
            "lr": 0.02,
            "momentum": 0.9,
        },
        "schedule": {"name": "cosine", "_target_": "isbench.training.schedule.cosine", "final": 0.0},
        "augmentation": {"name": "none"},
        "budget": {"name": "seconds_60", "unit": "seconds", "limit": 60.0, "effective": False},
        "numerics": {"name": "reproducible", "deterministic": True, "threads": 1},
        "evaluation": {"points": 20, "train_examples": 2000},
        "label_smoothing": 0.0,
        "clip_norm": None,
        "slots": None,
        "batch_size": 128,
        "seed": seed,
    }
    return {**plain, **changes}


def write_run(
    folder: Path,
    sampler: str,
    seed: int,
    curve: Iterable[tuple[float, float]],
    *,
    status: str | None = "finished",
    reason: str = "",
    torn: str = "",
    losses: Iterable[float] | None = None,
    options: Mapping[str, Any] | None = None,
    concurrent_runs: int | None = None,
    gain: float = 1.0,
    update_seconds: float = 0.1,
    probes: Mapping[int, Iterable[Mapping[str, Any]]] | None = None,
    acted: Callable[[int], int] | None = None,
    objective: float | None = None,
    **changes: Any,
) -> Path:
    """Write a run whose (seconds, test error) are given. An update takes 128 of 4,000 examples.

    `probes` has the probe rows by updates, `gain` is that of every update, `acted` says at how many the method acted,
    `objective` is by how much that is above the train loss.
    """
    resolved = config(sampler, seed, **changes)
    resolved["sampler"].update(options or {})
    setting = f"{resolved['dataset']['name']}-{resolved['model']['name']}"
    run_id = f"{zlib.crc32(repr((sampler, seed, sorted(resolved.items(), key=str))).encode()):08x}"
    path = folder / setting / f"{sampler}-s{seed}-{run_id}" / "record.jsonl"
    start = {
        "kind": "start",
        "attempt": 1,
        "time": "2026-11-21T03:30:00+00:00",
        "resumed_at": 0,
        "run_id": run_id,
        "config": resolved,
        "data": {"provenance": "5,000 MNIST digits", "checksum": "c0ffee", "num_examples": 4000},
        "environment": {
            "git_commit": COMMIT,
            "git_dirty": False,
            "python": "3.12.1",
            "torch": "2.15.0",
            "cpu": "a processor",
            "torch_threads": 1,
            "gpu": None,
            "shared_gpu": None,
        },
    }
    points = list(curve)
    rows = [start]
    for (seconds, error), loss in zip(points, losses or (2 * error for _, error in points), strict=True):
        updates = round(seconds / update_seconds)
        rows.append(
            {
                "kind": "evaluation",
                "attempt": 1,
                "updates": updates,
                "effective_updates": gain * updates,
                "epoch": updates * 128 / 4000,
                "train_seconds": seconds,
                "examples_trained": 128 * updates,
                "examples_scored": 0 if sampler == "uniform" else 640 * updates,
                "learning_rate": 0.02,
                "gain": gain,
                "train_loss": loss,
                "test_loss": 3 * error,
                "test_error": error,
                **({} if acted is None else {"acted_updates": acted(updates)}),
                **({} if objective is None else {"objective": loss + objective}),
                **({} if concurrent_runs is None else {"concurrent_runs": concurrent_runs}),
            }
        )
        for values in (probes or {}).get(updates, ()):
            rows.append({"kind": "probe", "attempt": 1, "updates": updates, "epoch": rows[-1]["epoch"], **values})
    if status is not None:
        rows.append({"kind": "end", "attempt": 1, "status": status, "reason": reason})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    return path
