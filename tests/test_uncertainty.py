"""The uncertainty set of RAIS: features, the robust estimate, and the convex fit against independent solvers."""

import numpy as np
import pytest
from scipy.optimize import minimize

from isbench.samplers.uncertainty import (
    BIAS,
    HISTORY,
    NUM_FEATURES,
    Array,
    fit,
    predict,
    record,
    robust_scale,
    store,
    weigh,
)

Rows = tuple[Array, Array, Array, Array]


def slow_features(norms: list[float]) -> list[float]:
    """Return the features of one example from its norms, latest first."""
    means, variances = [], []
    for window in (1, 2, 4, 8, 16):
        recent = norms[:window]
        means.append(sum(recent) / len(recent) if recent else 0.0)
        if window >= 4:
            variances.append(sum((v - means[-1]) ** 2 for v in recent) / len(recent) if recent else 0.0)
    return [1.0, *means, *variances, *(v**0.5 for v in variances)]


def blank_examples(count: int, further_features: int = 0) -> np.ndarray:
    """Return examples without a history."""
    examples = np.zeros((count, NUM_FEATURES + further_features + 1 + HISTORY), dtype=np.float32)
    examples[:, BIAS] = 1
    return examples


def make_rows(seed: int, rows: int = 400, size: int = 10_000) -> Rows:
    """Return features, norms, weights of an importance-sampled subset, and mean features of a set of examples."""
    random = np.random.default_rng(seed)
    level = np.exp(-3 + 2 * random.standard_normal((size, 1)))
    norms = level * np.exp(0.7 * random.standard_normal((size, HISTORY + 1)))
    norms = (1.4 * norms / (1 + norms)).astype(np.float32)
    examples = blank_examples(size)
    for latest in np.ascontiguousarray(norms[:, 1:].T):
        record(examples, np.arange(size), latest)
    features = examples[:, :NUM_FEATURES].astype(np.float64)
    p = features[:, 3] + 0.3 * features[:, 3].mean()
    p /= p.sum()
    drawn = random.choice(size, rows, p=p)
    return features[drawn], norms[drawn, 0].astype(np.float64), 1 / (size * p[drawn]), features.mean(axis=0)


def constraint(rows: Rows, c: Array, d: Array) -> float:
    features, norms, weights, _ = rows
    return float((weights * (features @ c - norms) ** 2 / (features @ d)).mean())


def optimality_gap(rows: Rows, c: Array, d: Array) -> float:
    """Return by how much, relative to <d, mean>, a feasible (c, d) may be worse than the optimum of PT.

    With multiplier <d, mean> the Lagrangian L is convex and, scaling d, stationary along d. For y >= 0, L(y) is at
    least L(x) + <grad L(x), y - x>: negative entries of the gradient, in units in which the optimum is of order one,
    count as they would for y of order one.
    """
    features, norms, weights, mean = rows
    area = d @ mean
    ratio = (features @ c - norms) / (features @ d)
    by_c = area * (weights * 2 * ratio) @ features / len(norms)
    by_d = mean - area * (weights * ratio**2) @ features / len(norms)
    scale = np.maximum(mean, 1e-300)
    unit = (weights @ norms) / weights.sum()
    missing = np.maximum(-by_c, 0) @ (np.maximum(c, unit / scale)) + np.maximum(-by_d, 0) @ np.maximum(d, area / scale)
    return float((np.abs(by_c @ c) + np.abs(by_d @ d) + missing) / area)


