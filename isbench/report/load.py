"""Runs as tidy tables, one row per evaluation, per run and per probe row: from records, or from collected parquet.

A record is append-only and may hold several attempts; `effective_rows` keeps the rows that count. A run is called by
its arm, else by its sampler; where one sampler was run with several sets of options, those that differ join the name.
Where runs of one seed still have one name, the settings join it that were swept: `uniform at optimizer.lr=0.1`.

Records and tables may come from others. What is no record of a run is left out, with a notice, and names keep only
characters that mean nothing to a page, a spreadsheet or a typesetter.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isbench.config import IDENTITY
from isbench.errors import UserError
from isbench.files import EVALUATIONS, PROBES, RECORD, RUNS
from isbench.recording.record import COLUMNS, MOST_CPU_WAIT, Row, effective_rows, escaped, last_status, read_rows

KEYS = ["run_id", "dataset", "model", "arm", "seed"]
SETTINGS = (
    "batch_size budget optimizer schedule augmentation label_smoothing clip_norm slots evaluation numerics".split()
)
PROVENANCE = ("provenance", "checksum", "num_examples")
MACHINE = "git_commit git_dirty isbench python torch torch_threads os cpu logical_cores gpu shared_gpu".split()
AT = " at "  # stands between the name of an arm and the settings that were swept
YOUNG = ("objective", "acted_updates", "cpu_wait")  # columns that results collected before they were recorded lack
ROW_TYPES = {"seed": "int64", **dict.fromkeys(COLUMNS, float)}
RUN_TYPES = {
    **{"seed": "int64", "attempts": "int64", "seconds": float, "alone": bool},
    **dict.fromkeys(("path", "status", "reason", "sampler", "date", "budget_unit", *SETTINGS), str),
}


@dataclass(frozen=True)
class Runs:
    """What a folder of runs holds.

    `rows` has one row per evaluation: KEYS and the recorded columns. `runs` has one row per run: KEYS, `path`, `status`
    (as recorded, or unfinished where no end was), `reason`, `attempts`, `seconds`, `sampler` (with its options),
    `alone` (no other run was seen on the machine, nor much other work) and the columns named above. `probes` has the
    probe rows: KEYS, `updates`, `epoch` and the columns of the probe.
    """

    rows: pd.DataFrame
    runs: pd.DataFrame
    probes: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*KEYS, "updates", "epoch"]))
    notices: tuple[str, ...] = ()  # what a reader must know about records that could not be used

    @cached_property
    def rows_of(self) -> Mapping[str, pd.DataFrame]:
        """The rows of each run that has any, by its id."""
        return {str(run_id): rows for run_id, rows in self.rows.groupby("run_id", sort=False)}

    @cached_property
    def probes_of(self) -> Mapping[str, pd.DataFrame]:
        """The probe rows of each run that has any, by its id."""
        return {str(run_id): rows for run_id, rows in self.probes.groupby("run_id", sort=False)}


def load_runs(folder: Path) -> Runs:
    """Read every record.jsonl below `folder`; see `tabulated`.

    Raises UserError where there is none, or where two runs answer to the same data set, model, arm, seed and settings.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that holds the runs")
    paths, notices = records_below(folder)
    records = {escaped(path.parent.relative_to(folder).as_posix()): read_rows(path) for path in paths}
    return tabulated(records, escaped(str(folder)), notices)


def tabulated(records: Mapping[str, list[Row]], origin: str, notices: Sequence[str] = ()) -> Runs:
    """Return the runs of records, which are called by the folder of each below `origin`.

    Raises UserError where there is none, or where two runs answer to the same data set, model, arm, seed and settings.
    """
    notices, found = list(notices), []
    for path, rows in records.items():
        if not any(row["kind"] == "start" for row in rows):
            notices.append(f"{path or origin} has no start line and is left out.")
            continue
        try:
            found.append(_run_row(path, rows))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            notices.append(f"{path or origin} is not the record of a run and is left out ({type(error).__name__}).")
    if not found:
        raise UserError(f"{origin} holds no runs: no record.jsonl with a start line was found below it")
    _name_apart(found)
    runs = pd.DataFrame(found).sort_values(KEYS[1:], ignore_index=True)
    evaluations = [_keyed(row, run) for _, run in runs.iterrows() for row in effective_rows(records[run["path"]])]
    diagnostics = sorted({key for row in evaluations for key in row if key.startswith("sampler/")})
    columns = [*COLUMNS, *diagnostics]
    frame = pd.DataFrame(evaluations, columns=[*KEYS, *columns]).astype(dict.fromkeys(columns, float))
    measured = [_keyed(row, run) for _, run in runs.iterrows() for row in _probe_rows(records[run["path"]])]
    probes = pd.DataFrame(measured).drop(columns=["kind", "attempt"]) if measured else Runs(frame, runs).probes
    return Runs(frame, runs.drop(columns=["options", "settings"]), probes, tuple(notices))


