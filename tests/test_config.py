"""The configuration: choices compose and fit their constructors, combinations build or say why not, identity holds."""

import inspect
import itertools
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import yaml

from isbench.build import build, initial_model, load_source
from isbench.config import (
    CHOSEN,
    DATA_OPTIONS,
    GROUPS,
    MOVED,
    BudgetConfig,
    default_data_dir,
    on_device,
    recorded,
    run_folder,
    run_id,
)
from isbench.data.augment import Augmentation
from isbench.data.resident import ResidentDataset
from isbench.errors import ConfigError, Incompatible
from isbench.nodes import config_folder, locate
from isbench.recording.record import UNIT_COLUMNS
from tests.conftest import SAMPLERS, TINY, TickClock, compose_config, tiny_overrides, train_once

CHOICES = {
    group: sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
    for group in GROUPS[:-2]  # the others, launcher and experiment, are for grids
}
SHAPES = {"mnist": [1, 28, 28], "cifar": [3, 32, 32], "mit67": [3, 224, 224], "pixels": [784, 1]}


def test_the_promised_choices_exist() -> None:
    assert set(CHOICES["dataset"]) == set(
        "mnist5k mnist fashion_mnist rot_mnist pixel_mnist svhn cifar10 cifar100 mit67 image_folder synthetic".split()
    )
    assert set(CHOICES["model"]) == set(
        "lenet convnet cnn7 wrn_28_2 resnet18 preact_resnet18 resnet50 lstm mlp efficientnet_lite0".split()
    )
    assert {"uniform", "loss", "upper_bound", "gradient_norm"} <= set(CHOICES["sampler"])
    assert set(CHOICES["schedule"]) == set("step cosine linear exponential inverse_square_root constant".split())


def test_one_list_of_groups() -> None:
    defaults = yaml.safe_load((config_folder() / "config.yaml").read_text())["defaults"]
    named = [key for item in defaults if isinstance(item, dict) for key in item if not key.startswith("override ")]
    assert [key for key in named if "@" not in key] == list(GROUPS)  # a key with @ puts a choice of a group elsewhere
    assert {path.name for path in config_folder().iterdir() if path.is_dir()} == {*GROUPS, "base", "hydra"}


def test_each_unit_of_a_budget_has_its_column() -> None:
    assert get_args(get_type_hints(BudgetConfig)["unit"]) == tuple(UNIT_COLUMNS)


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g, choices in CHOICES.items() for c in choices])
def test_every_choice_composes_and_binds(group: str, choice: str) -> None:
    config = compose_config(f"{group}={choice}")
    node = getattr(config, group)
    if isinstance(node, dict) and "_target_" in node:
        assert node["name"] == choice
        parameters = inspect.signature(locate(node["_target_"])).parameters
        assert set(node) - {"name", "_target_", *DATA_OPTIONS} <= set(parameters)


