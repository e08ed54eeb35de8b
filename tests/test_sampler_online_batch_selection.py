"""Online batch selection: the distribution over ranks, the pressure, sorting and recomputing."""

import math

import pytest
import torch
from torch import Tensor

from isbench.build import Parts
from isbench.errors import ConfigError
from isbench.samplers.online_batch_selection import OnlineBatchSelection, draw_ranks
from isbench.types import Draw
from tests.conftest import TINY, build_parts, train_parts

N, B = 160, 16


def build_sampler(*overrides: str) -> tuple[Parts, OnlineBatchSelection]:
    parts = build_parts(*TINY, "sampler=online_batch_selection", *overrides)
    assert isinstance(parts.sampler, OnlineBatchSelection)
    return parts, parts.sampler


def paper_probabilities(n: int, pressure: float) -> Tensor:
    """Return p_i proportional to 1 / exp(log(s) / N)^i for ranks 1 to N, as the paper writes it."""
    p = torch.tensor([1 / math.exp(math.log(pressure) / n) ** i for i in range(1, n + 1)], dtype=torch.float64)
    return p / p.sum()


def test_the_first_rank_is_s_times_likelier_than_the_last() -> None:
    p = paper_probabilities(1000, 100.0)
    assert float(p[0] / p[-1]) == pytest.approx(100 ** (999 / 1000))


@pytest.mark.parametrize("pressure", [1.0, 1 + 1e-12, 1 + 1e-6, 2.0, 100.0, 1e8])
def test_frequencies_of_ranks(pressure: float) -> None:
    n, draws = 50, 400_000
    ranks = draw_ranks(draws, n, pressure, torch.Generator().manual_seed(0))
    frequencies = ranks.bincount(minlength=n).double() / draws
    p = paper_probabilities(n, pressure)
    assert ((frequencies - p).abs() <= 4 * (p * (1 - p) / draws).sqrt() + 1 / draws).all()


@pytest.mark.parametrize("pressure", [1.0, 100.0, 1e300])
def test_ranks_stay_in_range(pressure: float) -> None:
    for n in (1, 2, 10**8):
        ranks = draw_ranks(100_000, n, pressure, torch.Generator().manual_seed(1))
        assert ((0 <= ranks) & (ranks < n)).all()


def test_pressure_at_its_ends() -> None:
    parts, sampler = build_sampler("sampler.s_start=100", "sampler.s_end=4")
    pressures = [sampler.pressure()]
    train_parts(parts, lambda rate, gain: pressures.append(sampler.pressure()))
    assert pressures == pytest.approx([100 * (4 / 100) ** fraction for fraction in (0, 0.25, 0.5, 0.75, 1)])


def test_the_first_pass_sees_everything_once() -> None:
    parts, sampler = build_sampler("budget.limit=10")
    order = []
    observe = sampler.observe

    def record(draw, signals):
        order.append(draw.batch.indices)
        observe(draw, signals)
        assert torch.equal(sampler.losses[draw.batch.indices], signals["loss"])

    sampler.observe = record
    train_parts(parts)
    assert torch.equal(torch.cat(order).sort().values, torch.arange(N))


def record_refreshes(parts: Parts) -> tuple[list[int], list[int]]:
    """Return lists that fill with the updates before which losses are recomputed, and ranks sorted."""
    recomputed, sorted_ = [], []
    workspace, sampler = parts.workspace, parts.sampler
    score_dataset, draw = workspace.score_dataset, sampler.draw

    def score(signal):
        recomputed.append(parts.progress.updates)
        return score_dataset(signal)

    def watch():
        before = sampler.ranking.clone()
        result = draw()
        if not torch.equal(before, sampler.ranking):
            sorted_.append(parts.progress.updates)
            losses = sampler.losses[sampler.ranking]
            assert (losses.diff() <= 0).all()
        return result

    workspace.score_dataset, sampler.draw = score, watch
    return recomputed, sorted_


@pytest.mark.parametrize(
    "recompute, sort_every, recomputed, sorted_",
    [
        ("2", "9", [20, 40], [10, 18, 20, 27, 36, 40]),
        ("0.5", "100", [10, 15, 20, 25, 30, 35, 40], [10, 15, 20, 25, 30, 35, 40]),
        ("null", "null", [], list(range(10, 45))),
        ("null", "1000", [], [10]),
    ],
)
def test_when_losses_are_recomputed_and_sorted(recompute, sort_every, recomputed, sorted_) -> None:
    parts, _ = build_sampler(f"sampler.recompute={recompute}", f"sampler.sort_every={sort_every}", "budget.limit=45")
    got = record_refreshes(parts)
    train_parts(parts)
    assert got == (recomputed, sorted_)
    assert parts.progress.examples_scored == N * len(recomputed)


def test_recomputed_losses_are_those_of_the_model() -> None:
    parts, sampler = build_sampler("sampler.recompute=1", "budget.limit=10")
    train_parts(parts)
    sampler.draw()
    inputs, targets = parts.dataset.plain(torch.arange(N))
    with torch.no_grad():
        losses = parts.criterion(parts.model(inputs), targets)
    torch.testing.assert_close(sampler.losses, losses)
    assert torch.equal(losses[sampler.ranking[:1]], losses.max()[None])


def test_draws_follow_the_ranks() -> None:
    """Biased on purpose: weights are 1, and the mean loss of the drawn is that under the paper's probabilities."""
    parts, sampler = build_sampler("sampler.s_end=100", "sampler.recompute=null", "sampler.sort_every=1000")
    train_parts(parts)
    ranked = torch.linspace(3, 0, N, dtype=torch.float64)
    losses = torch.empty(N, dtype=torch.float64)
    losses[sampler.ranking] = ranked
    draws = [sampler.draw() for _ in range(400)]
    assert all((draw.weights == 1).all() for draw in draws)
    drawn = torch.cat([losses[draw.batch.indices] for draw in draws])
    p = paper_probabilities(N, 100.0)
    error = drawn.std() / math.sqrt(len(drawn))
    assert abs(drawn.mean() - p @ ranked) < 4 * error
    assert drawn.mean() - ranked.mean() > 4 * error, "the documented bias must show"


def test_the_last_of_repeats_counts() -> None:
    parts, sampler = build_sampler()
    batch = parts.workspace.fetch(torch.tensor([3, 5, 3]))
    sampler.observe(Draw(batch, torch.ones(3)), {"loss": torch.tensor([1.0, 2.0, 4.0])})
    assert sampler.losses[[3, 5]].tolist() == [4.0, 2.0]


@pytest.mark.parametrize("value", [0.0, 3e38, math.nan])
def test_equal_losses_are_ranked_at_random(value: float) -> None:
    parts, sampler = build_sampler("sampler.s_end=100", "sampler.recompute=null", "sampler.sort_every=1")
    parts.progress.examples_trained = N
    sampler.losses.fill_(value)
    draws = [sampler.draw().batch.indices for _ in range(200)]
    mean = torch.cat(draws).double().mean()
    assert abs(mean - (N - 1) / 2) < 4 * N / math.sqrt(12 * 200)  # of 200 rankings


@pytest.mark.parametrize("bad", ["s_start=0.5", "s_start=.inf", "s_end=.nan", "recompute=0", "sort_every=0"])
def test_bad_values(bad: str) -> None:
    with pytest.raises(ConfigError, match=f"sampler.{bad.split('=')[0]}="):
        build_sampler(f"sampler.{bad}")
