"""The answer: which rows there are, which of them count, and what the sentence may say."""

import math

import pytest

from isbench.report import collect
from isbench.report.answer import BETTER, ERROR, LOSS, NEITHER, SPEEDUP, WORSE, Row, answer, reading, rows, shared_tasks
from isbench.report.forest import THEMES, draw
from isbench.report.inventory import Cost, Experiment
from isbench.report.load import read_results
from isbench.report.methods import methods
from tests.report_samples import write_run

METHODS = ("rais", "impon", "loss", "upper_bound", "oracle")


def experiment():
    claims = {method: {"quantity": "test_error_ratio", "arm": method} for method in METHODS}
    claims["rais, sooner"] = {"quantity": "speedup", "arm": "rais", "of": {"target": 0.85}}
    return Experiment(id="mine", paper="is", shows="a figure", cost=Cost(minutes=1, machine="one core"), claims=claims)


def test_every_method_that_a_claim_names_and_that_ran_is_a_row_by_each_measure(tmp_path):
    def runs(sampler, slope, seeds, **changes):
        for seed in range(seeds):
            curve = [(float(t), 0.9 - (slope + seed / 1000) * t) for t in range(21)]
            write_run(tmp_path / "runs", sampler, seed, curve, **changes)

    runs("uniform", 0.01, 3)
    runs("rais", 0.02, 3)
    runs("impon", 0.005, 3)
    runs("loss", 0.02, 1)
    runs("upper_bound", 0.02, 3, acted=lambda updates: 0)
    runs("prioritized", 0.02, 3)  # no claim is on it
    collect.collect(tmp_path / "runs", tmp_path / "results" / "mine")
    found = {(row.method, row.measure): row for row in rows([experiment()], tmp_path / "results")}
    assert {method for method, _ in found} == {"rais", "impon", "loss", "upper_bound"}
    assert {measure for method, measure in found} == {SPEEDUP, ERROR, LOSS}
    assert {method: row.outcome for (method, measure), row in found.items() if measure == ERROR} == {
        "rais": BETTER,
        "impon": WORSE,
        "loss": "one seed",
        "upper_bound": "not exercised",
    }
    sooner = found["rais", SPEEDUP]
    assert sooner.outcome == BETTER and sooner.ratio == pytest.approx(2, rel=0.1)
    assert sooner.low < sooner.ratio < sooner.high and sooner.axis == "seconds" and sooner.text.startswith("1.9")


def row(outcome, measure=ERROR, axis="epochs", ratio=1.5):
    where = ("mine", "rais", "mnist", "lenet", measure, axis)
    return Row(*where, ratio, ratio - 0.1, ratio + 0.1, 0.95, 3, outcome, "")


def test_the_sentence_counts_what_counts_and_says_no_until_something_is_shown():
    nothing = [row(WORSE), row(NEITHER), row(NEITHER), row("one seed"), row(BETTER, LOSS)]
    assert "1 because one seed has no interval" in reading(nothing) and "3 in epochs" in reading(nothing)
    said = answer(nothing)
    assert said[0] == "Not in what has run so far." and said[1].startswith(
        "Published methods: at an equal budget, a lower"
    )
    assert (
        "uniform sampling's in 0 of 3 comparisons and a higher one in 1; to the same error, faster in 0 of 0."
        in said[1]
    )
    assert len(said) == 2
    sooner = row(BETTER, SPEEDUP)._replace(text="1.50x [1.40, 1.60]")
    best = "faster in 1 of 1 (best: RAIS on MNIST, 1.50x [1.40, 1.60] in epochs)."
    assert answer([*nothing, sooner])[0].startswith("Not in"), "epochs are no seconds"
    assert best in answer([*nothing, sooner])[1]
    assert answer([*nothing, sooner._replace(axis="seconds")])[0] == "In places."
    said = answer([*nothing, row(BETTER)])
    assert said[0].startswith("Not in") and "(best: RAIS on MNIST, at equal epochs) and a higher one in 1;" in said[1]
    assert answer([*nothing, row(BETTER, axis="seconds")])[0] == "In places."
    assert answer([row("one seed", ratio=math.inf)])[0].startswith("Nothing is known yet")


