"""The plan for large runs: its formulas against slow versions and simulation, its page against its constants."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq

from benchmarks.scale import constants, formulas, tables

ROOT = Path(__file__).resolve().parent.parent
CONTENT = json.loads((ROOT / "results" / "benchmarks" / "scale.json").read_text())


@pytest.mark.parametrize(("tau2", "rho", "batch", "pool"), [(2, 1, 16, 80), (3, 0.6, 16, 64), (3, 1, 1, 5)])
def test_the_gain_of_a_pool_is_that_of_drawn_batches(tau2: float, rho: float, batch: int, pool: int) -> None:
    gain, error = formulas.simulate(tau2, rho, batch, pool, 40_000, np.random.default_rng(0))
    assert error < 0.03 * gain
    assert abs(gain - formulas.variance_gain(tau2, rho, batch, pool)) < 4 * error


def test_the_gain_of_a_history_is_that_of_scores_with_that_correlation() -> None:
    random, sigma, rho = np.random.default_rng(0), 0.8, 0.6
    w, other = random.standard_normal((2, 1_000_000))
    before, now = np.exp(sigma * w), np.exp(sigma * (rho * w + (1 - rho**2) ** 0.5 * other))
    found = constants.compared(before, now)
    assert found["rho"] == pytest.approx(rho, abs=0.005)
    assert found["tau2"] == pytest.approx(np.exp(sigma**2), rel=0.01)
    assert found["at_rho"] == pytest.approx(formulas.variance_gain(found["tau2"], rho), rel=0.01)
    assert found["at_one"] == pytest.approx(np.exp((2 * rho - 1) * sigma**2), rel=0.01)
    assert found["best_exponent"] == pytest.approx(rho, abs=0.06)
    assert found["effective_rho"] == pytest.approx(rho, abs=0.01)


def test_a_remembered_gain_is_the_ratio_of_mean_squares_over_all_draws() -> None:
    before, now = np.random.default_rng(0).uniform(0.1, 2, (2, 50))
    p = before**0.7 / (before**0.7).sum()
    drawn = sum(p_i * (g / (50 * p_i)) ** 2 for p_i, g in zip(p, now, strict=True))
    assert constants.remembered_gain(before, now, 0.7) == pytest.approx((now**2).mean() / drawn)


def test_speed_counts_passes_one_by_one() -> None:
    gain, cost = 3.0, 1.1
    work = sum(1.0 if epoch == 1 else 1 / gain for epoch in range(1, 8))  # what seven uniform passes would have brought
    assert formulas.history_speed(gain, cost, 7) == pytest.approx(7 / (cost * work))
    assert formulas.history_speed(gain, cost, 1) == pytest.approx(1 / cost)


def test_a_history_overtakes_where_its_speed_reaches_the_others() -> None:
    speed, gain, cost = 1.6, 3.0, 1.1
    reached = brentq(lambda epochs: formulas.history_speed(gain, cost, epochs) - speed, 1, 1000)
    assert formulas.epochs_to_beat(speed, gain, cost) == pytest.approx(reached)
    assert formulas.epochs_to_beat(2.8, gain, cost) == np.inf


def test_the_best_pool_is_the_best_of_many() -> None:
    ratios = np.linspace(1, 20, 1901)
    speeds = [formulas.variance_gain(9, 1, 1e6, ratio * 1e6) / (1 + 0.3 * ratio) for ratio in ratios]
    assert formulas.best_pool(9, 0.3) == pytest.approx((ratios[np.argmax(speeds)], max(speeds)), rel=1e-3)


def test_exchanges_take_the_time_of_their_messages() -> None:
    ranks, latency, bandwidth, size = 16, 1e-5, 1e9, 2**20
    held, seconds = size / ranks, 0.0
    while held < size:  # each rank sends what it holds to the one that has as much of the rest
        seconds += latency + held / bandwidth
        held *= 2
    assert formulas.gather_seconds(size, ranks, latency, bandwidth) == pytest.approx(seconds)
    assert formulas.reduce_seconds(size, ranks, latency, bandwidth) == pytest.approx(2 * seconds)


def test_a_network_is_found_again_from_its_seconds() -> None:
    for kind, seconds in formulas.EXCHANGES.items():
        points = [{"kind": kind, "bytes": n, "seconds": seconds(n, 2, 3e-5, 2e9)} for n in constants.PAYLOADS]
        assert tables.fitted_network(points, kind) == pytest.approx((3e-5, 2e9))


def test_a_power_law_goes_on_as_measured() -> None:
    points = [(10, 1.0), (100, 100.0), (1000, 100.0)]
    assert formulas.power_law(points, 20) == pytest.approx(4)
    assert formulas.power_law(points, 5) == pytest.approx(0.25)
    assert formulas.power_law(points, 1e6) == pytest.approx(100)


def test_two_processes_exchange() -> None:
    points = constants.exchanges((8, 4096), rounds=2)
    assert [(p["kind"], p["bytes"]) for p in points] == [(k, n) for n in (8, 4096) for k in formulas.EXCHANGES]
    assert all(0 < p["low"] <= p["seconds"] <= p["high"] for p in points)


@pytest.mark.parametrize("sampler", ["prioritized", "rais"])
def test_books_are_kept(sampler: str) -> None:
    found = constants.bookkeeping(sampler, batch=512, num_examples=4096, rounds=3)
    assert 0 < found["seconds"] < 0.5


def test_tables_and_page_follow_from_the_constants() -> None:
    page = (ROOT / "docs" / "scale.md").read_text()
    assert tables.renewed(page, CONTENT) == page, "run `python -m benchmarks.scale`"
    assert set(re.findall(r"<!-- (\w+) -->", page)) == set(tables.tables(CONTENT))
    assert set(CONTENT["plan"]) == {f.name for f in fields(tables.Plan)}
    for link in re.findall(r"\]\(([^)#]+)\)", page):
        assert (ROOT / "docs" / link).exists(), link


def test_the_plan_scales() -> None:
    def state(**plan: float) -> list[list[str]]:
        table = tables.tables({**CONTENT, "plan": {**CONTENT["plan"], **plan}})["memory"]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]

    small = {row[0]: row for row in state(examples=1e6, ranks=10)}
    assert small["`uniform`"][1:4] == ["8", "8 MB", "800 kB"]
    assert small["`upper_bound`"][2:] == ["0 B", "0 B", "any"]


def test_another_run_leaves_results_and_page_alone(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "scale.md").read_bytes()
    command = [sys.executable, "-m", "benchmarks.scale", "--examples", "1e6", "--ranks", "8", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads((tmp_path / "scale.json").read_text())["plan"]["ranks"] == 8
    assert "## memory" in done.stdout and done.stdout.strip() in (tmp_path / "scale.md").read_text()
    assert (tmp_path / "scale.svg").read_text().startswith("<?xml")
    assert (ROOT / "docs" / "scale.md").read_bytes() == page
    wrong = subprocess.run([*command[:4], "0"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.endswith("argument --examples: 0 must be greater than 0\n")
