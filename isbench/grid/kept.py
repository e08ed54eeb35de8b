"""Runs that ended somewhere else, or before their folder was deleted, and whose records were kept in results/."""

from functools import lru_cache
from pathlib import Path

from isbench.files import RUNS
from isbench.recording.record import ENDED

RESULTS = Path("results")


@lru_cache
def collected_runs(group: str | None) -> dict[str, tuple[str, str]]:
    """Return (status, reason) by run id of the runs of a group that ended, as isbench.report.collect kept them."""
    path = RESULTS / (group or "") / RUNS
    if not path.is_file():
        return {}
    from pyarrow import parquet  # slow to import, and seldom needed

    runs = parquet.read_table(path, columns=["run_id", "status", "reason"]).to_pylist()
    return {run["run_id"]: (run["status"], run["reason"] or "") for run in runs if run["status"] in ENDED}
