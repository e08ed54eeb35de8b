"""Runs that W&B keeps: from a server by its public API, or from W&B's files on the disk.

What is read is the record that every run leaves among its files in W&B, byte for byte, so that tables and figures are
those of the local records. W&B's history is for charts: it lacks probes, environments and earlier attempts.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from isbench.errors import UserError
from isbench.files import RECORD_COPY
from isbench.recording.record import Row, read_rows
from isbench.report.load import Runs, tabulated

Found = Iterator[tuple[str, list[Row]]]  # where each run is, and its rows


def load_wandb(place: str) -> Runs:
    """Read the runs of ENTITY/PROJECT/GROUP on W&B's server, or of a folder that holds W&B's files at any depth.

    Of several records of one run, that of the last attempt counts.

    Raises UserError where there are no runs, or two that cannot be told apart, or W&B gives no answer.
    """
    records: dict[str, list[Row]] = {}
    has_record: dict[str, bool] = {}  # by the name of the run, of which a server may also have a part
    for name, rows in _on_disk(Path(place)) if Path(place).is_dir() else _on_server(place):
        has_record[name] = bool(rows) or has_record.get(name, False)
        if not rows:
            continue
        folder = _folder(rows) or name
        if folder not in records or _begun(rows) >= _begun(records[folder]):
            records[folder] = rows
    if not records:
        raise UserError(f"wandb:{place}: none of its runs has a record, which W&B gets when a run ends")
    runs = tabulated(records, f"wandb:{place}")
    going = [name for name, is_there in has_record.items() if not is_there]
    notices = [f"{name} has not ended, so that W&B has no record of it, and is left out." for name in going]
    return replace(runs, notices=(*runs.notices, *notices))


def _on_disk(folder: Path) -> Found:
    paths = sorted(folder.rglob(RECORD_COPY))
    if not paths:
        raise UserError(f"wandb:{folder}: no {RECORD_COPY} below it; W&B writes it when a run ends")
    for path in paths:
        yield path.parent.relative_to(folder).as_posix(), read_rows(path)


def _on_server(place: str) -> Found:
    entity, project, group = [*place.split("/", 2), "", ""][:3]
    if not (entity and project and group):
        raise UserError(
            f"wandb:{place}: neither a folder here nor ENTITY/PROJECT/GROUP; "
            "wandb:FOLDER reads W&B's files, wandb:ENTITY/PROJECT/GROUP the runs on its server"
        )
    import wandb

    try:
        found = False
        for run in wandb.Api().runs(f"{entity}/{project}", filters={"group": group}):
            found = True
            with tempfile.TemporaryDirectory() as folder:
                for file in run.files(names=[RECORD_COPY]):
                    file.download(root=folder, replace=True).close()
                yield run.name, read_rows(Path(folder, RECORD_COPY))
    except Exception as error:  # W&B raises its own, those of its transport, and ValueErrors
        raise UserError(f"wandb:{place}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not found:
        raise UserError(f"wandb:{place}: the project {entity}/{project} has no runs of the group {group}")


def _folder(rows: list[Row]) -> str:
    """Return the folder of a run below that of its group; see `isbench.config.run_folder`."""
    starts = [row for row in rows if row["kind"] == "start"]
    try:
        config, run_id = starts[-1]["config"], starts[-1]["run_id"]
        names = {key: config[key]["name"] for key in ("dataset", "model", "sampler")}
        return f"{names['dataset']}-{names['model']}/{names['sampler']}-s{config['seed']}-{run_id}"
    except (LookupError, TypeError):
        return ""


def _begun(rows: list[Row]) -> str:
    """Return when the last attempt began."""
    return max((str(row.get("time", "")) for row in rows if row["kind"] == "start"), default="")
