"""The published tables and figures: each is one yaml, what it says of itself holds, and every run of it can be had."""

from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from isbench.config import (
    CHOSEN,
    DATA_OPTIONS,
    BudgetConfig,
    EvaluationConfig,
    LoggingConfig,
    NumericsConfig,
    RunConfig,
)
from isbench.errors import ConfigError
from isbench.explain import choices
from isbench.grid.jobs import Job, check_distinct, compose_grid
from isbench.nodes import check_arguments, config_folder, locate
from isbench.recording.record import UNIT_COLUMNS
from isbench.report.claims import QUANTITIES
from isbench.report.drawings import DRAWINGS
from isbench.report.inventory import PAPERS, Experiment, experiments, read, target_of
from isbench.run import run
from tests.conftest import TINY_POOLS
from tests.pretend_gpu import pretend_gpu

FOLDER = config_folder() / "experiment"
# What the program adds to the values of a yaml.
GIVEN = {"dataset": {"data_dir"}, "model": {"input_shape", "num_classes"}, "optimizer": {"model"}}
SHAPES = {
    "cifar10": [3, 16, 16],
    "cifar100": [3, 16, 16],
    "svhn": [3, 16, 16],
    "mit67": [3, 32, 32],
    "pixel_mnist": [20, 1],
}

every_experiment = pytest.mark.parametrize("experiment", experiments(), ids=lambda experiment: experiment.id)


def yaml_of(experiment: Experiment) -> Path:
    return FOLDER / experiment.paper / f"{experiment.id}.yaml"


@lru_cache
def composed(choice: str) -> list[Job]:
    return compose_grid([f"experiment={choice}"])[1]


def jobs_of(experiment: Experiment) -> list[Job]:
    """Compose and check every run of an experiment."""
    return composed(f"{experiment.paper}/{experiment.id}")


def test_every_yaml_is_an_experiment_of_a_paper_in_the_order_of_the_papers() -> None:
    known = [f"{experiment.paper}/{experiment.id}" for experiment in experiments()]
    assert sorted(known) == [choice for choice in choices("experiment") if choice != "demo"]
    assert list(dict.fromkeys(experiment.paper for experiment in experiments())) == list(PAPERS)
    assert known.index("is/is_pixel_mnist") < known.index("is/is_pool_size"), "Figure 9, then Figure 10"


@pytest.mark.parametrize("choice", choices("experiment"))
def test_every_experiment_is_a_grid_of_distinct_runs(choice: str) -> None:
    jobs = composed(choice)
    check_distinct(jobs)
    assert {job.config.group for job in jobs} == {choice.rpartition("/")[2]}


@every_experiment
def test_the_yaml_says_what_it_shows_and_where_its_cost_was_measured(experiment: Experiment) -> None:
    package, title, first, *_ = yaml_of(experiment).read_text().splitlines()
    assert package == "# @package _global_" and title == f"# {experiment.shows}" and not first.startswith("#")
    assert 20 < len(experiment.shows) < 112
    assert ("core" in experiment.cost.machine) != ("a GPU" in experiment.needs)


