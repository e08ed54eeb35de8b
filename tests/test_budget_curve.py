import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp

from isbench.report import charts
from isbench.report.budget_curve import budget_shift, curve_shift, final_errors
from isbench.report.claims import Claim, check, measure
from isbench.report.drawings import _spell_out, budget_curves
from isbench.report.load import load_runs
from tests.report_samples import write_run

BUDGETS = np.array([0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0])  # of uniform; its error there is below
OWN = np.array([0.35, 0.5, 1.0])  # a method's


def power_law(budgets):
    return 0.012 * np.asarray(budgets) ** -0.6


def levelling_off(budgets):
    return 0.003 + power_law(budgets)


def table(places, errors):
    """Return rows of runs from (seeds, budgets) of places and of errors."""
    places, errors = np.broadcast_arrays(places, errors)
    seeds, budgets = np.indices(errors.shape)
    columns = {"seed": seeds, "budget": budgets, "place": places, "error": errors}
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()})


def exact(speedup, budgets=OWN, law=power_law, seeds=3):
    """Return noiseless runs of uniform and of a method that is `speedup` times as fast; seeds differ in level."""
    level = np.linspace(0.9, 1.1, seeds)[:, None]
    return table(BUDGETS, level * law(BUDGETS)), table(budgets, level * law(speedup * np.asarray(budgets)))


def noisy(generator, speedup, n, budgets, noise, shared):
    """Return runs whose error has a relative noise, a share of whose variance is the seed's in all its runs.

    The cost per update of the method, measured once per seed, is noisy by 3 %.
    """

    def errors(at):
        own = generator.normal(size=(n, len(at)))
        return levelling_off(at) * np.exp(noise * (math.sqrt(shared) * of_seed + math.sqrt(1 - shared) * own))

    of_seed = generator.normal(size=(n, 1))
    cost = np.exp(0.03 * generator.normal(size=(n, 1)))
    return table(BUDGETS, errors(BUDGETS)), table(cost * budgets, errors(speedup * np.asarray(budgets)))


def coverage(n, draws):
    """Return how often the interval holds the true speed-up, over speed-ups from 0.6 to 3 and noise of 3 to 8 %."""
    generator = np.random.default_rng(n)
    held = 0
    for _ in range(draws):
        speedup, noise, shared = generator.uniform((math.log(0.6), 0.03, 0), (math.log(3), 0.08, 0.7))
        budgets = (OWN, OWN[:1], OWN[1:2])[generator.integers(3)]
        shift = curve_shift(*noisy(generator, math.exp(speedup), n, budgets, noise, shared))
        held += shift.low <= math.exp(speedup) <= shift.high
    return held / draws


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_holds_the_truth_in_95_of_100_experiments(n):
    assert 0.93 <= coverage(n, 600) <= 0.99


@settings(deadline=None, max_examples=30)
@given(st.floats(0.75, 1.95), st.sampled_from([OWN, OWN[:1], OWN[1:2], OWN[::2]]))
def test_a_known_shift_is_recovered_exactly(speedup, budgets):
    shift = curve_shift(*exact(speedup, budgets))
    assert shift[:3] == pytest.approx((speedup,) * 3, rel=1e-6)
    assert shift[3:6] == (3, "", 0.95)


def test_a_curve_of_any_shape_is_met_where_uniform_was_trained():
    baseline, method = exact(2.0, [0.25, 0.35, 0.5], levelling_off)
    assert curve_shift(baseline, method).speedup == pytest.approx(2.0)


def test_uniform_against_itself_is_1():
    generator = np.random.default_rng(0)
    for _ in range(20):
        baseline, _ = noisy(generator, 1, 5, OWN, 0.05, 0.5)
        shift = curve_shift(baseline, baseline[baseline["budget"].isin([1, 2, 4])])
        assert shift.speedup == pytest.approx(1) and shift.low <= 1 <= shift.high