def test_the_answer_tells_published_methods_from_our_own():
    ours = [row(BETTER, measure, "seconds")._replace(method="screen") for measure in (ERROR, SPEEDUP)]
    verdict, published, own = answer([row(WORSE), *ours])
    assert verdict == "In places." and "in 0 of 1 comparisons and" in published
    assert own.startswith("Screening, isbench's own: ") and "in 1 of 1 comparisons (best: Screening on MNIST" in own


def test_a_speed_up_known_from_below_alone_is_ranked_by_its_bound():
    known = row(BETTER, SPEEDUP, "seconds", 1.5)._replace(text="known")
    beyond = known._replace(ratio=math.nan, low=1.9, high=math.inf, text="beyond")
    for pair in ([known, beyond], [beyond, known]):
        assert ", beyond in seconds)" in answer([row(NEITHER), *pair])[1]
    assert ", known in seconds)" in answer([row(NEITHER), known, beyond._replace(low=1.1)])[1]


def test_a_method_of_one_budget_is_compared_with_uniform_of_that_budget(tmp_path):
    """`half` has no run of the whole budget; at half of it, it ends where uniform ends at all of it."""
    for arm, (budget, speed) in {"uniform_0.5x": (20, 1), "uniform": (40, 1), "half_0.5x": (20, 2)}.items():
        for seed in range(3):
            error = 0.5 * (budget * speed) ** -0.5 * (1 + seed / 1000)
            limit = {"name": "b", "unit": "seconds", "limit": float(budget), "effective": False}
            write_run(tmp_path / "runs", "uniform", seed, [(0.0, 0.9), (float(budget), error)], arm=arm, budget=limit)
    collect.collect(tmp_path / "runs", tmp_path / "results" / "mine")
    claims = {"saves": {"quantity": "budget_shift", "arm": "half"}}
    mine = Experiment(id="mine", paper="is", shows="a", cost=Cost(minutes=1, machine="one core"), claims=claims)
    found = {row.measure: row for row in rows([mine], tmp_path / "results")}
    assert {row.method for row in found.values()} == {"half"} and set(found) == {SPEEDUP, ERROR, LOSS}
    assert found[ERROR].ratio == pytest.approx(2**0.5, rel=0.01) and found[ERROR].outcome == BETTER
    assert found[SPEEDUP].ratio == pytest.approx(2, rel=0.1)
    (half,) = methods(read_results(tmp_path / "results" / "mine"))
    assert half.arm == "half_0.5x" and half.at["seconds"]["seconds"] == 20


def test_a_picture_is_drawn_where_only_the_speed_up_was_measured():
    assert len(draw([row(BETTER, SPEEDUP, "seconds")], *THEMES[""]).axes) == 3


def test_the_picture_has_task_and_experiment_above_their_methods():
    first = row(BETTER, SPEEDUP, "seconds")
    rows = [first, first._replace(method="upper_bound"), first._replace(experiment="again", dataset="cifar10")]
    panels = draw(rows, *THEMES[""]).axes
    heights = {text.get_text(): text.get_position()[1] for text in (*panels[0].texts, *panels[-1].texts)}
    assert heights["mine"] == heights["MNIST, LeNet, by seconds"] > heights["Upper bound"]
    assert heights["again"] == heights["CIFAR-10, LeNet, by seconds"] < heights["Upper bound"]
    marks = sorted({line.get_ydata()[0] for line in panels[0].lines if line.get_marker() == "o"})
    assert len(marks) == 3 and heights["Upper bound"] == marks[1]


def test_a_task_of_several_experiments_is_known_as_such():
    first = row(BETTER)
    assert shared_tasks([first, first._replace(measure=LOSS)]) == set()
    assert shared_tasks([first, first._replace(experiment="again")]) == {("rais", "mnist", "lenet")}
    assert shared_tasks([first, first._replace(experiment="again", method="loss")]) == set()


def test_an_interval_off_the_axis_has_one_arrow():
    far = row(BETTER, SPEEDUP)._replace(ratio=100.0, low=80.0, high=120.0)
    panel = draw([far], *THEMES[""]).axes[0]
    assert [line.get_marker() for line in panel.lines if line.get_marker() in "<>"] == [">"]
