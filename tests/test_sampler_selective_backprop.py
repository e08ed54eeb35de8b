"""Selective backprop: selection probabilities, the queue, and loops that must end."""

from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor

from isbench.errors import ConfigError, Diverged
from isbench.samplers.selective_backprop import percentile
from isbench.testing import record_draws, same_state, stop_at
from isbench.types import Batch
from tests.conftest import TINY, build_parts, train_parts

SELECTIVE = (*TINY, "sampler=selective_backprop")


def score_with(parts, function) -> list[tuple[Batch, Tensor]]:
    """Replace the model's losses by `function(batch)`; return the growing list of what was scored."""
    scored: list[tuple[Batch, Tensor]] = []

    def score(batch: Batch, signal: str) -> Tensor:
        assert signal == "loss"
        scored.append((batch, function(batch)))
        return scored[-1][1]

    parts.workspace.score = score
    return scored


def test_percentile_counts_what_is_strictly_below() -> None:
    generator = torch.Generator().manual_seed(0)
    history = torch.randint(6, (50,), generator=generator).float()  # many ties
    losses = torch.tensor([-1.0, 0.0, 2.0, 2.5, 5.0, 9.0])
    slow = [sum(1 for past in history.tolist() if past < loss) / 50 for loss in losses.tolist()]
    torch.testing.assert_close(percentile(history, losses), torch.tensor(slow))


@pytest.mark.parametrize("beta", [1.0, 2.0, 3.0])
def test_selected_share_of_stationary_losses(beta: float) -> None:
    parts: Any = build_parts(*SELECTIVE, f"sampler.beta={beta}", "sampler.priming_passes=0", "sampler.pool_size=160")
    generator = torch.Generator().manual_seed(0)
    scored = score_with(parts, lambda batch: torch.rand(len(batch), generator=generator))
    drawn = 0
    while len(scored) < 120:
        drawn += len(parts.sampler.draw().batch)
    share = parts.sampler.diagnostics()["selected_share"]
    num_scored = sum(len(batch) for batch, _ in scored)
    assert share == pytest.approx((drawn + len(parts.sampler._queue)) / num_scored)
    assert share == pytest.approx(1 / (beta + 1), abs=0.02)


def test_batches_are_full_and_hold_only_selected_views() -> None:
    """Half of the classes have the lowest loss there is, and so no chance; all else must be the very pixels scored."""
    parts: Any = build_parts(*SELECTIVE, "augmentation=crop", "sampler.priming_passes=0", "sampler.beta=1")
    scored = score_with(parts, lambda batch: (batch.targets % 2) * (1 + batch.inputs.mean((1, 2, 3)).exp()))
    draws = [parts.sampler.draw() for _ in range(20)]
    candidates = reduce(Batch.join, (batch for batch, _ in scored))
    for draw in draws:
        assert len(draw.batch) == 16 and (draw.weights == 1).all() and (draw.batch.targets % 2 == 1).all()
        for index, inputs in zip(draw.batch.indices, draw.batch.inputs, strict=True):
            assert (candidates.inputs[candidates.indices == index] == inputs).all(dim=(1, 2, 3)).any()
    assert len(scored) > 30  # and others were passed over


def test_the_history_is_a_ring() -> None:
    parts: Any = build_parts(*SELECTIVE, "sampler.history_size=10")
    sampler = parts.sampler
    written: list[float] = []
    for length in (4, 4, 16, 3, 10):
        losses = torch.arange(length) + 100.0 * len(written)
        written += losses.tolist()
        recent = sampler._remember(losses)
        assert sorted(recent.tolist()) == sorted(written[-10:])


def test_the_first_pass_trains_everything_once_without_scoring() -> None:
    parts: Any = build_parts(*SELECTIVE)
    draws = [parts.sampler.draw() for _ in range(10)]
    seen = torch.cat([draw.batch.indices for draw in draws])
    assert torch.equal(seen.sort().values, torch.arange(160))
    assert parts.progress.examples_scored == 0
    parts.sampler.draw()
    assert parts.progress.examples_scored > 0


