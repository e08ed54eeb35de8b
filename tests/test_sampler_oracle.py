"""The oracle: exact norms, exact probabilities, and the exact gain ratio; and the per-example gradients behind them."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from isbench.build import Parts
from isbench.errors import ConfigError, Incompatible
from isbench.samplers.oracle import gain_ratio
from isbench.signals import per_example_gradient_norm
from tests.conftest import build_parts, tiny_overrides, train_parts


def build_oracle(model: str, *overrides: str) -> Parts:
    small = [override for override in tiny_overrides("oracle") if not override.startswith("model")]
    return build_parts(*small, f"model={model}", *overrides)


def example_gradients(parts: Parts) -> Tensor:
    """Return the gradient of each example in evaluation mode, (N, P), by one backward pass each."""
    inputs, targets = parts.dataset.plain(torch.arange(parts.dataset.num_examples))
    parameters = [p for p in parts.model.parameters() if p.requires_grad]
    parts.model.eval()
    rows = []
    for i in range(len(inputs)):
        loss = parts.criterion(parts.model(inputs[i : i + 1]), targets[i : i + 1])[0]
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    parts.model.train()
    return torch.stack(rows).double()


def flat_parameters(parts: Parts) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parts.model.parameters() if p.requires_grad]).double()


def enumerate_second_moment(gradients: Tensor, p: Tensor, penalty: Tensor) -> float:
    """Return E|g|^2 over all ordered pairs, each gradient weighted by 1 / (n p)."""
    n, total = len(gradients), 0.0
    for i, j in itertools.product(range(n), repeat=2):
        step = (gradients[i] / (n * p[i]) + gradients[j] / (n * p[j])) / 2 + penalty
        total += float(p[i] * p[j] * step.square().sum())
    return total


def test_gain_ratio_by_enumeration() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 3, dtype=torch.float64, generator=generator) * torch.arange(1, 7)[:, None]
    penalty = torch.randn(3, dtype=torch.float64, generator=generator)
    norms, mean = gradients.norm(dim=1), gradients.mean(dim=0)
    uniform = enumerate_second_moment(gradients, torch.ones(6, dtype=torch.float64) / 6, penalty)
    sampled = enumerate_second_moment(gradients, norms / norms.sum(), penalty)
    ratio = gain_ratio(norms, mean.norm(), (mean + penalty).norm(), batch_size=2)
    assert float(ratio) == pytest.approx(uniform / sampled, rel=1e-12) and uniform > 1.02 * sampled


def test_gain_ratio_at_its_ends() -> None:
    zero, one = torch.zeros(()), torch.ones(())
    assert gain_ratio(torch.zeros(5), zero, zero, 4) == 1.0
    assert gain_ratio(torch.ones(5), one, one, 4) == 1.0
    assert float(gain_ratio(torch.tensor([1.0, 0, 0, 0]), one / 4, zero, 1)) == math.inf  # a single example is all
    assert gain_ratio(torch.tensor([torch.nan, 1.0]), one, one, 4).isnan()


@pytest.mark.parametrize("model", ["lenet", "cnn7"])
def test_probabilities_and_gain_from_all_gradients(model: str) -> None:
    parts = build_oracle(model, "optimizer.weight_decay=0.01", "dataset.num_examples=40")
    sampler = parts.sampler
    gradients, penalty = example_gradients(parts), 0.01 * flat_parameters(parts)
    norms, mean, b = gradients.norm(dim=1), gradients.mean(dim=0), parts.workspace.batch_size
    draw = sampler.draw()
    assert torch.allclose(sampler.norms.double(), norms, rtol=1e-4)
    p = norms / norms.sum()
    assert torch.allclose(draw.weights.double(), 1 / (40 * p[draw.batch.indices]), rtol=1e-4)

    def second_moment(p: Tensor) -> Tensor:
        return ((norms.square() / p).sum() / 40**2 - mean.square().sum()) / b + (mean + penalty).square().sum()

    assert sampler.gain() == pytest.approx(float(second_moment(torch.full((40,), 1 / 40)) / second_moment(p)), rel=1e-4)
    assert torch.allclose(torch.cat([g.flatten() for g in parts.workspace.mean_gradient()]).double(), mean, atol=1e-5)


def test_unbiased_on_lenet() -> None:
    parts = build_oracle("lenet", "budget.limit=10", "sampler.refresh_every=5")
    train_parts(parts)
    full = torch.cat([g.flatten() for g in parts.workspace.mean_gradient()]).double()
    directions = torch.randn(len(full), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts.progress.updates = 12  # scores of before stay, as two updates after a refresh
    values = []
    for _ in range(300):
        parts.step.compute_gradient(parts.sampler.draw())
        values.append(torch.cat([p.grad.flatten() for p in parts.model.parameters()]).double() @ directions)
    error = torch.stack(values).std(dim=0) / math.sqrt(len(values))
    assert ((torch.stack(values).mean(dim=0) - full @ directions).abs() < 4 * error).all()
    assert (error < 0.2 * (full @ directions).abs().max()).all(), "the test must have power"


def test_refreshes_are_counted_and_paid() -> None:
    parts = build_oracle("mlp", "sampler.refresh_every=16")
    train_parts(parts)
    assert parts.progress.examples_scored == 3 * 2 * 160  # at updates 0, 16 and 32: norms, and the mean gradient
    assert parts.progress.effective_updates > 40
    parts = build_oracle("mlp", "sampler.refresh_every=16", "sampler.gain=false")
    train_parts(parts)
    assert parts.progress.examples_scored == 3 * 160
    assert parts.progress.effective_updates == 40


def test_scores_all_zero_draw_uniformly() -> None:
    parts = build_oracle("mlp")
    parts.workspace.score_dataset = lambda signal: torch.zeros(160)
    draw = parts.sampler.draw()
    assert torch.equal(draw.weights, torch.ones(16))


def test_recurrent_networks_have_exact_norms_but_no_oracle() -> None:
    with pytest.raises(Incompatible, match="sampler=oracle"):
        build_oracle("lstm")
    sizes = ("dataset=synthetic", "dataset.num_examples=5", "dataset.shape=[1,6,6]", "batch_size=2")
    parts = build_parts(*sizes, "model=lstm")
    inputs, targets = parts.dataset.plain(torch.arange(5))
    norms = per_example_gradient_norm(parts.model, parts.criterion, inputs, targets)
    assert torch.allclose(norms.double(), example_gradients(parts).norm(dim=1), rtol=1e-5)


def test_bad_values_are_named() -> None:
    with pytest.raises(ConfigError, match="sampler.refresh_every=0"):
        build_oracle("mlp", "sampler.refresh_every=0")
