"""From records to results/: what is collected, what is reported on it, and the index."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context

from isbench.data.readers import mnist5k
from isbench.errors import UserError
from isbench.grid.jobs import compose_grid
from isbench.report import __main__ as report
from isbench.report import collect
from isbench.report.curves import MATPLOTLIB
from isbench.report.drawings import DRAWINGS
from isbench.report.inventory import experiments
from isbench.report.load import load_runs, read_results
from tests.report_samples import COMMIT, write_run

EPOCHS = {"budget": {"name": "epochs", "unit": "epochs", "limit": 3.2}}
NORM, BOUND = "per_example_gradient_norm", "logit_gradient_norm"


def falling(slope, final=10):
    return [(float(t), 0.9 - slope * t) for t in range(final + 1)]


def grid(folder, seeds=2, **changes):
    for seed in range(seeds):
        for arm, slope in (("uniform", 0.01), ("rais", 0.02)):
            write_run(folder, arm, seed, falling(slope + seed / 1000), arm=arm, **{**EPOCHS, **changes})


def probed(folder, probes, arms=("lenet", "wrn_10_1"), seeds=2):
    for seed in range(seeds):
        for arm in arms:
            write_run(folder, "uniform", seed, falling(0.02), arm=arm, probes=probes, **EPOCHS)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def rais(tmp_path):
    """A grid half-way: two seeds of two arms finished, one run unfinished; collected."""
    runs, results = tmp_path / "runs", tmp_path / "results"
    grid(runs / "rais_rot_mnist")
    write_run(runs / "rais_rot_mnist", "uniform", 2, falling(0.01, final=3), status=None, arm="uniform", **EPOCHS)
    assert collect.main(["rais_rot_mnist", "--runs", str(runs), "--results", str(results)]) == 0
    return results / "rais_rot_mnist"


def test_what_is_collected_is_what_was_recorded(rais):
    kept, recorded = read_results(rais), load_runs(rais.parents[1] / "runs" / "rais_rot_mnist")
    pd.testing.assert_frame_equal(kept.rows, recorded.rows, check_dtype=False)
    assert kept.runs["run_id"].tolist() == recorded.runs["run_id"].tolist()
    assert kept.runs["status"].value_counts().to_dict() == {"finished": 4, "unfinished": 1}
    assert kept.runs["alone"].all() and (kept.runs["git_commit"] == COMMIT).all()
    assert not (rais / "probes.parquet").exists() and kept.probes.empty
    command = "python -m isbench -m experiment=rais/rais_rot_mnist arm=uniform seed=2"
    assert kept.runs.set_index(["arm", "seed"]).loc[("uniform", 2), "command"] == command


def test_provenance_names_every_value_once(rais):
    facts = json.loads((rais / "provenance.json").read_text())
    assert facts["git_commit"] == [COMMIT] and facts["date"] == ["2026-11-21"] and facts["cpu"]


def test_same_records_same_bytes_and_more_runs_rewrite(rais):
    runs, before = rais.parents[1] / "runs" / "rais_rot_mnist", files(rais)
    assert sum(map(len, before.values())) < 64 * 1024
    collect.collect(runs, rais)
    assert files(rais) == before
    write_run(runs, "rais", 2, falling(0.02), arm="rais", **EPOCHS)
    collect.collect(runs, rais)
    assert len(read_results(rais).runs) == 6 and files(rais) != before


def test_runs_whose_folders_are_gone_are_kept(rais):
    runs, before = rais.parents[1] / "runs" / "rais_rot_mnist", read_results(rais)
    elsewhere = rais.parents[1] / "elsewhere"
    write_run(elsewhere, "rais", 2, falling(0.02), arm="rais", **EPOCHS)
    write_run(elsewhere, "uniform", 2, falling(0.01), arm="uniform", **EPOCHS)  # now to its end
    collect.collect(elsewhere, rais)
    after = read_results(rais)
    assert len(after.runs) == 6 and (after.runs["status"] == "finished").all()
    pd.testing.assert_frame_equal(
        after.rows[after.rows["seed"] < 2].reset_index(drop=True),
        before.rows[before.rows["seed"] < 2].reset_index(drop=True),
    )
    write_run(runs, "rais", 2, falling(0.02), arm="rais", **EPOCHS)
    write_run(runs, "uniform", 2, falling(0.01), arm="uniform", **EPOCHS)
    merged = files(rais)
    collect.collect(runs, rais)
    assert files(rais)["evaluations.parquet"] == merged["evaluations.parquet"], "in whatever order they came"


def test_a_run_begun_anew_takes_the_place_of_one_that_ended_when_it_ends_itself(rais):
    before, again = read_results(rais), rais.parents[1] / "again"
    short = falling(0.01)[:1]
    write_run(again, "uniform", 1, short, arm="uniform", status=None, **EPOCHS | {"slots": 9})
    collect.collect(again, rais)
    pd.testing.assert_frame_equal(read_results(rais).rows, before.rows)
    write_run(again, "uniform", 1, short, arm="uniform", **EPOCHS | {"slots": 9})
    collect.collect(again, rais)
    rows = read_results(rais).rows
    assert len(rows[(rows["arm"] == "uniform") & (rows["seed"] == 1)]) == 1


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"torn")])
def test_damaged_results_are_one_line(rais, damage, capsys):
    damage(rais / "evaluations.parquet")
    assert report.main(["rais_rot_mnist", "--results", str(rais.parent)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "rais_rot_mnist is not what isbench.report.collect" in line and "collect its runs again" in line


def test_planned_runs_are_those_of_the_grid(rais, tmp_path):
    facts = json.loads((rais / "provenance.json").read_text())
    assert facts["planned_runs"] == len(compose_grid(["experiment=rais/rais_rot_mnist"])[1]) == 20
    grid(tmp_path / "mine")
    collect.collect(tmp_path / "mine", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["planned_runs"] == 4, "of no experiment"


def test_lists_are_kept_of_the_last_look_alone_and_in_32_bits(tmp_path):
    values = np.random.default_rng(0).lognormal(size=200).round(4).tolist()
    measured = [{"index": list(range(200)), "loss": values, NORM: values}]
    probed(tmp_path / "runs", {0: measured, 50: measured, 100: measured}, seeds=1)
    collect.collect(tmp_path / "runs", tmp_path / "out")
    probes = read_results(tmp_path / "out").probes
    assert probes["updates"].tolist() == [100, 100]
    np.testing.assert_array_equal(probes["loss"].iloc[0], np.float32(values))
    assert probes["loss"].iloc[0].dtype == np.float32 and probes["index"].iloc[0].dtype == np.int32


def test_rows_without_lists_are_all_kept(tmp_path):
    probed(tmp_path / "runs", {u: [{"signal": "loss", "relative": u / 100}] for u in (0, 50, 100)}, arms=["lenet"])
    collect.collect(tmp_path / "runs", tmp_path / "out")
    assert read_results(tmp_path / "out").probes["relative"].tolist() == [0, 0.5, 1, 0, 0.5, 1]


def test_probe_rows_of_a_part_that_was_gone_through_again_do_not_count(tmp_path):
    probes = {u: [{"signal": "loss", "relative": 1.0}] for u in (10, 20)}
    path = write_run(tmp_path, "uniform", 0, falling(0.01, final=2), status=None, probes=probes)
    start, *_, last, probe = map(json.loads, path.read_text().splitlines())
    again = [{**start, "resumed_at": 10}, last, {**probe, "relative": 2.0}]
    with path.open("a") as file:
        file.writelines(json.dumps({**row, "attempt": 2}) + "\n" for row in again)
    assert load_runs(tmp_path).probes["relative"].tolist() == [1.0, 2.0]


def test_pictures_are_those_of_the_data_set_that_was_trained_on(tmp_path, capsys):
    source = mnist5k(tmp_path)
    chosen = [
        {"rank": rank, "index": index, "label": 1, "predicted": 3, "probability": 0.5}
        for rank in ("rarely", "often")
        for index in (5, 77, 3999)
    ]
    path = write_run(tmp_path / "runs", "rais", 0, falling(0.01), arm="digits", probes={100: chosen}, **EPOCHS)
    collect.collect(tmp_path / "runs", tmp_path / "without")
    assert "is not the one that was trained on" in capsys.readouterr().err
    assert read_results(tmp_path / "without").probes["pixels"].isna().all()
    path.write_text(path.read_text().replace('"c0ffee"', json.dumps(source.checksum())))
    collect.collect(tmp_path / "runs", tmp_path / "with")
    example = read_results(tmp_path / "with").probes.iloc[1]
    image = example["pixels"].reshape(tuple(example["shape"].astype(int)))
    np.testing.assert_array_equal(image, source.train_inputs[77].numpy())
    for out in ("with", "without"):
        with rc_context(MATPLOTLIB):
            figure, data = DRAWINGS["examples"](read_results(tmp_path / out))
        assert len(data) == 6
        assert sum(bool(panel.get_images()) for panel in figure.axes) == (6 if out == "with" else 0)


def test_mistakes_are_one_line(tmp_path, capsys):
    where = ["--runs", str(tmp_path), "--results", str(tmp_path / "results")]
    assert collect.main(where) == 1
    assert collect.main(["rais_svhn", *where]) == 1
    assert report.main(["rais_svhn", *where[2:]]) == 1
    assert report.main(["rais_svhn", "rais_no_such", *where[2:]]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    parts = ("holds no runs", "is not a folder", "isbench.report.collect makes it", "rais_no_such")
    assert all(part in line for line, part in zip(lines, parts, strict=True))


def test_a_report_is_complete_and_the_same_every_time(rais):
    results = rais.parent
    assert report.main(["rais_rot_mnist", "--results", str(results)]) == 0
    first = files(results)
    made = {
        "table.md",
        "table.tex",
        "verdicts.md",
        "verdicts.json",
        "figure.svg",
        "figure.png",
        "figure.pdf",
        "figure.csv",
    }
    assert {f"rais_rot_mnist/{name}" for name in made} | {"index.html"} <= set(first)
    assert report.main(["--results", str(results)]) == 0  # of all that are collected
    second = files(results)
    assert [name for name in first if first[name] != second[name]] == []
    verdicts = json.loads(first["rais_rot_mnist/verdicts.json"])
    difference = next(each for each in verdicts if each["primary"])
    assert difference["value"] == pytest.approx(10) and difference["n"] == 2
    assert difference["sentence"] in first["rais_rot_mnist/verdicts.md"].decode()
    arms = first["rais_rot_mnist/table.md"].decode()
    assert re.search(r"\| uniform +\| 2 +\| .*\| 1 +\|\n", arms)  # n, and one that has not finished
    assert rb"\toprule" in first["rais_rot_mnist/table.tex"] and rb"$\pm$" in first["rais_rot_mnist/table.tex"]


def test_the_data_of_a_figure_are_means_over_seeds(rais):
    report.main(["rais_rot_mnist", "--results", str(rais.parent)])
    data = pd.read_csv(rais / "figure.csv")
    mine = data[(data["arm"] == "rais") & (data["axis"] == "train_seconds") & (data["quantity"] == "test_error")]
    np.testing.assert_allclose(mine["mean"], 90 - 100 * mine["x"] * 0.0205, rtol=1e-4)
    assert (mine["n"] == 2).all()


def test_the_index_lists_every_experiment_and_needs_no_network(rais):
    report.main(["--results", str(rais.parent)])
    page = (rais.parent / "index.html").read_text()
    for experiment in experiments():
        assert page.count(f'id="{experiment.id}"') == 1
    assert "experiment=rais/rais_rot_mnist<" in page and page.count("4 of 20 runs finished") == 1
    assert f"{len(experiments()) - 1} experiments, with what each needs and takes" in page
    fetched = re.findall(r'(?:src|srcset|link[^>]* href)="([^"]{1,30})', page)
    assert fetched == ["data:,"], "the icon that stands for none"
    assert page.count('<figure class="chart wide">') == 1 and len(page) < 300_000


def test_data_of_another_figure_are_one_line(rais, capsys):
    (rais / "figure.csv").write_text("dataset,model,arm\nrot_mnist,cnn7,rais\n")
    (rais.parent / "is_mnist_small").mkdir()  # reports on it alone leave that as it is
    for file in rais.iterdir():
        if file.suffix in (".parquet", ".json"):
            (rais.parent / "is_mnist_small" / file.name).write_bytes(file.read_bytes())
    assert report.main(["is_mnist_small", "--results", str(rais.parent)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "figure.csv is no data of its figure: python -m isbench.report rais_rot_mnist makes it again" in line


def scores(seed=0):
    random = np.random.default_rng(seed)
    norm = random.lognormal(size=60).round(4)
    noisy = {
        name: (norm * random.lognormal(sigma=s, size=60)).round(4).tolist() for name, s in (("loss", 1), (BOUND, 0.1))
    }
    return [{"index": list(range(60)), "label": [0] * 60, **noisy, NORM: norm.tolist()}]


PROBES = {
    "score_scatter": {0: scores(), 100: scores(1)},
    "probability_scatter": {100: scores()},
    "gradient_variance": {
        updates: [{"signal": "uniform", "relative": 1.0}, {"signal": "loss", "relative": 0.5 + updates / 1000}]
        for updates in (0, 50, 100)
    },
    "loss_patterns": {
        100: [{"first_epoch": f, "decile": d, "share": f / 10 + d / 100} for f in (1.0, 2.0) for d in range(1, 11)]
    },
}


@pytest.mark.parametrize("name", PROBES)
def test_figures_from_probes_have_a_part_for_each_arm(tmp_path, name):
    probed(tmp_path, PROBES[name])
    with rc_context(MATPLOTLIB):
        figure, data = DRAWINGS[name](load_runs(tmp_path))
    assert set(data["arm"]) == {"lenet", "wrn_10_1"}
    if name == "score_scatter":
        row = data[(data["signal"] == "loss") & (data["arm"] == "lenet")].iloc[0]
        assert row["correlation"] == pytest.approx(
            np.corrcoef(PROBES[name][100][0]["loss"], PROBES[name][100][0][NORM])[0, 1]
        )
        assert row["n"] == 2
    elif name == "probability_scatter":
        p, q = (np.array(PROBES[name][100][0][key]) for key in ("loss", NORM))
        expected = ((p / p.sum() - q / q.sum()) ** 2).sum()
        assert data.loc[data["signal"] == "loss", "squared_error"].iloc[0] == pytest.approx(expected)
    elif name == "gradient_variance":
        loss = data[(data["signal"] == "loss") & (data["arm"] == "lenet")]
        np.testing.assert_allclose(loss["mean"], [0.5, 0.55, 0.6])
    else:
        part = data[(data["arm"] == "lenet") & (data["first_epoch"] == 2.0)]
        np.testing.assert_allclose(part["mean"], 0.2 + np.arange(1, 11) / 100)
    assert len([panel for panel in figure.axes if panel.get_xlabel()]) == (4 if "scatter" in name else 2)


def test_overhead_and_gain_are_over_uniform_and_between_looks(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "uniform", seed, falling(0.01), arm="uniform", **EPOCHS)
        slow = [(1.25 * t, error) for t, error in falling(0.01)]
        write_run(tmp_path, "rais", seed, slow, arm="rais", gain=1.5, update_seconds=0.125, **EPOCHS)
    with rc_context(MATPLOTLIB):
        _, data = DRAWINGS["overhead_and_gain"](load_runs(tmp_path))
    rais = data[data["arm"] == "rais"]
    np.testing.assert_allclose(rais.loc[rais["quantity"] == "gain_percent", "mean"], 50)
    np.testing.assert_allclose(rais.loc[rais["quantity"] == "overhead_percent", "mean"], 25)
    reach = data[data["axis"] == "epochs_equivalent"].groupby("arm")["x"].max()
    assert reach["rais"] / reach["uniform"] == pytest.approx(1.5)


def test_an_overhead_that_was_not_timed_has_no_empty_panel(tmp_path):
    for arm, gain in (("uniform", 1.0), ("rais", 1.5)):
        write_run(tmp_path, arm, 0, falling(0.01), arm=arm, gain=gain, concurrent_runs=2, **EPOCHS)
    with rc_context(MATPLOTLIB):
        figure, data = DRAWINGS["overhead_and_gain"](load_runs(tmp_path))
    assert len(figure.axes) == data["quantity"].nunique() == 2 and all(panel.lines for panel in figure.axes)


def test_seconds_of_a_shared_machine_are_not_drawn(tmp_path):
    grid(tmp_path)
    grid(tmp_path / "shared", seeds=1, dataset={"name": "mnist"})
    write_run(tmp_path, "uniform", 1, falling(0.01), arm="uniform", concurrent_runs=2, **EPOCHS)
    with rc_context(MATPLOTLIB):
        figure, data = DRAWINGS["curves"](load_runs(tmp_path))
    counts = data[data["arm"] == "uniform"].groupby(["dataset", "axis"])["n"].first()
    assert counts["mnist5k", "train_seconds"] == 1 and counts["mnist5k", "epoch"] == 2
    assert sum("shared the machine" in panel.get_title() for panel in figure.axes) == 3


def test_the_ends_of_arms_are_drawn_in_the_order_of_their_errors(tmp_path):
    write_run(tmp_path, "uniform", 0, falling(0.01, final=3), status=None, arm="uniform", **EPOCHS)
    with rc_context(MATPLOTLIB):
        figure, data = DRAWINGS["ends"](load_runs(tmp_path))
        figure.savefig(tmp_path / "no_run_has_ended.png")
    assert data.empty
    grid(tmp_path)
    with rc_context(MATPLOTLIB):
        figure, data = DRAWINGS["ends"](load_runs(tmp_path))
    assert data["arm"].tolist() == ["rais", "uniform"] and set(data["n"]) == {2}
    np.testing.assert_allclose(data["mean"], [100 * (0.7 * 0.69) ** 0.5, 100 * (0.8 * 0.79) ** 0.5], rtol=1e-5)
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["RAIS", "Uniform"]


def test_unknown_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="collect its runs first"):
        read_results(tmp_path)
