import math
from dataclasses import replace

import numpy as np
import pytest

from isbench.report.claims import Claim, check
from isbench.report.load import Runs, load_runs
from tests.report_samples import write_run

T2 = 4.303  # Student's t at 95 %, two degrees of freedom
UPDATES = {"budget": {"name": "updates", "unit": "updates", "limit": 200.0}}


def falling(slope, final=20.0):
    """Test error falling in a straight line from 0.9, evaluated every second, of ten updates each."""
    return [(float(t), 0.9 - slope * t) for t in np.arange(0, final + 1)]


def found(folder, quantity, arm="loss", **rest):
    return check(Claim(text="a claim", quantity=quantity, arm=arm, **rest), load_runs(folder))


@pytest.fixture
def three(tmp_path):
    """Three seeds of uniform and of loss, which falls twice as fast and gains 1.5 per update."""
    for seed, slope in enumerate((0.010, 0.011, 0.012)):
        write_run(tmp_path, "uniform", seed, falling(slope), **UPDATES)
        write_run(tmp_path, "loss", seed, falling(2 * slope), gain=1.5, **UPDATES)
    return tmp_path


def test_own_values_are_those_at_the_end_or_where_asked(three):
    end = found(three, "test_error")
    assert end.centre.value == pytest.approx(0.9 - 0.022 * 20) and end.n == 3
    assert end.centre.high - end.centre.value == pytest.approx(T2 * 0.04 / math.sqrt(3), rel=1e-3)
    assert found(three, "train_loss").centre.value == pytest.approx(2 * 0.46)
    assert found(three, "test_loss").centre.value == pytest.approx(3 * 0.46)
    # After 2.4 epochs: 75 updates of 128 of 4,000 examples, 7.5 s.
    assert found(three, "test_error", axis="epochs", at=2.4).centre.value == pytest.approx(0.9 - 0.022 * 7.5)
    assert found(three, "test_error", axis="examples", at=128 * 50).centre.value == pytest.approx(0.9 - 0.022 * 5)
    assert found(three, "test_error", at=21).verdict == "not run"  # nothing is extrapolated


def test_ratios_and_differences_are_paired_and_of_the_baseline_over_the_arm(three):
    ratio = found(three, "test_error_ratio")
    by_hand = [(0.9 - 20 * s) / (0.9 - 40 * s) for s in (0.010, 0.011, 0.012)]
    logs = np.log(by_hand)
    assert ratio.centre.value == pytest.approx(np.exp(logs.mean()))
    assert ratio.centre.high == pytest.approx(np.exp(logs.mean() + T2 * logs.std(ddof=1) / math.sqrt(3)), rel=1e-3)
    assert found(three, "train_loss_ratio").centre.value == pytest.approx(ratio.centre.value)
    assert found(three, "test_error_difference").centre.value == pytest.approx(22)
    assert found(three, "test_error_difference", arm="uniform", baseline="loss").centre.value == pytest.approx(-22)


def test_the_comparison_is_where_both_have_been(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "uniform", seed, falling(0.01, final=10))
        write_run(tmp_path, "loss", seed, falling(0.02))
    assert found(tmp_path, "test_error_difference").centre.value == pytest.approx(10)  # at 10 s
    assert found(tmp_path, "test_error_difference", at=5).centre.value == pytest.approx(5)


def test_speedup_is_to_a_fixed_target_and_misses_are_bounds(tmp_path):
    for seed in range(6):
        write_run(tmp_path, "uniform", seed, falling(0.02), **UPDATES)
        write_run(tmp_path, "loss", seed, falling(0.04), **UPDATES)
    twice = found(tmp_path, "speedup", of={"target": 0.6}, published=2.0)
    assert (twice.centre.value, twice.centre.low, twice.centre.high) == pytest.approx((2, 2, 2))
    assert twice.verdict == "confirmed" and "(60.0%)" in twice.sentence
    assert found(tmp_path, "speedup", of={"target": 0.6}, axis="epochs").centre.value == pytest.approx(2)
    write_run(tmp_path, "loss", 0, falling(0.005), **UPDATES)  # 20 s without the target that uniform has after 15 s
    missed = found(tmp_path, "speedup", of={"target": 0.6}, published=2.0)
    assert missed.centre.value == pytest.approx(2) and missed.misses == 1
    assert (missed.centre.low, missed.centre.high) == pytest.approx((0, 2))
    assert "median 2.00× [0.00, 2.00] (96.88 %), 1 of 6 seeds missed the target" in missed.sentence
    assert missed.verdict == "inconclusive" and missed.p == pytest.approx(2 * 7 / 64)
    for seed in range(1, 6):
        write_run(tmp_path, "loss", seed, falling(0.005), **UPDATES)
    never = found(tmp_path, "speedup", of={"target": 0.6}, published=2.0)
    assert never.verdict == "opposite" and never.ours().startswith("target never reached (6 of 6); median below 0.750×")
    five = Runs(*(frame[frame["seed"] < 5] for frame in (load_runs(tmp_path).rows, load_runs(tmp_path).runs)))
    claim = Claim(text="a claim", quantity="speedup", of={"target": 0.6}, arm="loss", published=2.0)
    assert check(claim, five).verdict == "inconclusive", "five seeds carry 93.75 % alone"
    assert "(93.75 %)" in check(claim, five).ours()


