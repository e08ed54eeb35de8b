"""The published tables and figures: each is one yaml and one row of the inventory, and every run of it can be had."""

from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from isbench.config import (
    CHOSEN,
    BudgetConfig,
    EvaluationConfig,
    LoggingConfig,
    NumericsConfig,
    RunConfig,
    check_arguments,
    config_folder,
    locate,
)
from isbench.grid.jobs import Job, compose_grid
from isbench.recording.record import UNIT_COLUMNS
from isbench.report.claims import QUANTITIES
from isbench.report.drawings import DRAWINGS
from isbench.report.inventory import INVENTORY, Experiment
from isbench.run import run
from tests.conftest import TINY_POOLS
from tests.pretend_gpu import pretend_gpu

FOLDER = config_folder() / "experiment"
PAPERS = ("sgds", "is", "impon", "rais")
# What the program adds to the values of a yaml.
GIVEN = {"dataset": {"data_dir"}, "model": {"input_shape", "num_classes"}, "optimizer": {"model"}}
PROBES = {
    "correlation": "scores",
    "squared_error_ratio": "scores",
    "relative_variance": "gradient_variance",
    "share": "loss_patterns",
}
# Networks and samplers that another experiment brings together too.
SAME_PATHS = {
    "is_cifar100",
    "is_pool_size",
    "impon_svhn",
    "impon_cifar100",
    "impon_bank_size",
    "rais_svhn",
    "rais_cifar100",
}
SHAPES = {
    "cifar10": [3, 16, 16],
    "cifar100": [3, 16, 16],
    "svhn": [3, 16, 16],
    "mit67": [3, 32, 32],
    "pixel_mnist": [20, 1],
}

every_experiment = pytest.mark.parametrize("experiment", INVENTORY, ids=lambda experiment: experiment.id)


def yaml_of(experiment: Experiment) -> Path:
    return FOLDER / experiment.paper / f"{experiment.id}.yaml"


@lru_cache
def jobs_of(experiment: Experiment) -> list[Job]:
    """Compose and check every run of an experiment."""
    return compose_grid([f"experiment={experiment.paper}/{experiment.id}"])[1]


def test_inventory_and_yamls_are_the_same_list() -> None:
    files = [path for paper in PAPERS for path in (FOLDER / paper).iterdir()]
    assert sorted(files) == sorted(map(yaml_of, INVENTORY))
    assert len({experiment.id for experiment in INVENTORY}) == len(INVENTORY)
    assert [PAPERS.index(each.paper) for each in INVENTORY] == sorted(PAPERS.index(each.paper) for each in INVENTORY)


@every_experiment
def test_the_yaml_says_what_it_is_how_to_run_it_and_what_it_costs(experiment: Experiment) -> None:
    package, title, command, cost, *_ = yaml_of(experiment).read_text().splitlines()
    assert package == "# @package _global_" and len(title) > 20
    assert command == f"# python -m isbench -m experiment={experiment.paper}/{experiment.id}"
    assert cost.startswith("# cost: ")
    assert ("a GPU" in cost) == ("a GPU" in experiment.needs)


@every_experiment
def test_every_run_belongs_to_its_experiment_and_fits_its_constructors(experiment: Experiment) -> None:
    jobs = jobs_of(experiment)
    assert {job.config.group for job in jobs} == {experiment.id}
    assert all(job.config.arm for job in jobs)
    assert {job.config.numerics.engine for job in jobs} == {"auto" if "a GPU" in experiment.needs else "eager"}
    seeds = [{job.config.seed for job in jobs if job.arm == arm} for arm in dict.fromkeys(job.arm for job in jobs)]
    assert all(own == seeds[0] for own in seeds)
    for job in jobs:
        for group in CHOSEN:
            node = getattr(job.config, group)
            target = locate(node["_target_"])
            arguments = {key: value for key, value in node.items() if key not in ("name", "_target_", "residency")}
            values = check_arguments(group, target, arguments, GIVEN.get(group, ()))
            if group not in GIVEN:  # made without data or network
                target(**values)


@every_experiment
def test_claims_can_be_measured_on_the_axis_that_is_held_equal(experiment: Experiment) -> None:
    jobs = jobs_of(experiment)
    arms = {job.arm for job in jobs}
    (unit,) = {job.config.budget.unit for job in jobs}
    assert experiment.figure in DRAWINGS
    for claim in experiment.claims:
        name, *arguments = claim.quantity.split(":")
        assert claim.arm in arms and claim.axis in UNIT_COLUMNS
        if QUANTITIES[name].is_paired:
            assert claim.baseline in arms
            assert claim.axis == unit or name == "time_overhead"
        if name in PROBES:
            assert {job.config.probe["name"] for job in jobs} == {PROBES[name]}
            assert all(set(arguments) <= set(job.config.probe.get("signals", arguments)) for job in jobs)


def reduced(config: RunConfig, folder: Path) -> RunConfig:
    """Return a run of three updates on a few synthetic examples, which reads no file."""
    dataset = {
        "name": "synthetic",
        "_target_": "isbench.data.readers.synthetic",
        "num_examples": 64,
        "num_test": 8,
        "shape": SHAPES.get(config.dataset["name"], [1, 28, 28]),
    }
    sizes: dict[str, Any] = {key: int(value) for key, value in TINY_POOLS.items()}
    sizes |= {"batch_size": 8, "repeats": 2, "examples": 16, "count": 4}
    plain = {"weights": None, "pretrained": False, "freeze_norm_statistics": False, "side": 32}
    return replace(
        config,
        dataset=dataset,
        model={key: plain.get(key, value) for key, value in config.model.items()},
        sampler={key: sizes.get(key, value) for key, value in config.sampler.items()},
        probe={key: sizes.get(key, value) for key, value in config.probe.items()},
        batch_size=8,
        slots=config.slots and 100,
        budget=BudgetConfig(unit="updates", limit=3),
        evaluation=EvaluationConfig(points=1, train_examples=16),
        numerics=NumericsConfig(threads=1, engine=config.numerics.engine),
        logging=LoggingConfig(mode="off"),
        runs_dir=str(folder),
        device="auto",
    )


@pytest.mark.parametrize(
    "experiment", [each for each in INVENTORY if each.id not in SAME_PATHS], ids=lambda experiment: experiment.id
)
def test_every_network_takes_updates_with_every_sampler_it_meets(experiment: Experiment, tmp_path, monkeypatch) -> None:
    configs = [job.config for job in jobs_of(experiment)]
    for config in {(config.model["name"], config.sampler["_target_"]): config for config in configs}.values():
        if config.model["name"] == "efficientnet_lite0":
            pytest.importorskip("timm")
        with pretend_gpu(monkeypatch) if "a GPU" in experiment.needs else nullcontext():
            outcome = run(reduced(config, tmp_path))
        assert outcome.status == "finished", outcome.reason