def test_one_budget_by_hand():
    """Two seeds, a budget of 1, uniform at 1 and 4: seed 0 halves its error between them and seed 1 quarters it."""
    baseline = table([1.0, 4.0], np.array([[0.2, 0.1], [0.2, 0.05]]))
    method = table([1.0], np.array([[0.2 / 2**0.5], [0.1]]))
    shift = curve_shift(baseline, method)
    assert shift.speedup == pytest.approx(2)  # both seeds meet the method's error there
    # Beyond it the gap of one seed is twice that of the other: t is 3, and 12.7 is needed.
    assert shift.low == 0 and shift.high == math.inf
    method = table([1.0], np.array([[0.2 / 2**0.5], [0.1 * 2**0.5]]))
    # In units of log 2 the gaps at 4^x are 0.5 - x and 0.5 - 2x: their mean is 0 at x = 1/3.
    assert curve_shift(baseline, method).speedup == pytest.approx(4 ** (1 / 3))


def test_the_interval_is_where_a_paired_t_test_shows_no_difference():
    baseline, method = noisy(np.random.default_rng(1), 1.4, 5, [0.5], 0.04, 0.5)
    shift = curve_shift(baseline, method)
    for bound in (shift.low, shift.high):
        gaps = []
        for seed, rows in baseline.groupby("seed"):
            own = method[method["seed"] == seed].iloc[0]
            x, y = np.log(rows["place"]), np.log(rows["error"])
            gaps.append(np.interp(math.log(bound * own["place"]), x, y) - math.log(own["error"]))
        t = np.mean(gaps) / (np.std(gaps, ddof=1) / math.sqrt(5))
        assert abs(t) == pytest.approx(2.776, rel=1e-3)  # Student's t at 95 %, four degrees of freedom
        assert curve_shift(baseline, method, null=bound).p == pytest.approx(0.05, rel=1e-2)
    narrow = curve_shift(baseline, method, level=0.9)
    assert shift.low < narrow.low < narrow.speedup < narrow.high < shift.high and narrow.level == 0.9


def test_off_the_curve_there_are_bounds_alone():
    fast = curve_shift(*exact(3.0, [1.0]))
    assert fast[:6] == (pytest.approx(2), pytest.approx(2), math.inf, 3, "at least", 0.95)
    slow = curve_shift(*exact(0.5, [0.35]))
    assert slow[:6] == (pytest.approx(0.25 / 0.35), 0, pytest.approx(0.25 / 0.35), 3, "at most", 0.95)
    # A smaller budget of the method, whose triple is on the curve, still measures it.
    assert curve_shift(*exact(3.0)).speedup == pytest.approx(3, rel=1e-6)


@pytest.mark.parametrize("budget", [0.37, 0.51, 0.83, 1.21, 1.7])
def test_the_ends_of_the_curve_belong_to_it(budget):
    assert curve_shift(*exact(9.0, [budget])).speedup == pytest.approx(2 / budget, rel=1e-9)
    assert curve_shift(*exact(0.1, [budget])).speedup == pytest.approx(0.25 / budget, rel=1e-9)
    assert curve_shift(*exact(2 / budget, [budget])).censored == ""


def test_an_interval_that_meets_the_end_of_the_curve_is_open():
    shift = curve_shift(*noisy(np.random.default_rng(0), 1.9, 3, [1.0], 0.05, 0.3))
    assert 1 < shift.low < 1.9 and shift.high == math.inf


def test_a_curve_that_rises_by_noise_is_put_in_order():
    baseline, method = exact(1.0, [0.7], seeds=2)
    level = power_law(BUDGETS)
    level[[2, 3]] = level[[3, 2]]  # 0.5 and 0.7 changed places
    baseline["error"] = np.tile(level, 2)
    method["error"] = power_law(0.6)
    shift = curve_shift(baseline, method)
    assert 0.35 / 0.7 < shift.low < 0.5 / 0.7 < shift.speedup < 1 < shift.high < 1 / 0.7
    # The error is met three times: the interval reaches from the first to the last.
    x, y = np.log(BUDGETS / 0.7), np.log(level / power_law(0.6))
    meets = [x[i] + y[i] / (y[i] - y[i + 1]) * (x[i + 1] - x[i]) for i in range(6) if y[i] * y[i + 1] < 0]
    assert [shift.low, shift.high] == pytest.approx([math.exp(meets[0]), math.exp(meets[2])])
    assert shift.speedup == pytest.approx(math.exp(meets[0] + meets[2] - meets[1]))


