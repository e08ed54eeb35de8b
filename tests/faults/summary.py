"""What the fault tests found: the kinds of faults, and the table of how many were survived."""

from typing import Any

# kind -> what is to happen
KINDS = {
    "kill -9 at a random moment": "the same command goes on; the rows are those of an undisturbed run",
    "kill -9 inside a record append": "the same; a torn line is passed over",
    "kill -9 inside a checkpoint write": "the same; from that checkpoint or the one before",
    "kill -9 of a run of two processes": "who is left says so and ends; the same command goes on",
    "SIGINT twice": "stops at once; the same command goes on",
    "disk full": "one line; with room, the same command goes on",
    "folder that cannot be written": "one line; with permission, the same command goes on",
    "folder deleted while training": "one line; the same command starts again",
    "several processes on one run": "one trains, the others refuse or find it finished",
    "checkpoint truncated or bits flipped": "noticed by its checksum, said; the one before is used",
    "both checkpoints damaged": "said; the run starts again",
    "checkpoint that is a program": "refused in one line; no code is run",
    "console lost": "what is printed is lost, and the run ends as without it",
    "clock running backwards": "nothing but dates notice",
    "loss not finite": "closed as diverged; a grid goes on",
    "out of memory": "one line that says what to reduce; with memory, the same command goes on",
    "cores taken by others": "the record has for how long it waited; said once; a report leaves its seconds out",
    "W&B server refuses, fails or hangs": "the run ends as without it; `wandb sync` can send it later",
    "data file missing or damaged": "one line; nothing is written",
    "image folder in an odd state": "every image is read once, under its class, or one line",
    "bad command line": "one line within 5 s of a core, exit code not 0; nothing is written",
    "bad yaml in --config-dir": "one line within 5 s of a core, exit code not 0; nothing is written",
    "foreign or hostile results/": "one line that names the file, or read as data; nothing of it changes",
    "hostile record, table or weights": "read as data: escaped, left out, or one line",
}


def markdown(found: dict[str, Any]) -> str:
    """Return a row for each kind of fault, and one for each test that failed."""
    lines = ["| fault | survived | rows lost or doubled | then |", "| --- " * 4 + "|"]
    lines += [
        f"| {kind} | {each['survived']:,} | {_rows(each)} | {KINDS[kind]} |" for kind, each in found["kinds"].items()
    ]
    lines += [f"| `{test}` | **failed** |  |  |" for test in found["failed"]]
    return "\n".join(lines)


def headline(found: dict[str, Any]) -> str:
    """Return the sum of it, and what it was found with."""
    kinds = found["kinds"].values()
    survived, rows = (sum(counts[name] for counts in kinds) for name in ("survived", "rows"))
    wrong = sum(counts["rows_lost"] + counts["rows_doubled"] for counts in kinds)
    origin = f"seed {found['seed']}, {found['date']}, Python {found['python']}, torch {found['torch']}"
    return (
        f"{survived:,} faults survived, {len(found['failed'])} not; of {rows:,} rows compared with undisturbed runs, "
        f"{wrong} lost or doubled ({origin})."
    )


def _rows(counts: dict[str, int]) -> str:
    return f"{counts['rows_lost'] + counts['rows_doubled']} of {counts['rows']:,}" if counts["rows"] else ""
