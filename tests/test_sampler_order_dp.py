"""OrderDP: whom a pass trains on, against its two steps written out, and when passes are whole."""

from typing import Any

import pytest
import torch

from isbench.errors import ConfigError
from isbench.samplers.order_dp import OrderDP
from isbench.types import Batch, Draw
from tests.conftest import TINY, build_parts, train_parts

HERE = (*TINY, "sampler=order_dp")
N = 160


def see(sampler: OrderDP, indices: torch.Tensor, losses: torch.Tensor) -> None:
    batch = Batch(indices, torch.empty(len(indices), 1), indices, torch.empty(len(indices), 0))
    sampler.observe(Draw(batch, torch.ones(len(indices))), {"loss": losses})


def test_a_pass_has_the_highest_losses_of_what_was_drawn() -> None:
    parts: Any = build_parts(*HERE, "sampler.drawn=0.5", "sampler.kept=0.25")
    losses = torch.rand(N, generator=torch.Generator().manual_seed(0))
    see(parts.sampler, torch.arange(N), losses)
    for _ in range(20):
        state = parts.workspace.generator.get_state()
        indices, weights = parts.sampler.plan()
        parts.workspace.generator.set_state(state)
        drawn = torch.randperm(N, generator=parts.workspace.generator)[:80].tolist()
        expected = sorted(drawn, key=lambda i: -losses[i])[:20]
        assert set(indices.tolist()) == set(expected) and len(indices) == 20 and (weights == 1).all()
        assert indices.tolist() == [i for i in drawn if i in expected], "the order is that of the draw, not of losses"


def test_how_often_an_example_is_trained_on_follows_its_rank() -> None:
    """The chance of rank r, counted from the highest loss: that it is drawn, with fewer than k drawn before it."""
    sampler: Any = build_parts(*HERE, "sampler.drawn=0.5", "sampler.kept=0.25").sampler
    see(sampler, torch.arange(N), torch.arange(N).float())
    counts, passes = torch.zeros(N), 3000
    for _ in range(passes):
        counts[sampler.plan()[0]] += 1
    generator = torch.Generator().manual_seed(1)
    simulated = torch.zeros(N)
    for _ in range(passes):  # slow and apart: walk down the ranks until 20 of the 80 drawn are found
        is_drawn = torch.zeros(N, dtype=torch.bool)
        is_drawn[torch.randperm(N, generator=generator)[:80]] = True
        found = 0
        for i in reversed(range(N)):
            if is_drawn[i] and found < 20:
                simulated[i] += 1
                found += 1
    error = (2 * 0.25 / passes) ** 0.5  # at most, of the difference of two shares
    assert ((counts - simulated).abs() / passes < 4.5 * error).all()
    assert counts[: N // 2].sum() == 0 and counts[-1] / passes == pytest.approx(0.5, abs=0.04)


def test_who_was_not_seen_has_the_loss_of_the_authors_code() -> None:
    sampler: Any = build_parts(*HERE, "sampler.drawn=1", "sampler.kept=0.5").sampler
    see(sampler, torch.arange(80), torch.cat([torch.full((40,), 2.9), torch.full((40,), 3.1)]))
    indices, _ = sampler.plan()
    assert set(range(40, 80)) <= set(indices.tolist()) and not set(range(40)) & set(indices.tolist())


def test_the_last_loss_counts() -> None:
    sampler: Any = build_parts(*HERE).sampler
    see(sampler, torch.tensor([3, 3, 5]), torch.tensor([1.0, 2.0, 4.0]))
    assert sampler.scores[3] == 2 and sampler.scores[5] == 4 and sampler.scores[4] == 3


def test_passes_are_whole_after_stop() -> None:
    parts: Any = build_parts(*HERE, "sampler.stop=0.6", "budget.limit=80")
    lengths, acts = [], []
    plan = parts.sampler.plan

    def watched():
        indices, weights = plan()
        lengths.append((parts.workspace.fraction(), len(indices)))
        acts.append(parts.sampler.acts)
        return indices, weights

    parts.sampler.plan = watched
    train_parts(parts)
    assert {length for fraction, length in lengths if fraction < 0.6} == {48}
    assert {length for fraction, length in lengths if fraction >= 0.6} == {N}
    assert not any(acts[:2]) and any(acts), "at first chance chooses among examples that were never seen"
    assert not any(each for each, (fraction, _) in zip(acts, lengths, strict=True) if fraction >= 0.6)


@pytest.mark.parametrize("override", ["drawn=0", "drawn=1.5", "kept=0", "kept=2", "stop=1.5"])
def test_bad_values(override: str) -> None:
    with pytest.raises(ConfigError, match=f"sampler.{override}"):
        build_parts(*HERE, f"sampler.{override}")
