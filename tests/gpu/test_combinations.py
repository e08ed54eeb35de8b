"""A few updates of every sampler, network, engine, precision, residency and probe on a GPU."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isbench.recording.record import read_rows
from isbench.run import run
from tests.conftest import SAMPLERS, compose_config
from tests.gpu.conftest import IS_PRETENDED, needs_a_real_one, on_a_gpu

pytestmark = on_a_gpu

UPDATES = 2 if IS_PRETENDED else 20
AUTO = ("numerics.engine=graphed", "numerics.precision=tf32")
BFLOAT16 = ("numerics.engine=graphed", "numerics.precision=bfloat16")
DIGITS = ("dataset=mnist5k", "model=lenet")
IMAGES = ("dataset=synthetic", "dataset.num_examples=4000", "dataset.num_test=500", "dataset.shape=[3,32,32]")
CROPPED = (*IMAGES, "augmentation=flip_crop")
SEQUENCES = ("dataset=synthetic", "dataset.num_examples=4000", "dataset.shape=[784,1]", "model=lstm", "clip_norm=1")
FAST = ("numerics=fast", *(["numerics.engine=graphed"] if IS_PRETENDED else []))  # a CPU compiles these for long
RAIS = ("sampler=rais", "sampler.fit_examples=1000")
OPEN_GATE = ("sampler=upper_bound", "sampler.tau_threshold=0")
TOO_SLOW = ("oracle", "gradient_norm")  # for a wide network: they differentiate each example


def words_of(sampler: str) -> tuple[str, ...]:
    return RAIS if sampler == "rais" else (f"sampler={sampler}",)


CASES: dict[str, tuple[str, ...]] = {
    **{f"lenet, {sampler}": (*DIGITS, *words_of(sampler), *AUTO) for sampler in SAMPLERS},
    **{
        f"wrn_28_2, {sampler}, bfloat16": (*CROPPED, "model=wrn_28_2", *words_of(sampler), *BFLOAT16)
        for sampler in SAMPLERS
        if sampler not in TOO_SLOW
    },
    **{
        f"{model}, open gate": (*CROPPED, f"model={model}", *OPEN_GATE, *AUTO)
        for model in ("resnet18", "preact_resnet18", "resnet50", "convnet")
    },
    **{
        f"{model}, rais, batch norm, {precision[1]}": (*CROPPED, f"model={model}", *norm, *RAIS, *precision)
        for model, norm in (("preact_resnet18", ()), ("wrn_28_2", ("model.norm=batch",)))
        for precision in (AUTO, BFLOAT16)
    },
    **{
        f"{' '.join(words)}, as the experiments": (*CROPPED, *words, *sampler, *FAST)
        for words, sampler in (
            (("model=wrn_28_2",), OPEN_GATE),
            (("model=wrn_28_2", "model.norm=batch"), ("sampler=screen",)),
            (("model=preact_resnet18",), RAIS),
            (("model=resnet18",), ("sampler=impon",)),
        )
    },
    "cnn7, rais, rotation": (
        *IMAGES[:2],
        "dataset.shape=[1,28,28]",
        "model=cnn7",
        *RAIS,
        "augmentation=rotation",
        *AUTO,
    ),
    "lstm": (*SEQUENCES, "batch_size=32", "optimizer=adam", *AUTO),
    "lstm, open gate": (*SEQUENCES, "batch_size=32", "optimizer=adam", *OPEN_GATE, "sampler.pool_size=128", *AUTO),
    "default numerics": DIGITS,
    "numerics=fast": (*DIGITS, "numerics=fast"),
    "compiled": (*DIGITS, "numerics.engine=compiled"),
    "compiled_graphed, open gate": (*DIGITS, *OPEN_GATE, "numerics.engine=compiled_graphed", BFLOAT16[1]),
    "slots": (*IMAGES, "augmentation=shift_flip", "slots=20000", "model=wrn_28_2", "sampler=prioritized", *AUTO),
    "residency host": (*CROPPED, "dataset.residency=host", "model=resnet18", "sampler=upper_bound", *AUTO),
    "residency disk": (*CROPPED, "dataset.residency=disk", "model=resnet18", "sampler=upper_bound", *AUTO),
    "smoothed, adam, clipped": (
        *CROPPED,
        "model=resnet18",
        "label_smoothing=0.1",
        "optimizer=adam",
        "optimizer.lr=0.001",
        "clip_norm=1",
        *AUTO,
    ),
    "gate measured": (*CROPPED, "model=wrn_28_2", "sampler=upper_bound", "sampler.gate=measured", *AUTO),
    **{f"probe {probe}": (*DIGITS, f"probe={probe}", *AUTO) for probe in ("scores", "gradient_variance")},
    "probe draws": (*DIGITS, *RAIS, "probe=draws", *AUTO),
    "probe loss_patterns": (*DIGITS, "probe=loss_patterns", *AUTO),
}


COMPILED = ("numerics=fast", "compiled", "compiled_graphed, open gate")  # the compiler asks for a driver


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_a_real_one if n in COMPILED else ()) for n in CASES])
def test_a_few_updates(name: str, tmp_path: Path) -> None:
    places = (f"runs_dir={tmp_path}", f"data_dir={tmp_path}")
    budget = ("budget.unit=updates", f"budget.limit={UPDATES}", "evaluation.points=2")
    outcome = run(replace(compose_config(*CASES[name], *budget, *places, "logging=off"), device="cuda"))
    assert outcome.status == "finished", outcome.reason
    rows = read_rows(outcome.folder / "record.jsonl")
    looks = [row for row in rows if row["kind"] == "evaluation"]
    assert looks[-1]["updates"] == UPDATES
    assert all(math.isfinite(row[key]) for row in looks for key in ("train_loss", "test_loss", "test_error"))
    assert rows[0]["environment"]["gpu"] == torch.cuda.get_device_properties(0).name
    assert ("probe" in name) == any(row["kind"] == "probe" for row in rows)
