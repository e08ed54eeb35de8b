"""Runs as tidy tables, one row per evaluation, per run and per probe row: from records, or from collected parquet.

A record is append-only and may hold several attempts; `effective_rows` keeps the rows that count. A run is called by
its arm, else by its sampler; where one sampler was run with several sets of options, those that differ join the name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from isbench.errors import UserError
from isbench.recording.record import COLUMNS, effective_rows, last_status, read_rows

KEYS = ["run_id", "dataset", "model", "arm", "seed"]
SETTINGS = (
    "batch_size",
    "budget",
    "optimizer",
    "schedule",
    "augmentation",
    "label_smoothing",
    "clip_norm",
    "slots",
    "evaluation",
    "numerics",
)
PROVENANCE = ("provenance", "checksum", "num_examples")
MACHINE = (
    "git_commit",
    "git_dirty",
    "isbench",
    "python",
    "torch",
    "torch_threads",
    "os",
    "cpu",
    "logical_cores",
    "gpu",
    "shared_gpu",
)
FILES = ("evaluations.parquet", "runs.parquet", "probes.parquet")


@dataclass(frozen=True)
class Runs:
    """What a folder of runs holds.

    `rows` has one row per evaluation: KEYS and the recorded columns. `runs` has one row per run: KEYS, `path`, `status`
    (as recorded, or unfinished where no end was), `reason`, `attempts`, `seconds`, `sampler` (with its options),
    `alone` (no other run was seen on the machine) and the columns named above. `probes` has the probe rows: KEYS,
    `updates`, `epoch` and the columns of the probe.
    """

    rows: pd.DataFrame
    runs: pd.DataFrame
    probes: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*KEYS, "updates", "epoch"]))
    notices: tuple[str, ...] = ()  # what a reader must know about records that could not be used


def load_runs(folder: Path) -> Runs:
    """Read every record.jsonl below `folder`.

    Raises UserError where there is none, or where two runs answer to the same data set, model, arm and seed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that holds the runs")
    paths = sorted(folder.rglob("record.jsonl"))
    records = {path.parent.relative_to(folder).as_posix(): read_rows(path) for path in paths}
    usable = {path: rows for path, rows in records.items() if any(row["kind"] == "start" for row in rows)}
    if not usable:
        raise UserError(f"{folder} holds no runs: no record.jsonl with a start line was found below it")
    summaries = [_summarise(path, rows) for path, rows in usable.items()]
    _name_apart(summaries)
    runs = pd.DataFrame(summaries).sort_values(KEYS[1:], ignore_index=True)
    evaluations = [
        {**run[KEYS].to_dict(), **row} for _, run in runs.iterrows() for row in effective_rows(usable[run["path"]])
    ]
    diagnostics = sorted({key for row in evaluations for key in row if key.startswith("sampler/")})
    columns = [*COLUMNS, *diagnostics]
    frame = pd.DataFrame(evaluations, columns=[*KEYS, *columns]).astype(dict.fromkeys(columns, float))
    looks = [{**run[KEYS].to_dict(), **row} for _, run in runs.iterrows() for row in _probe_rows(usable[run["path"]])]
    probes = pd.DataFrame(looks).drop(columns=["kind", "attempt"]) if looks else Runs(frame, runs).probes
    notices = tuple(f"{path or folder} has no start line and is left out." for path in records if path not in usable)
    return Runs(frame, runs.drop(columns="options"), probes, notices)


def read_results(folder: Path) -> Runs:
    """Read what isbench.report.collect wrote.

    Raises UserError where there is nothing, or files are missing or damaged.
    """
    if not (folder / FILES[1]).is_file():
        raise UserError(f"{folder} holds no {FILES[1]}: collect its runs first, python -m isbench.report.collect")
    try:
        kept = Runs(pd.read_parquet(folder / FILES[0]), pd.read_parquet(folder / FILES[1]))
        return replace(kept, probes=pd.read_parquet(folder / FILES[2])) if (folder / FILES[2]).is_file() else kept
    except (OSError, ValueError) as error:  # Arrow's own errors are ValueErrors
        raise UserError(f"{folder} cannot be read, collect its runs again: {str(error).splitlines()[0]}") from error


def describe(value: Any) -> str:
    """Write a configuration value as a reader would: `sgd (lr=0.1, momentum=0.9)`, `5 epochs`, `none`."""
    if value is None:
        return "none"
    if not isinstance(value, Mapping):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if "unit" in value and "limit" in value:
        return f"{value['limit']:,g} {'effective ' if value.get('effective') else ''}{value['unit']}"
    name = value.get("name") or str(value.get("_target_", "")).rpartition(".")[2]
    options = ", ".join(f"{key}={describe(item)}" for key, item in value.items() if key != "name" and key[0] != "_")
    return f"{name} ({options})" if name and options else name or options


def _summarise(path: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    starts = [row for row in rows if row["kind"] == "start"]
    start = starts[-1]
    status, reason = last_status(rows) or ("unfinished", "no end was recorded: still running, or killed")
    config, data, environment = start["config"], start.get("data") or {}, start.get("environment") or {}
    return {
        "run_id": start["run_id"],
        "dataset": config["dataset"]["name"],
        "model": config["model"]["name"],
        "arm": config.get("arm") or config["sampler"]["name"],
        "seed": int(config["seed"]),
        "path": path,
        "status": status,
        "reason": reason,
        "date": start["time"][:10],
        "attempts": len(starts),
        "seconds": max((row["train_seconds"] for row in effective_rows(rows)), default=0.0),
        "alone": not environment.get("shared_gpu") and all(row.get("concurrent_runs", 1) == 1 for row in rows),
        "options": {} if config.get("arm") else {key: item for key, item in config["sampler"].items() if key != "name"},
        "sampler": describe(config["sampler"]),
        **{key: describe(config[key]) if key in config else "" for key in SETTINGS},
        "budget_unit": (config.get("budget") or {}).get("unit", ""),
        **{key: data.get(key) for key in PROVENANCE},
        **{key: environment.get(key) for key in MACHINE},
    }


def _probe_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the probe rows that count: those beside an evaluation that does."""
    counted = {(row["attempt"], row["updates"]) for row in effective_rows(rows)}
    return [row for row in rows if row["kind"] == "probe" and (row["attempt"], row["updates"]) in counted]


def _name_apart(runs: list[dict[str, Any]]) -> None:
    """Add the options that differ to arms' names, then refuse runs that cannot be told apart."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["dataset"], run["model"], run["arm"]), []).append(run)
    for group in groups.values():
        keys = sorted({key for run in group for key in run["options"]})
        differing = [key for key in keys if len({json.dumps(run["options"].get(key)) for run in group}) > 1]
        for run in group:
            run["arm"] = " ".join([run["arm"], *(f"{key}={describe(run['options'].get(key))}" for key in differing)])
    seen: dict[tuple[Any, ...], str] = {}
    for run in runs:
        twin = seen.setdefault(tuple(run[key] for key in KEYS[1:]), run["path"])
        if twin != run["path"]:
            raise UserError(
                f"{twin} and {run['path']} have the same data set, model, arm and seed: "
                "report one group of runs at a time"
            )
