"""InfoBatch: which examples it prunes, the weights of the others, and when pruning stops."""

from typing import Any

import pytest
import torch

from isbench.errors import ConfigError
from isbench.samplers.infobatch import InfoBatch
from isbench.types import Batch, Draw
from tests.conftest import LENET, TINY, build_parts, train_parts

N = 160


def set_scores(sampler: InfoBatch, scores: torch.Tensor) -> None:
    indices = torch.arange(len(scores))
    batch = Batch(indices, torch.empty(len(scores), 1), indices, torch.empty(len(scores), 0))
    sampler.observe(Draw(batch, torch.ones(len(scores))), {"loss": scores})


def test_who_is_pruned_and_how_the_rest_is_weighted() -> None:
    sampler: Any = build_parts(*TINY, "sampler=infobatch", "sampler.prune=0.75").sampler
    scores = torch.cat([torch.full((120,), 0.1), torch.full((40,), 2.0)])
    set_scores(sampler, scores)
    indices, weights = sampler.plan()
    assert len(indices.unique()) == len(indices) < N and sampler.acts
    assert set(range(120, N)) <= set(indices.tolist())  # nobody above the mean is left out
    torch.testing.assert_close(weights, torch.where(indices < 120, 4.0, 1.0))
    assert not torch.equal(indices, indices.sort().values)


def test_the_first_pass_is_whole_and_equal_scores_prune_nobody() -> None:
    sampler: Any = build_parts(*TINY, "sampler=infobatch").sampler
    for scores in (None, torch.full((N,), 0.1), torch.zeros(N), torch.full((N,), torch.nan)):
        if scores is not None:
            set_scores(sampler, scores)
        indices, weights = sampler.plan()
        assert torch.equal(indices.sort().values, torch.arange(N)) and (weights == 1).all() and not sampler.acts


def test_each_example_counts_once_in_expectation() -> None:
    sampler: Any = build_parts(*TINY, "sampler=infobatch", "sampler.prune=0.6").sampler
    set_scores(sampler, torch.rand(N, generator=torch.Generator().manual_seed(0)))
    total, passes = torch.zeros(N), 2000
    for _ in range(passes):
        indices, weights = sampler.plan()
        total[indices] += weights
    error = (0.6 / 0.4 / passes) ** 0.5  # of the mean of 1 / (1 - r) times a coin with probability 1 - r
    assert ((total / passes - 1).abs() < 4.5 * error).all()


def test_the_gradient_of_a_pass_is_unbiased_for_lenet() -> None:
    """Sum over a pass of weight times gradient, over N, against the full gradient; without weights it is not."""
    parts: Any = build_parts(*LENET, "dataset.num_examples=64", "sampler=infobatch")
    inputs, targets = parts.dataset.plain(torch.arange(64))
    parameters = [p for p in parts.model.parameters() if p.requires_grad]

    def gradient(indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        losses = parts.criterion(parts.model(inputs[indices]), targets[indices])
        parts_of = torch.autograd.grad(torch.dot(weights, losses) / 64, parameters)
        return torch.cat([g.flatten() for g in parts_of]).double()

    full = gradient(torch.arange(64), torch.ones(64))
    direction = full / full.norm()
    with torch.no_grad():
        set_scores(parts.sampler, parts.criterion(parts.model(inputs), targets))
    plans = [parts.sampler.plan() for _ in range(225)]
    ours = torch.stack([gradient(indices, weights) @ direction for indices, weights in plans])
    assert (ours.mean() - full.norm()).abs() < 4 * ours.std() / 15
    plain = torch.stack([gradient(indices, torch.ones(len(indices))) @ direction for indices, _ in plans[:50]])
    assert plain.mean() < full.norm() - 4 * plain.std() / 50**0.5
    # One update averages over its batch, so it is N / m times as large, as the class says.
    lengths = torch.tensor([len(indices) for indices, _ in plans])
    assert (ours * 64 / lengths).mean() > 1.1 * full.norm()


def test_pruning_stops_at_its_share_of_the_budget() -> None:
    parts: Any = build_parts(*TINY, "sampler=infobatch", "budget.limit=80")
    fractions, shares = [], []
    plan = parts.sampler.plan

    def watched():
        indices, weights = plan()
        fractions.append(parts.workspace.fraction())
        shares.append((len(indices) / N, float(weights.max())))
        return indices, weights

    parts.sampler.plan = watched
    train_parts(parts)
    assert shares[0] == (1.0, 1.0)
    late = [share for fraction, share in zip(fractions, shares, strict=True) if fraction >= 0.875]
    early = [share for fraction, share in zip(fractions, shares, strict=True) if 0 < fraction < 0.875]
    assert late and all(share == (1.0, 1.0) for share in late)
    assert early and all(share[0] < 1 and share[1] == 2 for share in early)


@pytest.mark.parametrize(("key", "value"), [("prune", 1.0), ("prune", -0.1), ("stop", 1.5)])
def test_bad_values(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"sampler.{key}={value}"):
        build_parts(*TINY, "sampler=infobatch", f"sampler.{key}={value}")