def records_below(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the records below a folder, those behind links too, and notices of what could not be looked into.

    Every folder counts once, however many links lead to it.
    """
    found: list[Path] = []
    notices: list[str] = []
    seen: set[tuple[int, int]] = set()

    def complain(error: OSError) -> None:
        notices.append(escaped(f"{error.filename} is left out: {error.strerror}."))

    for place, folders, names in os.walk(folder, onerror=complain, followlinks=True):
        facts = os.stat(place)
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders.sort(key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        found += [Path(place, RECORD)] if RECORD in names else []
    return sorted(found), notices


def last_measurements(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each run's last measurement."""
    return probes[probes["updates"] == probes.groupby("run_id")["updates"].transform("max")]


def read_results(folder: Path) -> Runs:
    """Read what isbench.report.collect wrote.

    Raises UserError where there is nothing, or files are missing or damaged.
    """
    if not (folder / RUNS).is_file():
        raise UserError(f"{folder} holds no {RUNS}: collect its runs first, python -m isbench.report.collect")
    try:
        rows, runs = (pd.read_parquet(folder / name) for name in (EVALUATIONS, RUNS))
        rows = rows.assign(**{name: np.nan for name in YOUNG if name not in rows})
        kept = Runs(_typed(rows, ROW_TYPES), _typed(runs, RUN_TYPES, (*PROVENANCE, *MACHINE)))
        if not (folder / PROBES).is_file():
            return kept
        probes = pd.read_parquet(folder / PROBES)
        return replace(kept, probes=_typed(probes, {}, ("updates", "epoch")))
    except (LookupError, NotImplementedError, OSError, TypeError, ValueError) as error:  # Arrow's are among them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{folder} is not what isbench.report.collect writes ({reason}): move it away and collect its runs again"
        ) from error


def read_json(path: Path, kind: type, keys: set[str]) -> Any:
    """Return what a file of results/ holds: a dictionary with these keys, or a list of such. Raises UserError else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): move it away, and report or collect again") from error
    parts = content if kind is list and isinstance(content, list) else [content]
    if not isinstance(content, kind) or not all(isinstance(part, dict) and keys <= part.keys() for part in parts):
        raise UserError(f"{path} is of something else: move it away, and report or collect again")
    return content


def _typed(table: pd.DataFrame, types: Mapping[str, Any], others: Sequence[str] = ()) -> pd.DataFrame:
    """Return a table with its columns of these types and its names plain. It must have the others too."""
    missing = [name for name in (*KEYS, *types, *others) if name not in table]
    if missing:
        raise ValueError(f"column {missing[0]} is missing")
    return table.astype(types).assign(**{name: table[name].map(_plain) for name in KEYS[:-1]})


def describe(value: Any) -> str:
    """Write a configuration value as a reader would: `sgd (lr=0.1, momentum=0.9)`, `5 epochs`, `none`."""
    if value is None:
        return "none"
    if not isinstance(value, Mapping):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if "unit" in value and "limit" in value:
        unit = value["unit"].removesuffix("s") if value["limit"] == 1 else value["unit"]
        return f"{value['limit']:,g} {'effective ' if value.get('effective') else ''}{unit}"
    name = value.get("name") or str(value.get("_target_", "")).rpartition(".")[2]
    options = ", ".join(f"{key}={describe(item)}" for key, item in value.items() if key != "name" and key[:1] != "_")
    return f"{name} ({options})" if name and options else name or options


def _run_row(path: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    starts = [row for row in rows if row["kind"] == "start"]
    start = starts[-1]
    status, reason = last_status(rows) or ("unfinished", "no end was recorded: still running, or killed")
    config, data, environment = start["config"], start.get("data") or {}, start.get("environment") or {}
    return {
        "run_id": _plain(start["run_id"]),
        "dataset": _dataset(config["dataset"]),
        "model": _plain(config["model"]["name"]),
        "arm": _plain(config.get("arm") or config["sampler"]["name"]),
        "seed": int(np.int64(config["seed"])),
        "path": path,
        "status": status,
        "reason": reason,
        "date": date.fromisoformat(start["time"][:10]).isoformat(),
        "attempts": len(starts),
        "seconds": max((row["train_seconds"] for row in effective_rows(rows)), default=0.0),
        "alone": _was_alone(rows, environment),
        "options": {} if config.get("arm") else {key: item for key, item in config["sampler"].items() if key != "name"},
        "settings": _settings(config),
        "sampler": describe(config["sampler"]),
        **{key: describe(config[key]) if key in config else "" for key in SETTINGS},
        "budget_unit": str((config.get("budget") or {}).get("unit", "")),
        **{key: _scalar(data.get(key)) for key in PROVENANCE[:2]},
        "num_examples": data["num_examples"] if type(data.get("num_examples")) is int else None,
        **{key: _scalar(environment.get(key)) for key in MACHINE},
    }


def _was_alone(rows: list[dict[str, Any]], environment: Mapping[str, Any]) -> bool:
    """Say whether a run had its device and its cores to itself."""
    waits = [row.get("cpu_wait", 0.0) for row in effective_rows(rows)[-1:]]
    return (
        not environment.get("shared_gpu")
        and all(row.get("concurrent_runs", 1) == 1 for row in rows)
        and not any(wait > MOST_CPU_WAIT for wait in waits)
    )


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what else makes a run what it is, by its key on the command line: neither seed nor an arm's options."""
    left_out = {"seed"} if config.get("arm") else {"seed", "sampler"}
    return dict(pair for key in IDENTITY if key not in left_out for pair in _flat(key, config.get(key)))


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dictionaries by dotted keys; what has a name is called by it."""
    if not isinstance(value, Mapping):
        yield key.removesuffix(".name"), value
        return
    for inner, item in value.items():
        yield from _flat(f"{key}.{inner}", item)


def _dataset(node: Mapping[str, Any]) -> str:
    """Return the name of the data, with what makes it another task: wrong labels, and examples that are held out."""
    noise, held_out = (float(node.get(option) or 0) for option in ("label_noise", "validation"))
    changes = (
        f"{100 * noise:g} % wrong labels" if noise else "",
        (f"{held_out:,.0f} held out" if held_out >= 1 else f"{100 * held_out:g} % held out") if held_out else "",
    )
    return " ".join([_plain(node["name"]), ", ".join(filter(None, changes))]).strip()


def _plain(name: str) -> str:
    """Return a name with '?' for all but letters, digits and what isbench itself puts into names."""
    if not isinstance(name, str) or not re.match(r"\w", name):
        raise ValueError("a name must begin with a letter or a digit")
    return re.sub(r"[^\w .,:=()\[\]/+%-]", "?", name)[:200]


def _scalar(value: Any) -> str | int | float | bool | None:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _keyed(row: dict[str, Any], run: pd.Series) -> dict[str, Any]:
    """Return a row that begins with KEYS, which are those of its run whatever it holds."""
    keys = {str(key): value for key, value in run[KEYS].items()}
    return keys | row | keys


def _probe_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the probe rows that count: those beside an evaluation that does."""
    counted = {(row["attempt"], row["updates"]) for row in effective_rows(rows)}
    return [row for row in rows if row["kind"] == "probe" and (row["attempt"], row["updates"]) in counted]


