"""`isbench collect [ID ...]`: from run folders to the small tables that are kept, in results/ID.

evaluations.parquet (a row per evaluation), runs.parquet (a row per run: settings, state, machine, versions, command),
probes.parquet (only where a probe measured) and provenance.json. Equal records give equal bytes. Runs that have not
ended enter as they are, so that what is kept half-way says so; collecting again rewrites, and keeps the runs whose
folders are not here (they were collected elsewhere, or before). Of probe rows that hold a list per example only those
that each run measured last are kept, which is what figures show. Pictures of examples are taken from the data set where
it is at hand.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from isbench.config import DATA_OPTIONS
from isbench.errors import UserError
from isbench.explain import MISTAKES, choices
from isbench.files import EVALUATIONS, PROBES, PROVENANCE, RUNS, write_whole
from isbench.grid.jobs import compose_grid, words_for
from isbench.nodes import locate
from isbench.recording.record import ENDED, escaped, read_rows
from isbench.report.load import KEYS, Runs, last_measurements, load_runs, read_results, records_below
from isbench.terminal import outlive_terminal

FACTS = ("date", "isbench", "git_commit", "git_dirty", "python", "torch", "os", "cpu", "logical_cores", "gpu")


def collect(folder: Path, out: Path) -> Runs:
    """Write what is kept of the runs below `folder` to `out`, and return it.

    Raises UserError where there are no runs, or two that cannot be told apart.
    """
    runs = load_runs(folder)
    paths = {escaped(path.parent.relative_to(folder).as_posix()): path for path in records_below(folder)[0]}
    last = {
        run_id: [row for row in read_rows(paths[path]) if row["kind"] == "start"][-1]
        for run_id, path in runs.runs[["run_id", "path"]].values.tolist()
    }
    choice = experiment_of(folder.name)
    commands = [_command(choice, last[run_id]["config"]) for run_id in runs.runs["run_id"]]
    probes = _with_pictures(_last_lists(runs.probes), last)
    kept = replace(runs, runs=runs.runs.assign(command=commands), probes=probes)
    if (out / RUNS).is_file():
        kept = _with_earlier(kept, read_results(out))
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in zip((EVALUATIONS, RUNS, PROBES), (kept.rows, kept.runs, kept.probes), strict=True):
        if len(frame) or name != PROBES:
            # Without pandas' own metadata, which names versions.
            table = pa.Table.from_pandas(_compact(frame), preserve_index=False).replace_schema_metadata(None)
            content = BytesIO()
            parquet.write_table(table, content, compression="zstd", compression_level=19)
            write_whole(out / name, content.getvalue())
        else:
            (out / name).unlink(missing_ok=True)
    planned = kept.runs if choice is None else compose_grid([f"experiment={choice}"])[1]
    facts = {**provenance(kept.runs), "planned_runs": len(planned)}
    write_whole(out / PROVENANCE, f"{json.dumps(facts, indent=2)}\n".encode())
    return kept


def experiment_of(name: str) -> str | None:
    """Return the choice of the group `experiment` whose runs are in a folder of this name, None if there is none."""
    return next((choice for choice in choices("experiment") if choice.rpartition("/")[2] == name), None)


def _command(choice: str | None, config: dict[str, Any]) -> str:
    """Return what trains a run again; nothing where one of its choices is not at hand."""
    if choice is not None:
        own = f"arm={config['arm']}" if config.get("arm") else f"sampler={config['sampler']['name']}"
        return f"python -m isbench -m experiment={choice} {own} seed={config['seed']}"
    try:
        return shlex.join(["python", "-m", "isbench", *words_for(config)])
    except (*MISTAKES, LookupError, TypeError):  # records may come from others
        return ""


def provenance(runs: pd.DataFrame) -> dict[str, list]:
    """Return every value that runs have of date, commit, machine, versions and data, once."""
    facts = {key: sorted(runs[key].dropna().unique().tolist(), key=str) for key in FACTS}
    return {
        **facts,
        **{f"data_{key}": sorted(runs[key].dropna().unique().tolist()) for key in ("provenance", "checksum")},
    }


def _with_earlier(now: Runs, earlier: Runs) -> Runs:
    """Add the runs collected before of another seed or arm, or that had ended where the one of today has not."""
    identity = KEYS[1:]

    def ids(runs: pd.DataFrame) -> dict[tuple, str]:
        return {tuple(key): run_id for run_id, *key in runs[KEYS].values.tolist()}

    before, ended = ids(earlier.runs), ids(earlier.runs[earlier.runs["status"].isin(ENDED)])
    open_now = ids(now.runs[~now.runs["status"].isin(ENDED)])
    replaced = {run_id for key, run_id in open_now.items() if key in ended}
    known = {key for key, run_id in ids(now.runs).items() if run_id not in replaced}
    gone = {run_id for key, run_id in before.items() if key not in known}

    def joined(new: pd.DataFrame, old: pd.DataFrame) -> pd.DataFrame:
        new, old = new[~new["run_id"].isin(replaced)], old[old["run_id"].isin(gone)]
        if old.empty:
            return new
        return pd.concat([new, old]).sort_values(identity, kind="stable", ignore_index=True) if len(new) else old

    return replace(
        now,
        rows=joined(now.rows, earlier.rows),
        runs=joined(now.runs, earlier.runs),
        probes=joined(now.probes, earlier.probes),
    )


def _last_lists(probes: pd.DataFrame) -> pd.DataFrame:
    """Of rows that hold lists, keep those that each run measured last."""
    holds_list = probes.map(lambda value: isinstance(value, list)).any(axis=1)
    return probes[probes.index.isin(last_measurements(probes).index) | ~holds_list]


def _with_pictures(probes: pd.DataFrame, starts: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Add pixels and shape of the examples that a `draws` probe found last, where the data set can be read."""
    if "rank" not in probes:
        return probes
    pixels: dict[Any, list[int]] = {}
    shapes: dict[Any, list[int]] = {}
    for run_id, chosen in last_measurements(probes).groupby("run_id"):
        try:
            images = _training_images(starts[str(run_id)])
        except UserError as error:
            print(f"{run_id}: no pictures of its examples: {error}", file=sys.stderr)
            continue
        for place, example in chosen["index"].items():
            image = images[int(example)]
            pixels[place], shapes[place] = image.ravel().tolist(), list(image.shape)
    return probes.assign(
        pixels=pd.Series(pixels, index=probes.index, dtype=object),
        shape=pd.Series(shapes, index=probes.index, dtype=object),
    )


