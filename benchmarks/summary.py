"""The summary of all themes: summary.json has every round of every row; summary.md and docs/overhead.md are made of it.

Each kind of device and theme has its own machine and date, so that one can be measured again alone.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FACTS = ("isbench", "git_commit", "git_dirty", "python", "torch", "cuda", "os", "cpu", "logical_cores", "gpu", "driver")
HEADER = "| what | against | median (quartiles) | goal | met | threads |\n| --- " + "| --- " * 5 + "|"


def merge(
    out: Path, device: str, theme: str, title: str, rows: list[dict[str, Any]], quick: bool, seconds: float
) -> None:
    """Replace a theme's rows and write both files."""
    from isbench.recording.environment import environment

    path = out / "summary.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    facts = environment(device)
    machine = {name: facts[name] for name in FACTS if facts[name] is not None}
    measured = {"title": title, "date": f"{datetime.now(UTC):%Y-%m-%d}", "quick": quick, "seconds": round(seconds)}
    content.setdefault(device, {})[theme] = measured | {
        "machine": machine,
        "load_average": facts["load_average"],
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    (out / "summary.md").write_text(markdown(content))


def number(value: float) -> str:
    """Return a number with three digits, or whole."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def goal(row: dict[str, Any]) -> str:
    if row["at_most"] is not None:
        return f"≤ {row['at_most']:g}"
    return f"≥ {row['at_least']:g}" if row["at_least"] is not None else "none"


def verdict(met: bool | None) -> str:
    return {True: "yes", False: "**no**", None: ""}[met]


def measured(row: dict[str, Any]) -> str:
    unit = "" if row["unit"] == "x" else f" {row['unit']}"
    spread = f" ({number(row['low'])} to {number(row['high'])})" if len(row["values"]) > 1 else ""
    digits = f"{row['median']:.3f}" if row["unit"] == "x" and row["median"] < 10 else number(row["median"])
    return f"{digits}{unit}{spread}"


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    goals = goal(row) + (f": {row['note']}" if row["note"] else "")
    cells = (row["what"], row["against"], measured(row), goals, verdict(row["met"]), row["threads"])
    return "| " + " | ".join(map(str, cells)) + " |"


def markdown(content: dict[str, Any]) -> str:
    """Return all themes as tables."""
    parts = ["# Benchmarks", "`python -m benchmarks` wrote this; benchmarks/README.md says how to read it."]
    for device, themes in content.items():
        for theme, found in themes.items():
            machine = found["machine"]
            where = machine.get("gpu") or f"{machine['cpu']}, {machine['logical_cores']} cores"
            commit = machine.get("git_commit", "none")[:12] + (" with changes" if machine.get("git_dirty") else "")
            facts = [found["date"], where, f"torch {machine['torch']}", f"commit {commit}", f"{found['seconds']} s"]
            facts += ["--quick"] if found["quick"] else []
            table = "\n".join([HEADER, *map(line, found["rows"])])
            parts += [f"## {theme} ({device})", found["title"], table, "; ".join(facts)]
    return "\n\n".join(parts) + "\n"


def headline(content: dict[str, Any]) -> str:
    """Return one line for each device, theme and goal: its worst case, and how many rows meet the goal."""
    lines = ["| theme | worst case | against | measured | goal | met |", "| --- " + "| --- " * 5 + "|"]
    for device, themes in content.items():
        for theme, found in themes.items():
            groups: dict[str, list[dict[str, Any]]] = {}
            for row in found["rows"]:
                if row["met"] is not None:
                    groups.setdefault(f"{goal(row)} {row['unit']}".removesuffix(" x"), []).append(row)
            for limit, rows in groups.items():
                worst = (max if rows[0]["at_most"] is not None else min)(rows, key=lambda row: row["median"])
                marks = [mark for mark, applies in ((device, device != "cpu"), ("--quick", found["quick"])) if applies]
                name = f"{theme} ({', '.join(marks)})" if marks else theme
                met = f"{sum(row['met'] for row in rows)} of {len(rows)}"
                cells = (name, worst["what"], worst["against"], measured(worst), limit, met)
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