def test_only_complete_pairs_of_seeds_count():
    baseline, method = exact(1.5, seeds=5)
    expected = curve_shift(*(rows[rows["seed"].isin([1, 2])] for rows in (baseline, method)))
    baseline.loc[baseline["seed"].eq(4) & baseline["budget"].eq(0), "place"] = np.nan
    shift = curve_shift(baseline[baseline["seed"] != 3], method[method["seed"] != 0])
    assert shift == expected and shift.n == 2


def test_the_order_of_rows_does_not_matter():
    baseline, method = noisy(np.random.default_rng(2), 1.3, 4, OWN, 0.05, 0.3)
    shuffled = (rows.sample(frac=1, random_state=3) for rows in (baseline, method))
    assert curve_shift(*shuffled) == pytest.approx(curve_shift(baseline, method), nan_ok=True)


def test_one_seed_has_no_interval_and_none_has_nothing():
    one = curve_shift(*exact(1.5, seeds=1))
    assert one.speedup == pytest.approx(1.5) and one.n == 1
    assert all(map(math.isnan, (one.low, one.high, one.level)))
    baseline, method = exact(1.5)
    none = curve_shift(baseline, method[:0])
    assert none.n == 0 and math.isnan(none.speedup)


@pytest.mark.parametrize(("n", "level"), [(3, 0.75), (5, 0.9375), (6, 0.96875), (10, 0.978516)])
def test_a_run_that_diverged_leaves_ranks(n, level):
    baseline, method = exact(1.5, [0.5], seeds=n)
    method.loc[method["seed"] == 0, "error"] = 1.0
    shift = curve_shift(baseline, method)
    assert shift.speedup == pytest.approx(1.5)  # the median of the seeds
    assert shift.level == pytest.approx(level, abs=1e-6)
    assert shift.low == (pytest.approx(1.5) if n == 10 else 0) and shift.high == pytest.approx(1.5)


def test_most_runs_that_diverged_are_off_the_curve():
    baseline, method = exact(1.5, [0.5])
    method.loc[method["seed"] < 2, "error"] = 1.0
    assert curve_shift(baseline, method).censored == "at most"


def test_an_error_of_0_counts_by_its_rank():
    baseline, method = exact(1.5, [0.5])
    method.loc[method["seed"] == 0, "error"] = 0.0
    shift = curve_shift(baseline, method)
    assert shift.level == 0.75 and shift.low == pytest.approx(1.5) and shift.high == math.inf


def test_the_prototype():
    """The first runs of screening on MNIST with LeNet, whose updates cost 1.098: 1.92 (1.74 to 2.10) at 350 updates.

    That was a quadratic through uniform's curve with a bootstrap at 90 %.
    """
    uniform = [
        [0.0263, 0.0165, 0.0140, 0.0116, 0.0102, 0.0093],
        [0.0254, 0.0146, 0.0115, 0.0110, 0.0086, 0.0081],
        [0.0232, 0.0165, 0.0129, 0.0114, 0.0097, 0.0082],
    ]
    screen = [[0.0161, 0.0118, 0.0082], [0.0144, 0.0106, 0.0082], [0.0154, 0.0114, 0.0093]]
    baseline = table([350, 700, 1050, 1400, 2100, 2800], np.array(uniform))
    method = table(1.098 * np.array([350, 700, 1400]), np.array(screen))
    first = curve_shift(baseline, method[method["budget"] == 0], level=0.9)
    assert first[:3] == pytest.approx((1.92, 1.74, 2.10), rel=0.04)
    assert curve_shift(baseline, method, level=0.9).speedup == pytest.approx(1.9, rel=0.02)


@pytest.fixture
def folder(tmp_path):
    """Four seeds, uniform at five budgets and fast, which needs half the updates, each 1.2 times as dear, at two."""
    for seed in range(4):
        level = 1 + 0.02 * seed
        for name, budgets, speedup, cost in (("uniform", (25, 50, 100, 140, 200), 1, 1), ("fast", (50, 100), 2, 1.2)):
            for updates in budgets:
                seconds = updates * 0.1 * cost
                write_run(
                    tmp_path,
                    name,
                    seed,
                    [(0.0, 0.9), (seconds, level * 0.5 * (speedup * updates) ** -0.5)],
                    update_seconds=0.1 * cost,
                    arm=name if updates == 100 else f"{name}_{updates / 100:g}x",
                    budget={"name": "updates", "unit": "updates", "limit": updates},
                )
    return tmp_path


