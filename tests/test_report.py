import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from isbench.errors import UserError
from isbench.report.__main__ import main
from isbench.report.collect import collect
from isbench.report.curves import (
    DIFFERENCE,
    EPOCHS,
    ERROR,
    OBJECTIVE,
    SECONDS,
    STYLES,
    band,
    comparisons,
    draw_comparison,
    spread,
    styles,
)
from isbench.report.load import describe, load_runs, read_results
from isbench.report.measures import (
    Bounds,
    Sample,
    compare_arms,
    headline,
    outcome,
    ratio_bounds,
    speedup_over,
    t_interval,
    time_bounds,
    time_to_target,
    value_at,
    verdict,
)
from isbench.report.names import task, written
from isbench.report.page import disagreements
from isbench.report.tables import arms_table, clocks, number, plus_minus, speedup
from tests.report_samples import config, write_run


def line(slope, final=20.0, start=0.9):
    """Test error falling in a straight line, evaluated every second."""
    return [(float(t), start - slope * t) for t in np.arange(0, final + 1)]


@pytest.fixture
def twice(tmp_path):
    """Three seeds, each with `loss` exactly twice as fast as `uniform`."""
    for seed, slope in enumerate((0.010, 0.011, 0.012)):
        write_run(tmp_path, "uniform", seed, line(slope))
        write_run(tmp_path, "loss", seed, line(2 * slope))
    return tmp_path


def rows_of(table, arm):
    return table[table["arm"] == arm].iloc[0]


def test_values_are_interpolated_and_never_extrapolated():
    curve = pd.DataFrame({"train_seconds": [1.0, 3.0, 5.0], "test_error": [0.8, 0.4, np.nan]})
    assert value_at(curve, 1.5, "test_error") == pytest.approx(0.7)
    assert value_at(curve, 3.0, "test_error") == 0.4
    assert math.isnan(value_at(curve, 0.9, "test_error"))
    assert math.isnan(value_at(curve, 3.1, "test_error"))


def test_time_to_target_is_the_first_crossing():
    curve = pd.DataFrame({"train_seconds": [0.0, 2.0, 4.0, 6.0], "test_error": [0.9, 0.5, 0.7, 0.1]})
    assert time_to_target(curve, "test_error", 0.6) == pytest.approx(1.5)  # three quarters of the way from 0.9 to 0.5
    assert time_to_target(curve, "test_error", 0.5) == 2.0
    assert time_to_target(curve, "test_error", 0.95) == 0.0
    assert time_to_target(curve, "test_error", 0.05) == math.inf


def test_t_interval_against_the_printed_table():
    # Mean 3, standard deviation sqrt(2.5), t(4, 0.975) = 2.776.
    interval = t_interval([1, 2, 3, 4, 5])
    assert interval.mean == 3 and interval.n == 5
    assert interval.half_width == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=1e-3)
    # t(4, 0.95) = 2.132
    assert t_interval([1, 2, 3, 4, 5, math.nan], level=0.9).half_width == pytest.approx(
        2.132 * math.sqrt(2.5 / 5), rel=1e-3
    )


def test_one_value_has_no_interval():
    assert t_interval([4.0]).mean == 4.0
    assert math.isnan(t_interval([4.0]).half_width)
    assert math.isnan(t_interval([]).mean)


def exact(times):
    return pd.Series({seed: Bounds(time, time) for seed, time in times.items()}, dtype=object)


def test_speedup_is_the_geometric_mean_of_paired_ratios():
    # Ratios 2 and 8 whatever the order of seeds; seed 7 has no partner. Logs have mean log 4, deviation log 2 x sqrt 2.
    result = speedup_over(exact({0: 10.0, 1: 80.0, 7: 1.0}), exact({1: 10.0, 0: 5.0}))
    assert result.ratio == pytest.approx(4) and result.n == 2
    factor = math.exp(12.706 * math.log(2))  # t(1, 0.975) = 12.706; sqrt 2 / sqrt n = 1
    assert result.high == pytest.approx(4 * factor, rel=1e-3)
    assert result.low == pytest.approx(4 / factor, rel=1e-3)


