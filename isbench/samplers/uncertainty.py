"""The uncertainty set of RAIS: features of past norms, the convex fit of c and d, and the robust estimate.

Johnson and Guestrin (2018), "Training Deep Models Faster with Robust, Approximate Importance Sampling", section 4.
With features s of an example, <c, s> predicts its gradient norm v and <d, s> is how uncertain that is:
Q(s, v) = (<c, s> - v)^2 / <d, s>, and the set is all norms whose mean Q over the data is at most 1. All are pure
functions. The solver is our own; that of the paper is not in its main text.
"""

from functools import cache

import torch
from torch import Tensor

WINDOWS = (1, 2, 4, 8, 16)  # lengths of the moving averages
SPREAD_WINDOWS = (4, 8, 16)  # of the variances and standard deviations
HISTORY = max(WINDOWS)
BIAS = 0  # position of the constant feature
NUM_FEATURES = 1 + len(WINDOWS) + 2 * len(SPREAD_WINDOWS)

# Norms are float32: none is taken to be known more closely than to this share of the mean norm. It keeps the fit well
# posed where a prediction is perfect; elsewhere its effect is below the solver's tolerance.
RESOLUTION = 1e-6
TOLERANCE = 1e-9
MAX_ITERATIONS = 100


def history_features(history: Tensor, lengths: Tensor) -> Tensor:
    """Return the features of norms recorded so far, (n, NUM_FEATURES) float64: section 6 of the paper.

    A constant 1; moving averages over `WINDOWS`; variances, then standard deviations, over `SPREAD_WINDOWS` (dividing
    by the number of values). A history shorter than a window is used whole; without any, all but the constant are 0.

    Args:
        history: the last norms (n, HISTORY), latest first, 0 where there is none.
        lengths: how many there are (n,).
    """
    windows, shares = _window_constants(history.device)
    history = history.double()
    sums = torch.cat([history, history.square()], dim=1) @ windows
    means, squares = (sums * shares[lengths.long()]).split([len(WINDOWS), len(SPREAD_WINDOWS)], dim=1)
    variances = torch.addcmul(squares, *2 * [means[:, -len(SPREAD_WINDOWS) :]], value=-1).clamp_(min=0)
    return torch.cat([shares.new_ones(len(history), 1), means, variances, variances.sqrt()], dim=1)


