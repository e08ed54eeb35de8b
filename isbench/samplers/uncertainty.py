"""The uncertainty set of RAIS: features of past norms, the convex fit of c and d, and the robust estimate.

Johnson and Guestrin (2018), "Training Deep Models Faster with Robust, Approximate Importance Sampling", section 4.
With features s of an example, <c, s> predicts its gradient norm v and <d, s> is how uncertain that is:
Q(s, v) = (<c, s> - v)^2 / <d, s>, and the set holds all norms whose mean Q over the data is at most 1. The solver is
our own, since the paper's main text gives none.

All arrays are NumPy's. Compiled loops on the host take microseconds for a few numbers of some hundred examples, or for
a fit of some ten variables; tensors would take one kernel launch after the other.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.lapack import dpotrf, dpotrs

from isbench.samplers.compiled import compiled

Array = NDArray[np.float64]

WINDOWS = (1, 2, 4, 8, 16)  # lengths of the moving averages
SPREAD_WINDOWS = WINDOWS[2:]  # of the variances and standard deviations
HISTORY = WINDOWS[-1]
BIAS = 0  # position of the constant feature
NUM_FEATURES = 1 + len(WINDOWS) + 2 * len(SPREAD_WINDOWS)

# Norms are float32: none is taken to be known more closely than to this share of the mean norm. It keeps the fit well
# posed where a prediction is perfect; elsewhere its effect is below the solver's tolerance.
RESOLUTION = 1e-6
TOLERANCE = 1e-9
MAX_ITERATIONS = 100
BLOCK = 256  # rows whose columns stay in the fastest cache


@compiled("void(float32[:, ::1], int64[::1], float32[::1])")
def record(examples: np.ndarray, indices: np.ndarray, norms: np.ndarray) -> None:
    """Put `norms` (n,) in front of the histories of the examples at `indices` (n,), and renew their features.

    Of an example that repeats, the last norm is recorded. The features (section 6 of the paper): a constant 1; moving
    averages over `WINDOWS`; variances, then standard deviations, over `SPREAD_WINDOWS` (dividing by the number of
    values). A history shorter than a window is used whole; without any, all but the constant are 0.

    Args:
        examples: (N, F + 1 + HISTORY): F features, of which the first NUM_FEATURES are these; how many norms are
            recorded; the last of them, latest first, 0 where there is none.
    """
    size = examples.shape[1] - HISTORY - 1
    spread = 1 + len(WINDOWS)
    for j in range(len(indices) - 1, -1, -1):
        example = examples[indices[j]]
        if example[size] < 0:  # recorded already
            continue
        history = example[size + 1 :]
        for i in range(HISTORY - 1, 0, -1):
            history[i] = history[i - 1]
        history[0] = norms[j]
        length = min(example[size] + 1, HISTORY)
        example[size] = -length
        total = squares = 0.0
        window = 0
        for i in range(HISTORY):
            total += np.float64(history[i])
            squares += np.float64(history[i]) ** 2
            if i + 1 == WINDOWS[window]:
                count = min(length, i + 1)
                mean = total / count
                example[1 + window] = mean
                position = window - (len(WINDOWS) - len(SPREAD_WINDOWS))
                if position >= 0:
                    variance = max(squares / count - mean * mean, 0.0)
                    example[spread + position] = variance
                    example[spread + len(SPREAD_WINDOWS) + position] = np.sqrt(variance)
                window += 1
    for j in range(len(indices)):
        examples[indices[j], size] = abs(examples[indices[j], size])


@compiled("void(float32[:, ::1], int64, float32[:, ::1], int64[::1], float32[::1], float32[::1])")
def store(
    rows: np.ndarray, place: int, examples: np.ndarray, indices: np.ndarray, norms: np.ndarray, weights: np.ndarray
) -> None:
    """Write features, norm and weight of a batch (n,) into `rows` (m, F + 2), from `place` on and around the end."""
    size = rows.shape[1] - 2
    for j in range(len(indices)):
        row = rows[(place + j) % len(rows)]
        row[:size] = examples[indices[j], :size]
        row[size] = norms[j]
        row[size + 1] = weights[j]


@compiled("void(float64[:, ::1], float32[:, ::1], int64[::1], float64[:, ::1])")
def predict(coefficients: np.ndarray, examples: np.ndarray, indices: np.ndarray, predictions: np.ndarray) -> None:
    """Write <c, s> and <d, s> of the examples at `indices` (n,) into `predictions` (2, n); c and d are (2, F)."""
    for j in range(len(indices)):
        example = examples[indices[j]]
        prediction = uncertainty = 0.0
        for f in range(coefficients.shape[1]):
            prediction += coefficients[0, f] * example[f]
            uncertainty += coefficients[1, f] * example[f]
        predictions[0, j] = prediction
        predictions[1, j] = uncertainty


@compiled("void(float64[::1], float64, float64, float32[::1], float32[::1])")
def average(
    averages: np.ndarray, smoothing: float, gradient_norm: float, weights: np.ndarray, norms: np.ndarray
) -> None:
    """Move the averages of 1, R, U1 and R1 (4,) towards those of a batch (section 4.4).

    Averaged over the batch, w v^2 estimates U1 and (w v)^2 estimates R1. The average of 1, which starts from 0 as well,
    tells how far the others have come.
    """
    uniform = robust = 0.0
    for j in range(len(norms)):
        weighted = np.float64(weights[j]) * norms[j]
        uniform += weighted * norms[j]
        robust += weighted * weighted
    averages[0] += smoothing * (1 - averages[0])
    averages[1] += smoothing * (gradient_norm**2 - averages[1])
    averages[2] += smoothing * (uniform / len(norms) - averages[2])
    averages[3] += smoothing * (robust / len(norms) - averages[3])


def robust_scale(total_uncertainty: float, num_examples: int) -> float:
    """Return k of Proposition 4.1: the robust estimate is v = <c, s> + k <d, s>, k = sqrt(n / sum <d, s>)."""
    return (num_examples / total_uncertainty) ** 0.5


@compiled("void(float64[:, :], int64[::1], float64, float64, float64, float32[:, ::1])")
def weigh(
    predictions: np.ndarray, indices: np.ndarray, k: float, mean: float, threshold: float, numbers: np.ndarray
) -> None:
    """Write, of the examples at `indices` (n,), weights and largest inliers into `numbers` (2, n).

    A weight is `mean`, the mean of v over the training set, divided by v. The largest inlier is the norm above <c, s>
    at which Q equals `threshold`.

    Args:
        predictions: <c, s> and <d, s> of all examples (2, N).
    """
    for j in range(len(indices)):
        prediction, uncertainty = predictions[0, indices[j]], predictions[1, indices[j]]
        numbers[0, j] = mean / (prediction + k * uncertainty)
        numbers[1, j] = prediction + np.sqrt(threshold * uncertainty)


def fit(features: ArrayLike, norms: ArrayLike, weights: ArrayLike, mean_features: ArrayLike) -> tuple[Array, Array]:
    """Return c and d, (F,) float64 each: the smallest uncertainty set that explains the norms (problem PT).

        minimise <d, mean_features>   over c, d >= 0   subject to   mean(weights * Q(features, norms)) <= 1

    The constraint function H is convex in (c, d) and H(c, r d) = H(c, d) / r. So up to the scale of d the solution also
    minimises <d, mean_features> + H over c, d >= 0; then d H meets the constraint with equality. A primal-dual
    interior-point method (Mehrotra 1992) with exact Hessians takes about 10 iterations from a cold start. Bounded
    L-BFGS takes as long and at times stops early, since the features are nearly collinear. A d whose feature is zero on
    the whole training set is 0. Values that are not finite give NaN.

    Args:
        features: of the rows (m, F), non-negative, with a constant among them.
        norms: gradient norms of the rows (m,).
        weights: importance weights of the rows (m,).
        mean_features: over the training set (F,).
    """
    columns = np.array(np.transpose(features), dtype=np.float64, order="C")
    norms, weights, mean = (np.asarray(values, dtype=np.float64) for values in (norms, weights, mean_features))
    size = len(columns)
    with np.errstate(all="ignore"):
        unit = (weights * norms).sum() / weights.sum() or 1.0
        scale = np.maximum(mean, (columns * weights).sum(axis=1) / weights.sum())
        scale[scale == 0] = 1.0
        columns /= scale[:, None]
        problem = _Problem(columns, norms / unit, weights / len(norms), mean / scale)
        solution = _minimise(problem)
        c, d = solution[:size], solution[size:]
        d = d * (problem.value(solution) - problem.cost @ d)
        return c * unit / scale, d * unit**2 / scale


class _Problem:
    """The objective x = (c, d) -> <d, cost> + sum(weights * Q), x > 0, and its derivatives."""

    def __init__(self, columns: Array, norms: Array, weights: Array, cost: Array):
        self.rows = (columns, norms, weights)
        self.cost = cost
        # A variable without effect is held at 0: c where no row has the feature, d where the data do not.
        self.live = np.concatenate([columns.any(axis=1), cost > 0]).astype(np.float64)

    def value(self, x: Array) -> float:
        return self.cost @ x[len(self.cost) :] + _sum_of_ratios(*self.rows, x)

    def derivatives(self, x: Array) -> tuple[Array, Array]:
        """Return gradient (2F,) and Hessian (2F, 2F)."""
        size = len(self.cost)
        gradient, hessian = np.zeros((2, size)), np.zeros((2, size, 2, size))
        _add_derivatives(*self.rows, x, gradient, hessian)
        gradient[1] += self.cost
        for half in (hessian[0, :, 0], hessian[1, :, 0], hessian[1, :, 1]):
            half += np.tril(half, -1).T
        hessian[0, :, 1] = hessian[1, :, 0].T
        return gradient.ravel() * self.live, hessian.reshape(2 * size, -1) * self.live * self.live[:, None]


@compiled("void(float64[:, ::1], float64[::1], float64[::1], int64, float64[:, ::1])")
def _ratios(columns: np.ndarray, norms: np.ndarray, x: np.ndarray, start: int, out: np.ndarray) -> None:
    """Write, of a block of rows, 1 / u, r / u and (r^2 + RESOLUTION^2) / u^2; r = <c, s> - v, u = <d, s>."""
    size, norms = len(columns), norms[start : start + BLOCK]
    inverses, ratios, squares = out[0], out[1], out[2]
    inverses[:] = 0.0
    ratios[:] = 0.0
    for f in range(size):
        column = columns[f, start : start + BLOCK]
        for i in range(len(column)):
            ratios[i] += x[f] * column[i]
            inverses[i] += x[size + f] * column[i]
    for i in range(len(norms)):
        inverses[i] = 1 / inverses[i]
        ratios[i] = (ratios[i] - norms[i]) * inverses[i]
        squares[i] = ratios[i] * ratios[i] + (RESOLUTION * inverses[i]) ** 2


@compiled("float64(float64[:, ::1], float64[::1], float64[::1], float64[::1])", reassociate=True)
def _sum_of_ratios(columns: np.ndarray, norms: np.ndarray, weights: np.ndarray, x: np.ndarray) -> float:
    """Return sum(weights * Q) at x = (c, d)."""
    out, total = np.empty((3, BLOCK)), 0.0
    for start in range(0, len(norms), BLOCK):
        _ratios(columns, norms, x, start, out)
        block, inverses, squares = weights[start : start + BLOCK], out[0], out[2]
        for i in range(len(block)):
            total += block[i] * squares[i] / inverses[i]
    return total


@compiled(
    "void(float64[:, ::1], float64[::1], float64[::1], float64[::1], float64[:, ::1], float64[:, :, :, ::1])",
    reassociate=True,
)
def _add_derivatives(
    columns: np.ndarray,
    norms: np.ndarray,
    weights: np.ndarray,
    x: np.ndarray,
    gradient: np.ndarray,
    hessian: np.ndarray,
) -> None:
    """Add the gradient (2, F) and the lower half of the Hessian (2, F, 2, F) of sum(weights * Q) at x = (c, d)."""
    out, factors = np.empty((3, BLOCK)), np.empty((5, BLOCK))
    by_c, by_d, by_cc, by_dc, by_dd = factors[0], factors[1], factors[2], factors[3], factors[4]
    for start in range(0, len(norms), BLOCK):
        _ratios(columns, norms, x, start, out)
        block, inverses, ratios, squares = weights[start : start + BLOCK], out[0], out[1], out[2]
        for i in range(len(block)):
            by_c[i] = 2 * block[i] * ratios[i]
            by_d[i] = -block[i] * squares[i]
            by_cc[i] = 2 * block[i] * inverses[i]
            by_dc[i] = -by_cc[i] * ratios[i]
            by_dd[i] = by_cc[i] * squares[i]
        for f in range(len(columns)):
            column = columns[f, start : start + BLOCK]
            c = d = 0.0
            for i in range(len(column)):
                c += by_c[i] * column[i]
                d += by_d[i] * column[i]
            gradient[0, f] += c
            gradient[1, f] += d
            for g in range(f + 1):
                other = columns[g, start : start + BLOCK]
                cc = dc = dd = 0.0
                for i in range(len(column)):
                    product = column[i] * other[i]
                    cc += by_cc[i] * product
                    dc += by_dc[i] * product
                    dd += by_dd[i] * product
                hessian[0, f, 0, g] += cc
                hessian[1, f, 0, g] += dc
                hessian[1, f, 1, g] += dd


def _minimise(problem: _Problem) -> Array:
    """Return the minimiser x >= 0, (2F,), to a relative duality gap of `TOLERANCE`."""
    live, size = problem.live, len(problem.cost)
    is_live = live > 0
    x = live / size
    area = problem.cost @ x[size:]
    x[size:] *= np.sqrt((problem.value(x) - area) / area)  # the best scale for this shape
    value = problem.value(x)
    slack = value / (2 * size) / np.where(is_live, x, 1.0) * live  # multipliers of x >= 0
    for _ in range(MAX_ITERATIONS):
        gradient, hessian = problem.derivatives(x)
        error = x @ slack + x @ np.abs(gradient - slack)
        if not error > TOLERANCE * max(value, 1e-3):  # also ends where values are not finite
            break
        inverse = live / np.where(is_live, x, 1.0)
        hessian[np.diag_indices_from(hessian)] += slack * inverse + (1 - live)
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

        def merit(x: Array, value: float, centre: float = centre) -> float:
            return value - centre * np.log(np.where(is_live, x, 1.0)).sum()

        slope, before, length = (gradient - centre * inverse) @ dx, merit(x, value), _room(x, dx)
        for _ in range(30):
            value = problem.value(x + length * dx)
            if merit(x + length * dx, value) <= before + 1e-4 * length * slope + 1e-12 * abs(before):
                break
            length = length / 2
        x = x + length * dx
        slack = slack + _room(slack, change) * change
    return x


class _Factor:
    """Cholesky factor of a positive definite matrix, scaled to unit diagonal first. It never raises."""

    def __init__(self, matrix: Array):
        self.scale = 1 / np.sqrt(np.diagonal(matrix))
        matrix = matrix * self.scale * self.scale[:, None]
        matrix[np.diag_indices_from(matrix)] += 1e-13
        self.lower, _ = dpotrf(matrix, lower=True)

    def solve(self, rhs: Array) -> Array:
        solution, _ = dpotrs(self.lower, self.scale * rhs, lower=True)
        return self.scale * solution


def _room(x: Array, dx: Array) -> float:
    """Return how far x may go along dx, at most 1, keeping 1 % of every entry."""
    return min(1.0, 0.99 * np.where(dx < 0, -x / dx, np.inf).min())