def test_a_miss_takes_longer_than_it_ran():
    curve = pd.DataFrame({"train_seconds": [0.0, 10.0], "test_error": [1.0, 0.5]})
    reached, missed, lost = (
        time_bounds(curve, "test_error", target, "train_seconds", diverged)
        for target, diverged in ((0.75, True), (0.1, False), (0.1, True))
    )
    assert (reached, missed, lost) == (Bounds(5, 5), Bounds(10, math.inf), Bounds(math.inf, math.inf))
    assert ratio_bounds(reached, missed) == (0, 0.5), "at most half as fast"
    assert ratio_bounds(missed, reached) == (2, math.inf)
    assert ratio_bounds(missed, missed) == (0, math.inf)
    assert ratio_bounds(reached, lost) == (0, 0) and ratio_bounds(lost, reached) == (math.inf, math.inf)
    assert ratio_bounds(lost, lost) == (0, math.inf)
    assert ratio_bounds(Bounds(0, 0), Bounds(0, 0)) == (1, 1)


def test_misses_leave_no_mean_and_few_seeds_no_interval():
    baseline = exact(dict.fromkeys(range(6), 10.0))
    times = {seed: Bounds(5.0, 5.0) for seed in range(5)} | {5: Bounds(40.0, math.inf)}
    method = pd.Series(times, dtype=object)
    six = speedup_over(baseline, method)  # ratios 2, five times, and below 1/4
    assert six.ratio == pytest.approx(2) and (six.low, six.high) == pytest.approx((0, 2)) and six.n == 6
    five = speedup_over(baseline, method.loc[1:])
    assert five.ratio == pytest.approx(2) and math.isnan(five.low) and math.isnan(five.high)
    assert speedup_over(method, baseline).baseline_misses == 1


def test_intervals_from_ranks_are_those_of_the_sign_test():
    values = [(float(v), float(v)) for v in (3, 1, 2, 9, 5, 4, 8, 7, 6)] + [(10.0, math.inf)]
    ten = Sample(values).centre()  # 1 - 2 P(X <= 1) = 0.979, 1 - 2 P(X <= 2) = 0.891 for ten fair coins
    assert (ten.low, ten.high, ten.value) == (2, 9, 5.5) and ten.level == pytest.approx(1 - 2 * 11 / 1024)
    five = Sample(values[-5:]).centre()
    assert (five.low, five.high) == (4, math.inf) and five.level == pytest.approx(0.9375)
    assert Sample(values).p_beyond(0.5, 1) == pytest.approx(1 / 1024)
    assert Sample(values).p_beyond(1.5, 1) == pytest.approx(11 / 1024)
    assert Sample(values).p_beyond(1.5, -1) == pytest.approx(1 - 1 / 1024), "one is below"
    half = Sample([(-math.inf, -math.inf), (math.inf, math.inf)]).centre()
    assert (half.least, half.most) == (-math.inf, math.inf)


def test_intervals_from_ranks_hold_the_median_as_often_as_they_say():
    random = np.random.default_rng(0)
    for n in (6, 9, 15):
        held = 0
        for _ in range(2000):
            values = random.exponential(size=n)
            bounds = [(v, math.inf if v > 1.5 else v) for v in np.minimum(values, 1.5)]  # a budget of 1.5
            centre = Sample(bounds + [(np.nan, np.nan)]).centre()
            held += not centre.is_median or centre.low <= math.log(2) <= centre.high
        assert held / 2000 > 0.94


def test_p_values_are_those_of_scipy():
    from scipy.stats import ttest_1samp

    values = [0.3, 1.2, 0.7, 0.9]
    for side, alternative in ((1, "greater"), (-1, "less")):
        expected = ttest_1samp(values, 0.2, alternative=alternative).pvalue
        assert Sample([(v, v) for v in values]).p_beyond(0.2, side) == pytest.approx(expected)
    assert Sample([(1.0, 1.0)] * 3).p_beyond(1.0, 1) == 1 and Sample([(1.0, 1.0)] * 3).p_beyond(0.9, 1) == 0
    assert math.isnan(Sample([(1.0, 1.0)]).p_beyond(0.9, 1))


def test_ties_are_a_ratio_of_one():
    result = speedup_over(exact({0: 0.0, 1: 5.0}), exact({0: 0.0, 1: 5.0}))
    assert (result.ratio, result.low, result.high) == (1, 1, 1)