def test_what_is_inherited_is_merged_field_by_field() -> None:
    known = {experiment.id: experiment for experiment in experiments()}
    published = {
        name: {claim.text: claim.published for claim in known[name].claims} for name in ("is_cifar10", "is_cifar100")
    }
    assert list(published["is_cifar10"]) == list(published["is_cifar100"])
    loss, error = list(published["is_cifar10"])[:2]
    assert (published["is_cifar10"][loss], published["is_cifar10"][error]) == (10, None)
    assert (published["is_cifar100"][loss], published["is_cifar100"][error]) == (None, 1.053)
    assert known["impon_cifar10_small"].remarks["settings"].startswith("Batch size 128"), "of the base"
    assert known["impon_cifar10_small"].remarks["size"].endswith("for ResNet-18 and 30."), "its own"


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("figure:", "figur:", "x.yaml: about.figur: unexpected keyword argument"),
        ("minutes: 9", "minutes: few", "x.yaml: about.cost.minutes: input should be a valid number"),
        ("arm: lenet", "arms: lenet", "x.yaml: about.claims.the norms, LeNet-5.arm"),
        ("quantity: correlation", "quantity: corelation", "quantity corelation: did you mean correlation?"),
        ("y: logit", "z: logit", "x.yaml: about.claims.the norms, LeNet-5: value error, of: "),
        (
            "arm: lenet}",
            "arm: lenet, smallest: 0.5}",
            "x.yaml: about: value error, one of the claims that can be judged",
        ),
        ("{minutes: 9", "{minutes: 9]", "x.yaml: about: while parsing a flow mapping"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_key(before: str, after: str, complaint: str, tmp_path: Path) -> None:
    text = """# @package _global_
# Figure 1: norms
defaults:
  - /base/one_core

hydra:
  sweeper:
    about: |
      figure: score_scatter
      cost: {minutes: 9}
      claims:
        the norms, LeNet-5: {quantity: correlation, of: {x: loss, y: logit_gradient_norm}, arm: lenet}
"""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert read(path).cost.machine == "one core"
    path.write_text(text.replace(before, after))
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


@every_experiment
def test_every_run_belongs_to_its_experiment_and_fits_its_constructors(experiment: Experiment) -> None:
    jobs = jobs_of(experiment)
    assert {job.config.group for job in jobs} == {experiment.id}
    assert all(job.config.arm for job in jobs)
    assert all((job.config.numerics.engine == "eager") != ("a GPU" in experiment.needs) for job in jobs)
    seeds = [{job.config.seed for job in jobs if job.arm == arm} for arm in dict.fromkeys(job.arm for job in jobs)]
    assert all(own == seeds[0] for own in seeds)
    for job in jobs:
        for group in CHOSEN:
            node = getattr(job.config, group)
            target = locate(node["_target_"])
            others = ("name", "_target_", *DATA_OPTIONS)
            arguments = {key: value for key, value in node.items() if key not in others}
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
        quantity = QUANTITIES[claim.quantity]
        budgets = {arm.rpartition("_")[0] for arm in arms} if quantity.of_budgets else set()
        assert claim.arm in arms | budgets and claim.axis in UNIT_COLUMNS
        if quantity.is_paired:
            assert claim.baseline in arms
            assert claim.axis == unit or quantity.is_timed
        if quantity.probe:
            involved = {claim.arm, claim.baseline} if quantity.is_paired else {claim.arm}
            probes = [job.config.probe for job in jobs if job.arm in involved]
            assert all(probe["name"].startswith(quantity.probe) for probe in probes)
            assert all(set(claim.of.values()) <= set(probe.get("signals", claim.of.values())) for probe in probes)


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
    sizes |= {"batch_size": 8, "repeats": 2, "examples": 16, "count": 4, "batches": 2}
    plain = {"weights": None, "pretrained": False, "freeze_norm_statistics": False, "side": 32}
    return replace(
        config,
        dataset=dataset,
        model={key: plain.get(key, value) for key, value in config.model.items()},
        sampler={key: None if key == "table" else sizes.get(key, value) for key, value in config.sampler.items()},
        probe={key: sizes.get(key, value) for key, value in config.probe.items()},
        batch_size=8,
        slots=config.slots and 100,
        budget=BudgetConfig(unit="updates", limit=3),
        evaluation=EvaluationConfig(points=1, train_examples=16),
        numerics=NumericsConfig(threads=1, engine=config.numerics.engine.removeprefix("compiled_")),  # slow on a CPU
        logging=LoggingConfig(mode="off"),
        runs_dir=str(folder),
        device="auto",
    )


trained: set[str] = set()  # what an experiment before has brought together too, in this process


@every_experiment
def test_every_network_takes_updates_with_every_sampler_it_meets(experiment: Experiment, tmp_path, monkeypatch) -> None:
    for config in (reduced(job.config, tmp_path) for job in jobs_of(experiment)):
        parts = config.dataset["shape"], config.model, config.sampler["_target_"], config.probe, config.augmentation
        path = str((*parts, config.numerics.engine))
        if path in trained:
            continue
        trained.add(path)
        if config.model["name"] == "efficientnet_lite0":
            pytest.importorskip("timm")
        with pretend_gpu(monkeypatch) if "a GPU" in experiment.needs else nullcontext():
            outcome = run(config)
        assert outcome.status == "finished", outcome.reason


def test_the_demo_and_its_results_have_one_target() -> None:
    target = target_of("demo")
    assert f"--target {target:g} " in (config_folder().parent / "Makefile").read_text()
    assert target_of("no_such_grid") is None
