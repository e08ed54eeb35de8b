"""What results/ holds is what the code makes of the collected records: tables and data byte for byte."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from isbench.report.__main__ import main
from isbench.report.claims import QUANTITIES
from isbench.report.values import values

RESULTS = Path(__file__).resolve().parent.parent / "results"
COLLECTED = ("*.parquet", "provenance.json")


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/runs.parquet")))
def test_reports_are_reproduced_from_what_is_collected(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).touch())  # pictures take half of the time
    monkeypatch.setattr("isbench.report.__main__.render_index", lambda *_: "")
    copy = tmp_path / name
    copy.mkdir()
    for pattern in COLLECTED:
        for path in (RESULTS / name).glob(pattern):
            shutil.copy(path, copy)
    assert main([name, "--results", str(tmp_path)]) == 0
    assert {path.name for path in copy.iterdir()} == {path.name for path in (RESULTS / name).iterdir()}
    for path in copy.iterdir():
        if path.suffix in (".md", ".tex", ".csv", ".json"):
            assert path.read_bytes() == (RESULTS / name / path.name).read_bytes(), f"{name}/{path.name}: make report"


def test_the_index_is_there() -> None:
    page = RESULTS / "index.html"
    assert "Does importance sampling make deep nets train faster?" in page.read_text()
    assert page.stat().st_size < 1_000_000, "one file that a phone loads"


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/verdicts.json")))
def test_every_number_follows_from_the_values_by_seed(name: str) -> None:
    kept = values([name], RESULTS)
    for found in json.loads((RESULTS / name / "verdicts.json").read_text()):
        if QUANTITIES[found["quantity"]].of_budgets:
            continue  # test_a_shift_follows_from_the_records
        mine = kept[(kept["claim"] == found["text"]) & (kept["arm"] == found["arm"])] if len(kept) else kept
        assert len(mine) == found["n"], found["text"]
        if not found["n"] or found["misses"] or found["diverged"]:
            continue
        quantity = QUANTITIES[found["quantity"]]
        scaled = np.log(mine["least"]) if quantity.is_ratio else mine["least"] / quantity.scale
        back = np.exp if quantity.is_ratio else np.asarray
        assert found["value"] == pytest.approx(float(back(scaled.mean())), rel=1e-4, abs=1e-9)
        if found["n"] > 1 and scaled.std() > 0:
            interval = back(stats.t.interval(0.95, found["n"] - 1, scaled.mean(), stats.sem(scaled)))
            assert (found["low"], found["high"]) == pytest.approx(tuple(interval), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "name",
    sorted(path.parent.name for path in RESULTS.glob("*/verdicts.json") if "budget_shift" in path.read_text()),
)
def test_a_shift_follows_from_the_records(name: str) -> None:
    """By hand: at the speed-up the seeds' gaps to uniform's curve have mean 0, at a bound their t is the quantile."""
    runs, rows = (pd.read_parquet(RESULTS / name / f"{part}.parquet") for part in ("runs", "evaluations"))
    last = rows.drop_duplicates("run_id", keep="last").set_index("run_id")[["updates", "test_error"]]
    runs = runs.join(last, on="run_id")
    shifts = [each for each in json.loads((RESULTS / name / "verdicts.json").read_text()) if "budget" in each["of"]]
    for found in shifts:

        def gaps(factor: float, found=found) -> np.ndarray:
            each = []
            for _, mine in runs.groupby("seed"):
                curve = mine[mine["arm"].str.startswith("uniform")].sort_values("updates")
                own = mine[mine["arm"].str.match(f"{found['arm']}(_[.0-9]+x)?$")]
                timed = [part[part["alone"]][["seconds", "updates"]].sum() for part in (own, curve)]
                cost = timed[0]["seconds"] / timed[0]["updates"] / (timed[1]["seconds"] / timed[1]["updates"])
                cost = 1 if found["axis"] == "seconds" else cost
                judged = own[own["budget"].eq(found["of"]["budget"])].iloc[0]
                place, places, errors = (
                    np.log(value)
                    for value in (judged[found["axis"]] * cost * factor, curve[found["axis"]], curve["test_error"])
                )
                each.append(np.interp(place, places, errors, np.nan, np.nan) - np.log(judged["test_error"]))
            return np.array(each)

        quantile = stats.t.ppf(0.975, found["n"] - 1)
        if found["value"] is None:  # at least, or at most, what uniform's curve tells
            continue
        assert abs(np.nanmean(gaps(found["value"]))) < 0.01
        for bound, sign in ((found["low"], 1), (found["high"], -1)):
            if np.isfinite(bound or np.inf) and not np.isnan(gaps(bound)).any():
                t = gaps(bound).mean() / stats.sem(gaps(bound))
                assert t == pytest.approx(sign * quantile, rel=0.05), "a bound between two factors tested"


def test_the_lines_that_recompute_a_number_do() -> None:
    lines = re.findall(r"^    (python .*)$", (RESULTS / "README.md").read_text(), re.MULTILINE)
    assert len(lines) == 2
    by_claim, by_hand = (
        subprocess.run(
            [sys.executable, *shlex.split(line)[1:]], cwd=RESULTS.parent, capture_output=True, text=True, check=True
        ).stdout
        for line in lines
    )
    (found,) = [
        each for each in json.loads((RESULTS / "rais_rot_mnist" / "verdicts.json").read_text()) if each["primary"]
    ]
    seeds = [float(line.split(",")[-1]) for line in by_claim.splitlines() if found["text"] in line]
    assert len(seeds) == found["n"] and np.mean(seeds) == pytest.approx(found["value"], rel=1e-4)
    assert [float(number) for number in by_hand.split()] == pytest.approx(seeds, rel=1e-4)
