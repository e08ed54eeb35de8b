"""Run themes, each in a process of its own, and merge their measurements into results/benchmarks."""

import argparse
import importlib
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import summary

THEMES = (
    "harness",
    "engines",
    "samplers",
    "library",
    "data",
    "residency",
    "alternatives",
    "startup",
    "memory",
    "evaluation",
    "jobs",
    "break_even",
    "gpu",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("themes", nargs="*", metavar="theme", help=f"all unless named: {', '.join(THEMES)}")
    parser.add_argument("--quick", action="store_true", help="few rounds and small sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder of summary.json and .md")
    arguments = parser.parse_args()
    for theme in arguments.themes:
        if theme not in THEMES:
            parser.error(f"unknown theme {theme}; there are {', '.join(THEMES)}")
    if len(arguments.themes) == 1:
        measure(arguments.themes[0], arguments.quick, arguments.out)
        return
    failed = []
    for theme in arguments.themes or THEMES:
        options = ["--out", str(arguments.out), *(["--quick"] if arguments.quick else [])]
        if subprocess.run([sys.executable, "-m", "benchmarks", theme, *options]).returncode:
            failed.append(theme)
    if failed:
        sys.exit(f"benchmarks: failed: {', '.join(failed)}; the others are in {arguments.out}")


def measure(theme: str, quick: bool, out: Path) -> None:
    """Run one theme in this process, printing rows as they come, and write the summary."""
    from isbench.build import resolve_device

    device = resolve_device("auto")
    module = importlib.import_module(f"benchmarks.{theme}")
    title = (module.__doc__ or "").partition("\n")[0]
    start = time.perf_counter()
    print(f"\n## {theme}: {title}\n\n{summary.HEADER}", flush=True)
    rows = []
    for row in module.rows(device, quick):
        rows.append(row.record())
        print(summary.line(rows[-1]), flush=True)
    seconds = time.perf_counter() - start
    print(f"\n{theme}: {seconds:.0f} s", flush=True)
    if rows:
        summary.merge(out, device.type, theme, title, rows, quick, seconds)


if __name__ == "__main__":
    main()
