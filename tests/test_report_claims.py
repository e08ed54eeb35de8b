import math

import numpy as np
import pytest

from isbench.report.claims import QUANTITIES, Claim, check, judge
from isbench.report.load import load_runs
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
    assert end.value == pytest.approx(0.9 - 0.022 * 20) and end.n == 3
    assert end.high - end.value == pytest.approx(T2 * 0.04 / math.sqrt(3), rel=1e-3)
    assert found(three, "train_loss").value == pytest.approx(2 * 0.46)
    assert found(three, "test_loss").value == pytest.approx(3 * 0.46)
    # After 2.4 epochs: 75 updates of 128 of 4,000 examples, 7.5 s.
    assert found(three, "test_error", axis="epochs", at=2.4).value == pytest.approx(0.9 - 0.022 * 7.5)
    assert found(three, "test_error", axis="examples", at=128 * 50).value == pytest.approx(0.9 - 0.022 * 5)
    assert found(three, "test_error", at=21).verdict == "not run"  # nothing is extrapolated


def test_ratios_and_differences_are_paired_and_of_the_baseline_over_the_arm(three):
    ratio = found(three, "test_error_ratio")
    by_hand = [(0.9 - 20 * s) / (0.9 - 40 * s) for s in (0.010, 0.011, 0.012)]
    logs = np.log(by_hand)
    assert ratio.value == pytest.approx(np.exp(logs.mean()))
    assert ratio.high == pytest.approx(np.exp(logs.mean() + T2 * logs.std(ddof=1) / math.sqrt(3)), rel=1e-3)
    assert found(three, "train_loss_ratio").value == pytest.approx(ratio.value)
    assert found(three, "test_error_difference").value == pytest.approx(22)
    assert found(three, "test_error_difference", arm="uniform", baseline="loss").value == pytest.approx(-22)


def test_the_comparison_is_where_both_have_been(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "uniform", seed, falling(0.01, final=10))
        write_run(tmp_path, "loss", seed, falling(0.02))
    assert found(tmp_path, "test_error_difference").value == pytest.approx(10)  # at 10 s
    assert found(tmp_path, "test_error_difference", at=5).value == pytest.approx(5)


def test_speedup_is_to_the_end_of_the_baseline_and_misses_count(three):
    twice = found(three, "speedup", published=2.0)
    assert (twice.value, twice.low, twice.high) == pytest.approx((2, 2, 2))
    assert found(three, "speedup", axis="epochs").value == pytest.approx(2)
    write_run(three, "uniform", 3, falling(0.01), **UPDATES)
    write_run(three, "loss", 3, falling(0.005), **UPDATES)
    missed = found(three, "speedup")
    assert missed.value == 0 and missed.n == 4 and missed.verdict == "not reproduced"
    assert "0\N{MULTIPLICATION SIGN} (1 of 4 never get there)" in missed.sentence


def test_a_diverged_run_is_a_miss_and_no_value(three):
    write_run(three, "uniform", 3, falling(0.01), **UPDATES)
    write_run(three, "loss", 3, falling(0.02, final=4), status="diverged", **UPDATES)
    assert found(three, "speedup").value == 0
    error = found(three, "test_error")
    assert error.n == 3 and "1 of 4 runs did not count" in error.sentence


def test_gain_and_epochs_equivalent(three):
    assert found(three, "gain_ratio").value == pytest.approx(1.5)
    assert found(three, "epochs_equivalent").value == pytest.approx(1.5 * 200 * 128 / 4000)


def test_time_overhead_is_per_update(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "uniform", seed, falling(0.01))
        write_run(tmp_path, "loss", seed, falling(0.01, final=12), update_seconds=0.125)
    assert found(tmp_path, "time_overhead").value == pytest.approx(0.25)
    assert found(tmp_path, "time_overhead", published=0.02).verdict == "differs"


def test_seconds_of_a_shared_machine_are_not_used(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "uniform", seed, falling(0.01), concurrent_runs=1, **UPDATES)
        write_run(tmp_path, "loss", seed, falling(0.02), concurrent_runs=1 + (seed == 2), **UPDATES)
    assert found(tmp_path, "test_error_difference").n == 2
    assert found(tmp_path, "time_overhead", axis="updates").n == 2
    assert found(tmp_path, "test_error_difference", axis="updates").n == 3
    assert found(tmp_path, "test_error").n == 3  # at the end of 200 updates, however long they took
    assert "1 of 6 runs shared the machine" in found(tmp_path, "speedup").sentence
    write_run(tmp_path, "rais", 0, falling(0.02), concurrent_runs=2)  # a budget in seconds
    assert found(tmp_path, "test_error", arm="rais").verdict == "not timed"