def test_a_method_twice_as_fast(twice):
    table = compare_arms(load_runs(twice))
    uniform, loss = rows_of(table, "uniform"), rows_of(table, "loss")
    assert loss["speedup"] == pytest.approx(2) and loss["speedup_low"] == pytest.approx(2)
    assert uniform["speedup"] == 1
    assert loss["seconds"] == 20
    assert loss["target"] == pytest.approx(0.9 - 0.010 * 20)  # the worst seed of uniform
    assert uniform["misses"] == loss["misses"] == 0
    assert loss["seconds_to_target"] == pytest.approx(0.2 / 0.022)  # the median seed
    # Differences at 20 s: 0.20, 0.22, 0.24; t(2, 0.975) = 4.303
    assert loss["error_difference"] == pytest.approx(-0.22)
    assert loss["error_difference_half_width"] == pytest.approx(4.303 * 0.02 / math.sqrt(3), rel=1e-3)
    assert loss["updates"] == 200 and loss["examples_trained"] == 25600 and loss["examples_scored"] == 128000
    assert verdict(loss).startswith("Loss: faster than Uniform")
    assert "1 of 1 samplers" in headline(table) and "2.00×" in headline(table)


def test_equal_seconds_is_what_all_finished_runs_reached(tmp_path):
    write_run(tmp_path, "uniform", 0, line(0.01, final=20))
    write_run(tmp_path, "loss", 0, line(0.01, final=12))
    write_run(tmp_path, "rais", 0, line(0.01, final=3), status="diverged")
    write_run(tmp_path, "impon", 0, line(0.01, final=5), status=None)
    table = compare_arms(load_runs(tmp_path))
    assert (table["seconds"] == 12).all()
    assert rows_of(table, "uniform")["test_error"] == pytest.approx(0.78)
    rais = rows_of(table, "rais")
    assert (rais["n"], rais["diverged"], rais["misses"], rais["speedup"]) == (0, 1, 1, 0)  # never, by its only seed
    assert rais["test_error"] == math.inf, "its only run ranks worst"
    impon = rows_of(table, "impon")
    assert (impon["n"], impon["not_counted"], impon["misses"], impon["speedup_n"]) == (0, 1, 0, 0)
    assert outcome(impon) == "not run"


def test_a_miss_is_counted_and_inconclusive(twice):
    write_run(twice, "loss", 0, line(0.002))  # replaces the fast one
    row = rows_of(compare_arms(load_runs(twice)), "loss")
    assert row["misses"] == 1 and row["speedup"] == pytest.approx(2) and math.isnan(row["speedup_low"])
    assert speedup(row) == "unknown (misses 1, the baseline 0)"
    assert "1 of its 3 runs and 0 of Uniform's never reach" in verdict(row)


def test_one_seed_claims_nothing(tmp_path):
    write_run(tmp_path, "uniform", 0, line(0.01))
    write_run(tmp_path, "loss", 0, line(0.02))
    table = compare_arms(load_runs(tmp_path))
    row = rows_of(table, "loss")
    assert row["speedup"] == pytest.approx(2)
    assert "one seed gives no interval" in verdict(row)
    assert "no sampler reaches" in headline(table)


@pytest.mark.parametrize(("slopes", "expected"), [((0.01, 0.02), "inconclusive"), ((0.004, 0.0041, 0.0042), "slower")])
def test_outcome_follows_the_interval(tmp_path, slopes, expected):
    for seed, slope in enumerate(slopes):
        write_run(tmp_path, "uniform", seed, line(0.015, final=20))
        write_run(tmp_path, "loss", seed, line(slope, final=100))
    assert outcome(rows_of(compare_arms(load_runs(tmp_path)), "loss")) == expected


def test_wrong_labels_and_examples_held_out_make_another_task(tmp_path):
    changes = {
        "a": {},
        "b": {"label_noise": 0.125},
        "c": {"validation": 48000.0},
        "d": {"validation": 0.25, "label_noise": 0.5},
    }
    for name, change in changes.items():
        write_run(tmp_path / name, "uniform", 0, line(0.01), dataset={"name": "mnist5k", **change})
    table = compare_arms(load_runs(tmp_path))
    assert {task(*names) for names in table[["dataset", "model"]].to_numpy()} == {
        "MNIST (5,000 digits), LeNet",
        "MNIST (5,000 digits) (12.5 % wrong labels), LeNet",
        "MNIST (5,000 digits) (48,000 held out), LeNet",
        "MNIST (5,000 digits) (50 % wrong labels, 25 % held out), LeNet",
    }


