"""Copy a report's tables and curves to results/NAME, with the provenance of its runs: `collect.py runs/demo demo`."""

import json
import shutil
import sys
from pathlib import Path

from isbench.recording.record import read_rows
from isbench.report.__main__ import report

ROOT = Path(__file__).resolve().parent.parent
FILES = ("table.md", "table.csv", "rows.csv", "curves.png")


def provenance(folder: Path) -> dict[str, list]:
    """Return every value that the start rows of a folder's runs give of time, commit, machine and versions, once."""
    starts = [row for path in sorted(folder.rglob("record.jsonl")) for row in read_rows(path) if row["kind"] == "start"]
    facts: dict[str, list] = {"date": sorted({row["time"][:10] for row in starts}), "runs": [len(starts)]}
    for key in ("isbench", "git_commit", "git_dirty", "python", "torch", "os", "cpu", "logical_cores", "gpu"):
        facts[key] = sorted({row["environment"].get(key) for row in starts if "environment" in row}, key=str)
    return facts


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/collect.py RUNS_FOLDER NAME")
    folder, out = Path(sys.argv[1]), ROOT / "results" / sys.argv[2]
    page = report(folder)
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(page.parent / name, out / name)
    (out / "provenance.json").write_text(json.dumps(provenance(folder), indent=2) + "\n")
    print(f"wrote {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