def solve_directly(rows: Rows) -> float:
    """Return the optimum of PT by a general solver of constrained problems, with the constraint as it stands."""
    features, norms, weights, mean = rows
    size, unit = len(mean), float(weights @ norms / weights.sum())
    features, norms = features / mean, norms / unit

    def slack(x: np.ndarray) -> float:
        return 1 - np.mean(weights * (features @ x[:size] - norms) ** 2 / (features @ x[size:]))

    def slack_gradient(x: np.ndarray) -> np.ndarray:
        ratio = (features @ x[:size] - norms) / (features @ x[size:])
        return np.concatenate([-2 * weights * ratio @ features, (weights * ratio**2) @ features]) / len(norms)

    cost = np.concatenate([np.zeros(size), np.ones(size)])
    result = minimize(
        lambda x: cost @ x,
        np.full(2 * size, 1 / size),
        jac=lambda x: cost,
        method="SLSQP",
        bounds=[(0, None)] * size + [(1e-9, None)] + [(0, None)] * (size - 1),
        constraints={"type": "ineq", "fun": slack, "jac": slack_gradient},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert slack(result.x) > -1e-9
    return result.fun * unit**2


def test_record_against_a_slow_version() -> None:
    """Histories of all lengths beyond the longest window, with repeats in a batch and a feature of another kind."""
    random = np.random.default_rng(0)
    examples, history = blank_examples(12, further_features=1), [[] for _ in range(12)]
    examples[:, NUM_FEATURES] = range(12)
    for _ in range(60):
        indices = random.integers(0, 12, 5)
        norms = random.random(5).astype(np.float32)
        record(examples, indices, norms)
        for i, norm in dict(zip(indices.tolist(), norms.tolist(), strict=True)).items():
            history[i].insert(0, norm)
        for i, norms_of_one in enumerate(history):
            assert np.allclose(examples[i, :NUM_FEATURES], slow_features(norms_of_one), rtol=1e-5, atol=1e-6)
            expected = [i, min(len(norms_of_one), HISTORY), *norms_of_one[:HISTORY]]
            assert np.allclose(examples[i, NUM_FEATURES:][: len(expected)], expected)
    assert max(map(len, history)) > HISTORY


def test_store_goes_round_and_predict_is_a_product() -> None:
    random = np.random.default_rng(0)
    examples = random.random((9, 5 + 1 + HISTORY)).astype(np.float32)
    rows, expected = np.zeros((2, 7, 7), dtype=np.float32)
    for place in (0, 4, 8):
        indices, norms, weights = random.integers(0, 9, 4), *random.random((2, 4)).astype(np.float32)
        store(rows, place, examples, indices, norms, weights)
        for j in range(4):
            expected[(place + j) % 7] = [*examples[indices[j], :5], norms[j], weights[j]]
    assert np.array_equal(rows, expected)
    coefficients, predictions = random.random((2, 5)), np.zeros((2, 4))
    predict(coefficients, examples, indices, predictions)
    assert np.allclose(predictions, coefficients @ examples[indices, :5].T.astype(np.float64))


def test_robust_estimate_is_on_the_border_and_largest() -> None:
    """Proposition 4.1: of all norms with mean Q at most 1, v = <c, s> + k <d, s> has the largest sum."""
    random = np.random.default_rng(0)
    c, d = random.random((2, 50))
    v = c + robust_scale(d.sum(), 50) * d
    assert ((c - v) ** 2 / d).mean() == pytest.approx(1, abs=1e-12)
    for _ in range(200):
        step = random.standard_normal(50) * np.sqrt(d)
        other = np.maximum(c + step / np.sqrt((step**2 / d).mean()), 0)
        assert other.sum() < v.sum()


def test_weigh_by_hand() -> None:
    predictions = np.array([[9.0, 1.0, 9.0, 0.5], [9.0, 0.25, 9.0, 1.0]])
    numbers = np.zeros((2, 2), dtype=np.float32)
    weigh(predictions, np.array([1, 3]), 2.0, 3.0, 16.0, numbers)
    assert numbers[0].tolist() == pytest.approx([2.0, 1.2])  # 3 / (1 + 2 x 0.25), 3 / (0.5 + 2 x 1)
    assert numbers[1].tolist() == [3.0, 4.5]  # (3 - 1)^2 / 0.25 = 16, (4.5 - 0.5)^2 / 1 = 16


@pytest.mark.parametrize("seed", range(3))
def test_fit_agrees_with_a_general_solver(seed: int) -> None:
    features, norms, weights, mean = make_rows(seed)
    kept = [0, 1, 3, 6, 9]
    rows = (features[:, kept], norms, weights, mean[kept])
    c, d = fit(*rows)
    assert (c >= 0).all() and (d >= 0).all()
    assert constraint(rows, c, d) == pytest.approx(1, abs=1e-8)
    assert float(d @ rows[3]) == pytest.approx(solve_directly(rows), rel=1e-6)


def adversarial() -> dict[str, Rows]:
    features, norms, weights, mean = make_rows(7)
    random = np.random.default_rng(1)
    spread = 10 ** (6 * random.random(len(norms)) - 3)
    rows, columns = np.arange(len(norms)), np.arange(NUM_FEATURES)
    few = random.random((20, NUM_FEATURES)) ** 4
    few[:, BIAS] = 1
    return {
        "all features": (features, norms, weights, mean),
        "weights over six orders": (features, norms, spread, mean),
        "outliers": (features, np.where(rows % 50 == 0, 1e4 * norms, norms), weights, mean),
        "one huge outlier": (features, np.where(rows == 5, 1e8, norms), weights, mean),
        "a zero feature": (np.where(columns == 3, 0.0, features), norms, weights, mean),
        "only the constant": (np.where(columns > 0, 0.0, features), norms, weights, mean),
        "tiny units": (features * 1e-8, norms * 1e-8, weights, mean * 1e-8),
        "few rows": (few, norms[:20], weights[:20], np.sqrt(mean)),
    }


@pytest.mark.parametrize("name", adversarial())
def test_fit_is_optimal_in_hard_cases(name: str) -> None:
    rows = adversarial()[name]
    c, d = fit(*rows)
    assert (c >= 0).all() and (d >= 0).all()
    assert constraint(rows, c, d) == pytest.approx(1, abs=1e-8)
    assert optimality_gap(rows, c, d) < 1e-6


def test_the_measure_of_optimality_notices() -> None:
    rows = make_rows(0)
    c, d = fit(*rows)
    for worse_c, worse_d in ((c * 1.05, d), (c, d * np.linspace(0.9, 1.1, NUM_FEATURES))):
        worse_d = worse_d * constraint(rows, worse_c, worse_d)
        assert optimality_gap(rows, worse_c, worse_d) > 1e-3


def test_fit_follows_the_unit_of_the_norms() -> None:
    features, norms, weights, mean = make_rows(2)
    c, d = fit(features, norms, weights, mean)
    scaled_c, scaled_d = fit(features, 1000 * norms, weights, mean)
    assert np.allclose(scaled_c, 1000 * c, rtol=1e-6) and np.allclose(scaled_d, 1e6 * d, rtol=1e-6)


@pytest.mark.parametrize("norm", [0.0, 1e-30, 1.0])
@pytest.mark.parametrize("rows", [1, 300])
def test_perfect_predictions_leave_finite_sets(norm: float, rows: int) -> None:
    features = np.column_stack([np.ones(rows), np.full((rows, 4), norm)])
    c, d = fit(features, np.full(rows, norm), np.ones(rows), features.mean(axis=0))
    assert (features @ c)[0] == pytest.approx(norm, rel=1e-3, abs=1e-3 * (norm == 0))
    assert np.isfinite(c).all() and np.isfinite(d).all() and (d >= 0).all() and d.sum() > 0


def test_a_norm_that_is_not_finite_gives_nan() -> None:
    features, norms, weights, mean = make_rows(0)
    norms[3] = np.nan
    c, d = fit(features, norms, weights, mean)
    assert np.isnan(c).all() and np.isnan(d).all()