def test_a_pair_of_which_one_shared_the_machine_is_not_timed(tmp_path):
    write_run(tmp_path, "uniform", 0, line(0.01), concurrent_runs=2)
    write_run(tmp_path, "loss", 0, line(0.02))
    table = compare_arms(load_runs(tmp_path))
    loss = rows_of(table, "loss")
    assert outcome(loss) == "not timed" and loss["paired"] == 1
    assert "not timed, its runs or those of Uniform shared the machine." in verdict(loss)
    assert headline(table).endswith("not compared: no seed has a sampler and Uniform alone on the machine.")


def test_a_given_target_needs_no_baseline(tmp_path):
    write_run(tmp_path, "loss", 0, line(0.02))
    table = compare_arms(load_runs(tmp_path), target=0.7)
    assert table["seconds_to_target"].iloc[0] == pytest.approx(10)
    assert headline(table).startswith("Nothing to compare yet")


def test_records_are_read_through_attempts_and_damage(tmp_path):
    path = write_run(tmp_path, "uniform", 0, line(0.01, final=4), status="interrupted", torn='{"kind": "evalu')
    start, *_ = [json.loads(row) for row in path.read_text().splitlines()[:1]]
    evaluation = json.loads(path.read_text().splitlines()[1])
    again = [
        {**start, "attempt": 2, "resumed_at": 20},
        {**evaluation, "attempt": 2, "updates": 30, "train_seconds": 3.0, "test_error": 0.5, "train_loss": None},
        {"kind": "end", "attempt": 2, "status": "finished", "reason": ""},
    ]
    with path.open("a") as file:
        file.write("\n" + "".join(json.dumps(row) + "\n" for row in again))
    runs = load_runs(tmp_path)
    assert runs.rows["updates"].tolist() == [0, 10, 20, 30]
    assert runs.rows["test_error"].iloc[-1] == 0.5 and math.isnan(runs.rows["train_loss"].iloc[-1])
    assert runs.runs[["status", "attempts", "seconds"]].iloc[0].tolist() == ["finished", 2, 3.0]


def test_samplers_with_other_options_are_told_apart(tmp_path):
    for size in (320, 640):
        write_run(tmp_path, "loss", 0, line(0.01), options={"pool_size": size, "signal": "loss"})
    assert load_runs(tmp_path).runs["arm"].tolist() == ["loss pool_size=320", "loss pool_size=640"]


def test_settings_that_were_swept_name_the_rows(tmp_path):
    """An optimizer, one of its values, and a size: each method is compared with the baseline at its own settings."""
    for seed in range(2):
        for sampler, slope in (("uniform", 0.01), ("loss", 0.02)):
            adam = {"name": "adam", "_target_": "isbench.training.optimizers.adam", "lr": 0.02}
            write_run(tmp_path, sampler, seed, line(slope), optimizer=adam)
            for size in (64, 128):
                write_run(tmp_path, sampler, seed, line(slope * size / 64), batch_size=size)
    runs = load_runs(tmp_path)
    settings = [
        "optimizer=adam batch_size=128",
        "optimizer=sgd_momentum batch_size=128",
        "optimizer=sgd_momentum batch_size=64",
    ]
    settings = [" ".join(sorted(words.split())) for words in settings]
    assert sorted(set(runs.runs["arm"])) == sorted(
        f"{arm} at {words}" for arm in ("uniform", "loss") for words in settings
    )
    table = compare_arms(runs)
    assert len(table) == 6 and "at 3 settings, 3 of 3 comparisons" in headline(table)
    for words in settings:
        row = rows_of(table, f"loss at {words}")
        assert row["baseline"] == f"uniform at {words}" and row["speedup"] == pytest.approx(2)
    one = compare_arms(runs, baseline=f"uniform at {settings[0]}")
    assert set(one["baseline"]) == {f"uniform at {settings[0]}"} and one["speedup_n"].eq(2).all()


