"""The training step against a loop written by hand, and what it reports."""

import math

import pytest
import torch
from torch.nn import functional as F

from isbench.errors import Diverged
from isbench.models.cnn import LeNet
from isbench.models.mlp import MLP
from isbench.signals import CrossEntropy
from isbench.training.engine import Engine
from isbench.training.optimizers import parameter_groups, penalty, sgd
from isbench.training.step import TrainStep
from isbench.types import Batch, Draw


def make_step(model, criterion=None, optimizer=None, reweight=lambda draw, signals: draw.weights, **choices):
    return TrainStep(Engine(model), criterion or CrossEntropy(), optimizer or sgd(model, lr=0.1), reweight, **choices)


def make_draw(n: int = 12, weights: torch.Tensor | None = None) -> Draw:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(n, 1, 28, 28, generator=generator)
    targets = torch.randint(10, (n,), generator=generator)
    weights = torch.rand(n, generator=generator) * 3 if weights is None else weights
    return Draw(Batch(torch.arange(n), inputs, targets, torch.empty(n, 0)), weights)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_steps_equal_a_hand_written_loop(label_smoothing: float) -> None:
    torch.manual_seed(0)
    ours, theirs = LeNet((1, 28, 28), 10), LeNet((1, 28, 28), 10)
    theirs.load_state_dict(ours.state_dict())
    step = make_step(ours, CrossEntropy(label_smoothing), sgd(ours, lr=1, momentum=0.9, weight_decay=1e-3))
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, foreach=False)
    for _ in range(5):
        draw = make_draw()
        step.compute_gradient(draw)
        step.update(0.1)
        reference.zero_grad()
        losses = F.cross_entropy(
            theirs(draw.batch.inputs), draw.batch.targets, reduction="none", label_smoothing=label_smoothing
        )
        (losses * draw.weights).mean().backward()
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_reweight_sees_the_signals_and_decides_the_gradient() -> None:
    model = MLP((1, 28, 28), 10, hidden=(8,))
    seen = {}

    def only_the_first(draw: Draw, signals) -> torch.Tensor:
        seen.update(signals)
        return torch.where(torch.arange(len(draw.batch)) == 0, 1.0, 0.0)

    step = make_step(model, reweight=only_the_first, observes=("loss", "logit_gradient_norm"))
    draw = make_draw(4)
    returned = step.compute_gradient(draw)
    gradient = model.head.weight.grad.clone()
    assert set(seen) == {"loss", "logit_gradient_norm"} == set(returned)
    make_step(model).compute_gradient(Draw(draw.batch.take(torch.tensor([0])), torch.ones(1)))
    torch.testing.assert_close(gradient, model.head.weight.grad / 4)


def test_gradient_norm_is_before_clipping_and_includes_the_penalty() -> None:
    model = MLP((1, 28, 28), 10, hidden=(8,))
    optimizer = sgd(model, lr=0.1, weight_decay=0.5, decayed="kernels")
    step = make_step(model, optimizer=optimizer, observes=("gradient_norm", "weight_norm"), clip_norm=0.01)
    signals = step.compute_gradient(make_draw(weights=torch.ones(12)))
    step.update(0.0)
    clipped = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert clipped == pytest.approx(0.01, rel=1e-3)

    draw = make_draw(weights=torch.ones(12))
    loss = F.cross_entropy(model(draw.batch.inputs), draw.batch.targets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    total = 0.0
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        penalty = 0.5 * parameter.detach() if parameter.ndim > 1 else 0.0
        total += float((gradient + penalty).square().sum())
    assert float(signals["gradient_norm"]) == pytest.approx(math.sqrt(total), rel=1e-4)
    norm = math.sqrt(sum(float(p.detach().square().sum()) for p in model.parameters()))
    assert float(signals["weight_norm"]) == pytest.approx(norm, rel=1e-5)


def test_report_names_the_update_that_diverged() -> None:
    model = MLP((1, 28, 28), 10, hidden=(8,))
    step = make_step(model)
    for update in range(1, 6):
        weights = torch.full((12,), math.nan if update == 4 else 1.0)
        step.compute_gradient(make_draw(weights=weights))
        step.update(0.0)
    with pytest.raises(Diverged, match="update 14$"):
        step.report(updates=15)


def test_report_gives_the_updates_at_which_the_rate_changed() -> None:
    model = MLP((1, 28, 28), 10, hidden=(8,))
    step = make_step(model)
    for rate in (0.1, 0.1, 0.1, 0.02, 0.02):
        step.compute_gradient(make_draw())
        step.update(rate)
    assert step.report(updates=25) == {21: 0.1, 24: 0.02}
    assert step.report(updates=25) == {}


def test_weight_decay_conventions() -> None:
    model = LeNet((1, 28, 28), 10)
    (everything,) = parameter_groups(model, 0.1, "all")
    kernels, rest = parameter_groups(model, 0.1, "kernels")
    assert len(everything["params"]) == 10 and everything["weight_decay"] == 0.1
    assert [p.ndim > 1 for p in kernels["params"]] == [True] * 5 and kernels["weight_decay"] == 0.1
    assert [p.ndim for p in rest["params"]] == [1] * 5 and rest["weight_decay"] == 0


def test_the_penalty_is_what_weight_decay_descends() -> None:
    model = LeNet((1, 28, 28), 10)
    optimizer = sgd(model, lr=1.0, weight_decay=0.2, decayed="kernels")
    before = [p.detach().clone() for p in model.parameters()]
    expected = sum(0.1 * float(p.double().square().sum()) for p in before if p.ndim > 1)
    assert penalty(optimizer) == pytest.approx(expected, rel=1e-12)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old * (0.8 if old.ndim > 1 else 1.0))


def test_the_watcher_sees_each_draw_and_its_signals_before_the_update() -> None:
    model, seen = LeNet((1, 28, 28), 10), []
    step = make_step(model, observes=("loss",), watch=lambda draw, signals: seen.append((draw, dict(signals))))
    draw = make_draw()
    signals = step.compute_gradient(draw)
    ((seen_draw, seen_signals),) = seen
    assert seen_draw is draw and seen_signals.keys() == signals.keys() == {"loss"}