def test_a_target_needs_fifteen_evaluations_and_a_number(three):
    assert found(three, "speedup", of={"target": 0.75}, smallest=1.05).verdict == "confirmed"
    for seed in range(3):
        write_run(three, "uniform", seed, falling(0.01)[:15], **UPDATES)
    few = found(three, "speedup", of={"target": 0.8}, smallest=1.05)
    assert few.verdict == "descriptive" and "fewer than 15 evaluations" in few.sentence and few.n == 3
    with pytest.raises(ValueError, match="of: missing a required argument: 'target'"):
        Claim(text="a claim", quantity="speedup", arm="loss")


def test_a_diverged_run_ranks_worst(three):
    write_run(three, "uniform", 3, falling(0.01), **UPDATES)
    write_run(three, "loss", 3, falling(0.02, final=4), status="diverged", **UPDATES)
    error = found(three, "test_error")
    assert error.n == 4 and error.diverged == 1 and error.centre.high == math.inf
    for quantity, worst in (("test_error_difference", -math.inf), ("test_error_ratio", 0), ("time_overhead", math.inf)):
        finding = found(three, quantity)
        assert worst in (finding.centre.low, finding.centre.high)
        assert finding.n == 4 and "1 of 4 seeds diverged" in finding.sentence
    ratio = found(three, "test_error_ratio", smallest=1.05)
    assert ratio.verdict == "inconclusive", "three seeds better, one lost: 87.5 % alone"
    early = found(three, "test_error_difference", at=2)
    assert early.centre.value == pytest.approx(2.15) and early.diverged == 0, "all had come to 2 s"
    speed = found(three, "speedup", of={"target": 0.75}, smallest=1.05)
    assert speed.diverged == 1 and speed.verdict == "inconclusive", "however few its evaluations"
    write_run(three, "uniform", 3, falling(0.01, final=4), status="diverged", **UPDATES)
    assert found(three, "test_error_difference").centre.low == -math.inf
    assert found(three, "test_error_difference").centre.high == math.inf
    write_run(three, "loss", 3, falling(0.02), **UPDATES)
    assert found(three, "test_error_difference").centre.high == math.inf, "the baseline's loss is the method's win"


def test_a_method_that_did_not_act_is_not_judged(three):
    def verdict(**rest):
        return found(three, **{"quantity": "test_error_ratio", "smallest": 1.05, **rest}).verdict

    assert verdict() == "confirmed", "nothing tells"
    for acted, word in ((9, "not exercised"), (10, "confirmed")):  # of 200 updates
        for seed, slope in enumerate((0.020, 0.022, 0.024)):
            write_run(
                three, "loss", seed, falling(slope), acted=lambda updates, most=acted: min(updates, most), **UPDATES
            )
        assert verdict() == word
    write_run(three, "loss", 0, falling(0.02), acted=lambda updates: 0, **UPDATES)
    assert verdict(smallest=None, at_least=0.9) == "confirmed", "to step aside is a way to lose nothing"
    number = {"quantity": "test_error", "smallest": None, "published": 0.46, "margin": 0.1}
    assert verdict() == "not exercised" and verdict(**number) == "confirmed", "a number of the arm, not of its method"


def test_old_records_tell_of_a_gate_that_never_opened(three):
    claim = Claim(text="a claim", quantity="test_error_ratio", arm="loss", smallest=1.05)
    for scored, word in ((0, "not exercised"), (640, "confirmed")):
        runs = load_runs(three)
        is_gated = runs.rows["arm"] == "loss"
        gate = {"sampler/is_open": np.where(is_gated, 0, np.nan), "examples_scored": np.where(is_gated, scored, 0)}
        assert check(claim, replace(runs, rows=runs.rows.assign(**gate))).verdict == word


def test_a_baseline_at_chance_is_no_baseline(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "uniform", seed, falling(0.0024 + seed / 1e5), **UPDATES)  # from 90 % to about 85.2 %
        write_run(tmp_path, "loss", seed, falling(0.02 + seed / 1e3), **UPDATES)
    assert found(tmp_path, "test_error_difference", smallest=1).verdict == "baseline did not learn"
    assert found(tmp_path, "time_overhead", published=0, margin=0.05).verdict == "confirmed", "seconds are seconds"
    for seed in range(3):
        write_run(tmp_path, "uniform", seed, falling(0.0026 + seed / 1e5), **UPDATES)
    assert found(tmp_path, "test_error_difference", smallest=1).verdict == "confirmed"