def test_one_sampler_at_several_settings_has_rows(tmp_path, capsys):
    for rate in (0.1, 0.01):
        optimizer = {"name": "sgd", "_target_": "isbench.training.optimizers.sgd", "lr": rate}
        write_run(tmp_path, "uniform", 0, line(rate), optimizer=optimizer)
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "--baseline NAME, of 'uniform at optimizer.lr=0.01', 'uniform at optimizer.lr=0.1'" in said
    assert main([str(tmp_path), "--baseline", "uniform at optimizer.lr=0.01"]) == 0
    assert "| Uniform at optimizer.lr=0.1 " in (tmp_path / "report" / "table.md").read_text()


def test_settings_that_differ_from_seed_to_seed_name_nothing(tmp_path):
    for seed, device in enumerate(("cpu", "cuda")):
        write_run(tmp_path, "uniform", seed, line(0.01), device=device)
    assert set(load_runs(tmp_path).runs["arm"]) == {"uniform"}


def test_runs_that_all_shared_the_machine_are_compared_at_equal_epochs(tmp_path, capsys):
    for seed, slope in enumerate((0.010, 0.011, 0.012)):
        write_run(tmp_path, "uniform", seed, line(slope), concurrent_runs=2)
        write_run(tmp_path, "loss", seed, line(2 * slope, final=30), concurrent_runs=2)
    table = compare_arms(load_runs(tmp_path))
    loss = rows_of(table, "loss")
    assert loss["epochs"] == pytest.approx(20 / 0.1 * 128 / 4000) and math.isnan(loss["seconds"])
    assert loss["n"] == 3 and loss["error_difference"] == pytest.approx(-0.22) and loss["speedup_n"] == 0
    assert outcome(loss) == "not timed" and "after 6.4 epochs its test error is 22.00 points lower" in verdict(loss)
    assert main([str(tmp_path)]) == 0
    assert "1 of 1 samplers have a lower test error than Uniform, and 0 a higher one" in capsys.readouterr().out
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Compared after <b>6.40 epochs</b>" in page and "No run has finished yet" not in page
    assert 'data-to="epochs" aria-pressed="true"' in page


def test_a_run_beside_other_programs_was_not_alone(tmp_path):
    for seed, wait in enumerate((0.0, 0.09, 0.5, None)):
        path = write_run(tmp_path, "uniform", seed, line(0.01))
        rows = [json.loads(row) for row in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"cpu_wait": wait}) + "\n" for row in rows))
    assert load_runs(tmp_path).runs["alone"].tolist() == [True, True, False, True]


def test_a_run_is_called_by_its_arm(tmp_path):
    for arm, size in (("small", 320), ("large", 640)):
        write_run(tmp_path, "loss", 0, line(0.01), options={"pool_size": size}, arm=arm)
    runs = load_runs(tmp_path).runs
    assert runs["arm"].tolist() == ["large", "small"]
    assert runs["sampler"].tolist() == ["loss (pool_size=640)", "loss (pool_size=320)"]


def test_a_run_that_shared_the_machine_is_not_compared_by_seconds(twice):
    write_run(twice, "uniform", 3, line(0.010), concurrent_runs=1)
    write_run(twice, "loss", 3, line(0.020), concurrent_runs=2)
    runs = load_runs(twice)
    row = rows_of(compare_arms(runs), "loss")
    assert (row["n"], row["speedup_n"], row["not_counted"]) == (3, 3, 1)
    assert any("1 run shared the machine" in line for line in disagreements(runs.runs))
    (comparison,) = comparisons(runs)
    assert len(comparison.seeds("loss", SECONDS)) == 3 and len(comparison.seeds("loss", EPOCHS)) == 4


def test_a_diverged_run_leaves_a_median_for_a_mean(twice):
    write_run(twice, "loss", 3, line(0.02, final=3), status="diverged")
    write_run(twice, "uniform", 3, line(0.01))
    runs = load_runs(twice)
    loss = rows_of(compare_arms(runs), "loss")
    assert loss["test_error"] == pytest.approx(0.48) and math.isnan(loss["test_error_half_width"])  # 42, 46, 50, worst
    assert math.isnan(loss["speedup_low"]) and loss["speedup"] == pytest.approx(2)
    cells = arms_table(runs).set_index("variant")
    assert cells.loc["loss", "test error (%)"] == "median 48.0" and cells.loc["loss", "diverged"] == "1"
    assert (
        cells.loc["loss", "objective"] == "median \N{INFINITY}"
        and "\N{PLUS-MINUS SIGN}" in cells.loc["uniform", "test error (%)"]
    )


