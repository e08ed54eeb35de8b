"""Active Bias against a slow version that keeps every history, and its draws without replacement."""

import itertools
import statistics
from typing import Any

import pytest
import torch

from isbench.errors import ConfigError
from isbench.samplers.active_bias import SCORES, ActiveBias, weighted_subset
from isbench.types import Batch, Draw
from tests.conftest import TINY, build_parts

N = 160


def visit(sampler: ActiveBias, indices: list[int], probabilities: list[float]) -> None:
    """Tell the sampler of a batch."""
    chosen = torch.tensor(indices)
    batch = Batch(chosen, torch.empty(len(indices), 1), chosen, torch.empty(len(indices), 0))
    draw = Draw(batch, torch.ones(len(indices)))
    sampler.observe(draw, {"true_class_probability": torch.tensor(probabilities)})


def slow_q(score: str, history: list[float]) -> float | None:
    """Return the published score of one history, None where it has none."""
    if len(history) < (2 if score == "prediction_variance" else 1):
        return None
    mean = sum(history) / len(history)
    if score == "prediction_variance":
        variance = statistics.variance(history)
        return (variance + variance**2 / (len(history) - 1)) ** 0.5
    return {"difficulty": 1 - mean, "easiness": mean, "threshold_closeness": mean * (1 - mean)}[score]


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
@pytest.mark.parametrize("score", sorted(SCORES))
def test_scores_against_full_histories(score: str, smoothing: float) -> None:
    sampler: Any = build_parts(
        *TINY, "sampler=p_sgd", f"sampler.score={score}", f"sampler.smoothing={smoothing}"
    ).sampler
    torch.testing.assert_close(sampler.smoothed_scores(), torch.full((N,), 1 + smoothing, dtype=torch.float64))
    histories: list[list[float]] = [[] for _ in range(N)]
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        indices = torch.randint(N - 30, (16,), generator=generator)  # with repeats; the last 30 are never visited
        probabilities = torch.rand(16, generator=generator)
        visit(sampler, indices.tolist(), probabilities.tolist())
        for index, probability in dict(zip(indices.tolist(), probabilities.tolist(), strict=True)).items():
            histories[index].append(probability)  # of a repeat, the last counts
    known = [slow_q(score, history) for history in histories]
    highest = max(q for q in known if q is not None)
    expected = torch.tensor([highest if q is None else q for q in known], dtype=torch.float64)
    expected += smoothing * expected.mean()
    torch.testing.assert_close(sampler.smoothed_scores(), expected, rtol=1e-4, atol=1e-5)


def test_a_pass_is_a_share_without_repeats_and_prefers_the_hard() -> None:
    sampler: Any = build_parts(*TINY, "sampler=p_sgd").sampler
    for start in range(0, N, 16):
        visit(sampler, list(range(start, start + 16)), [i / N for i in range(start, start + 16)])
    counts = torch.zeros(N)
    for _ in range(400):
        indices, weights = sampler.plan()
        assert len(indices) == len(indices.unique()) == int(0.3 * N) and (weights == 1).all()
        counts[indices] += 1
    groups = counts.view(8, -1).mean(dim=1)  # ever easier
    assert (groups.diff() < 0).all()
    # Probabilities from 1.5 to 0.5 of the mean: hard examples are in clearly more passes, easy ones still in some.
    assert groups[0] > 1.7 * groups[-1] > 0


def test_subsets_follow_successive_sampling() -> None:
    """The chance of each pair, by enumeration of both orders in which it can be drawn."""
    scores = [1.0, 2.0, 3.0, 6.0]
    total = sum(scores)
    generator = torch.Generator().manual_seed(0)
    draws = 6000
    seen: dict[tuple[int, int], int] = {}
    firsts = 0
    for _ in range(draws):
        pair = weighted_subset(torch.tensor(scores), 2, generator).tolist()
        firsts += pair[0] < pair[1]
        key = (min(pair), max(pair))
        seen[key] = seen.get(key, 0) + 1
    for i, j in itertools.combinations(range(4), 2):
        p = scores[i] / total * scores[j] / (total - scores[i]) + scores[j] / total * scores[i] / (total - scores[j])
        assert seen[i, j] / draws == pytest.approx(p, abs=4 * (p * (1 - p) / draws) ** 0.5)
    assert firsts / draws == pytest.approx(0.5, abs=0.03)  # the order within a pass does not tell the score


