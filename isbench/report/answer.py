"""The answer so far: each method beside uniform sampling on each task, and one sentence on all of them.

No row is chosen by its outcome. The claims of an experiment name the methods that it compares with uniform sampling;
every one that has been run is measured in the same three ways, on what the budget of its runs counts. A ratio above 1
is in the method's favour. What keeps a claim from being judged (isbench.report.verdicts) keeps a row out of the counts.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from isbench.files import RUNS
from isbench.report.budget_curve import is_budget_of, whole
from isbench.report.claims import QUANTITIES, Claim, check
from isbench.report.inventory import Experiment
from isbench.report.load import Runs, read_results
from isbench.report.measures import Centre
from isbench.report.names import OWN, written
from isbench.report.verdicts import RULES

BASELINE = "uniform"
SPEEDUP, ERROR, LOSS = "speed-up to the same error", "test error at the end", "train loss at the end"
MEASURES = (SPEEDUP, ERROR, LOSS)
BETTER, WORSE, NEITHER = "better", "worse", "neither"
NOT_JUDGED = {rule.name for rule in RULES if rule.about == "any claim"}


class Row(NamedTuple):
    """A method beside uniform sampling on one task, by one measure.

    Attributes:
        experiment, method, dataset, model: ids; the method is an arm of the experiment.
        measure: one of MEASURES.
        axis: what both had equally much of, or what is saved on the way to one error.
        ratio: uniform over method, so that more than 1 is better; NaN where misses or divergence leave only bounds.
        low, high: its interval over seeds, NaN for one seed.
        level: of the interval; below 0.95 it decides nothing.
        n: paired seeds.
        outcome: BETTER or WORSE where the interval excludes 1, else NEITHER; or the rule that keeps it from the counts.
        text: ratio and interval as they are written everywhere.
    """

    experiment: str
    method: str
    dataset: str
    model: str
    measure: str
    axis: str
    ratio: float
    low: float
    high: float
    level: float
    n: int
    outcome: str
    text: str

    @property
    def is_counted(self) -> bool:
        return self.outcome not in NOT_JUDGED


def shared_tasks(rows: Sequence[Row]) -> set[tuple[str, str, str]]:
    """Return what several experiments tell of: method, data set and network. There the experiment must be named."""
    found = Counter(key[1:] for key in {(row.experiment, row.method, row.dataset, row.model) for row in rows})
    return {key for key, count in found.items() if count > 1}


def rows(inventory: Sequence[Experiment], results: Path) -> list[Row]:
    """Return all rows that have at least one pair of runs, experiment by experiment, method by method."""
    return [
        row
        for experiment in inventory
        if (results / experiment.id / RUNS).is_file()
        for row in _rows(experiment, read_results(results / experiment.id))
        if row.n
    ]


def _rows(experiment: Experiment, runs: Runs) -> Iterator[Row]:
    arms, methods = runs.runs["arm"], whole(runs.runs["arm"])
    budgets = runs.runs.loc[methods == BASELINE, "budget_unit"]
    for method, measure, claim in _claims(experiment, arms, budgets.iloc[0]) if len(budgets) else ():
        mine = runs.runs[methods == method]
        if len(mine):
            finding = check(claim, runs)
            dataset, model = mine[["dataset", "model"]].iloc[0]
            centre = finding.centre
            yield Row(
                experiment=experiment.id,
                method=method,
                dataset=dataset,
                model=model,
                measure=measure,
                axis="seconds" if QUANTITIES[claim.quantity].of_budgets else claim.axis,
                ratio=centre.value,
                low=centre.low,
                high=centre.high,
                level=centre.level,
                n=finding.n,
                outcome=finding.verdict if finding.verdict in NOT_JUDGED else _outcome(centre),
                text=finding.ours(),
            )


def _claims(experiment: Experiment, arms: pd.Series, axis: str) -> Iterator[tuple[str, str, Claim]]:
    """Yield each method with what is measured of it, as claims that say nothing which could be held against ours.

    A method that has no run of the whole budget is compared at the least that both have.
    """
    compared = [
        claim
        for claim in experiment.claims
        if claim.baseline == BASELINE and QUANTITIES[claim.quantity].is_paired and not QUANTITIES[claim.quantity].probe
    ]
    target = next((claim.of for claim in experiment.claims if "target" in claim.of), None)
    for method in dict.fromkeys(claim.arm for claim in compared):
        if target:
            yield method, SPEEDUP, Claim(text=SPEEDUP, quantity="speedup", of=target, arm=method, axis=axis)
        shifts = [claim for claim in compared if claim.arm == method and QUANTITIES[claim.quantity].of_budgets]
        for claim in sorted(shifts, key=lambda claim: not claim.primary)[:1]:
            yield method, SPEEDUP, claim
        factors = [arm.removeprefix(method) for arm in sorted(set(arms[is_budget_of(arms, method)]))]  # whole: first
        factor = next((each for each in factors if BASELINE + each in set(arms)), "")
        for measure, quantity in ((ERROR, "test_error_ratio"), (LOSS, "train_loss_ratio")):
            arm, baseline = method + factor, BASELINE + factor
            yield method, measure, Claim(text=measure, quantity=quantity, arm=arm, baseline=baseline, axis=axis)


def _outcome(centre: Centre) -> str:
    if centre.level < 0.95 or centre.low <= 1 <= centre.high:
        return NEITHER
    return BETTER if centre.low > 1 else WORSE


def answer(found: Sequence[Row]) -> list[str]:
    """Return the answer, then a sentence on published methods and one on isbench's own.

    It is no unless in equal seconds a test error is lower, or an error is reached sooner: what a method costs counts.
    """
    judged = [row for row in found if row.is_counted and row.measure != LOSS]
    if not any(row.measure == ERROR for row in judged):
        return ["Nothing is known yet: no method and uniform sampling have two paired seeds."]
    is_shown = any(row.outcome == BETTER and row.axis == "seconds" for row in judged)
    published, own = ([row for row in judged if (row.method == OWN) == is_own] for is_own in (False, True))
    sentences = (("Published methods", published), (f"{written(OWN)}, isbench's own", own))
    said = [_sentence(name, rows) for name, rows in sentences if rows]
    return ["In places." if is_shown else "Not in what has run so far.", *said]


def _sentence(name: str, judged: list[Row]) -> str:
    errors, speedups = ([row for row in judged if row.measure == measure] for measure in (ERROR, SPEEDUP))
    lower, sooner = (
        sorted((row for row in rows if row.outcome == BETTER), key=_size, reverse=True) for rows in (errors, speedups)
    )
    higher = sum(row.outcome == WORSE for row in errors)
    best = f" (best: {_place(lower[0])}, at equal {lower[0].axis})" if lower else ""
    fastest = f" (best: {_place(sooner[0])}, {sooner[0].text} in {sooner[0].axis})" if sooner else ""
    return (
        f"{name}: at an equal budget, a lower test error than uniform sampling's in {len(lower)} of {len(errors)} "
        f"comparisons{best} and a higher one in {higher}; to the same error, faster in {len(sooner)} of "
        f"{len(speedups)}{fastest}."
    )


def _size(row: Row) -> float:
    """Return the ratio; where it is known from below alone, its lower bound."""
    return row.low if math.isnan(row.ratio) else row.ratio


def reading(found: Sequence[Row]) -> str:
    """Return what a reader must know about the answer: which budgets are equal, and what does not count, and why."""
    errors = [row for row in found if row.measure == ERROR]
    budgets = Counter(row.axis for row in errors if row.is_counted)
    left_out = Counter(row.outcome for row in errors if not row.is_counted)
    equal = ", ".join(f"{count} in {axis}" for axis, count in budgets.most_common())
    why = {rule.name: rule.sentence for rule in RULES}
    without = ", ".join(f"{count} because {why[name]}" for name, count in left_out.most_common())
    return (
        f"A comparison is one method on one task in one experiment, at least two seeds paired; budgets are counted "
        f"in their own unit ({equal}). {f'Not counted: {without}. ' if without else ''}"
        "Intervals are 95 % over seeds, each by itself: none is corrected for the number of comparisons."
    )


def _place(row: Row) -> str:
    return f"{written(row.method)} on {written(row.dataset)}"
