"""SGD-S against a literal version in Python lists, over several passes."""

import math
from typing import Any

import pytest
import torch

from isbench.errors import ConfigError
from isbench.samplers.sgd_s import SGDS
from isbench.types import Batch, Draw
from tests.conftest import TINY, build_parts, train_parts

N = 160


def teach(sampler: SGDS, losses: dict[int, float]) -> None:
    """Tell the sampler of a batch."""
    indices = torch.tensor(list(losses))
    batch = Batch(indices, torch.empty(len(indices), 1), indices, torch.empty(len(indices), 0))
    sampler.observe(Draw(batch, torch.ones(len(indices))), {"loss": torch.tensor(list(losses.values()))})


def test_kept_set_against_python_lists() -> None:
    sampler: Any = build_parts(*TINY, "sampler=sgd_s", "sampler.restore=0.05").sampler
    generator = torch.Generator().manual_seed(0)
    losses = dict(enumerate(torch.rand(N, generator=generator).tolist()))
    for _ in range(2):
        indices, weights = sampler.plan()
        assert torch.equal(indices.sort().values, torch.arange(N)) and (weights == 1).all()
    teach(sampler, losses)
    kept, dropped = list(range(N)), list[int]()
    for _ in range(12):
        indices, weights = sampler.plan()
        by_loss = sorted(kept, key=lambda i: losses[i], reverse=True)
        num_dropped, num_restored = int(0.1 * len(kept)), int(0.05 * len(kept))
        survivors, dropped = by_loss[: len(kept) - num_dropped], dropped + by_loss[len(kept) - num_dropped :]
        now = set(sampler.order[: sampler._kept].tolist())
        restored = now - set(survivors)  # which ones is random; how many and from where is not
        assert set(survivors) <= now and len(restored) == num_restored and restored <= set(dropped)
        kept = list(now)
        dropped = [i for i in dropped if i not in restored]
        assert sorted(kept + dropped) == list(range(N)) == sorted(sampler.order.tolist())
        assert len(indices) == len(kept) and set(indices.tolist()) <= now and (weights == 1).all()
        fresh = {i: loss for i, loss in losses.items() if i in set(indices.tolist())}
        fresh = {i: float(torch.rand((), generator=generator)) for i in fresh}
        teach(sampler, fresh)
        losses |= fresh


def test_resampling_follows_the_losses_of_the_examples_themselves() -> None:
    """Draws are mapped through the kept list: with drop 0 and a shuffled list, frequencies must follow the loss."""
    sampler: Any = build_parts(*TINY, "sampler=sgd_s", "sampler.transient_passes=1", "sampler.drop=0.5").sampler
    sampler.plan()
    teach(sampler, {i: float(i % 4 + 1) for i in range(N)})  # keeps loss 3 and 4
    sampler.drop, counts, passes = 0.5, torch.zeros(N), 200
    sampler.plan()
    sampler.drop = sampler.restore = 0.0
    kept = sampler.order[: sampler._kept]
    for _ in range(passes):
        counts += torch.bincount(sampler.plan()[0], minlength=N)
    dropped = torch.ones(N, dtype=torch.bool)
    dropped[kept] = False
    assert (counts[dropped] == 0).all()
    expected = torch.where(dropped, 0.0, torch.arange(N) % 4 + 1.0)
    expected *= passes * len(kept) / expected.sum()
    assert ((counts - expected).abs() <= 5 * expected.sqrt()).all()


def test_losses_are_those_of_the_last_visit() -> None:
    parts: Any = build_parts(*TINY, "sampler=sgd_s", "sampler.order=sequential", "budget.limit=20", "optimizer.lr=0.5")
    seen: list[torch.Tensor] = []
    observe = parts.sampler.observe

    def watched(draw: Draw, signals: Any) -> None:
        seen.append(signals["loss"].clone())
        observe(draw, signals)

    parts.sampler.observe = watched
    before = parts.sampler.losses.clone()
    assert before.tolist() == pytest.approx([math.log(10)] * N)
    train_parts(parts)  # two passes of ten updates, in stored order
    assert torch.equal(parts.sampler.losses, torch.cat(seen[10:]))
    assert not torch.equal(parts.sampler.losses, torch.cat(seen[:10]))


def test_the_set_shrinks_and_the_estimate_is_biased() -> None:
    parts: Any = build_parts(*TINY, "sampler=sgd_s", "budget.limit=60")
    train_parts(parts)
    assert parts.sampler.diagnostics()["kept_share"] < 0.75
    indices, _ = parts.sampler.plan()
    assert parts.sampler.losses[indices].mean() > 1.2 * parts.sampler.losses.mean()


@pytest.mark.parametrize("loss", [0.0, 1e30, 1e-30, torch.inf, torch.nan])
def test_extreme_losses_give_full_passes(loss: float) -> None:
    sampler: Any = build_parts(*TINY, "sampler=sgd_s", "sampler.transient_passes=1").sampler
    sampler.plan()
    teach(sampler, dict.fromkeys(range(N), loss))
    for m in (145, 132, 120):  # 160 - 16 + 1, 145 - 14 + 1, 132 - 13 + 1
        indices, weights = sampler.plan()
        assert len(indices) == m and weights.isfinite().all() and ((0 <= indices) & (indices < N)).all()


def test_the_kept_set_never_empties() -> None:
    sampler: Any = build_parts(*TINY, "sampler=sgd_s", "sampler.drop=0.9", "sampler.restore=0").sampler
    assert all(len(sampler.plan()[0]) >= 1 for _ in range(20))


@pytest.mark.parametrize(
    ("key", "value"), [("transient_passes", 0), ("order", "random"), ("drop", 1.0), ("restore", -0.1)]
)
def test_bad_values(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"sampler.{key}={value}"):
        build_parts(*TINY, "sampler=sgd_s", f"sampler.{key}={value}")