@pytest.mark.parametrize("values", [[0.0] * 8, [torch.nan] * 8, [torch.inf, 1.0] * 4, [1e-300] * 8, [1e300] * 8])
def test_extreme_scores_still_give_a_subset(values: list[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor(values, dtype=torch.float64)
    counts = torch.zeros(8)
    for _ in range(600):
        chosen = weighted_subset(scores, 3, generator)
        assert len(chosen.unique()) == 3
        counts[chosen] += 1
    assert ((counts / 600 - 3 / 8).abs() < 0.1).all()


def test_zeros_come_last() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([0.0, 1.0, 0.0, 2.0])
    seen = [set(weighted_subset(scores, 3, generator).tolist()) for _ in range(100)]
    assert all({1, 3} < chosen for chosen in seen) and {0, 1, 3} in seen and {1, 2, 3} in seen


@pytest.mark.parametrize("sampler", ["p_sgd", "c_sgd"])
def test_at_share_one_a_pass_is_a_permutation(sampler: str) -> None:
    parts: Any = build_parts(*TINY, f"sampler={sampler}", "sampler.share=1")
    visit(parts.sampler, list(range(50)), [i / 50 for i in range(50)])
    seen = torch.cat([parts.sampler.draw().batch.indices for _ in range(10)])
    assert torch.equal(seen.sort().values, torch.arange(N))


def test_weights_are_scores_over_their_mean() -> None:
    parts: Any = build_parts(
        *TINY, "sampler=p_sgd", "sampler.form=weighted", "sampler.share=1", "sampler.warmup_passes=1"
    )
    sampler = parts.sampler
    visit(sampler, [0, 1, 2], [0.0, 0.5, 1.0])
    warm_indices, warm_weights = sampler.plan()
    assert (warm_weights == 1).all() and len(warm_indices) == N
    indices, weights = sampler.plan()
    q = torch.ones(N)  # the unvisited have the largest, that of example 0
    q[:3] = torch.tensor([1.0, 0.5, 0.0])
    expected = (q + q.mean()) / (2 * q.mean())
    torch.testing.assert_close(weights, expected[indices])
    assert float(weights.mean()) == pytest.approx(1)
    visit(sampler, list(range(N)), [torch.nan] * N)
    assert sampler.plan()[1].isnan().all()


def test_warm_up_is_uniform() -> None:
    sampler: Any = build_parts(*TINY, "sampler=p_sgd", "sampler.warmup_passes=300", "sampler.smoothing=0").sampler
    visit(sampler, list(range(N)), [1.0 if i < N // 2 else 0.0 for i in range(N)])
    passes = [sampler.plan()[0] for _ in range(300)]
    assert float((torch.cat(passes) < N // 2).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert (sampler.plan()[0] >= N // 2).all()  # 48 of the 80 with a score


@pytest.mark.parametrize(
    ("key", "value"), [("score", "loss"), ("form", "both"), ("share", 0.0), ("share", 1.5), ("smoothing", -1.0)]
)
def test_bad_values(key: str, value: str | float) -> None:
    with pytest.raises(ConfigError, match=f"sampler.{key}={value}"):
        build_parts(*TINY, "sampler=p_sgd", f"sampler.{key}={value}")


@pytest.mark.parametrize("warmup", [0, 2])
def test_it_acts_once_a_pass_and_the_warm_up_are_over(warmup: int) -> None:
    sampler: Any = build_parts(*TINY, "sampler=p_sgd", f"sampler.warmup_passes={warmup}").sampler
    acts = []
    for _ in range(4):
        sampler.plan()
        acts.append(sampler.acts)
    assert acts == [number >= max(1, warmup) for number in range(4)]
