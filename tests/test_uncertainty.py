"""The uncertainty set of RAIS: features, the robust estimate, and the convex fit against independent solvers."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from isbench.samplers.uncertainty import HISTORY, NUM_FEATURES, fit, history_features, outlier_factor, robust_scale


def slow_features(norms: list[float]) -> list[float]:
    """Return the features of one example from its norms, latest first."""
    means, variances = [], []
    for window in (1, 2, 4, 8, 16):
        recent = norms[:window]
        means.append(sum(recent) / len(recent) if recent else 0.0)
        if window >= 4:
            variances.append(sum((v - means[-1]) ** 2 for v in recent) / len(recent) if recent else 0.0)
    return [1.0, *means, *variances, *(v**0.5 for v in variances)]


def make_rows(seed: int, rows: int = 400, size: int = 10_000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features, norms, weights of an importance-sampled subset, and mean features of a set of examples."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    level = torch.exp(-3 + 2 * torch.randn(size, 1, **draw))
    norms = level * torch.exp(0.7 * torch.randn(size, HISTORY + 1, **draw))
    norms = 1.4 * norms / (1 + norms)
    features = history_features(norms[:, 1:], torch.full((size,), HISTORY))
    p = features[:, 3] + 0.3 * features[:, 3].mean()
    p /= p.sum()
    drawn = torch.multinomial(p, rows, replacement=True, generator=generator)
    return features[drawn], norms[drawn, 0], 1 / (size * p[drawn]), features.mean(dim=0)


def constraint(rows: tuple[Tensor, ...], c: Tensor, d: Tensor) -> float:
    features, norms, weights, _ = rows
    return float((weights * (features @ c - norms).square() / (features @ d)).mean())


def optimality_gap(rows: tuple[Tensor, ...], c: Tensor, d: Tensor) -> float:
    """Return by how much, relative to <d, mean>, a feasible (c, d) may be worse than the optimum of PT.

    With multiplier <d, mean> the Lagrangian L is convex and, scaling d, stationary along d. For y >= 0, L(y) is at
    least L(x) + <grad L(x), y - x>: negative entries of the gradient, in units in which the optimum is of order one,
    count as they would for y of order one.
    """
    features, norms, weights, mean = (t.numpy() for t in rows)
    c, d = c.numpy(), d.numpy()
    area = d @ mean
    ratio = (features @ c - norms) / (features @ d)
    by_c = area * (weights * 2 * ratio) @ features / len(norms)
    by_d = mean - area * (weights * ratio**2) @ features / len(norms)
    scale = np.maximum(mean, 1e-300)
    unit = (weights @ norms) / weights.sum()
    missing = np.maximum(-by_c, 0) @ (np.maximum(c, unit / scale)) + np.maximum(-by_d, 0) @ np.maximum(d, area / scale)
    return float((np.abs(by_c @ c) + np.abs(by_d @ d) + missing) / area)


def solve_directly(rows: tuple[Tensor, ...]) -> float:
    """Return the optimum of PT by a general solver of constrained problems, with the constraint as it stands."""
    features, norms, weights, mean = (t.numpy() for t in rows)
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


def test_features_of_histories_of_any_length() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.arange(HISTORY + 1)
    norms = torch.rand(len(lengths), HISTORY, generator=generator) * (torch.arange(HISTORY) < lengths[:, None])
    expected = [slow_features(row[:n].tolist()) for row, n in zip(norms.double(), lengths.tolist(), strict=True)]
    features = history_features(norms, lengths.to(torch.uint8))
    assert features.shape == (HISTORY + 1, NUM_FEATURES)
    assert torch.allclose(features, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-8)


def test_robust_estimate_is_on_the_border_and_largest() -> None:
    """Proposition 4.1: of all norms with mean Q at most 1, v = <c, s> + k <d, s> has the largest sum."""
    generator = torch.Generator().manual_seed(0)
    c, d = torch.rand(2, 50, dtype=torch.float64, generator=generator)
    v = c + robust_scale(d.sum(), 50) * d
    assert ((c - v).square() / d).mean() == pytest.approx(1, abs=1e-12)
    for _ in range(200):
        step = torch.randn(50, dtype=torch.float64, generator=generator) * d.sqrt()
        other = (c + step / (step.square() / d).mean().sqrt()).clamp(min=0)
        assert other.sum() < v.sum()


def test_outlier_factor_by_hand() -> None:
    norms, predictions, uncertainties = torch.tensor([[2.0, 12.0, 0.1], [1.0, 1.0, 5.0], [1.0, 1.0, 0.01]]).double()
    factors = outlier_factor(norms, predictions, uncertainties, threshold=100.0)
    assert factors.tolist() == [1.0, 11 / 12, 1.0]  # Q = 1; 121; far below its prediction
    assert (predictions[1] - factors[1] * norms[1]).square() / uncertainties[1] == pytest.approx(100)


@pytest.mark.parametrize("seed", range(3))
def test_fit_agrees_with_a_general_solver(seed: int) -> None:
    features, norms, weights, mean = make_rows(seed)
    kept = torch.tensor([0, 1, 3, 6, 9])
    rows = (features[:, kept], norms, weights, mean[kept])
    c, d = fit(*rows)
    assert (c >= 0).all() and (d >= 0).all()
    assert constraint(rows, c, d) == pytest.approx(1, abs=1e-8)
    assert float(d @ rows[3]) == pytest.approx(solve_directly(rows), rel=1e-6)


def adversarial() -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    features, norms, weights, mean = make_rows(7)
    generator = torch.Generator().manual_seed(1)
    spread = 10 ** (6 * torch.rand(len(norms), generator=generator, dtype=torch.float64) - 3)
    every_50th = torch.arange(len(norms)) % 50 == 0
    few = torch.rand(20, NUM_FEATURES, generator=generator).double() ** 4
    unused = torch.arange(NUM_FEATURES) == 3
    return {
        "all features": (features, norms, weights, mean),
        "weights over six orders": (features, norms, spread, mean),
        "outliers": (features, torch.where(every_50th, 1e4 * norms, norms), weights, mean),
        "one huge outlier": (features, torch.where(torch.arange(len(norms)) == 5, 1e8, norms), weights, mean),
        "a zero feature": (features.masked_fill(unused, 0), norms, weights, mean),
        "only the constant": (features.clone().index_fill_(1, torch.arange(1, NUM_FEATURES), 0), norms, weights, mean),
        "tiny units": (features * 1e-8, norms * 1e-8, weights, mean * 1e-8),
        "few rows": (few, norms[:20], weights[:20], mean.sqrt()),
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
    for worse_c, worse_d in ((c * 1.05, d), (c, d * torch.linspace(0.9, 1.1, NUM_FEATURES))):
        worse_d = worse_d * constraint(rows, worse_c, worse_d)
        assert optimality_gap(rows, worse_c, worse_d) > 1e-3


def test_fit_follows_the_unit_of_the_norms() -> None:
    features, norms, weights, mean = make_rows(2)
    c, d = fit(features, norms, weights, mean)
    scaled_c, scaled_d = fit(features, 1000 * norms, weights, mean)
    assert torch.allclose(scaled_c, 1000 * c, rtol=1e-6) and torch.allclose(scaled_d, 1e6 * d, rtol=1e-6)


@pytest.mark.parametrize("norm", [0.0, 1e-30, 1.0])
@pytest.mark.parametrize("rows", [1, 300])
def test_perfect_predictions_leave_finite_sets(norm: float, rows: int) -> None:
    features = torch.cat([torch.ones(rows, 1), torch.full((rows, 4), norm)], dim=1)
    c, d = fit(features, torch.full((rows,), norm), torch.ones(rows), features.mean(dim=0))
    assert float((features.double() @ c)[0]) == pytest.approx(norm, rel=1e-3, abs=1e-3 * (norm == 0))
    assert c.isfinite().all() and d.isfinite().all() and (d >= 0).all() and d.sum() > 0


def test_a_norm_that_is_not_finite_gives_nan() -> None:
    features, norms, weights, mean = make_rows(0)
    norms[3] = torch.nan
    c, d = fit(features, norms, weights, mean)
    assert c.isnan().all() and d.isnan().all()