@cache
def _window_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what sums a history beside its squares over all windows, and one over the number of values in each.

    Shapes (2 HISTORY, W + S) and (HISTORY + 1, W + S) for W windows and S spread windows.
    """
    windows = torch.tensor([*WINDOWS, *SPREAD_WINDOWS])
    is_square = torch.arange(len(windows)) >= len(WINDOWS)
    position = torch.arange(HISTORY)[:, None]
    inside = position < windows
    lengths = torch.arange(HISTORY + 1)[:, None]
    shares = 1 / torch.minimum(lengths, windows).clamp(min=1).double()
    return torch.cat([inside & ~is_square, inside & is_square]).double().to(device), shares.to(device)


def robust_scale(total_uncertainty: Tensor, num_examples: int) -> Tensor:
    """Return k of Proposition 4.1: the robust estimate is v = <c, s> + k <d, s>, k = sqrt(n / sum <d, s>)."""
    return (num_examples / total_uncertainty).sqrt()


def outlier_factor(norms: Tensor, predictions: Tensor, uncertainties: Tensor, threshold: float) -> Tensor:
    """Return what scales each loss (n,) down until Q equals `threshold`; 1 where Q is within it or v <= <c, s>."""
    largest = predictions + (threshold * uncertainties).sqrt_()
    return (largest / norms).clamp_(max=1)


def fit(features: Tensor, norms: Tensor, weights: Tensor, mean_features: Tensor) -> tuple[Tensor, Tensor]:
    """Return c and d, (F,) float64 each: the smallest uncertainty set that explains the norms (problem PT).

        minimise <d, mean_features>   over c, d >= 0   subject to   mean(weights * Q(features, norms)) <= 1

    The constraint function H is convex in (c, d) and H(c, r d) = H(c, d) / r. So the solution is, up to the scale of d,
    that of: minimise <d, mean_features> + H over c, d >= 0; then d H meets the constraint with equality. A primal-dual
    interior-point method (Mehrotra 1992) with exact Hessians takes about 10 iterations from a cold start; bounded
    L-BFGS takes as long and at times stops early, since the features are nearly collinear. A d whose feature is zero on
    the whole training set is 0. Values that are not finite give NaN.

    Args:
        features: of the rows (m, F), non-negative, with a constant among them.
        norms: gradient norms of the rows (m,).
        weights: importance weights of the rows (m,).
        mean_features: over the training set (F,).
    """
    features, norms, weights, mean_features = (t.double() for t in (features, norms, weights, mean_features))
    size = features.shape[1]
    unit = (weights * norms).sum() / weights.sum()
    unit = torch.where(unit == 0, 1.0, unit)
    scale = torch.maximum(mean_features, weights @ features / weights.sum())
    scale = torch.where(scale == 0, 1.0, scale)
    problem = _Problem(features / scale, norms / unit, weights / len(norms), mean_features / scale)
    solution = _minimise(problem)
    c, d = solution[:size], solution[size:]
    d = d * (problem.value(solution) - problem.cost @ d)
    return c * unit / scale, d * unit.square() / scale


class _Problem:
    """The objective x = (c, d) -> <d, cost> + sum(weights * Q), x > 0, and its derivatives."""

    def __init__(self, rows: Tensor, norms: Tensor, weights: Tensor, cost: Tensor):
        self.columns = rows.T.contiguous()
        self.norms = norms
        self.weights = weights
        self.cost = cost
        # A variable without effect is held at 0: c where no row has the feature, d where the data do not.
        self.live = torch.cat([(rows != 0).any(dim=0), cost > 0]).double()

    def ratios(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return per row 1 / u, r / u and (r^2 + RESOLUTION^2) / u^2; r = <c, s> - v, u = <d, s>."""
        prediction, uncertainty = x.view(2, -1) @ self.columns
        inverse = 1 / uncertainty
        ratio = (prediction - self.norms) * inverse
        return inverse, ratio, ratio.square() + (RESOLUTION * inverse).square()

    def value(self, x: Tensor) -> Tensor:
        inverse, _, square = self.ratios(x)
        return self.cost @ x[len(self.cost) :] + self.weights @ (square / inverse)

    def derivatives(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradient (2F,) and Hessian (2F, 2F)."""
        inverse, ratio, square = self.ratios(x)
        first, second = torch.stack([2 * self.weights * ratio, self.weights * square]) @ self.columns.T
        curvature = 2 * self.weights * inverse
        factors = torch.stack([curvature, -curvature * ratio, curvature * square])
        predictions, mixed, uncertainties = (factors[:, None] * self.columns) @ self.columns.T
        hessian = torch.cat([torch.cat([predictions, mixed], dim=1), torch.cat([mixed, uncertainties], dim=1)])
        return torch.cat([first, self.cost - second]) * self.live, hessian * self.live * self.live[:, None]


def _minimise(problem: _Problem) -> Tensor:
    """Return the minimiser x >= 0, (2F,), to a relative duality gap of `TOLERANCE`."""
    live, size = problem.live, len(problem.cost)
    x = live / size
    area = problem.cost @ x[size:]
    x[size:] *= ((problem.value(x) - area) / area).sqrt()  # the best scale for this shape
    value = problem.value(x)
    slack = value / (2 * size) / x.where(live > 0, 1.0) * live  # multipliers of x >= 0
    for _ in range(MAX_ITERATIONS):
        gradient, hessian = problem.derivatives(x)
        error = x @ slack + x @ (gradient - slack).abs()
        if not error > TOLERANCE * value.clamp(min=1e-3):  # also ends where values are not finite
            break
        inverse = live / x.where(live > 0, 1.0)
        hessian.diagonal().add_(slack * inverse + (1 - live))
        factor = _Factor(hessian)

        # Predict with complementarity 0; correct for the curvature of x * slack, aiming as far as the prediction got.
        dx = factor.solve(-gradient)
        change = (-slack * dx) * inverse - slack
        mu = x @ slack / live.sum()
        reached = (x + _room(x, dx) * dx) @ (slack + _room(slack, change) * change) / live.sum()
        centre = mu * (reached / mu) ** 3
        target = centre - dx * change
        dx = factor.solve(target * inverse - gradient)
        change = (target - slack * dx) * inverse - slack

        def merit(x: Tensor, value: Tensor, centre: Tensor = centre) -> Tensor:
            return value - centre * (x.where(live > 0, 1.0)).log().sum()

        slope, before, length = (gradient - centre * inverse) @ dx, merit(x, value), _room(x, dx)
        for _ in range(30):
            value = problem.value(x + length * dx)
            if merit(x + length * dx, value) <= before + 1e-4 * length * slope + 1e-12 * before.abs():
                break
            length = length / 2
        x = x + length * dx
        slack = slack + _room(slack, change) * change
    return x


class _Factor:
    """Cholesky factor of a positive definite matrix, scaled to unit diagonal first. It never raises."""

    def __init__(self, matrix: Tensor):
        self.scale = matrix.diagonal().rsqrt()
        matrix = matrix * self.scale * self.scale[:, None]
        matrix.diagonal().add_(1e-13)
        self.lower, _ = torch.linalg.cholesky_ex(matrix)

    def solve(self, rhs: Tensor) -> Tensor:
        return self.scale * torch.cholesky_solve((self.scale * rhs)[:, None], self.lower)[:, 0]


def _room(x: Tensor, dx: Tensor) -> Tensor:
    """Return how far x may go along dx, at most 1, keeping 1 % of every entry."""
    return torch.where(dx < 0, -x / dx, torch.inf).min().mul(0.99).clamp(max=1.0)
