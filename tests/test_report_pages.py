"""What pages are made of: bars, methods where all have had equally much, and numbers that a script may hold."""

import json

import numpy as np
import pytest

from isbench.report.bars import Bar, bars
from isbench.report.charts import chart_of
from isbench.report.curves import comparisons, styles, widened
from isbench.report.load import load_runs
from isbench.report.methods import add_bars, methods
from isbench.report.templates import as_json
from tests.report_samples import write_run


@pytest.fixture
def slower(tmp_path):
    """Two seeds of `loss`, which falls twice as fast per second and takes twice the seconds per update."""
    for seed in range(2):
        for arm, slope, step in (("uniform", 0.01, 0.1), ("loss", 0.02, 0.2)):
            curve = [(float(t), 0.9 - (slope + seed / 10000) * t) for t in range(21)]
            write_run(tmp_path, arm, seed, curve, arm=arm, update_seconds=step)
    return load_runs(tmp_path)


def test_bars_of_ratios_share_a_logarithmic_scale():
    half, double = bars(
        [{"value": 0.5, "neutral": 1.0}, {"value": 2.0, "low": 0.0, "high": float("inf")}], is_ratio=True
    )
    assert half.neutral == 50 and half.value + double.value == pytest.approx(100)
    assert (double.low, double.high) == (0, 100), "what is not known reaches to the edge"
    assert bars([{"value": float("nan")}], is_ratio=True) == [Bar(None)]


def test_what_lies_beyond_the_widest_ends_at_the_edge():
    near, far = bars([{"value": -1.0}, {"value": 50.0}], is_ratio=False, widest=2.0)
    assert 0 < near.value < far.value == 100


def test_methods_are_compared_where_both_have_had_equally_much(slower):
    (loss,) = methods(slower)
    assert (loss.arm, loss.n) == ("loss", 2)
    at = {axis: round(found["difference"], 6) for axis, found in loss.at.items()}
    assert at == {"seconds": -20, "updates": -30.05, "epochs": -30.05}  # after 20 s, or 100 updates: 10 and 20 s
    assert loss.at["updates"]["seconds"] == pytest.approx(20) and loss.at["seconds"]["updates"] == 100
    assert loss.at["seconds"]["difference_text"] == "\N{MINUS SIGN}20.00 [\N{MINUS SIGN}20.00, \N{MINUS SIGN}20.00]"
    add_bars([loss])
    assert loss.at["seconds"]["bar"].value == 0 < loss.at["seconds"]["bar"].neutral


def test_a_run_is_not_read_in_its_middle_from_few_evaluations(tmp_path):
    """After 100 updates both have ended; after the 10 s of `uniform` the other is half way between two evaluations."""
    for arm, step in (("uniform", 0.1), ("loss", 0.2)):
        for seed in range(2):
            write_run(tmp_path, arm, seed, [(0.0, 0.9), (100 * step, 0.1)], arm=arm, update_seconds=step)
    (loss,) = methods(load_runs(tmp_path))
    assert set(loss.at) == {"updates", "epochs"} and loss.at["updates"]["error"] == pytest.approx(10)


def test_a_chart_has_every_arm_on_every_axis(slower):
    (comparison,) = comparisons(slower)
    chart = chart_of(comparison, styles(comparison.arms))
    assert [line["name"] for line in chart["lines"]] == ["Uniform", "Loss"]
    error, difference, _ = chart["panels"]
    assert list(error["lines"][1]["axes"]) == list(chart["axes"]) == ["seconds", "updates", "epochs"]
    assert [line["line"] for line in difference["lines"]] == [1], "of all but the baseline"
    band = difference["lines"][0]["axes"]["seconds"]
    assert band["x"][-1] == 20 and band["mean"][-1] == -20


def test_a_chart_has_no_seconds_where_an_arm_was_not_timed(slower, tmp_path):
    write_run(tmp_path, "rais", 0, [(float(t), 0.9) for t in range(21)], arm="rais", concurrent_runs=2)
    (comparison,) = comparisons(load_runs(tmp_path))
    chart = chart_of(comparison, styles(comparison.arms))
    axes = {tuple(line["axes"]) for panel in chart["panels"] for line in panel["lines"]}
    assert axes == {("updates", "epochs")} == {tuple(chart["axes"])}


def test_names_cannot_end_the_script_that_holds_them():
    text = as_json({"name": "</script><script>harm(1)</script>"})
    assert "<" not in text and json.loads(text)["name"].startswith("</script>")


@pytest.mark.parametrize(
    ("low", "high", "is_log", "limits"),
    [
        (1.0, 3.0, False, (0.8, 3.2)),
        (1.0, 100.0, True, (10**-0.2, 10**2.2)),
        (2.0, 2.0, False, None),
        (0.0, 1.7e308, False, None),
        (1e-300, 1e300, True, None),
    ],
)
def test_limits_have_a_margin_where_numbers_allow_it(low, high, is_log, limits):
    with np.errstate(over="ignore"):
        found = widened(low, high, 0.1, is_log)
    assert found == (limits and pytest.approx(limits))