def test_gain_is_judged_against_the_audited_truth(tmp_path):
    def rows(estimated, true, acts=True):
        return [{"estimated": estimated, "true": true, "true_error": 0.01, "acts": acts}]

    for seed in range(2):
        probes = {0: rows(1, 1, False), 50: rows(1, 1.4, False), 100: rows(3, 1.5), 200: rows(2, 4)}
        write_run(tmp_path, "rais", seed, falling(0.02), probes=probes, **UPDATES)
    assert found(tmp_path, "gain_accuracy", "rais", published=1, margin=1.25).centre.value == pytest.approx(1)
    assert found(tmp_path, "true_gain", "rais", smallest=1.05).centre.value == pytest.approx(2.75)


def test_alignment_and_rise_of_the_gain(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "uniform", seed, falling(0.01 + seed / 1000), objective=1.0, **UPDATES)
        write_run(tmp_path, "rais", seed, falling(0.02), gain=1.5, objective=1.0, **UPDATES)
    # At 200 effective updates: uniform at 20 s, RAIS at 13.3 s; the objective is 2 test errors and 1.
    expected = np.sqrt((2 * 0.7 + 1) * (2 * 0.68 + 1)) / (2 * (0.9 - 0.02 * 40 / 3) + 1)
    assert found(tmp_path, "alignment", "rais", axis="epochs").centre.value == pytest.approx(expected)
    assert found(tmp_path, "gain_rise", "rais").centre.value == pytest.approx(1), "the gain is constant"


def test_gain_and_epochs_equivalent(three):
    assert found(three, "gain_ratio").centre.value == pytest.approx(1.5)
    assert found(three, "epochs_equivalent").centre.value == pytest.approx(1.5 * 200 * 128 / 4000)


def test_time_overhead_is_per_update(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "uniform", seed, falling(0.01))
        write_run(tmp_path, "loss", seed, falling(0.01, final=12), update_seconds=0.125)
    assert found(tmp_path, "time_overhead").centre.value == pytest.approx(0.25)
    assert found(tmp_path, "time_overhead", published=0, margin=0.02).verdict == "refuted"


def test_seconds_of_a_shared_machine_are_not_used(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "uniform", seed, falling(0.01), concurrent_runs=1, **UPDATES)
        write_run(tmp_path, "loss", seed, falling(0.02), concurrent_runs=1 + (seed == 2), **UPDATES)
    assert found(tmp_path, "test_error_difference").n == 2
    assert found(tmp_path, "time_overhead", axis="updates").n == 2
    assert found(tmp_path, "test_error_difference", axis="updates").n == 3
    assert found(tmp_path, "test_error").n == 3  # at the end of 200 updates, however long they took
    assert "1 of 6 runs shared the machine" in found(tmp_path, "speedup", of={"target": 0.6}).sentence
    write_run(tmp_path, "rais", 0, falling(0.02), concurrent_runs=2)  # a budget in seconds
    assert found(tmp_path, "test_error", arm="rais").verdict == "not timed"


def test_what_has_not_been_run_says_so(three):
    assert found(three, "test_error", arm="rais").verdict == "not run"
    write_run(three, "rais", 0, falling(0.02), status=None, **UPDATES)
    unfinished = found(three, "test_error", arm="rais")
    assert unfinished.verdict == "not run" and "1 of 1 runs did not count" in unfinished.sentence
    write_run(three, "rais", 0, falling(0.02), **UPDATES)
    alone = found(three, "test_error", arm="rais", published=0.5, margin=0.1)
    assert alone.verdict == "one seed" and math.isnan(alone.centre.low) and "no interval" in alone.sentence


def test_sentences_name_data_budget_seeds_and_hardware(three):
    sentence = found(three, "test_error_difference", published=20.0).sentence
    for part in ("mnist5k (5,000 MNIST digits)", "200 updates", "n=3", "one thread of a processor", "published: 20.0"):
        assert part in sentence
    assert "(loss against uniform): 22.0 points [17.0, 27.0] at equal seconds" in sentence