def _name_apart(runs: list[dict[str, Any]]) -> None:
    """Add the options that differ to arms' names, then the settings that were swept; refuse runs that stay alike."""
    for group in _grouped(runs, KEYS[1:-1]):
        keys = sorted({key for run in group for key in run["options"]})
        differing = [key for key in keys if len(_grouped(group, ["options"], key)) > 1]
        for run in group:
            options = (f"{key}={describe(run['options'].get(key))}" for key in differing)
            run["arm"] = _plain(" ".join([run["arm"], *options]))
    for group in _grouped(runs, KEYS[1:-1]):
        if swept := _swept(group):
            for run in group:
                settings = " ".join(f"{key}={describe(run['settings'].get(key))}" for key in swept)
                run["arm"] = _plain(f"{run['arm']}{AT}{settings}")
    for alike in _grouped(runs, KEYS[1:]):
        if len(alike) > 1:
            raise UserError(
                f"{alike[0]['path']} and {alike[1]['path']} have the same data set, model, arm, seed and settings: "
                "report one group of runs at a time"
            )


def _swept(runs: list[dict[str, Any]]) -> list[str]:
    """Return the settings that tell runs of one seed apart, as few as do: choices of a group before single values."""
    keys = {key for run in runs for key in run["settings"]}
    alike, swept = _grouped(runs, ["seed"]), list[str]()
    for key in sorted(keys, key=lambda key: (key.count("."), key.endswith("_target_"), key)):
        apart = [part for group in alike for part in _grouped(group, ["settings"], key)]
        if len(apart) > len(alike):
            alike, swept = apart, [*swept, key]
    return swept


def _grouped(runs: Iterable[dict[str, Any]], columns: Sequence[str], key: str | None = None) -> list[list[dict]]:
    """Return runs in groups of equal columns; with a key, of equal values of it in columns that are dictionaries."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        values = [run[column] if key is None else run[column].get(key) for column in columns]
        groups.setdefault(json.dumps(values), []).append(run)
    return list(groups.values())
