"""The formulas of docs/scale.md, and a simulation that checks the variance formulas by drawing batches."""

import math
from collections.abc import Callable, Sequence

import numpy as np

RHOS = 0.5, 0.7, 0.9
SIMULATED = (  # tau^2, rho, b, B
    *((tau2, 1.0, 128, 640) for tau2 in (2.0, 5.0, 10.0)),
    *((5.0, 1.0, 128, pool) for pool in (384, 1280)),
    (5.0, 1.0, 2, 10),  # a pool of 640 divided among 64 ranks
    *((5.0, rho, 2, 512) for rho in RHOS),  # so large a pool adds little noise, so it acts as a history
)
TRIALS = 20_000


def gather_seconds(size: float, ranks: float, latency: float, bandwidth: float) -> float:
    """Return the seconds of an all-gather of `size` bytes in all, whose messages double log2 K times."""
    return math.ceil(math.log2(ranks)) * latency + (ranks - 1) / ranks * size / bandwidth


def reduce_seconds(size: float, ranks: float, latency: float, bandwidth: float) -> float:
    """Return the seconds of an all-reduce of `size` bytes: it scatters sums and gathers them, equally fast."""
    return 2 * gather_seconds(size, ranks, latency, bandwidth)


REDUCE, GATHER = "all-reduce", "all-gather"
EXCHANGES: dict[str, Callable[[float, float, float, float], float]] = {REDUCE: reduce_seconds, GATHER: gather_seconds}


def variance_gain(tau2: float, rho: float, batch: float = 0, pool: float = math.inf) -> float:
    """Return by which factor a draw in proportion to exp(rho * remembered log score) divides a batch's variance.

    Args:
        rho: correlation of the remembered log score with the present one.
        batch, pool: b and B; without them the draw is from the whole set.
    """
    return 1 / (batch / pool + (1 - 1 / pool) * tau2 ** -(rho**2))


def best_pool(tau2: float, forward_share: float) -> tuple[float, float]:
    """Return the B / b with the largest gain per cost, 1 + forward_share * B / b, and that gain per cost."""
    tau, root = math.sqrt(tau2), math.sqrt(forward_share)
    return tau / root, 1 / (root + 1 / tau) ** 2


def history_speed(gain: float, cost: float, epochs: float) -> float:
    """Return the progress per second, relative to uniform, of a run whose first pass has no history yet."""
    return epochs / (cost * (1 + (epochs - 1) / gain))


def epochs_to_beat(speed: float, gain: float, cost: float) -> float:
    """Return the epochs (at least 1) after which a history is faster than `speed`; infinite if it never is."""
    return speed * cost * (1 - 1 / gain) / (1 - speed * cost / gain) if gain > speed * cost else math.inf


def power_law(points: Sequence[tuple[float, float]], at: float) -> float:
    """Return the value at a place from measured (place, value) pairs: a straight line on logarithmic axes."""
    x, y = np.log(np.array(points).T)
    i = int(np.clip(np.searchsorted(x, math.log(at)) - 1, 0, len(x) - 2))
    return math.exp(y[i] + (y[i + 1] - y[i]) / (x[i + 1] - x[i]) * (math.log(at) - x[i]))


def simulate(
    tau2: float, rho: float, batch: int, pool: int, trials: int, random: np.random.Generator
) -> tuple[float, float]:
    """Draw batches from pools of log-normal gradients; return the gain of `variance_gain`, and its standard error.

    A gradient is a number of either sign. Scores are exp(rho sigma w), where w has correlation rho with the normal
    variable behind the gradient's size. Batches are drawn with replacement and weighted as in `Presample`.
    """
    sigma, squares = math.sqrt(math.log(tau2)), []
    chunk = max(1, 2**20 // pool)
    for start in range(0, trials, chunk):
        rows = np.arange(min(chunk, trials - start))[:, None]
        z = random.standard_normal((len(rows), pool))
        w = rho * z + math.sqrt(1 - rho**2) * random.standard_normal(z.shape)
        gradients = np.exp(sigma * z) * random.choice((-1.0, 1.0), z.shape)
        scores = np.exp(rho * sigma * w)
        probabilities = scores / scores.sum(axis=1, keepdims=True)
        masses = rows + random.random((len(rows), batch))  # one search for all pools
        places = np.searchsorted((rows + probabilities.cumsum(axis=1)).ravel(), masses)
        places = places.clip(rows * pool, rows * pool + pool - 1)
        estimates = (gradients.ravel()[places] / (pool * probabilities.ravel()[places])).mean(axis=1)
        squares.append(estimates**2)
    found = np.concatenate(squares)
    gain = math.exp(2 * sigma**2) / batch / found.mean()
    return float(gain), float(gain * found.std() / found.mean() / math.sqrt(trials))


def simulated() -> list[dict[str, float]]:
    """Simulate every case, always with the same random numbers."""
    random = np.random.default_rng(0)
    rows = []
    for tau2, rho, batch, pool in SIMULATED:
        gain, error = simulate(tau2, rho, batch, pool, TRIALS, random)
        rows.append({"tau2": tau2, "rho": rho, "batch": batch, "pool": pool, "gain": gain, "error": error})
    return rows
