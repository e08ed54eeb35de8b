"""The same command always finds the same run in results/, whatever has moved in the code since."""

from pathlib import Path

import pandas as pd
import pytest

from isbench import config
from isbench.config import config_folder, run_id
from isbench.grid.jobs import compose_grid
from tests.conftest import compose_config

RESULTS = Path(__file__).resolve().parent.parent / "results"
EXPERIMENTS = {path.stem: path for path in (config_folder() / "experiment").rglob("*.yaml")}


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob("*/runs.parquet")), ids=lambda p: p.name)
def test_every_run_in_results_is_one_of_its_experiment(folder: Path) -> None:
    choice = EXPERIMENTS[folder.name].relative_to(config_folder() / "experiment").with_suffix("")
    _, jobs = compose_grid([f"experiment={choice}"])
    possible = {(job.arm, job.config.seed): job.ids for job in jobs}
    kept = pd.read_parquet(folder / "runs.parquet", columns=["run_id", "arm", "seed"])
    for run in kept.itertuples():
        assert run.run_id in possible[run.arm, run.seed]


def test_an_option_that_came_later_stays_out_of_the_identity_at_its_old_behaviour(monkeypatch) -> None:
    before = compose_config("sampler=rais")
    old, new = (compose_config("sampler=rais", f"+sampler.novel={value}") for value in ("false", "true"))
    assert len({run_id(run) for run in (before, old, new)}) == 3
    monkeypatch.setitem(config.ADDED, "isbench.samplers.rais.RAIS", {"novel": False})
    assert run_id(old) == run_id(before) != run_id(new)
    elsewhere = compose_config("sampler=uniform", "+sampler.novel=false")
    assert run_id(elsewhere) != run_id(compose_config("sampler=uniform")), "an option is one target's own"
