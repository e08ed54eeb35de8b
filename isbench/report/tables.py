"""Numbers as a reader wants them: rounded by their own uncertainty, with unit and n. Shared by pages and tables."""

import math

import numpy as np
import pandas as pd

from isbench.recording.record import ENDED
from isbench.report.load import AT, Runs
from isbench.report.measures import outcome, t_interval
from isbench.report.names import task, written

MINUS, TIMES, PLUS_MINUS, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{PLUS-MINUS SIGN}", "\N{EN DASH}"


def number(value: float, digits: int = 3) -> str:
    """Write a number with `digits` significant digits and thousands separated; a dash for NaN."""
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return f"{MINUS if value < 0 else ''}\N{INFINITY}"
    decimals = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def p_value(p: float | None) -> str:
    """Write a p value; a dash where there is none."""
    if p is None or math.isnan(p):
        return DASH
    return "< 0.001" if p < 0.001 else number(p, 2)


def plus_minus(mean: float, half_width: float) -> str:
    """Write mean ± half-width, to its second significant digit (five decimals at most); without one, the mean.

    A half-width that is nothing but rounding of equal numbers is none.
    """
    if not half_width > 1e-9 * abs(mean) or not math.isfinite(half_width):
        return number(mean)
    decimals = min(5, max(0, 1 - math.floor(math.log10(half_width))))
    return f"{mean:,.{decimals}f} {PLUS_MINUS} {half_width:,.{decimals}f}".replace("-", MINUS)


def count(value: float) -> str:
    """Write a whole number."""
    return DASH if math.isnan(value) else f"{value:,.0f}"


def speedup(row: pd.Series) -> str:
    """Write a speed-up with its interval, or what stands in its place."""
    if row["arm"] == row["baseline"]:
        return "1 (baseline)"
    if math.isnan(row["speedup_low"]):
        if row["misses"] or row["baseline_misses"]:
            return f"unknown (misses {row['misses']}, the baseline {row['baseline_misses']})"
        return DASH if math.isnan(row["speedup"]) else f"{number(row['speedup'])}{TIMES}"
    centre = "" if math.isnan(row["speedup"]) else f"{row['speedup']:.2f}{TIMES} "
    return f"{centre}[{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Turn what `compare_arms` returns into text, one column per thing to read."""
    rows = []
    for _, row in table.iterrows():
        is_baseline = row["arm"] == row["baseline"]
        rows.append(
            {
                "data set": written(row["dataset"]),
                "model": written(row["model"]),
                "sampler": written(row["arm"]),
                "n": str(row["n"]),
                "speed-up": speedup(row),
                "verdict": "baseline" if is_baseline else outcome(row),
                "test error (%)": _percent(row, "test_error"),
                "difference (points)": DASH if is_baseline else _percent(row, "error_difference"),
                "train loss": plus_minus(row["train_loss"], row["train_loss_half_width"]),
                "seconds to target": number(row["seconds_to_target"]),
                "misses": str(row["misses"]),
                "diverged": str(row["diverged"]),
                "updates": count(row["updates"]),
                "examples trained": count(row["examples_trained"]),
                "examples scored": count(row["examples_scored"]),
            }
        )
    return pd.DataFrame(rows)


def comparison_markdown(table: pd.DataFrame) -> str:
    """Return the table for a README, with the line that says how to read it."""
    text = markdown(readable(table))
    notes = [f"{setting_of(part)}: {place_of(part)}" for _, part in table.groupby(["dataset", "model", "baseline"])]
    reading = (
        f"Mean {PLUS_MINUS} half-width of the 95 % t interval over n seeds; speed-up: geometric mean over paired "
        "seeds, or, where one misses the target, their median."
    )
    return f"{text}\n\n{reading}\n\n" + "".join(f"- {note}\n" for note in notes)


def work(table: pd.DataFrame) -> str:
    """Say how many updates each method made in the same seconds; nothing where `compare_arms` compares no seconds."""
    timed = table[table["seconds"].notna() & table["n"].gt(0)]
    said = []
    for _, part in timed.groupby(["dataset", "model", "baseline"], sort=False):
        counts = ", ".join(f"{count(row['updates'])} {written(row['arm'])}" for _, row in part.iterrows())
        said.append(f"Updates in the same {number(part['seconds'].iloc[0])} s on {setting_of(part)}: {counts}.")
    return " ".join(said)