def test_scores_are_compared_as_last_measured(tmp_path):
    last = {"loss": [1.0, 2.0, 4.0], "bound": [1.0, 1.0, 2.0], "norm": [1.0, 2.0, 1.0]}
    probes = {0: [{"loss": [1.0] * 3, "bound": [1.0] * 3, "norm": [3.0, 2.0, 1.0]}], 200: [last]}
    for seed in range(2):
        write_run(tmp_path, "loss", seed, falling(0.01), probes=probes)
    assert found(tmp_path, "correlation", of={"x": "loss", "y": "bound"}).centre.value == pytest.approx(
        np.corrcoef([1, 2, 4], [1, 1, 2])[0, 1]
    )
    # p of loss (1, 2, 4) / 7, of bound (1, 1, 2) / 4, of norm (1, 2, 1) / 4
    over = (1 / 7 - 1 / 4) ** 2 + (2 / 7 - 2 / 4) ** 2 + (4 / 7 - 1 / 4) ** 2
    scores = {"score": "loss", "other": "bound", "reference": "norm"}
    assert found(tmp_path, "squared_error_ratio", of=scores).centre.value == pytest.approx(over / (2 / 16))


def test_relative_variance_leaves_the_first_measurement_out(tmp_path):
    probes = {
        updates: [{"signal": "loss", "distance": 1.0, "relative": value}, {"signal": "uniform", "relative": 1.0}]
        for updates, value in ((0, 5.0), (100, 0.5), (200, 0.7))
    }
    for seed in range(2):
        write_run(tmp_path, "loss", seed, falling(0.01), probes=probes)
    finding = found(tmp_path, "relative_variance", of={"signal": "loss"}, smallest=0.95)
    assert finding.centre.value == pytest.approx(0.6) and finding.verdict == "confirmed"  # less is what is claimed
    assert found(tmp_path, "relative_variance", of={"signal": "loss"}, smallest=1.05).verdict == "opposite"
    ratio = found(tmp_path, "variance_ratio", of={"signal": "loss", "reference": "uniform"}, published=1, margin=1.25)
    assert ratio.centre.value == pytest.approx(0.6) and ratio.verdict == "refuted"


def test_shares_are_those_last_measured_of_the_nearest_epoch(tmp_path):
    probes = {
        updates: [
            {"first_epoch": first, "decile": decile, "share": updates / 1000 + first + decile / 100}
            for first in (0.0, 1.0005)
            for decile in (1, 10)
        ]
        for updates in (100, 200)
    }
    write_run(tmp_path, "loss", 0, falling(0.01), probes=probes)
    assert found(tmp_path, "share", of={"first_epoch": 1, "decile": 10}).centre.value == pytest.approx(
        0.2 + 1.0005 + 0.1
    )
    assert found(tmp_path, "share", of={"first_epoch": 4, "decile": 10}).verdict == "not run"


@pytest.mark.parametrize(
    ("rest", "complaint"),
    [
        ({"quantity": "test_error", "published": 0.05}, "without a neutral value needs a margin"),
        ({"quantity": "test_error_difference", "published": 0}, "give the margin"),
        ({"quantity": "test_error_ratio", "published": 2, "margin": 0.1}, "of a ratio above 1"),
        ({"quantity": "test_error_ratio", "margin": 1.1}, "a margin is around a published number"),
        ({"quantity": "test_error_ratio", "smallest": 1}, "differs from no effect"),
        ({"quantity": "test_error_ratio", "published": 2, "smallest": 1.05}, "at least so much"),
        ({"quantity": "test_error_ratio", "published": 2, "at_least": 0.9}, "stands alone"),
        ({"quantity": "test_error_ratio", "at_least": 1}, "below no effect"),
    ],
)
def test_claims_that_cannot_fail_or_hold_are_refused(rest, complaint):
    with pytest.raises(ValueError, match=complaint):
        Claim(text="a claim", arm="loss", **rest)


def test_a_shift_of_budget_curves_is_judged_like_any_ratio(tmp_path):
    """A method that needs half of uniform's budget, and one that is uniform; three seeds, in seconds."""
    arms = {"uniform_0.25x": (10, 1), "uniform_0.5x": (20, 1), "uniform": (40, 1), "half": (20, 2), "same": (20, 1)}
    for arm, (budget, speed) in arms.items():
        for seed in range(3):
            error = 0.5 * (budget * speed) ** -0.5 * (1 + 0.01 * ((7 * seed + budget) % 5))
            limit = {"name": "b", "unit": "seconds", "limit": float(budget), "effective": False}
            write_run(tmp_path, "uniform", seed, [(0.0, 0.9), (float(budget), error)], arm=arm, budget=limit)
    half, same = (found(tmp_path, "budget_shift", arm=arm, smallest=1.2) for arm in ("half", "same"))
    assert half.verdict == "confirmed" and half.centre.value == pytest.approx(2, rel=0.1)
    assert half.n == 3 and half.p < 0.05 and half.ours().endswith("]")
    assert same.verdict == "refuted" and same.centre.value == pytest.approx(1, rel=0.1) and same.p > 0.05
    beyond = found(tmp_path, "budget_shift", arm="half", of={"budget": "20 seconds"}, baseline="same", smallest=1.2)
    assert beyond.ours().startswith("above 1.00") and beyond.verdict in ("confirmed", "inconclusive")
