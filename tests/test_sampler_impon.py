"""IMPON: the regression on hand-worked numbers, the ranking, the resets, and its two inputs."""

import math

import pytest
import torch
from torch import Tensor

from isbench.build import Parts
from isbench.errors import ConfigError
from isbench.samplers.impon import Impon
from isbench.testing import same_state, stop_at
from isbench.types import Batch, Draw
from tests.conftest import TINY, build_parts, train_parts

RAW = (*TINY, "sampler=impon", "sampler.bank_size=25")
FEATURES = (*RAW, "sampler.inputs=features")


def build_impon(*overrides: str) -> tuple[Parts, Impon]:
    parts = build_parts(*overrides)
    assert isinstance(parts.sampler, Impon)
    return parts, parts.sampler


def keep_banks(parts: Parts) -> list[Batch]:
    banks: list[Batch] = []
    fetch = parts.workspace.fetch

    def fetch_and_keep(indices: Tensor, views: Tensor | None = None) -> Batch:
        banks.append(fetch(indices, views))
        return banks[-1]

    parts.workspace.fetch = fetch_and_keep  # type: ignore[method-assign]
    return banks


def test_one_regression_step_by_hand() -> None:
    """Two examples, two pixels: theta . (x, |W|) against the losses, the mean of squared errors."""
    parts, sampler = build_impon(*RAW, "sampler.regressor_lr=0.1")
    sampler.theta = torch.tensor([1.0, 0.0, 0.5])
    batch = Batch(
        torch.tensor([0, 1]), torch.tensor([[[1.0, 2.0]], [[0.0, 3.0]]]), torch.tensor([0, 0]), torch.empty(2)
    )
    signals = {"loss": torch.tensor([1.0, 4.0]), "weight_norm": torch.tensor(2.0)}
    sampler.observe(Draw(batch, torch.ones(2), {"predicted": torch.tensor([1.0, 0.0])}), signals)
    # predicted 1 + 1 = 2 and 0 + 1 = 1, so errors 1 and -3, mean square 5
    # gradient: mean of 2 error (x, |W|) = (1, 2, 2) - 3 (0, 3, 2) = (1, -7, -4)
    torch.testing.assert_close(sampler.theta, torch.tensor([0.9, 0.7, 0.9]))
    # the higher prediction met the lower loss: correlation -1, of which the average takes a hundredth
    assert sampler.diagnostics() == pytest.approx({"regression_error": 5.0, "correlation": -0.01})