def test_arms_that_differ_in_budget_make_a_curve(folder):
    rows = final_errors(load_runs(folder), "uniform", "updates").sort_values(["seed", "place"])
    assert rows["place"].tolist() == [25, 50, 100, 140, 200] * 4
    assert rows["seconds"].to_numpy() == pytest.approx(rows["place"] / 10)
    assert rows["error"].iloc[:2].tolist() == pytest.approx([0.1, 0.5 / 50**0.5])
    assert set(final_errors(load_runs(folder), "fast", "epochs")["place"]) == {50 * 128 / 4000, 100 * 128 / 4000}


def test_the_figure_has_each_budget_with_its_error_and_its_speed_up(folder):
    runs = load_runs(folder)
    figure, data = budget_curves(runs)
    points = {(row.arm, row.quantity, row.x): row for row in data.itertuples()}
    assert {x for arm, quantity, x in points if (arm, quantity) == ("fast", "speedup")} == {50, 100}
    for x in (50, 100):
        assert points["fast", "speedup", x].mean == pytest.approx(2 / 1.2)
    errors = final_errors(runs, "uniform", "updates").query("place == 25")["error"]
    assert points["uniform", "final_error", 25].mean == pytest.approx(100 * np.exp(np.log(errors).mean()))
    assert {points["fast", "speedup", x].censored for x in (50, 100)} == {""}
    assert ("uniform", "speedup", 25) not in points and points["uniform", "final_error", 25].n == 4
    assert [len(panel.lines) for panel in figure.get_axes()] == [4, 3]  # two for each arm; one marks no speed-up
    (chart,) = charts.budget_curves(runs, data)
    assert [line["name"] for line in chart["lines"]] == ["Uniform", "Fast"]
    assert [len(panel["lines"]) for panel in chart["panels"]] == [2, 1]


def test_updates_are_divided_by_their_cost_and_seconds_are_as_they_are(folder):
    runs = load_runs(folder)
    for axis in ("updates", "seconds", "epochs", "examples"):
        assert budget_shift(runs, "fast", axis=axis)[:6] == pytest.approx((2 / 1.2,) * 3 + (4, "", 0.95))
        assert budget_shift(runs, "fast", axis=axis, budget="50 updates").speedup == pytest.approx(2 / 1.2)
    assert budget_shift(runs, "uniform", "fast").n == 4  # any arm can be the baseline
    assert budget_shift(runs, "no_such").n == 0


def test_seconds_are_of_runs_that_were_alone(folder):
    runs = load_runs(folder)
    is_first = runs.runs["seed"].eq(0) & runs.runs["arm"].eq("fast")  # its 100 updates
    runs.runs.loc[is_first, ["alone", "seconds"]] = [False, 99.0]
    assert budget_shift(runs, "fast").n == 3
    by_updates = budget_shift(runs, "fast", axis="updates")  # the cost comes from the run of 50 updates
    assert by_updates.n == 4 and by_updates.low == pytest.approx(2 / 1.2)
    runs.runs.loc[runs.runs["seed"].eq(0), "alone"] = False
    assert budget_shift(runs, "fast", axis="updates").n == 3


def test_a_diverged_run_takes_the_place_of_the_others_and_an_unfinished_one_does_not_count(folder):
    runs = load_runs(folder)
    is_first = runs.runs["seed"].eq(0) & runs.runs["arm"].eq("fast")
    runs.runs.loc[is_first, "status"] = "diverged"
    rows = final_errors(runs, "fast", "updates")
    assert rows.loc[rows["error"].eq(1), "place"].tolist() == [100]
    shift = budget_shift(runs, "fast")
    assert shift.n == 4 and shift.level == 0.875 and shift.low == 0
    runs.runs.loc[is_first, "seconds"] = 1.0  # it broke off early: no measure of what an update costs
    assert budget_shift(runs, "fast", axis="updates") == pytest.approx(shift)
    runs.runs.loc[is_first, "status"] = "unfinished"
    assert budget_shift(runs, "fast").n == 3