def test_one_seed_is_drawn_with_open_marks(tmp_path):
    write_run(tmp_path, "uniform", 0, line(0.01))
    for seed in range(2):
        write_run(tmp_path, "loss", seed, line(0.02))
    (comparison,) = comparisons(load_runs(tmp_path))
    figure = Figure()
    panel = figure.subplots()
    draw_comparison(panel, comparison, SECONDS, ERROR, STYLES)
    marked = {drawn.get_label() for drawn in panel.lines if drawn.get_marker() == "o"}
    assert marked == {"Uniform, one seed"} and panel.lines[-1].get_markerfacecolor() == "none"


def test_arms_that_mix_cards_or_faster_code_are_not_one_clock(tmp_path):
    for seed, (card, commit, step) in enumerate(
        [
            ("H100", "a", 0.1),
            ("H100", "b", 0.1),
            ("H100", "a", 0.1),
            ("H200", "a", 0.1),
            ("H100", "a", 0.1),
            ("H100", "b", 0.12),
        ]
    ):
        arm = ("same", "cards", "code")[seed // 2]
        path = write_run(tmp_path, "uniform", seed, line(0.01), arm=arm, update_seconds=step)
        text = path.read_text().replace('"gpu": null', f'"gpu": "{card}"')
        path.write_text(re.sub('"git_commit": "[^"]*"', f'"git_commit": "{commit}"', text))
    found = clocks(load_runs(tmp_path))
    assert found["cards"] == "runs on H100 and H200" and "1.20" in found["code"] and "same" not in found


def test_what_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no runs"):
        load_runs(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        load_runs(tmp_path / "nowhere")
    for folder in "ab":
        write_run(tmp_path / folder, "uniform", 0, line(0.01))
    with pytest.raises(UserError, match="same data set, model, arm, seed and settings"):
        load_runs(tmp_path)


def test_a_record_without_a_start_is_mentioned(twice):
    (twice / "torn").mkdir()
    (twice / "torn" / "record.jsonl").write_text('{"kind": "sta')
    assert load_runs(twice).notices == ("torn has no start line and is left out.",)


def test_folders_behind_links_count_once(twice, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_run(elsewhere, "rais", 0, line(0.01))
    (twice / "a_link").symlink_to(elsewhere)
    (twice / "mnist5k-lenet" / "again").symlink_to(twice)
    (twice / "nowhere").symlink_to(twice / "gone")
    (twice / "hidden").mkdir()
    runs = load_runs(twice)
    assert (
        len(runs.runs) == 7 and runs.runs["path"].str.startswith(("mnist5k-lenet/", "a_link/mnist5k-lenet/rais")).all()
    )


def test_what_is_no_utf_8_is_escaped(tmp_path, capsys):
    """Folders with names from another time, and strings that JSON allows and files do not."""
    folder = tmp_path / "caf\udce9"
    for sampler in ("uniform", "loss"):
        write_run(folder, sampler, 0, line(0.01), status="failed", reason="\ud800", optimizer={"name": "\udfff"})
    write_run(folder / "ru\udcff", "rais", 0, line(0.01))
    assert main([str(folder)]) == 0
    html = (folder / "report" / "report.html").read_text()
    assert "caf\\udce9" in html and "ru\\udcff/" in html and "\\ud800" in html
    kept = collect(folder, tmp_path / "results" / "here")
    assert len(read_results(tmp_path / "results" / "here").runs) == len(kept.runs) == 3
    command = "python -m isbench dataset=mnist5k model=lenet sampler=rais "
    assert kept.runs.set_index("arm").loc["rais", "command"].startswith(command), "no experiment's, then"


def test_differing_settings_are_pointed_out(tmp_path):
    write_run(tmp_path, "uniform", 0, line(0.01))
    assert disagreements(load_runs(tmp_path).runs) == []
    budget = {"name": "smoke", "unit": "epochs", "limit": 2.0}
    write_run(tmp_path, "loss", 0, line(0.01), batch_size=64, budget=budget)
    found = " ".join(disagreements(load_runs(tmp_path).runs))
    assert "one batch size: 128; 64." in found and "The budget counts epochs" in found


def test_configuration_values_are_described():
    assert describe(config("uniform", 0)["optimizer"]) == "sgd_momentum (lr=0.02, momentum=0.9)"
    assert describe({"unit": "updates", "limit": 50000.0, "effective": True}) == "50,000 effective updates"
    assert describe({"unit": "epochs", "limit": 1.0}) == "1 epoch"


def test_band_is_the_t_interval_where_all_seeds_are():
    curves = [
        pd.DataFrame({"train_seconds": [0.0, 10.0, 20.0], "test_error": [0.1, 0.1, 0.1]}),
        pd.DataFrame({"train_seconds": [0.0, 10.0], "test_error": [0.3, 0.3]}),
    ]
    middle = band(curves, SECONDS, ERROR, floor=0.0)
    assert middle.x[0] == 0 and middle.x[-1] == 10
    np.testing.assert_allclose(middle.mean, 20)
    np.testing.assert_allclose(middle.high, 20 + 12.706 * 10, rtol=1e-3)  # deviation 10 sqrt 2, n = 2
    assert (middle.low == 0).all()
    assert np.isnan(band(curves[:1], SECONDS, ERROR).low).all()


def test_curves_are_straight_on_a_logarithmic_axis_too():
    curve = pd.DataFrame({"train_seconds": [0.0, 10.0], "test_error": [0.9, 0.001]})
    logarithms = np.log(band([curve], SECONDS, ERROR, is_log=True).mean)
    np.testing.assert_allclose(np.diff(logarithms, 2), 0, atol=1e-9)
    assert np.allclose(np.diff(band([curve], SECONDS, ERROR).mean, 2), 0)


def test_on_a_logarithmic_axis_mean_and_interval_are_of_logarithms():
    low, high = (pd.DataFrame({"train_seconds": [0.0, 10.0], "test_error": [error] * 2}) for error in (0.01, 0.04))
    middle = band([low, high], SECONDS, ERROR, is_log=True)
    np.testing.assert_allclose(middle.mean, 2)
    np.testing.assert_allclose(
        np.log(middle.high / 2), 12.706 * np.log(2), rtol=1e-3
    )  # deviation log 2 x sqrt 2, n = 2
    np.testing.assert_allclose(middle.low * middle.high, 4)


def test_the_untrained_network_is_left_out_where_it_would_flatten_the_rest(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "flat", "uniform", seed, [(0.0, 0.9), (5.0, 0.05), (10.0, 0.04)])
        write_run(tmp_path / "steep", "uniform", seed, [(0.0, 0.9), (1.0, 0.8), (10.0, 0.3)])
    for name, is_skipped in (("flat", True), ("steep", False)):
        (comparison,) = comparisons(load_runs(tmp_path / name))
        assert comparison.skips_start(ERROR) == is_skipped
        assert comparison.band("uniform", SECONDS, ERROR).x[0] == (5 if is_skipped else 0)


def test_differences_are_paired_with_the_baseline_by_seed(twice):
    (comparison,) = comparisons(load_runs(twice))
    middle = comparison.band("loss", SECONDS, DIFFERENCE)
    np.testing.assert_allclose(middle.mean, -100 * 0.011 * middle.x, atol=1e-9)
    assert comparison.names(DIFFERENCE) == ["loss"]


def test_labels_are_moved_apart():
    assert spread([0.5, 0.5, 0.52], 0.1) == pytest.approx([0.5, 0.6, 0.7])
    assert spread([0.95, 0.97], 0.1) == pytest.approx([0.9, 1.0]), "and stay inside"


def test_names_are_those_that_people_write():
    names = ("upper_bound_break_even", "sgd_s_in_order", "in_order", "loss pool_size=640", "uniform")
    assert [written(name) for name in names] == [
        "Upper bound, break even",
        "SGD-S, in order",
        "In order",
        "Loss (pool_size=640)",
        "Uniform",
    ]


def test_styles_are_fixed_and_distinct():
    assert len(set(STYLES.values())) == len(STYLES)
    drawn = styles(["loss pool_size=640", "uniform", "loss pool_size=320"])
    assert drawn["uniform"] == STYLES["uniform"]
    assert len(set(drawn.values())) == 3
    drawn = styles(["upper_bound", "uniform_batch_norm", "adam"])
    assert len({style.colour for style in drawn.values()}) == 3, "a spare colour is none that a known method has"


def test_differences_reach_the_end_of_the_shorter_run(tmp_path):
    write_run(tmp_path, "uniform", 0, [(0.0, 0.9), (10.0, 0.5), (20.0, 0.3)])
    write_run(tmp_path, "loss", 0, [(0.0, 0.9), (12.0, 0.4), (24.0, 0.2)])
    (comparison,) = comparisons(load_runs(tmp_path))
    (loss,) = comparison.lines("loss", SECONDS, DIFFERENCE)
    assert list(loss["train_seconds"]) == [12, 20]
    assert loss["error_difference"].iloc[-1] == pytest.approx(0.4 - 0.2 * 8 / 12 - 0.3)


def test_an_objective_without_a_penalty_is_not_drawn_again(tmp_path):
    write_run(tmp_path, "uniform", 0, line(0.01), objective=0.0)
    write_run(tmp_path / "decayed", "uniform", 0, line(0.01), objective=0.1)
    plain, decayed = (comparisons(load_runs(folder))[0] for folder in tmp_path.iterdir())
    assert sorted(OBJECTIVE in found.quantities() for found in (plain, decayed)) == [False, True]


def test_numbers_are_rounded_by_their_uncertainty():
    assert plus_minus(4.1049, 0.3162) == "4.10 ± 0.32"
    assert plus_minus(-1234.5, 56.0) == "−1,234 ± 56"
    assert plus_minus(0.01234, math.nan) == "0.0123"
    assert plus_minus(3.2, 4e-16) == "3.20"
    assert number(math.inf) == "∞" and number(-math.inf) == "−∞" and number(math.nan) == "–" and number(0.0) == "0.00"


class Loads(HTMLParser):
    """Collect what a page would fetch, and the sections it shows."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "a":  # fetched when it is clicked
            return
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset") and value != "data:,"]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_complete_and_needs_no_network(twice, capsys):
    write_run(twice, "rais", 0, line(0.01, final=3), status="diverged", reason="loss <nan> at update 30")
    write_run(twice, "impon", 0, [], status="skipped", reason="needs per-example norms")
    assert main([str(twice), "--title", "Fast & fair"]) == 0
    lines = capsys.readouterr().out.splitlines()
    page = twice / "report" / "report.html"
    assert lines[-1] == f"report: {page}"
    html = page.read_text()
    parsed = Loads(html)
    assert parsed.fetched == []
    assert "@import" not in html.split("</style>")[0]
    assert len(html) < 200_000
    shown = "".join(parsed.text)
    for text in (
        "Fast & fair",
        "Loss: faster",
        "2.00× [2.00, 2.00]",
        "loss <nan> at update 30",
        "needs per-example norms",
    ):
        assert text in shown
    for key in ("5,000 MNIST digits", "60 seconds", "cosine", "torch 2.15.0"):
        assert key in shown


def test_same_records_same_bytes(twice):
    write_run(twice, "p_sgd", 0, line(0.01), dataset={"name": "synthetic"})
    for out in ("one", "two"):
        assert main([str(twice), "--out", str(twice / out), "--target", "0.75"]) == 0
    for name in ("table.md", "table.csv", "rows.csv", "curves.png", "curves.svg", "report.html"):
        assert (twice / "one" / name).read_bytes() == (twice / "two" / name).read_bytes(), name


def test_mistakes_are_one_line_on_stderr(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without results/, as where the wheel is used
    lines = [
        ([str(tmp_path)], "holds no runs"),
        ([str(tmp_path), "--target", "5"], "--target 5 must be"),
        ([], "results is not a folder"),
        (["demo", "other"], "no experiment is called demo, other"),
        (["runs/rais_rot_mnist"], "python -m isbench.report rais_rot_mnist"),
    ]
    for words, complaint in lines:
        assert main(words) == 1
        captured = capsys.readouterr()
        assert complaint in captured.err and len(captured.err.splitlines()) == 1 and captured.out == "", words


def test_the_report_does_not_need_torch():
    code = "import sys, isbench.report.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
