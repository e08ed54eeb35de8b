"""Each method beside its baseline where both have had equally much: of seconds, of updates and of epochs."""

import math
from typing import Any, NamedTuple

import numpy as np

from isbench.recording.record import UNIT_COLUMNS
from isbench.report.bars import bars
from isbench.report.budget_curve import FACTOR
from isbench.report.claims import ENOUGH_EVALUATIONS, Claim, Finding, Run, check, measure
from isbench.report.load import Runs
from isbench.report.measures import t_interval
from isbench.report.tables import MINUS, count, number, plus_minus

AXES = ("seconds", "updates", "epochs")
NEAR_END = 0.98  # of a run; its last evaluation tells what it has come to there


class Method(NamedTuple):
    """An arm beside its baseline on one task; `at` has what was measured on each axis on which both have runs."""

    arm: str
    dataset: str
    model: str
    n: int
    at: dict[str, dict[str, Any]]


def methods(runs: Runs, baseline: str = "uniform") -> list[Method]:
    """Return every arm that has a run with the seed, data set and model of a run of the baseline.

    Where arms are one method at several budgets, each is compared with the baseline of its own budget, if there is one.
    """
    found = []
    for (dataset, model), part in runs.runs.groupby(["dataset", "model"]):
        mine = Runs(runs.rows[runs.rows["run_id"].isin(part["run_id"])], part.reset_index(drop=True), runs.probes)
        same_budget = baseline + part["arm"].str.extract(f"{FACTOR}$", expand=False).fillna("")
        for arm, other in sorted(set(zip(part["arm"], same_budget, strict=True))):
            at = {axis: values for axis in AXES if arm != other and (values := _at_equal(mine, arm, other, axis))}
            if at:
                found.append(Method(arm, str(dataset), str(model), max(each["n"] for each in at.values()), at))
    return found


def _at_equal(runs: Runs, arm: str, baseline: str, axis: str) -> dict[str, Any]:
    """Return numbers and their text where an arm and its baseline have had equally much.

    Nothing without a pair, or where a run would be read in its middle, between too few evaluations.
    """
    error, loss = (
        Claim(text=quantity, quantity=quantity, arm=arm, baseline=baseline, axis=axis)
        for quantity in ("test_error_difference", "train_loss_ratio")
    )
    measured = measure(error, runs)
    pairs = list(zip(measured.arms, measured.baselines, strict=True))
    if not pairs or any(_is_coarse(pair, error) for pair in pairs):
        return {}
    own = {name: _values(pairs, error, column) for name, column in UNIT_COLUMNS.items()}
    errors = 100 * _values(pairs, error, "test_error")
    difference, ratio = check(error, runs), check(loss, runs)
    return {
        "n": difference.n,
        "error": t_interval(errors).mean,
        "error_text": plus_minus(*t_interval(errors)[:2]),
        "difference": -difference.centre.value,
        "difference_text": _difference(difference),
        "bounds": (-difference.centre.high, -difference.centre.low),
        "loss": ratio.centre.value,
        "loss_text": ratio.ours(),
        **{name: float(np.mean(own[name])) for name in AXES},
        **{f"{name}_text": number(float(np.mean(own[name]))) for name in ("seconds", "epochs")},
        "updates_text": count(float(np.mean(own["updates"]))),
    }


def _is_coarse(pair: tuple[Run, Run], claim: Claim) -> bool:
    ends = [run.end(claim) for run in pair]
    counts = [(run.curve["updates"] > 0).sum() for run in pair]
    return any(
        min(ends) < NEAR_END * end and count < ENOUGH_EVALUATIONS for end, count in zip(ends, counts, strict=True)
    )


def _values(pairs: list[tuple[Run, Run]], claim: Claim, column: str) -> np.ndarray:
    """Return a column of the method's runs where each and its baseline have had equally much."""
    places = [min(run.end(claim), other.end(claim)) for run, other in pairs]
    return np.array([run.value(column, claim, place) for (run, _), place in zip(pairs, places, strict=True)])


def _difference(found: Finding) -> str:
    """Write by how many points the method's error is higher, where claims write by how many it is lower."""
    value, low, high = (_points(-bound) for bound in (found.centre.value, found.centre.high, found.centre.low))
    return value if math.isnan(found.centre.low) else f"{value} [{low}, {high}]"


def _points(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", MINUS) if math.isfinite(value) else number(value)


def add_bars(found: list[Method]) -> None:
    """Give every difference in test error a bar, all on one scale, two points to each side of none."""
    measured = [at for method in found for at in method.at.values()]
    rows = [
        {"value": at["difference"], "low": at["bounds"][0], "high": at["bounds"][1], "neutral": 0.0} for at in measured
    ]
    for at, bar in zip(measured, bars(rows, is_ratio=False, widest=2.0), strict=True):
        at["bar"] = bar