def test_the_step_equals_torch_sgd_on_the_contexts() -> None:
    parts, sampler = build_impon(*RAW, "sampler.regressor_lr=1e-4", "augmentation=crop")
    train_parts(parts)
    theta = sampler.theta.clone().requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=1e-4)
    draw = sampler.draw()
    with torch.no_grad():
        theta.copy_(sampler.theta)
    signals = parts.step.compute_gradient(draw)
    sampler.observe(draw, signals)

    norm = torch.cat([p.detach().flatten() for p in parts.model.parameters()]).norm()
    contexts = torch.cat([draw.batch.inputs.flatten(1), norm.repeat(16, 1)], dim=1)
    losses = parts.criterion(parts.model(draw.batch.inputs), draw.batch.targets).detach()
    torch.nn.functional.mse_loss(contexts @ theta, losses).backward()
    optimizer.step()
    torch.testing.assert_close(sampler.theta, theta.detach(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("lowest", [False, True])
def test_the_batch_is_the_end_of_the_ranked_bank(lowest: bool) -> None:
    parts, sampler = build_impon(*RAW, f"sampler.lowest={lowest}")
    parts.progress.examples_trained = 16  # within an epoch
    sampler.theta.normal_(generator=torch.Generator().manual_seed(1))
    banks = keep_banks(parts)
    draw = sampler.draw()
    (bank,) = banks
    assert len(bank) == 25
    with_norm = torch.cat([bank.inputs.flatten(1), torch.full((25, 1), 7.0)], dim=1)  # any norm gives the same ranking
    predicted = with_norm @ sampler.theta
    order = sorted(range(25), key=lambda i: predicted[i].item(), reverse=not lowest)
    assert sorted(draw.batch.indices.tolist()) == sorted(bank.indices[order[:16]].tolist())
    assert torch.equal(draw.weights, torch.ones(16))
    assert parts.progress.examples_scored == 0, "no forward pass of the model is spent on choosing"


def test_ties_are_broken_at_random_by_the_samplers_own_stream() -> None:
    parts, sampler = build_impon(*RAW)
    banks = keep_banks(parts)
    times_chosen = torch.zeros(25)
    for _ in range(2000):
        banks.clear()
        parts.workspace.uniform = lambda k: torch.arange(k)  # type: ignore[method-assign]
        draw = sampler.draw()
        times_chosen[draw.batch.indices] += 1
    error = math.sqrt(2000 * 0.64 * 0.36)
    assert ((times_chosen - 2000 * 0.64).abs() < 4 * error).all()


def test_the_regressor_is_reset_at_each_epoch_and_not_before() -> None:
    parts, sampler = build_impon(*RAW, "dataset.num_examples=150", "batch_size=20")
    reset_at = []
    original = sampler.draw

    def draw():
        sampler.theta += 1
        drawn = original()
        if not sampler.theta.any():
            reset_at.append(parts.progress.updates)
        return drawn

    sampler.draw = draw  # type: ignore[method-assign]
    train_parts(parts)
    assert reset_at == [update for update in range(40) if update == 0 or update * 20 // 150 > (update - 1) * 20 // 150]
    assert reset_at[:4] == [0, 8, 15, 23]


def test_features_are_those_of_the_last_visit() -> None:
    parts, sampler = build_impon(*FEATURES, "augmentation=crop")
    assert not sampler.cache.any()
    expected = torch.zeros(160, 16)
    for _ in range(6):
        draw = sampler.draw()
        theta = sampler.theta.clone()
        before = sampler.cache[draw.batch.indices]
        with torch.no_grad():
            features = parts.model.features(draw.batch.inputs)
        signals = parts.step.compute_gradient(draw)
        sampler.observe(draw, signals)
        for index, row in zip(draw.batch.indices.tolist(), features, strict=True):  # of repeats the last one stays
            expected[index] = row
        torch.testing.assert_close(sampler.cache, expected)
        # the regressor learns from the features that ranked the batch, not from the new ones
        contexts = torch.cat([before, signals["weight_norm"].repeat(16, 1)], dim=1)
        gradient = 2 * contexts.T @ (contexts @ theta - signals["loss"]) / 16
        torch.testing.assert_close(sampler.theta, theta - 1e-6 * gradient)
        parts.step.update(0.05)
        parts.progress.examples_trained += 16
    assert expected.any()


@pytest.mark.parametrize("updates", [1, 17])
def test_resume_with_features_is_bit_exact(updates: int) -> None:
    whole = build_parts(*FEATURES, "augmentation=crop")
    train_parts(whole)
    first, second = build_parts(*FEATURES, "augmentation=crop"), build_parts(*FEATURES, "augmentation=crop", "seed=7")
    stop_at(updates, first)
    second.load_state_dict(first.state_dict())
    train_parts(second)
    assert same_state(whole, second)


def test_high_and_low_prefer_what_they_say() -> None:
    """With a regressor quick enough to learn, the losses of the chosen batches differ in the stated direction."""

    def mean_observed_loss(lowest: bool) -> float:
        parts, sampler = build_impon(
            *FEATURES, f"sampler.lowest={lowest}", "sampler.regressor_lr=1e-2", "optimizer.lr=0.0"
        )
        observed: list[Tensor] = []
        observe = sampler.observe

        def observe_and_keep(draw, signals):
            observed.append(signals["loss"].mean())
            observe(draw, signals)

        sampler.observe = observe_and_keep  # type: ignore[method-assign]
        train_parts(parts)
        return float(torch.stack(observed).mean())

    assert mean_observed_loss(lowest=False) > mean_observed_loss(lowest=True) + 0.02


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_regressor_shows_in_the_weights(bad: float) -> None:
    parts, sampler = build_impon(*RAW)
    parts.progress.examples_trained = 16
    sampler.theta.fill_(bad)
    draw = sampler.draw()
    assert draw.weights.isnan().all() and len(draw.batch) == 16


def test_zero_and_huge_losses() -> None:
    parts, sampler = build_impon(*RAW)
    draw = sampler.draw()
    parts.progress.examples_trained = 16
    for loss in (0.0, 1e6):
        sampler.observe(draw, {"loss": torch.full((16,), loss), "weight_norm": torch.tensor(10.0)})
        assert torch.equal(sampler.draw().weights, torch.ones(16))


@pytest.mark.parametrize("override", ["sampler.bank_size=15", "sampler.regressor_lr=0", "sampler.inputs=pixels"])
def test_bad_values(override: str) -> None:
    with pytest.raises(ConfigError, match=override):
        build_parts(*RAW, override)


def test_a_fitted_level_is_the_best_constant_of_each_batch() -> None:
    """Beside a column of ones whose coefficient least squares finds, theta takes the step of torch's SGD."""
    parts, sampler = build_impon(*RAW, "sampler.regressor_lr=1e-4", "sampler.fit_level=true")
    train_parts(parts)
    draw = sampler.draw()
    theta = sampler.theta.clone().requires_grad_()
    signals = parts.step.compute_gradient(draw)
    sampler.observe(draw, signals)

    contexts = torch.cat([draw.batch.inputs.flatten(1), signals["weight_norm"].repeat(16, 1)], dim=1)
    level = torch.linalg.lstsq(torch.ones(16, 1), (signals["loss"] - contexts @ theta.detach())[:, None]).solution
    torch.nn.functional.mse_loss(contexts @ theta + level[0], signals["loss"]).backward()
    torch.optim.SGD([theta], lr=1e-4).step()
    torch.testing.assert_close(sampler.theta, theta.detach(), rtol=1e-3, atol=1e-7)


def test_a_level_ranks_right_where_losses_fall_with_brightness() -> None:
    """Inputs far from zero. Without a level theta is their mean, by which the brightest has the highest loss."""
    for fit_level, sign in ((False, -1), (True, 1)):
        parts, sampler = build_impon(*RAW, "sampler.regressor_lr=1e-4", f"sampler.fit_level={fit_level}")
        inputs = 1 + torch.rand(16, 1, sampler.theta.numel() - 1, generator=torch.Generator().manual_seed(2))
        batch = Batch(torch.arange(16), inputs, torch.zeros(16, dtype=torch.int64), torch.empty(16, 0))
        losses = 3 - inputs.mean(dim=(1, 2))
        signals = {"loss": losses, "weight_norm": torch.tensor(1.0)}
        sampler.observe(Draw(batch, torch.ones(16), {"predicted": torch.zeros(16)}), signals)
        predicted = inputs.flatten(1) @ sampler.theta[:-1]
        assert sign * float(torch.stack([predicted, losses]).corrcoef()[0, 1]) > 0.1
        assert not sampler.correlation, "equal predictions have none"


def test_the_correlation_is_that_of_the_predictions_which_ranked_the_batch() -> None:
    parts, sampler = build_impon(*FEATURES, "sampler.regressor_lr=1e-2")
    expected = 0.0
    for _ in range(12):
        draw = sampler.draw()
        predicted = sampler.cache[draw.batch.indices] @ sampler.theta[:-1]
        signals = parts.step.compute_gradient(draw)
        sampler.observe(draw, signals)
        if predicted.std() > 0:
            deviations = [values - values.mean() for values in (predicted, signals["loss"])]
            correlation = (deviations[0] @ deviations[1]) / (deviations[0].norm() * deviations[1].norm())
            expected += 0.01 * (float(correlation) - expected)
        else:
            expected *= 0.99
        parts.step.update(0.05)
        parts.progress.updates += 1
        parts.progress.examples_trained += 16
    assert expected != 0 and sampler.diagnostics()["correlation"] == pytest.approx(expected, rel=1e-3)
