"""Runs that ended somewhere else, or before their folder was deleted, and whose records were kept in results/."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from isbench.errors import UserError
from isbench.files import RUNS
from isbench.recording.record import ENDED

RESULTS = Path("results")


class KeptRun(NamedTuple):
    """How a run ended, and the seconds it trained for."""

    status: str
    reason: str
    seconds: float


@lru_cache
def collected_runs(group: str | None) -> dict[str, KeptRun]:
    """Return by id the runs of a group that ended, as isbench.report.collect kept them.

    Raises:
        UserError: the file is of something else, or cannot be read.
    """
    path = RESULTS / (group or "") / RUNS
    if not path.is_file():
        return {}
    import pyarrow  # slow to import, and seldom needed
    from pyarrow import parquet

    types = {"run_id": pyarrow.string()} | {name: pyarrow.string() for name in KeptRun._fields}
    schema = pyarrow.schema(types | {"seconds": pyarrow.float64()})
    try:
        runs = parquet.read_table(path, columns=schema.names).select(schema.names).cast(schema).to_pylist()
    except (pyarrow.ArrowException, LookupError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not what isbench.report.collect writes ({' '.join(str(error).split())}): move it away, "
            "or keep these runs apart from it with group=NAME"
        ) from error
    return {run.pop("run_id"): KeptRun(**run) for run in runs if run["status"] in ENDED}