@pytest.mark.parametrize("path", sorted(config_folder().rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_says_what_it_is(path: Path) -> None:
    if path.relative_to(config_folder()).parts[0] != "hydra":
        comments = [line for line in path.read_text().splitlines() if line.startswith("# ") and "@package" not in line]
        assert comments and len(comments[0]) <= 110


@pytest.mark.parametrize("combination", list(itertools.product(CHOICES["dataset"], CHOICES["model"])), ids="-".join)
def test_every_combination_composes(combination: tuple[str, str]) -> None:
    dataset, model = combination
    folder = run_folder(compose_config(f"dataset={dataset}", f"model={model}"))
    assert folder.parent.name == f"{dataset}-{model}"


@pytest.mark.parametrize("model", CHOICES["model"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_model_takes_a_shape_or_says_why_not(shape: str, model: str) -> None:
    """What a model accepts depends on the data set's shape alone, so four shapes stand for the ten data sets."""
    if model == "efficientnet_lite0":
        pytest.importorskip("timm")
    config = compose_config(
        "dataset=synthetic", f"dataset.shape={SHAPES[shape]}", "dataset.num_examples=20", f"model={model}"
    )
    source = load_source(config.dataset, config.data_dir)
    dataset = ResidentDataset(source, Augmentation(), torch.device("cpu"))
    try:
        network = initial_model(config.model, dataset, seed=0)
    except Incompatible as reason:
        assert "\n" not in str(reason) and len(str(reason)) > 20
        return
    if shape != "mit67" or model in ("lenet", "mlp"):  # large images are slow on the CPU; building them is proof enough
        inputs, _ = dataset.plain(torch.arange(2))
        assert network.eval()(inputs).shape == (2, dataset.num_classes)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gradients_reach_every_model_through_every_sampler(sampler: str) -> None:
    """One update of each small model; the larger ones differ in size only."""
    for model, shape in (("lenet", [1, 28, 28]), ("lstm", [6, 2]), ("cnn7", [1, 28, 28])):
        overrides = [o for o in tiny_overrides(sampler) if not o.startswith("model")]
        config = compose_config(*overrides, f"model={model}", f"dataset.shape={shape}")
        try:
            parts = build(config, torch.device("cpu"), TickClock())
        except Incompatible as reason:
            assert "\n" not in str(reason)
            continue
        before = [p.clone() for p in parts.model.parameters()]
        train_once(parts, 0.1)
        assert any(not torch.equal(a, b) for a, b in zip(before, parts.model.parameters(), strict=True))


def test_the_same_choice_is_the_same_run() -> None:
    base = compose_config(*TINY)
    assert run_id(base) == run_id(compose_config(*TINY))
    for override in (
        "logging=offline",
        "runs_dir=elsewhere",
        "data_dir=elsewhere",
        "group=mine",
        "checkpoint.seconds=1",
        "arm=mine",
        "probe=none",
    ):
        assert run_id(base) == run_id(compose_config(*TINY, override)), override
    others = (
        "seed=1",
        "batch_size=8",
        "optimizer.lr=0.5",
        "sampler=loss",
        "dataset.num_examples=200",
        "model.hidden=[17]",
        "schedule=constant",
        "augmentation=crop",
        "budget.limit=41",
        "numerics=fast",
        "label_smoothing=0.1",
        "clip_norm=1",
        "slots=500",
        "evaluation.points=7",
        "probe=scores",
        "probe=loss_patterns",
    )
    ids = {override: run_id(compose_config(*TINY, override)) for override in others}
    assert len({run_id(base), *ids.values()}) == len(others) + 1, ids
    assert run_id(replace(base, device="cuda")) != run_id(replace(base, device="cpu"))


def test_what_does_not_change_a_run_does_not_change_its_id() -> None:
    def same(one: list[str], other: list[str]) -> bool:
        return run_id(compose_config(*one)) == run_id(compose_config(*other))

    assert same(["dataset=cifar10"], ["dataset=cifar10", "dataset.download=true"])
    assert same(["optimizer.lr=1"], ["optimizer.lr=1.0"])
    assert same(["budget=smoke"], ["budget.unit=epochs", "budget.limit=2"])
    assert not same(["sampler=p_sgd"], ["sampler=c_sgd"])


@pytest.mark.parametrize("module", MOVED)
def test_a_module_that_moved_is_found_and_hashed_under_its_old_name(module: str) -> None:
    moved = 0
    for group in CHOSEN:
        for choice in CHOICES[group]:
            config = compose_config(f"{group}={choice}")
            node = getattr(config, group)
            if node["_target_"].startswith(f"{module}."):
                old = node["_target_"].replace(module, MOVED[module])
                assert locate(old) is locate(node["_target_"])
                assert run_id(replace(config, **{group: {**node, "_target_": old}})) == run_id(config)
                moved += 1
    assert moved


def test_a_run_from_before_a_module_moved_has_its_id() -> None:
    assert run_id(compose_config("dataset=cifar10")) == "7de2d393"


def test_paths_are_not_recorded() -> None:
    assert not {"data_dir", "runs_dir"} & set(recorded(compose_config()))


def test_data_dir_comes_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("ISBENCH_DATA", "/somewhere")
    assert compose_config().data_dir == "/somewhere" == default_data_dir()
    monkeypatch.delenv("ISBENCH_DATA")
    assert compose_config().data_dir == "data"


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("seed=-1", "seed=-1"),
        ("batch_size=0", "batch_size=0"),
        ("label_smoothing=1", "label_smoothing"),
        ("clip_norm=0", "clip_norm"),
        ("budget.unit=minutes", "valid: epochs, examples, seconds, updates"),
        ("budget.limit=0", "budget.limit"),
        ("budget.limit=inf", "budget.limit"),
        ("budget.limit=nan", "budget.limit"),
        ("evaluation.points=0", "evaluation.points"),
        ("numerics.threads=0", "numerics.threads"),
        ("numerics.threads=100000", "numerics.threads"),
        ("budget.limit=1e-310", "budget.limit"),
        ("logging.timeout_seconds=inf", "logging.timeout_seconds"),
        ("group=../elsewhere", "group"),
        ("group=/elsewhere", "group"),
        ("sampler.name=../evil", "sampler.name"),
        ("device=tpu", "device=tpu: valid: auto, cpu, cuda"),
        ("+nope=1", "unknown key nope"),
    ],
)
def test_values_out_of_range_are_refused(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint.replace(".", r"\.")):
        compose_config(override)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["sampler=loss", "sampler.pool_size=8"], "sampler.pool_size=8 is smaller than batch_size=16"),
        (["sampler=loss", "sampler.pool_size=500"], "larger than the training set"),
        (["sampler=loss", "sampler.pool_size=many"], "sampler.pool_size=many"),
        (["sampler=loss", "sampler.signal=charm"], "sampler.signal=charm: valid: last_layer_gradient_norm, "),
        (["batch_size=161"], "batch_size=161 is larger than the training set"),
        (["+sampler.wrong=3"], "unknown key sampler.wrong"),
        (["optimizer.lr=-1"], "optimizer"),
        (["optimizer.lr=nan"], "optimizer.lr=nan"),
        (["optimizer.lr=true"], "optimizer.lr=True"),
        (["optimizer=adam", "optimizer.betas=[0.9]"], "optimizer.betas=[0.9]: must have at least 2 items"),
        (["optimizer.weight_decay=-1"], "optimizer.weight_decay=-1: must be greater than or equal to 0"),
        (["schedule=step", "schedule.milestones=[0.5,2]"], "schedule.milestones=[0.5, 2]: must be less than 1"),
        (["schedule=step", "schedule.milestones=[0.8,0.4]"], "schedule.milestones=[0.8, 0.4]: must rise"),
        (
            ["model._target_=isbench.models.cnn.CNN7", "~model.hidden", "+model.norm=lyer"],
            "model.norm=lyer: valid: ",
        ),
        (["augmentation=crop", "augmentation.pixels=-1"], "augmentation.pixels=-1: must be"),
        (["dataset.shape=[]"], "dataset.shape=(): must have at least 1 item, not 0"),
        (["schedule=exponential", "schedule.factor=0", "schedule.drops=-10"], "schedule"),
        (["schedule=inverse_square_root", "schedule.span=-5"], "schedule"),
        (["model.hidden=[-1]"], "model.hidden=[-1]: must be greater than or equal to 1"),
        (["optimizer.decayed=some"], "optimizer.decayed=some: valid: all, kernels"),
        (["sampler._target_=isbench.samplers.nothing"], "_target_=isbench.samplers.nothing"),
    ],
)
def test_impossible_choices_are_refused_while_building(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(compose_config(*TINY, *overrides), torch.device("cpu"), TickClock())
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_choices_that_do_not_go_together_say_why() -> None:
    with pytest.raises(Incompatible) as error:
        build(
            compose_config("dataset=synthetic", "model=lenet", "dataset.shape=[20,1]"), torch.device("cpu"), TickClock()
        )
    assert "\n" not in str(error.value)


def test_what_is_left_open_is_chosen_by_the_device_and_part_of_the_identity() -> None:
    fast = compose_config("numerics=fast")
    gpu, shared, cpu = on_device(fast, "cuda"), on_device(fast, "cuda", is_alone=False), on_device(fast, "cpu")
    chosen = [(run.device, run.numerics.engine, run.numerics.precision) for run in (gpu, shared, cpu)]
    assert chosen == [
        ("cuda", "compiled_graphed", "bfloat16"),
        ("cuda", "eager", "bfloat16"),
        ("cpu", "eager", "float32"),
    ]
    named = compose_config("numerics=fast", "numerics.engine=compiled_graphed", "numerics.precision=bfloat16")
    assert run_id(gpu) == run_id(on_device(named, "cuda")) != run_id(shared)
    assert on_device(gpu, "cuda") == gpu