def test_what_has_not_been_run_says_so(three):
    assert found(three, "test_error", arm="rais").verdict == "not run"
    write_run(three, "rais", 0, falling(0.02), status=None, **UPDATES)
    unfinished = found(three, "test_error", arm="rais")
    assert unfinished.verdict == "not run" and "1 of 1 runs did not count" in unfinished.sentence
    write_run(three, "rais", 0, falling(0.02), **UPDATES)
    alone = found(three, "test_error", arm="rais", published=0.5)
    assert alone.verdict == "one seed" and math.isnan(alone.low) and "no interval" in alone.sentence


def test_sentences_name_data_budget_seeds_and_hardware(three):
    sentence = found(three, "test_error_difference", published=20.0).sentence
    for part in ("mnist5k (5,000 MNIST digits)", "200 updates", "n=3", "one thread of a processor", "published 20.0"):
        assert part in sentence
    assert "(loss against uniform): 22.0 points [17.0, 27.0] at equal seconds" in sentence


def test_scores_are_compared_as_last_measured(tmp_path):
    last = {"loss": [1.0, 2.0, 4.0], "bound": [1.0, 1.0, 2.0], "norm": [1.0, 2.0, 1.0]}
    probes = {0: [{"loss": [1.0] * 3, "bound": [1.0] * 3, "norm": [3.0, 2.0, 1.0]}], 200: [last]}
    for seed in range(2):
        write_run(tmp_path, "loss", seed, falling(0.01), probes=probes)
    assert found(tmp_path, "correlation", of={"x": "loss", "y": "bound"}).value == pytest.approx(
        np.corrcoef([1, 2, 4], [1, 1, 2])[0, 1]
    )
    # p of loss (1, 2, 4) / 7, of bound (1, 1, 2) / 4, of norm (1, 2, 1) / 4
    over = (1 / 7 - 1 / 4) ** 2 + (2 / 7 - 2 / 4) ** 2 + (4 / 7 - 1 / 4) ** 2
    scores = {"score": "loss", "other": "bound", "reference": "norm"}
    assert found(tmp_path, "squared_error_ratio", of=scores).value == pytest.approx(over / (2 / 16))


def test_relative_variance_leaves_the_first_measurement_out(tmp_path):
    probes = {
        updates: [{"signal": "loss", "distance": 1.0, "relative": value}, {"signal": "uniform", "relative": 1.0}]
        for updates, value in ((0, 5.0), (100, 0.5), (200, 0.7))
    }
    for seed in range(2):
        write_run(tmp_path, "loss", seed, falling(0.01), probes=probes)
    finding = found(tmp_path, "relative_variance", of={"signal": "loss"})
    assert finding.value == pytest.approx(0.6) and finding.verdict == "reproduced"  # less is what is claimed


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
    assert found(tmp_path, "share", of={"first_epoch": 1, "decile": 10}).value == pytest.approx(0.2 + 1.0005 + 0.1)
    assert found(tmp_path, "share", of={"first_epoch": 4, "decile": 10}).verdict == "not run"


@pytest.mark.parametrize(
    ("name", "published", "low", "high", "n", "verdict"),
    [
        ("train_loss_ratio", 3.0, 1.2, 2.9, 3, "same direction, smaller"),
        ("train_loss_ratio", 3.0, 1.2, 3.1, 3, "reproduced"),
        ("train_loss_ratio", 3.0, 0.9, 3.1, 3, "not reproduced"),
        ("train_loss_ratio", 3.0, 0.5, 0.9, 3, "opposite sign"),
        ("train_loss_ratio", 0.8, 0.7, 0.9, 3, "reproduced"),
        ("train_loss_ratio", 0.8, 0.85, 0.9, 3, "same direction, smaller"),
        ("train_loss_ratio", 0.8, 1.1, 1.3, 3, "opposite sign"),
        ("train_loss_ratio", None, 1.01, 1.02, 3, "reproduced"),
        ("train_loss_ratio", None, math.nan, math.nan, 3, "not reproduced"),
        ("relative_variance", None, 1.1, 1.3, 3, "opposite sign"),
        ("test_error_difference", 0.0, -0.1, 0.2, 3, "agrees"),
        ("test_error_difference", 0.36, -0.1, 0.2, 3, "not reproduced"),
        ("test_error", 0.05, 0.04, 0.06, 3, "agrees"),
        ("test_error", 0.05, 0.051, 0.06, 3, "differs"),
        ("test_error", None, 0.04, 0.06, 3, "no number published"),
        ("test_error", 0.05, math.nan, math.nan, 1, "one seed"),
        ("test_error", 0.05, math.nan, math.nan, 0, "not run"),
    ],
)
def test_verdicts(name, published, low, high, n, verdict):
    assert judge(QUANTITIES[name], published, low, high, n) == verdict