def test_priming_ends_within_a_pool() -> None:
    parts: Any = build_parts(*SELECTIVE, "sampler.pool_size=96", "sampler.beta=1000")
    scored = score_with(parts, lambda batch: torch.zeros(len(batch)))
    draws = [parts.sampler.draw() for _ in range(10)]
    seen = torch.cat([draw.batch.indices for draw in draws])
    assert torch.equal(seen.sort().values, torch.arange(160)) and len(scored) == 1


def test_selection_is_biased_to_high_losses() -> None:
    parts: Any = build_parts(*SELECTIVE, "sampler.priming_passes=0")
    score_with(parts, lambda batch: batch.indices.float())
    chosen = torch.cat([parts.sampler.draw().batch.indices for _ in range(60)]).float()
    # For loss = rank / N, the density of the selected is (beta + 1) u^beta, of mean (beta + 1) / (beta + 2).
    assert float(chosen.mean()) / 160 == pytest.approx(4 / 5, abs=0.03)


def test_stale_losses_skip_the_forward_pass() -> None:
    parts: Any = build_parts(*SELECTIVE, "sampler.staleness=3", "sampler.beta=1", "sampler.pool_size=32")
    scored = score_with(parts, lambda batch: batch.indices.float())
    for _ in range(40):
        parts.sampler.draw()
    assert parts.sampler._candidates > 3 * 160
    passes = -(-parts.sampler._candidates // 160) - 1  # after the one of priming; 1 of 3 is scored
    assert sum(len(batch) for batch, _ in scored) <= -(-passes // 3) * 160
    assert torch.equal(parts.sampler.cached, torch.arange(160.0))


@pytest.mark.parametrize("staleness", [2, 3])
def test_stale_runs_resume_bit_for_bit(staleness: int, tmp_path) -> None:
    overrides = (*SELECTIVE, f"sampler.staleness={staleness}", "sampler.pool_size=48", "augmentation=crop")
    whole, first = build_parts(*overrides), build_parts(*overrides)
    train_parts(whole)
    stop_at(23, first)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = build_parts(*overrides, "seed=5")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train_parts(second)
    assert same_state(whole, second)
    lost = build_parts(*overrides)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["sampler"]["_extra_state"]["_queue"] = None
    lost.load_state_dict(state)
    train_parts(lost)
    assert not same_state(whole, lost)


@pytest.mark.parametrize("loss", [0.0, 2.3, torch.inf])
def test_equal_losses_do_not_hang(loss: float) -> None:
    parts: Any = build_parts(*SELECTIVE, "sampler.priming_passes=0")
    scored = score_with(parts, lambda batch: torch.full((len(batch),), loss))
    assert len(parts.sampler.draw().batch) == 16
    assert len(scored) == 11  # one pass in vain, then one pool


def test_a_nan_model_closes_the_run() -> None:
    parts: Any = build_parts(*SELECTIVE, "sampler.priming_passes=0")
    draws = record_draws(parts)
    with torch.no_grad():
        next(parts.model.parameters()).fill_(torch.nan)
    train_parts(parts, points=1)
    assert len(draws) == 40
    with pytest.raises(Diverged):
        parts.step.report(parts.progress.updates)


def test_beta_zero_selects_everything() -> None:
    parts: Any = build_parts(*SELECTIVE, "sampler.beta=0", "sampler.priming_passes=0")
    train_parts(parts)
    assert parts.sampler.diagnostics()["selected_share"] == 1


@pytest.mark.parametrize(
    "bad", ["beta=-1", "history_size=0", "pool_size=0", "pool_size=161", "priming_passes=-1", "staleness=0"]
)
def test_bad_values(bad: str) -> None:
    with pytest.raises(ConfigError, match=f"sampler.{bad}"):
        build_parts(*SELECTIVE, f"sampler.{bad}")
