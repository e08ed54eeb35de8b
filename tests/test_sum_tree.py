"""The sum tree against running sums of all weights in NumPy and exact sums."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from numba.core import caching
from torch import Tensor

from isbench.samplers import sum_tree
from isbench.samplers.compiled import compiled
from isbench.samplers.sum_tree import FAN_OUT, SumTree, running_sums

SIZES = [1, 5, 16, 17, 256, 4096, 5000]  # trees of one to four levels


@pytest.fixture(params=["compiled", "tensors"])
def path(request, monkeypatch) -> str:
    """Run a test with the loops of a CPU, and with the tensor operations of other devices."""
    if request.param == "tensors":
        monkeypatch.setattr(sum_tree, "is_compiled", lambda nodes: False)
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
def test_inverse_of_the_running_sum(n: int, path: str) -> None:
    weights = torch.randint(0, 4, (n,), generator=generator()).double()  # integers: every sum is exact
    weights[0] += 1
    tree = filled(weights)
    masses = torch.arange(int(weights.sum()), dtype=torch.float64)
    slow = np.searchsorted(np.cumsum(weights.numpy()), masses.numpy(), side="right")
    assert np.array_equal(tree.draw_at(masses).numpy(), slow)
    assert np.array_equal(tree.draw_at(masses + 0.5).numpy(), slow)


@pytest.mark.parametrize("n", SIZES)
def test_sets_side_by_side(n: int, path: str) -> None:
    """A running sum over both sets, the second doubled; their totals; and changes to both."""
    weights = torch.randint(0, 4, (2, n), generator=generator(2)).double()
    weights[:, n // 2] += 1
    tree = SumTree(n, num_sets=2)
    tree.fill(weights)
    for _ in range(2):
        assert torch.equal(tree.totals(), weights.sum(dim=1))
        scaled = torch.cat([weights[0], 2 * weights[1]])
        masses = torch.arange(int(scaled.sum()), dtype=torch.float64)
        slow = np.searchsorted(np.cumsum(scaled.numpy()), masses.numpy(), side="right") % n
        assert np.array_equal(tree.draw_at(masses, scales=(1.0, 2.0)).numpy(), slow)
        changed = torch.tensor([0, n - 1])
        weights[:, changed] = torch.tensor([[3.0, 4.0], [5.0, 6.0]]).double()
        tree.update(changed, weights[:, changed])


def test_a_set_of_zeros_is_never_drawn_from(path: str) -> None:
    for empty in (0, 1):
        weights = torch.zeros(2, 50, dtype=torch.float64)
        weights[1 - empty, 7] = 1.0
        tree = SumTree(50, num_sets=2)
        tree.fill(weights)
        assert (tree.draw_at(torch.tensor([0.0, 0.5, 1.0, 2.0]).double(), scales=(1.0, 1.0)) == 7).all()


@pytest.mark.parametrize("n", SIZES)
def test_both_paths_agree_bit_for_bit(n: int, monkeypatch) -> None:
    trees = {"compiled": SumTree(n), "tensors": SumTree(n)}
    weights, stream = wide_weights(n, zeros=0.3), generator(3)
    changes = [(torch.randint(n, (64,), generator=stream), wide_weights(64, zeros=0.3)) for _ in range(20)]
    masses = torch.rand(10_000, dtype=torch.float64, generator=stream) * 1.001
    drawn = {}
    for path, tree in trees.items():
        monkeypatch.setattr(sum_tree, "is_compiled", lambda nodes, path=path: path == "compiled")
        tree.fill(weights)
        for items, values in changes:
            tree.update(items, values)
        drawn[path] = tree.draw_at(masses * tree.totals())
    assert torch.equal(trees["compiled"].nodes, trees["tensors"].nodes)
    assert torch.equal(drawn["compiled"], drawn["tensors"])


@pytest.mark.parametrize("stratified", [False, True])
def test_frequencies(stratified: bool, path: str) -> None:
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


def test_strata_are_equal_parts(path: str) -> None:
    tree = filled(torch.ones(1000))
    assert torch.equal(tree.draw(1000, generator(), stratified=True), torch.arange(1000))


@pytest.mark.parametrize("layout", ["scattered", "row ends", "tail", "one"])
def test_zero_is_never_drawn(layout: str, path: str) -> None:
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
    total = float(tree.totals())
    ends = torch.from_numpy(np.cumsum(weights.numpy()))
    masses = [torch.tensor([0.0, total, math.nextafter(total, 0), math.nextafter(total, math.inf)]).double(), ends]
    masses += [torch.nextafter(ends, torch.tensor(limit).double()) for limit in (0.0, math.inf)]
    masses += [torch.rand(100_000, dtype=torch.float64, generator=generator()) * total]
    for some in masses:
        assert (tree.weights[0, tree.draw_at(some)] > 0).all()


def test_large_weight_does_not_hide_its_neighbours(path: str) -> None:
    weights = torch.full((5000,), 1e-6, dtype=torch.float64)
    weights[2500] = 1e6
    beyond = 1e6 + 2600e-6  # about 100 small weights after the large one
    index = int(filled(weights).draw_at(torch.tensor([beyond], dtype=torch.float64)))
    assert abs(index - 2600) <= 1


def test_the_last_of_repeats_counts(path: str) -> None:
    tree = filled(torch.ones(100))
    tree.update(torch.tensor([7, 99, 7, 3, 99, 7]), torch.tensor([5.0, 1.0, 6.0, 2.0, 8.0, 0.5]))
    assert tree.weights[0, [3, 7, 99]].tolist() == [2.0, 0.5, 8.0]
    assert float(tree.totals()) == 97 + 10.5


def test_no_drift(path: str) -> None:
    n, k, updates = 5000, 16, 3_000
    tree, stream, expected = SumTree(n), generator(), np.zeros(n)
    indices = torch.randint(n, (updates, k), generator=stream)
    weights = 10 ** (torch.rand(updates, k, dtype=torch.float64, generator=stream) * 12 - 6)
    for some, values in zip(indices, weights, strict=True):
        tree.update(some, values)
        expected[some.numpy()] = values.numpy()  # NumPy keeps the last of repeats
    assert np.array_equal(tree.weights[0].numpy(), expected)
    exact = math.fsum(expected)
    assert abs(float(tree.totals()) - exact) <= 1e-14 * exact
    afresh = filled(torch.from_numpy(expected))
    assert all(torch.equal(a, b) for a, b in zip(tree.buffers(), afresh.buffers(), strict=True))


def test_degenerate_weights_give_valid_indices(path: str) -> None:
    for value in (0.0, math.nan, math.inf):
        weights = torch.zeros(5000, dtype=torch.float64)
        weights[10:] = value
        tree = filled(weights)
        indices = tree.draw(1000, generator())
        assert ((0 <= indices) & (indices < 5000)).all()
        assert float(tree.totals()) == 4990 * value or math.isnan(value)


def test_state_is_complete(path: str) -> None:
    one, other = filled(wide_weights(5000, zeros=0.1)), SumTree(5000)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.draw(1000, generator()), other.draw(1000, generator()))


def test_running_sums() -> None:
    weights = torch.stack([*wide_weights(50 * FAN_OUT, zeros=0.5).view(50, FAN_OUT), torch.ones(FAN_OUT)])
    sums = running_sums(weights)
    assert torch.equal(sums[-1], torch.arange(1, FAN_OUT + 1).double())
    exact = [[math.fsum(row[: i + 1]) for i in range(FAN_OUT)] for row in weights.tolist()]
    assert np.allclose(sums.numpy(), exact, rtol=1e-13, atol=0)
    steps = sums.diff(dim=1)
    assert (steps >= 0).all() and (steps[weights[:, 1:] == 0] == 0).all()


def test_only_samplers_with_a_tree_load_the_compiler() -> None:
    """It would add to the start of every command."""
    code = "import sys; from tests.conftest import build_parts, TINY; build_parts(*TINY, 'sampler=uniform')"
    command = [sys.executable, "-c", code + "; print('numba' in sys.modules)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_compiles_where_nothing_can_be_kept(monkeypatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    total = compiled("float64(float64[::1])")(lambda weights: weights.sum())
    assert total(np.ones(3)) == 3.0
