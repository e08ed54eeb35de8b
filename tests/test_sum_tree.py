"""The sum tree against running sums of all weights in NumPy and exact sums."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from isbench.samplers import sum_tree
from isbench.samplers.sum_tree import SumTree, running_sums, sums_by_doubling

SIZES = [1, 5, 64, 65, 4096, 5000]


@pytest.fixture(params=["one level", "three levels", "doubling"])
def shape(request, monkeypatch) -> str:
    """Run a test on trees of one level, of up to three, and with the sums that CUDA uses."""
    if request.param == "three levels":
        monkeypatch.setattr(sum_tree, "FAN_OUT", 8)
        monkeypatch.setattr(sum_tree, "MAX_ROOT", 10)
    if request.param == "doubling":
        monkeypatch.setattr(sum_tree, "running_sums", sums_by_doubling)
    return request.param


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(weights: Tensor) -> SumTree:
    tree = SumTree(len(weights))
    tree.fill(weights)
    return tree


def wide_weights(n: int, zeros: float) -> Tensor:
    """Return weights over 12 orders of magnitude, in runs of like size, a share of them zero."""
    weights = 10 ** (torch.rand(n, dtype=torch.float64, generator=generator(n)) * 12 - 6)
    weights[torch.rand(n, generator=generator(n + 1)) < zeros] = 0
    return weights


@pytest.mark.parametrize("n", SIZES)
def test_inverse_of_the_running_sum(n: int, shape: str) -> None:
    weights = torch.randint(0, 4, (n,), generator=generator()).double()  # integers: every sum is exact
    weights[0] += 1
    tree = filled(weights)
    masses = torch.arange(int(weights.sum()), dtype=torch.float64)
    slow = np.searchsorted(np.cumsum(weights.numpy()), masses.numpy(), side="right")
    assert np.array_equal(tree.draw_at(masses).numpy(), slow)
    assert np.array_equal(tree.draw_at(masses + 0.5).numpy(), slow)


@pytest.mark.parametrize("n", SIZES)
def test_sets_side_by_side(n: int, shape: str) -> None:
    """A running sum over both sets, their totals, and changes to either."""
    weights = torch.randint(0, 4, (2, n), generator=generator(2)).double()
    weights[:, n // 2] += 1
    tree = SumTree(n, num_sets=2)
    tree.fill(weights)
    for _ in range(2):
        assert torch.equal(tree.totals(), weights.sum(dim=1)) and tree.total() == weights.sum()
        masses = torch.arange(int(weights.sum()), dtype=torch.float64)
        slow = np.searchsorted(np.cumsum(weights.flatten().numpy()), masses.numpy(), side="right") % n
        assert np.array_equal(tree.draw_at(masses).numpy(), slow)
        changed = torch.tensor([0, n - 1])
        weights[:, changed] = torch.tensor([[3.0], [5.0]]).double()
        tree.put(torch.cat([changed, tree.stride + changed]), weights[:, changed].flatten())


def test_shapes_differ(shape: str) -> None:
    levels = len(SumTree(5000)._levels)
    assert levels == (3 if shape == "three levels" else 1)


@pytest.mark.parametrize("stratified", [False, True])
def test_frequencies(stratified: bool, shape: str) -> None:
    weights = torch.rand(300, dtype=torch.float64, generator=generator()) ** 3
    weights[::7] = 0
    draws, k = 2000, 128
    tree, stream = filled(weights), generator(1)
    drawn = torch.cat([tree.draw(k, stream, stratified) for _ in range(draws)])
    counts = drawn.bincount(minlength=300).double()
    p = weights / weights.sum()
    error = (p * (1 - p) / (draws * k)).sqrt()  # stratified draws have no larger one
    assert ((counts / (draws * k) - p).abs() <= 4.5 * error).all()  # 300 comparisons
    assert counts[::7].sum() == 0


def test_strata_are_equal_parts(shape: str) -> None:
    tree = filled(torch.ones(1000))
    assert torch.equal(tree.draw(1000, generator(), stratified=True), torch.arange(1000))


@pytest.mark.parametrize("layout", ["scattered", "row ends", "tail", "one"])
def test_zero_is_never_drawn(layout: str, shape: str) -> None:
    n = 5000
    weights = wide_weights(n, zeros=0.5)
    if layout == "row ends":
        weights.view(-1, 8)[:, 3:] = 0
    elif layout == "tail":
        weights[1700:] = 0
    elif layout == "one":
        weights[:] = 0
        weights[4321] = 1e-6
    tree = filled(weights)
    total = float(tree.total())
    ends = torch.from_numpy(np.cumsum(weights.numpy()))
    masses = [torch.tensor([0.0, total, math.nextafter(total, 0), math.nextafter(total, math.inf)]).double(), ends]
    masses += [torch.nextafter(ends, torch.tensor(limit).double()) for limit in (0.0, math.inf)]
    masses += [torch.rand(100_000, dtype=torch.float64, generator=generator()) * total]
    for some in masses:
        assert (tree[tree.draw_at(some)] > 0).all()


def test_large_weight_does_not_hide_its_neighbours(shape: str) -> None:
    weights = torch.full((5000,), 1e-6, dtype=torch.float64)
    weights[2500] = 1e6
    beyond = 1e6 + 2600e-6  # about 100 small weights after the large one
    index = int(filled(weights).draw_at(torch.tensor([beyond], dtype=torch.float64)))
    assert abs(index - 2600) <= 1


def test_the_last_of_repeats_counts(shape: str) -> None:
    tree = filled(torch.ones(100))
    tree.update(torch.tensor([7, 99, 7, 3, 99, 7]), torch.tensor([5.0, 1.0, 6.0, 2.0, 8.0, 0.5]))
    assert tree[torch.tensor([3, 7, 99])].tolist() == [2.0, 0.5, 8.0]
    assert float(tree.total()) == 97 + 10.5


@pytest.mark.parametrize("shape", ["one level", "three levels"], indirect=True)
def test_no_drift(shape: str) -> None:
    n, k, updates = 5000, 16, 10_000
    tree, stream, expected = SumTree(n), generator(), np.zeros(n)
    indices = torch.randint(n, (updates, k), generator=stream)
    weights = 10 ** (torch.rand(updates, k, dtype=torch.float64, generator=stream) * 12 - 6)
    for some, values in zip(indices, weights, strict=True):
        tree.update(some, values)
        expected[some.numpy()] = values.numpy()  # NumPy keeps the last of repeats
    assert np.array_equal(tree[torch.arange(n)].numpy(), expected)
    exact = math.fsum(expected)
    assert abs(float(tree.total()) - exact) <= 1e-14 * exact
    afresh = filled(torch.from_numpy(expected))
    assert all(torch.equal(a, b) for a, b in zip(tree.buffers(), afresh.buffers(), strict=True))


def test_degenerate_weights_give_valid_indices(shape: str) -> None:
    for value in (0.0, math.nan, math.inf):
        weights = torch.zeros(5000, dtype=torch.float64)
        weights[10:] = value
        tree = filled(weights)
        indices = tree.draw(1000, generator())
        assert ((0 <= indices) & (indices < 5000)).all()
        assert torch.equal(tree.total(), torch.tensor(4990 * value).double()) or math.isnan(value)


def test_state_is_complete(shape: str) -> None:
    one, other = filled(wide_weights(5000, zeros=0.1)), SumTree(5000)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.draw(1000, generator()), other.draw(1000, generator()))


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("sums", [running_sums, sums_by_doubling])
def test_running_sums(n: int, sums) -> None:
    weights = torch.stack([wide_weights(n, zeros=0.5), torch.ones(n)])
    result = sums(weights)
    assert result.shape == weights.shape and torch.equal(result[1], torch.arange(1, n + 1).double())
    exact = [math.fsum(weights[0, : i + 1].tolist()) for i in range(n)]
    assert np.allclose(result[0].numpy(), exact, rtol=1e-13, atol=0)
    steps = result[0].diff()
    assert (steps >= 0).all() and (steps[weights[0, 1:] == 0] == 0).all()
