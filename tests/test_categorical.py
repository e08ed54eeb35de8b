"""The weighted draw that the samplers share."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from isbench.samplers.base import categorical


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scores", [[1.0, 2.0, 3.0, 4.0], [0.3, 1e-3, 5.0], [1.0] * 7, [0.0, 1.0, 0.0, 0.25]])
def test_frequencies_follow_the_scores(scores: list[float]) -> None:
    k = 200_000
    positions, probabilities = categorical(torch.tensor(scores), k, seeded())
    for i, score in enumerate(scores):
        expected = score / sum(scores)
        error = math.sqrt(expected * (1 - expected) / k)
        assert abs(float((positions == i).double().mean()) - expected) <= 4 * error
        if score > 0:
            drawn_with = probabilities[positions == i]
            wanted = torch.full((len(drawn_with),), expected, dtype=torch.float64)
            torch.testing.assert_close(drawn_with, wanted, rtol=1e-6, atol=0)  # the scores given are float32


def test_a_score_of_zero_is_never_drawn() -> None:
    for scores in ([0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1e-30, 0.0]):
        given = torch.tensor(scores)
        positions, probabilities = categorical(given, 10_000, seeded())
        assert (given[positions] > 0).all() and (probabilities > 0).all()


def test_all_zero_is_uniform() -> None:
    positions, probabilities = categorical(torch.zeros(5), 50_000, seeded())
    assert torch.equal(probabilities, torch.full((50_000,), 0.2, dtype=torch.float64))
    shares = positions.bincount(minlength=5) / 50_000
    assert ((shares - 0.2).abs() < 4 * math.sqrt(0.2 * 0.8 / 50_000)).all()


def test_the_ends_of_the_uniform_numbers_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in ((0.0, 1), (1 - 2.0**-53, 2)):
        monkeypatch.setattr(torch, "rand", lambda k, value=value, **_: torch.full((k,), value, dtype=torch.float64))
        positions, _ = categorical(torch.tensor([0.0, 1.0, 1e-9, 0.0]), 1, seeded())
        assert positions.tolist() == [expected]


def test_probabilities_are_those_of_the_counts_really_drawn_from() -> None:
    scores = torch.rand(1000, generator=seeded(1)) ** 30  # over many orders of magnitude, some rounded to zero
    positions, probabilities = categorical(scores, 20_000, seeded())
    largest = Fraction(float(scores.max()))
    exact = [Fraction(float(score)) * 2**40 / largest for score in scores]
    assert 0 < sum(value < 1 for value in exact)
    counts = [int(value) for value in exact]  # in double precision, the product may land one lower or higher
    for position, probability in zip(positions[:2000].tolist(), probabilities[:2000].tolist(), strict=True):
        count = probability * sum(counts)
        assert 0.5 < count and abs(count - counts[position]) <= 1 + 1e-9 * counts[position]
    rounded_down = torch.tensor([value < 1 for value in exact])
    assert not rounded_down[positions].any()


def test_huge_range_and_huge_scores() -> None:
    positions, probabilities = categorical(torch.tensor([1e-38, 1.0, 3e38, 3e38]), 1000, seeded())
    assert set(positions.tolist()) == {2, 3}
    assert torch.equal(probabilities, torch.full((1000,), 0.5, dtype=torch.float64))
    for scale in (1e-44, 1e-20, 1e20, 1e38):  # only ratios matter, even down to subnormal numbers
        _, probabilities = categorical(torch.full((4,), scale), 10, seeded())
        assert torch.equal(probabilities, torch.full((10,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("others", [[1.0, 2.0], [0.0, 0.0]])
def test_not_finite_scores_give_nan_probabilities(bad: float, others: list[float]) -> None:
    positions, probabilities = categorical(torch.tensor([*others, bad]), 50, seeded())
    assert probabilities.isnan().all()
    assert ((0 <= positions) & (positions < 3)).all()


def test_one_example_and_more_draws_than_examples() -> None:
    positions, probabilities = categorical(torch.tensor([0.7]), 5, seeded())
    assert positions.tolist() == [0] * 5 and probabilities.tolist() == [1.0] * 5
    positions, _ = categorical(torch.tensor([1.0, 1.0, 1.0]), 1000, seeded())
    assert positions.shape == (1000,) and positions.unique().tolist() == [0, 1, 2]


def test_the_generator_decides() -> None:
    scores = torch.rand(100, generator=seeded(5))

    def draw(seed: int) -> Tensor:
        return categorical(scores, 50, seeded(seed))[0]

    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before), "the global stream must be left alone"


def test_more_examples_than_torch_multinomial_takes() -> None:
    n = 2**25
    scores = torch.zeros(n)
    scores[[3, 2**24 + 5, n - 1]] = torch.tensor([1.0, 2.0, 1.0])
    positions, probabilities = categorical(scores, 4000, seeded())
    assert positions.unique().tolist() == [3, 2**24 + 5, n - 1]
    assert torch.equal(probabilities, scores[positions].double() / 4)
    positions, probabilities = categorical(torch.ones(n), 4000, seeded())
    assert torch.equal(probabilities, torch.full((4000,), 1 / n, dtype=torch.float64))
    assert abs(float(positions.double().mean()) / n - 0.5) < 4 / math.sqrt(12 * 4000)
