"""Prioritized sampling: probabilities, weights, unseen examples, and bias."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from isbench.build import Parts
from isbench.errors import ConfigError
from isbench.samplers.prioritized import Prioritized
from isbench.types import Draw
from tests.conftest import LENET, TINY, build_parts, train_parts

N, B = 160, 16


def build_sampler(*overrides: str, base: tuple[str, ...] = TINY) -> tuple[Parts, Prioritized]:
    parts = build_parts(*base, "sampler=prioritized", *overrides)
    assert isinstance(parts.sampler, Prioritized)
    return parts, parts.sampler


def give_scores(parts: Parts, scores: Tensor) -> None:
    """Let the sampler see a score of every example once, in a batch of all."""
    sampler = parts.sampler
    sampler.num_seen.fill_(N)
    batch = parts.workspace.fetch(torch.arange(N))
    sampler.observe(Draw(batch, torch.ones(N)), {"loss": scores})


def spread_scores(seed: int = 0) -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(seed)).mul(1.5).exp()


def test_worked_example() -> None:
    """Scores 1, 4 and 9, alpha 1/2, beta 1/2: priorities 1, 2, 3 in a total of 160 + 2 + 2 x 3 - 3."""
    parts, sampler = build_sampler("sampler.alpha=0.5", "sampler.beta=0.5", "sampler.eps=1.0e-12")
    scores = torch.ones(N)
    scores[10], scores[20], scores[30] = 4.0, 9.0, 9.0
    give_scores(parts, scores)
    total = (N - 3) + 2 + 3 + 3
    assert float(sampler.tree.totals()) == pytest.approx(total)
    draw = sampler.draw()
    priorities = {10: 2.0, 20: 3.0, 30: 3.0}
    expected = [(N * priorities.get(i, 1.0) / total) ** -0.5 for i in draw.batch.indices.tolist()]
    assert draw.weights.tolist() == pytest.approx([w / max(expected) for w in expected])


def test_against_a_list_of_priorities() -> None:
    """A whole run beside a NumPy version that keeps (score + eps)^alpha, or the largest so far, for every example."""
    parts, sampler = build_sampler("sampler.normalize=false", "sampler.beta=0.7")
    priorities, seen, largest = np.ones(N), np.zeros(N, dtype=bool), 1.0
    draw, observe = sampler.draw, sampler.observe
    errors, unseen = [], []

    def slow_draw():
        unseen.append((~seen).sum())
        result = draw()
        p = np.where(seen, priorities, largest)
        beta = 0.7 + 0.3 * parts.progress.updates / 40
        weights = (N * (p / p.sum())[result.batch.indices.numpy()]) ** -beta
        errors.append(np.abs(result.weights.numpy() / weights - 1).max())
        return result

    def slow_observe(draw, signals):
        nonlocal largest
        observe(draw, signals)
        for i, loss in zip(draw.batch.indices.tolist(), signals["loss"].tolist(), strict=True):
            seen[i], priorities[i] = True, (loss + 1e-6) ** 0.6
            largest = max(largest, priorities[i])

    sampler.draw, sampler.observe = slow_draw, slow_observe
    train_parts(parts)
    assert len(errors) == 40 and max(errors) < 1e-6
    assert int(sampler.num_seen) == seen.sum()
    assert 0 < np.count_nonzero(unseen) < 40, "both with and without unseen examples"


def test_unseen_examples_have_the_largest_priority() -> None:
    parts, sampler = build_sampler("sampler.alpha=1")
    first = sampler.draw().batch
    assert len(first.indices.unique()) == B and (sampler.draw().weights == 1).all()
    sampler.num_seen.fill_(B)
    sampler.observe(Draw(first, torch.ones(B)), {"loss": torch.full((B,), 3.0)})
    assert float(sampler.tree.totals()) == pytest.approx(3 * N)
    sampler.observe(Draw(first, torch.ones(B)), {"loss": torch.full((B,), 0.5)})
    assert float(sampler.tree.totals()) == pytest.approx(3 * (N - B) + 0.5 * B)
    frequency = 0
    for _ in range(300):
        sampler.num_seen.fill_(B)
        frequency += torch.isin(sampler.draw().batch.indices, first.indices).sum()
    p = 0.5 * B / (3 * (N - B) + 0.5 * B)
    assert abs(frequency / (300 * B) - p) < 4 * math.sqrt(p * (1 - p) / (300 * B))


def test_every_example_is_first_seen_once() -> None:
    parts, sampler = build_sampler()
    drawn: set[int] = set()
    for _ in range(200):
        before = int(sampler.num_seen)
        draw = sampler.draw()
        new = set(draw.batch.indices.tolist()) - drawn
        drawn |= new
        assert int(sampler.num_seen) - before == len(new)
        sampler.observe(draw, {"loss": torch.ones(B)})
    assert len(drawn) == N and sampler.diagnostics()["unseen"] == 0


def test_beta_rises_to_one() -> None:
    parts, sampler = build_sampler()
    betas = [sampler.current_beta()]
    train_parts(parts, lambda rate, gain: betas.append(sampler.current_beta()))
    assert betas == pytest.approx([0.4, 0.55, 0.7, 0.85, 1.0])


def test_beta_can_be_constant() -> None:
    parts, sampler = build_sampler("sampler.normalize=false", "sampler.beta=0.5", "sampler.anneal=false")
    train_parts(parts)
    p = sampler.probabilities()
    draw = sampler.draw()
    torch.testing.assert_close(draw.weights, ((N * p[draw.batch.indices]) ** -0.5).float())
    assert sampler.diagnostics()["beta"] == 0.5


def test_alpha_zero_is_uniform() -> None:
    parts, sampler = build_sampler("sampler.alpha=0")
    give_scores(parts, spread_scores())
    draw = sampler.draw()
    assert (draw.weights == 1).all()
    assert torch.equal(draw.batch.indices // (N // B), torch.arange(B)), "one from each tenth"


@pytest.mark.parametrize("signal", ["logit_gradient_norm", "per_example_gradient_norm"])
def test_other_signals(signal: str) -> None:
    parts, sampler = build_sampler(f"sampler.signal={signal}")
    draw = sampler.draw()
    expected = parts.workspace.score(draw.batch, signal)  # no dropout, no batch norm: as in training
    scored = parts.progress.examples_scored
    sampler.observe(draw, parts.step.compute_gradient(draw))
    assert parts.progress.examples_scored - scored == (0 if sampler.observes else B)
    torch.testing.assert_close(
        sampler.tree.weights[0, draw.batch.indices], (expected.double() + 1e-6) ** 0.6, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("seen", [N // 2, N])
def test_unbiased_where_it_says_so(seen: int) -> None:
    """LeNet: the mean of weighted batch gradients against the full gradient, along random directions."""
    parts, sampler = build_sampler("sampler.beta=1", "sampler.normalize=false", base=LENET)
    parameters = list(parts.model.parameters())
    batch = parts.workspace.fetch(torch.arange(N))
    rows = []
    for loss in parts.criterion(parts.model(batch.inputs), batch.targets):
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]))
    gradients = torch.stack(rows)
    scores = spread_scores()

    estimates: dict[str, list[Tensor]] = {"weighted": [], "half": [], "normalized": []}
    directions = torch.randn(gradients.shape[1], 20, generator=torch.Generator().manual_seed(4))
    projected = (gradients @ directions).double()
    repeats = 0
    for _ in range(1000):
        order = torch.randperm(N, generator=parts.workspace.generator)  # of the examples not seen yet
        first = order[:seen]
        sampler.queue.copy_(order)
        sampler.tree.fill(0)
        sampler.num_seen.fill_(seen)
        sampler.max_priority.fill_(1)
        sampler.observe(Draw(parts.workspace.fetch(first), torch.ones(seen)), {"loss": scores[first]})
        sampler.beta = 1.0
        draw = sampler.draw()
        indices, weights = draw.batch.indices, draw.weights.double()
        repeats += B - len(indices.unique())
        for name, used in {"weighted": weights, "half": weights.sqrt(), "normalized": weights / weights.max()}.items():
            estimates[name].append((used[:, None] * projected[indices]).mean(dim=0))
    assert repeats > 0 or seen < N

    def standard_errors(name: str) -> float:
        means = torch.stack(estimates[name])
        errors = (means.mean(dim=0) - projected.mean(dim=0)) / (means.std(dim=0) / math.sqrt(len(means)))
        return float(errors.abs().max())

    assert standard_errors("weighted") < 4
    assert standard_errors("half") > 4 and standard_errors("normalized") > 4, "the documented bias must show"
    parts.step.compute_gradient(draw)
    stepped = torch.cat([p.grad.flatten() for p in parameters])
    by_hand = (draw.weights[:, None] * gradients[indices]).mean(dim=0)
    torch.testing.assert_close(stepped, by_hand, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scores", ["zero", "equal", "huge", "wide"])
def test_extreme_scores(scores: str) -> None:
    parts, sampler = build_sampler()
    values = {"zero": torch.zeros(N), "equal": torch.full((N,), 2.0), "huge": torch.full((N,), 3e38)}
    values["wide"] = 10 ** torch.linspace(-30, 30, N)
    give_scores(parts, values[scores])
    for _ in range(20):
        weights = sampler.draw().weights
        assert weights.isfinite().all() and (weights > 0).all() and weights.max() == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_show_in_the_weights(value: float) -> None:
    parts, sampler = build_sampler()
    scores = torch.ones(N)
    scores[5] = value
    give_scores(parts, scores)
    assert sampler.draw().weights.isnan().any()


@pytest.mark.parametrize("bad", ["signal=size", "alpha=-1", "alpha=.nan", "beta=1.1", "beta=-0.1", "eps=0"])
def test_bad_values(bad: str) -> None:
    with pytest.raises(ConfigError, match=f"sampler.{bad.split('=')[0]}="):
        build_sampler(f"sampler.{bad}")