def setting_of(part: pd.DataFrame) -> str:
    """Name what rows of `compare_arms` with one baseline have in common."""
    swept = {arm.partition(AT)[2] for arm in part["arm"]}
    return ", ".join([task(*part[["dataset", "model"]].iloc[0]), *(swept - {""} if len(swept) == 1 else [])])


def place_of(part: pd.DataFrame) -> str:
    """Say where rows of `compare_arms` with one baseline are compared."""
    first = part.iloc[0]
    if not math.isnan(first["epochs"]):
        return f"after {number(first['epochs'])} epochs; the runs shared the machine, so that seconds are not compared"
    goal = "none" if math.isnan(first["target"]) else f"{first['target']:.2%} test error"
    return f"at {number(first['seconds'])} s of training; target {goal}"


def clocks(runs: Runs) -> dict[str, str]:
    """Say why the runs of an arm were not timed by one clock: other cards, or code whose step is over 10 % faster."""
    last = runs.rows.groupby("run_id").tail(1).set_index("run_id")
    timed = runs.runs[runs.runs["alone"] & runs.runs["status"].isin(ENDED) & runs.runs["run_id"].isin(last.index)]
    found = {}
    for arm, part in timed.groupby("arm"):
        devices = sorted(part["gpu"].fillna(part["cpu"]).dropna().unique())
        ends = last.loc[part["run_id"]]
        steps = (ends["train_seconds"] / ends["updates"]).groupby(part["git_commit"].to_numpy()).mean()
        if len(devices) > 1:
            found[str(arm)] = f"runs on {' and '.join(devices)}"
        elif steps.max() > 1.1 * steps.min():
            found[str(arm)] = f"a step of one commit takes {steps.max() / steps.min():.2f}{TIMES} that of another"
    return found


def arms_table(runs: Runs) -> pd.DataFrame:
    """Return text: per data set, model and arm, the values at the end of the runs that finished, uniform first.

    Errors, losses and objective of an arm of which runs diverged are medians, in which those rank worst.
    """
    mixed = clocks(runs)
    last = runs.rows.groupby("run_id").tail(1).set_index("run_id")
    equivalent = last["effective_updates"] * last["epoch"] / last["updates"]
    rows = []
    for (dataset, model, _, arm), part in runs.runs.groupby(["dataset", "model", runs.runs["arm"] != "uniform", "arm"]):
        finished = part.loc[part["status"] == "finished", "run_id"]
        ends, alone = last.loc[finished], part.loc[part["alone"] & part["run_id"].isin(finished), "seconds"]
        diverged = int((part["status"] == "diverged").sum())
        rows.append(
            {
                "data set": dataset,
                "model": model,
                "variant": arm,
                "n": str(len(ends)),
                "test error (%)": _mean(100 * ends["test_error"], diverged),
                "test loss": _mean(ends["test_loss"], diverged),
                "train loss": _mean(ends["train_loss"], diverged),
                "objective": _mean(ends["objective"], diverged),
                "updates": count(ends["updates"].mean()),
                "epochs": number(ends["epoch"].mean()),
                "epochs equivalent": _mean(equivalent.loc[finished]),
                "examples scored": count(ends["examples_scored"].mean()),
                "seconds": _mean(alone) + (" (not comparable)" if arm in mixed else ""),
                "diverged": str(diverged),
                "not finished": str(len(part) - len(finished) - diverged),
            }
        )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, disable_numparse=True)


def latex(table: pd.DataFrame) -> str:
    """Return a booktabs tabular."""
    text = table.to_markdown(index=False, disable_numparse=True, tablefmt="latex_booktabs")
    symbols = {TIMES: r"$\times$", PLUS_MINUS: r"$\pm$", MINUS: "$-$", DASH: "--", "\N{INFINITY}": r"$\infty$"}
    for symbol, command in symbols.items():
        text = text.replace(symbol, command)
    return text + "\n"


def _percent(row: pd.Series, name: str) -> str:
    return plus_minus(100 * row[name], 100 * row[f"{name}_half_width"])


def _mean(values: pd.Series, diverged: int = 0) -> str:
    if diverged:
        return f"median {number(float(np.median([*values.dropna(), *[math.inf] * diverged])))}"
    mean, half_width, _ = t_interval(values)
    return plus_minus(mean, half_width)