def claim(**changes):
    about = {
        "text": "saves",
        "quantity": "budget_shift",
        "arm": "fast",
        "axis": "updates",
        "of": {"budget": "50 updates"},
    }
    return Claim(**{**about, **changes})


def test_a_claim_on_one_budget_is_about_the_runs_of_that_budget(folder):
    """The method never acts in its runs of 50 updates, and always in those of 100."""
    runs = load_runs(folder)
    runs.rows["acted_updates"] = runs.rows["updates"].where(runs.rows["updates"] > 50, 0)
    assert check(claim(), runs).verdict == "not exercised"
    assert check(claim(of={"budget": "100 updates"}), runs).verdict == "descriptive"
    assert {run.curve["updates"].max() for run in measure(claim(), runs).arms} == {50}


def test_a_claim_says_why_a_median_stands_for_the_mean(folder):
    runs = load_runs(folder)
    first = runs.runs["seed"].eq(0) & runs.runs["arm"].eq("fast_0.5x")
    runs.runs.loc[first, "status"] = "diverged"
    assert check(claim(), runs).ours().endswith("(87.5 %), 1 of 4 seeds diverged")
    without = "(87.5 %)"
    runs.runs.loc[first, "status"] = "finished"
    last = runs.rows["run_id"].isin(runs.runs.loc[first, "run_id"]) & runs.rows["updates"].gt(0)
    runs.rows.loc[last, "test_error"] = 0.0  # an error of 0 has no logarithm either
    assert check(claim(), runs).ours().startswith("median") and check(claim(), runs).ours().endswith(without)


def test_runs_that_all_shared_the_machine_are_not_timed(folder):
    runs = load_runs(folder)
    runs.runs["alone"] = False
    assert check(claim(), runs).verdict == "not timed"


def test_one_budget_is_no_curve(folder):
    """Costs that differ from seed to seed leave no factor that lies on every seed's curve of one point."""
    runs = load_runs(folder)
    kept = runs.runs["arm"].isin(["uniform_0.5x", "fast_0.5x"])
    runs = replace(runs, runs=runs.runs[kept].copy())
    runs.runs["seconds"] *= np.linspace(1, 1.1, len(runs.runs))
    assert budget_shift(runs, "fast", axis="updates").n == 0
    assert check(claim(), runs).verdict == "not run"


def test_p_is_that_of_a_factor_of_one():
    """Against a t-test of the logarithms at the method's budget; with a diverged run, of signs; off the curve, none."""
    baseline = pd.DataFrame(
        {
            "seed": [0, 0, 1, 1, 2, 2],
            "budget": ["a", "b"] * 3,
            "place": [1.0, 2.0] * 3,
            "error": [0.4, 0.2, 0.5, 0.3, 0.4, 0.3],
        }
    )
    method = pd.DataFrame({"seed": [0, 1, 2], "budget": ["a"] * 3, "place": [1.0] * 3, "error": [0.3, 0.4, 0.35]})
    gaps = np.log([0.4 / 0.3, 0.5 / 0.4, 0.4 / 0.35])
    assert curve_shift(baseline, method).p == pytest.approx(ttest_1samp(gaps, 0).pvalue)
    diverged = method.assign(error=[0.3, 1.0, 0.35])
    assert curve_shift(baseline, diverged).p == 1.0  # two of three signs
    assert math.isnan(curve_shift(baseline, method.assign(place=3.0)).p)


@pytest.mark.parametrize(("low", "high"), [(0.96, 1.03), (0.94, 1.11), (35, 51), (0.7, 3), (300, 3000)])
def test_a_logarithmic_axis_has_numbers_however_narrow(low, high):
    axis = Figure().subplots()
    axis.set(yscale="log", ylim=(low, high))
    _spell_out(axis.yaxis)
    shown = [float(text.get_text().replace(",", "")) for text in axis.get_yticklabels() if text.get_text()]
    assert sum(low <= number <= high for number in shown) >= 2
    assert not low < 1 < high or 1 in shown, "no speed-up"
