"""The loss predictor: its history, its network step by step, its weights, and its state."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from isbench.build import Parts
from isbench.errors import ConfigError
from isbench.samplers.loss_predictor import LossPredictor, Predictor, biased_weights, push
from isbench.types import Batch, Draw
from tests.conftest import TINY, build_parts, example_gradients, train_parts

HERE = (*TINY, "sampler=loss_predictor", "sampler.pool_size=48")


def build_predictor(*overrides: str) -> tuple[Parts, LossPredictor]:
    parts = build_parts(*HERE, *overrides)
    assert isinstance(parts.sampler, LossPredictor)
    return parts, parts.sampler


def test_push_by_hand() -> None:
    past = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0], [1.0, 2.0, 3.0]])
    past, lengths = push(past, torch.tensor([1, 2, 3]), torch.tensor([7.0, 8.0, 9.0]))
    assert past.tolist() == [[1, 7, 0], [1, 2, 8], [2, 3, 9]]
    assert lengths.tolist() == [2, 3, 3]


def test_history_keeps_the_last_ten_losses() -> None:
    parts, sampler = build_predictor()
    expected: dict[int, list[float]] = {i: [1.0] for i in range(160)}
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        indices = torch.randint(12, (16,), generator=generator)  # few examples, many repeats
        losses = torch.rand(16, generator=generator)
        batch = Batch(indices, torch.empty(16, 1), parts.dataset.targets[indices], torch.empty(16, 0))
        sampler.observe(Draw(batch, torch.ones(16)), {"loss": losses})
        last = dict(zip(indices.tolist(), losses.tolist(), strict=True))  # one value per example and update: the last
        for index, value in last.items():
            expected[index] = (expected[index] + [value])[-10:]
    for index, values in expected.items():
        assert int(sampler.lengths[index]) == len(values)
        assert sampler.past[index, : len(values)].tolist() == values
    assert max(map(len, expected.values())) == 10


def test_the_network_equals_its_equations_step_by_step() -> None:
    """Two stacked LSTMs run over the valid steps alone, written out gate by gate."""
    torch.manual_seed(0)
    predictor = Predictor(num_classes=5)
    past, lengths = torch.rand(6, 10), torch.tensor([1, 2, 5, 9, 10, 10])
    targets = torch.tensor([0, 1, 2, 3, 4, 4])
    filled = torch.arange(10) < lengths[:, None]
    predicted = predictor(torch.where(filled, past, 0), lengths, targets)
    torch.testing.assert_close(predicted, predictor(torch.where(filled, past, 99), lengths, targets))  # masked

    weights = dict(predictor.recurrent.named_parameters())
    for row in range(6):
        sequence = [past[row, t : t + 1] for t in range(int(lengths[row]))]
        for layer in (0, 1):
            hidden, cell, outputs = torch.zeros(32), torch.zeros(32), []
            for value in sequence:
                gates = (
                    weights[f"weight_ih_l{layer}"] @ value
                    + weights[f"bias_ih_l{layer}"]
                    + weights[f"weight_hh_l{layer}"] @ hidden
                    + weights[f"bias_hh_l{layer}"]
                )
                take, forget, candidate, show = gates.chunk(4)
                cell = forget.sigmoid() * cell + take.sigmoid() * candidate.tanh()
                hidden = show.sigmoid() * cell.tanh()
                outputs.append(hidden)
            sequence = outputs
        joined = torch.cat([sequence[-1], predictor.embedding.weight[targets[row]]])
        by_hand = predictor.output.weight[0] @ joined + predictor.output.bias[0]
        torch.testing.assert_close(predicted[row], by_hand, rtol=1e-4, atol=1e-6)


def test_weights_by_hand() -> None:
    """w = 1 / (B p); with k = 1/2 they are square roots, scaled to keep the sum of w p, which is b / B."""
    p = torch.tensor([0.1, 0.4, 0.1], dtype=torch.float64)
    torch.testing.assert_close(biased_weights(p, 5, 1.0), torch.tensor([2.0, 0.5, 2.0], dtype=torch.float64))
    halved = biased_weights(p, 5, 0.5)
    roots = torch.tensor([math.sqrt(2), math.sqrt(0.5), math.sqrt(2)], dtype=torch.float64)
    scale = (0.2 + 0.2 + 0.2) / (0.1 * math.sqrt(2) + 0.4 * math.sqrt(0.5) + 0.1 * math.sqrt(2))
    torch.testing.assert_close(halved, roots * scale)
    assert float(torch.dot(halved, p)) == pytest.approx(3 / 5)
    same = torch.full((3,), float(torch.dot(torch.ones(3).double(), p)) ** -1 * 3 / 5, dtype=torch.float64)
    torch.testing.assert_close(biased_weights(p, 5, 0.0), same)


def test_draws_follow_the_predictions() -> None:
    parts, sampler = build_predictor("sampler.exponent=1")
    scores = torch.rand(160, generator=torch.Generator().manual_seed(1)) - 0.2  # some below the floor
    sampler._predict = lambda indices: scores[indices]  # type: ignore[method-assign]
    pool = torch.arange(48)
    parts.workspace.uniform = lambda k: pool  # type: ignore[method-assign]
    floored = scores[:48].clamp_min(1e-6)
    counts = torch.zeros(160)
    for _ in range(2000):
        draw = sampler.draw()
        counts += draw.batch.indices.bincount(minlength=160)
        torch.testing.assert_close(draw.weights, floored.mean() / floored[draw.batch.indices])
    share = floored / floored.sum()
    assert (counts[48:] == 0).all()
    assert ((counts[:48] / 32_000 - share).abs() <= 4 * (share * (1 - share) / 32_000).sqrt() + 1e-12).all()
    assert parts.progress.examples_scored == 0


@pytest.mark.parametrize("exponent, is_unbiased", [(1.0, True), (0.5, False)])
def test_the_gradient_is_unbiased_only_with_exponent_1(exponent: float, is_unbiased: bool) -> None:
    """LeNet, partly trained: the mean over draws against the full gradient, along random directions."""
    lenet = (*(override for override in HERE if not override.startswith("model")), "model=lenet", "optimizer.lr=0.05")
    parts = build_parts(*lenet, f"sampler.exponent={exponent}")
    train_parts(parts)
    gradients = example_gradients(parts)
    directions = torch.randn(gradients.shape[1], 20, generator=torch.Generator().manual_seed(4))
    projected = (gradients @ directions).double()
    estimates, repeats = [], 0
    for _ in range(1500):
        draw = parts.sampler.draw()
        repeats += 16 - len(draw.batch.indices.unique())
        estimates.append((draw.weights[:, None] * projected[draw.batch.indices]).mean(dim=0))
    means = torch.stack(estimates)
    standard_errors = (means.mean(dim=0) - projected.mean(dim=0)) / (means.std(dim=0) / math.sqrt(len(means)))
    assert repeats > 0
    assert bool(standard_errors.abs().max() < 4) is is_unbiased


def test_one_adam_step_per_batch_on_the_history_before_it() -> None:
    parts, sampler = build_predictor()
    train_parts(parts)
    twin = Predictor(10)
    twin.load_state_dict(sampler.predictor.state_dict())
    optimizer = torch.optim.Adam(twin.parameters(), 0.001, foreach=False)
    optimizer.load_state_dict(copy.deepcopy(sampler.optimizer.state_dict()))
    draw = sampler.draw()
    indices = draw.batch.indices
    past, lengths = sampler.past[indices].clone(), sampler.lengths[indices].clone()
    losses = torch.rand(16)
    nn.functional.mse_loss(twin(past, lengths, parts.dataset.targets[indices]), losses).backward()
    optimizer.step()
    sampler.observe(draw, {"loss": losses})
    for ours, theirs in zip(sampler.predictor.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_predictor_learns_which_examples_are_hard() -> None:
    parts, sampler = build_predictor("sampler.predictor_lr=0.01", "budget.limit=300", "optimizer.lr=0.0")
    train_parts(parts)
    losses = parts.workspace.score_dataset("loss")
    everything = torch.arange(160)
    with torch.no_grad():
        predicted = sampler._predict(everything)
    seen = sampler.lengths > 1
    assert torch.corrcoef(torch.stack([predicted[seen], losses[seen]]))[0, 1] > 0.9
    assert sampler.diagnostics()["prediction_error"] < float(losses.var())


def test_the_seed_decides_the_predictor_and_nothing_else_does() -> None:
    def weights(parts: Parts) -> Tensor:
        return nn.utils.parameters_to_vector(parts.sampler.parameters()).detach()

    torch.manual_seed(1)
    first = build_parts(*HERE)
    after_ours = torch.get_rng_state()
    torch.manual_seed(2)
    again, other = build_parts(*HERE), build_parts(*HERE, "seed=5")
    assert torch.equal(weights(first), weights(again)) and not torch.equal(weights(first), weights(other))
    assert weights(first).abs().max() <= 32**-0.5 and weights(first).std() > 0.09
    build_parts(*TINY, "sampler=uniform")
    assert torch.equal(torch.get_rng_state(), after_ours), "the global stream must be as after any other sampler"


def test_extreme_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, sampler = build_predictor()

    def weights_for(predictions: Tensor) -> Tensor:
        monkeypatch.setattr(sampler, "_predict", lambda indices: predictions)
        return sampler.draw().weights

    for value in (0.0, -5.0, 1e30):
        torch.testing.assert_close(weights_for(torch.full((48,), value)), torch.ones(16))
    assert weights_for(torch.where(torch.arange(48) == 3, 1e30, 0.0)).isfinite().all()
    for bad in (math.nan, math.inf):
        assert weights_for(torch.full((48,), bad)).isnan().all()


def test_a_loss_that_is_not_finite_shows_in_the_next_weights() -> None:
    parts, sampler = build_predictor()
    draw = sampler.draw()
    losses = torch.ones(16)
    losses[3] = math.nan
    sampler.observe(draw, {"loss": losses})
    assert sampler.draw().weights.isnan().all()


@pytest.mark.parametrize("override", ["sampler.pool_size=15", "sampler.exponent=1.5", "sampler.predictor_lr=0"])
def test_bad_values(override: str) -> None:
    with pytest.raises(ConfigError, match=override):
        build_parts(*HERE, override)
