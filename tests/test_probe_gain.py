"""The true gain ratio, against gradients that are taken here."""

import torch

from isbench.probes.gain import Gain
from isbench.types import Draw
from tests.conftest import build_parts, tiny_overrides, train_parts


def test_gain_is_the_ratio_of_mean_squared_gradients() -> None:
    """At frozen weights, beside gradients that are taken here; without a method the ratio is one."""
    choices = ("budget.limit=80", "optimizer.weight_decay=0.01", "sampler.outlier_threshold=null")
    parts = build_parts(*tiny_overrides("rais"), *choices)
    train_parts(parts)
    probe = Gain(batches=400)
    probe.allocate(parts)
    (row,) = probe.measure(parts)
    assert row["acts"] and row["estimated"] == parts.sampler.gain()
    squares: dict[str, list[float]] = {"uniform": [], "rais": []}
    for _ in range(400):
        draw = parts.sampler.draw()
        plain = Draw(parts.workspace.fetch(parts.workspace.uniform(16)), torch.ones(16), draw.memo)
        for name, drawn in (("uniform", plain), ("rais", draw)):
            squares[name].append(float(parts.step.compute_gradient(drawn)["gradient_norm"]) ** 2)
    ratio = sum(squares["uniform"]) / sum(squares["rais"])
    assert ratio > 1.2, "the test needs something to gain"
    assert abs(row["true"] - ratio) < 4 * row["true_error"] < ratio

    parts = build_parts(*tiny_overrides("uniform"))
    probe = Gain(batches=100)
    probe.allocate(parts)
    (row,) = probe.measure(parts)
    assert row["estimated"] == 1 and abs(row["true"] - 1) < 4 * row["true_error"] < 0.5