def _training_images(start: dict[str, Any]) -> Any:
    """Return the training inputs of a run, uint8 (N, C, H, W).

    Raises UserError where they are not those it was trained on.
    """
    node = start["config"]["dataset"]
    others = ("name", "_target_", "download", *DATA_OPTIONS)
    options = {key: value for key, value in node.items() if key not in others}
    source = locate(node["_target_"])(Path(os.environ.get("ISBENCH_DATA", "data")), **options)
    if source.checksum() != start["data"]["checksum"]:
        raise UserError(f"the data set {node['name']} here is not the one that was trained on")
    return source.train_inputs.numpy()


def _compact(frame: pd.DataFrame) -> pd.DataFrame:
    """Give lists per example the smallest type that holds them: 32 bits, for pixels 8."""

    def packed(name: Any, values: pd.Series) -> Any:
        if not values.map(lambda value: isinstance(value, list)).any():
            return values
        holds_floats = any(isinstance(item, float) for value in values if isinstance(value, list) for item in value)
        kind = pa.uint8() if name == "pixels" else pa.float32() if holds_floats else pa.int32()
        return pd.Series(
            pd.arrays.ArrowExtensionArray(pa.array(values, pa.list_(kind), from_pandas=True)), values.index
        )

    return pd.DataFrame({name: packed(name, frame[name]) for name in frame})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    outlive_terminal()
    parser = argparse.ArgumentParser(prog="isbench collect", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help="default: every experiment that has runs")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that holds runs/ID")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where to write")
    given = parser.parse_args(arguments)
    try:
        ids = given.ids or [path.stem for path in choices("experiment").values() if (given.runs / path.stem).is_dir()]
        if not ids:
            raise UserError(
                f"{given.runs} holds no runs of an experiment: python -m isbench -m experiment=ID makes them"
            )
        for name in ids:
            kept = collect(given.runs / name, given.results / name)
            runs = kept.runs
            for notice in kept.notices:
                print(f"{name}: {notice}", file=sys.stderr)
            print(f"{given.results / name}: {len(runs)} runs, {(runs['status'] == 'finished').sum()} finished")
    except (OSError, UserError) as error:
        print(f"isbench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
