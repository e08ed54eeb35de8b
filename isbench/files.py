"""Files that several parts of the package know by name, and the one way to write a file whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path

# In the folder of a run. Its other files belong to one module each: isbench.training.checkpoint, a probe, W&B.
RECORD = "record.jsonl"
LOCK = "lock"  # held by the process that works on the run
# Among W&B's files of a run: a copy of the record, which is no run of its own.
RECORD_COPY = "isbench.jsonl"
# In results/ID, where the runs of an experiment are kept.
EVALUATIONS, RUNS, PROBES = "evaluations.parquet", "runs.parquet", "probes.parquet"
PROVENANCE = "provenance.json"
VERDICTS = "verdicts.json"


def write_whole(path: Path, *parts: bytes, previous: Path | None = None) -> None:
    """Write a file, which takes the name `path` once all of it is on the disk.

    Of processes that write the same file at once, the last to begin does so, and others may fail.

    Args:
        parts: the content, one after the other.
        previous: the name that the file before it gets, if there is one.

    Raises:
        OSError: it cannot be written. The file before it stays as it was.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        discard_drafts(path)
        with open(draft, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(draft, path)
    except OSError:
        with suppress(OSError):
            draft.unlink()  # others may need the room
        raise


def discard_drafts(path: Path) -> None:
    """Delete what killed processes have left of their attempts to write a file.

    Raises:
        OSError: something cannot be deleted.
    """
    for draft in path.parent.glob(f"{path.name}.*.unfinished"):
        draft.unlink(missing_ok=True)
