"""Runs that ended somewhere else, or before their folder was deleted, and whose records were kept in results/."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

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
    """Return by id the runs of a group that ended, as isbench.report.collect kept them."""
    path = RESULTS / (group or "") / RUNS
    if not path.is_file():
        return {}
    from pyarrow import parquet  # slow to import, and seldom needed

    runs = parquet.read_table(path, columns=["run_id", *KeptRun._fields]).to_pylist()
    return {run.pop("run_id"): KeptRun(**run) for run in runs if run["status"] in ENDED}
