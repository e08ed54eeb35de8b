"""RAIS: importance sampling from a robust prediction of every gradient norm, with a learning rate raised by the gain.

Johnson and Guestrin (2018), "Training Deep Models Faster with Robust, Approximate Importance Sampling", Algorithm 4.1.
The fit is in `isbench.samplers.uncertainty`; docs/samplers.md says what the paper leaves open and what was measured.
Deviations:

- the first pass is shuffled, and sampling is uniform from there to the first fit;
- the constant feature keeps 1e-4 of all uncertainty, so that no probability is zero;
- the gain ratio is put together from ratios, since the paper does not say how its terms come to one unit (see
  `RAIS.gain_ratio`); it is kept between 1 and `max_gain`, and its moments leave the scaling of outliers aside.
"""

from collections.abc import Callable
from math import ceil, inf
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from isbench.samplers.base import Sampler, Signals, assign
from isbench.samplers.sum_tree import SumTree
from isbench.samplers.uncertainty import (
    BIAS,
    HISTORY,
    NUM_FEATURES,
    Array,
    average,
    fit,
    predict,
    record,
    robust_scale,
    store,
    weigh,
)
from isbench.types import Draw

NORM = "logit_gradient_norm"
SHARE_OF_BIAS = 1e-4
FORGETTING = 0.2  # per second batch: rho moves slowly, and one <g, g'> / R has a standard deviation of 0.1 to 0.16
TINY = 1e-300
QUIET = np.errstate(all="ignore")  # a run that diverges is noticed by its loss


def fit_schedule(num_examples: int, fit_examples: int, batch_size: int) -> tuple[int, int]:
    """Return the update, counted from 1, after which c and d are first fitted, and the updates from fit to fit."""
    period = ceil(fit_examples / batch_size)
    return ceil((num_examples + fit_examples) / batch_size / period) * period, period


class RAIS(Sampler):
    """Draw with p_i proportional to <c, s_i> + k <d, s_i> (Proposition 4.1), and weights 1 / (N p_i).

    <c, s_i> predicts example i's norm from the norms of its past training steps; <d, s_i> is how uncertain that is.
    Both lie in a sum tree on the host. If the augmentation moves the image, the offset is a feature too, and the view
    of an example's next visit is drawn and stored at each visit.

    Args:
        fit_examples: |D|, the recent rows that c and d are fitted to, every ceil(|D| / b) updates.
        smoothing: alpha, the weight of the present in the averages of the gain ratio.
        gain: multiply the learning rate by the gain ratio r, and advance the schedule by it unless the budget is in
            seconds.
        max_gain: the largest r used.
        calibration: how the recorded norms, of the loss layer, get the unit of whole gradients in r. second_batch: by
            rho, from a second batch at the same parameters. none: not at all, as the paper's text reads.
        calibrate_every: updates between second batches.
        outlier_threshold: Q above which the loss of an example is scaled down; null for never.
        weighted_norm: weight the statistics of batch norm by 1 / (N p_i).

    Estimator: unbiased (of the examples in their stored views), outliers aside
    Memory: 133 bytes per example on the host; where offsets are a feature, 4 more, and a view on the device
    Cost: O(log N) per draw; a convex fit and O(N) predictions every ceil(|D| / b) updates
    GPU-CPU syncs: 9 per update, of small tensors (3 for the draw, 6 after the backward pass)
    """

    moves_to_device = False
    without = {
        "gradient_norm": "gain=False",
        "gradient_product": "gain=False",
        "weighted_norm": "weighted_norm=False",
    }
    examples: Tensor
    next_views: Tensor
    rows: Tensor
    coefficients: Tensor
    averages: Tensor
    clipped: Tensor

    def __init__(
        self,
        fit_examples: Annotated[int, Ge(1)] = 20_000,
        smoothing: Annotated[float, Gt(0), Le(1)] = 0.01,
        gain: bool = True,
        max_gain: Annotated[float, Ge(1)] = 20.0,
        calibration: Literal["second_batch", "none"] = "second_batch",
        calibrate_every: Annotated[int, Ge(1)] = 100,
        outlier_threshold: Annotated[float, Gt(0)] | None = 100.0,
        weighted_norm: bool = True,
    ):
        super().__init__()
        self.fit_examples = fit_examples
        self.smoothing = smoothing
        self.has_gain = gain
        self.is_calibrated = gain and calibration == "second_batch"
        self.max_gain = max_gain
        self.calibrate_every = calibrate_every
        self.outlier_threshold = outlier_threshold
        self.weighted_norm = weighted_norm
        self.observes = (NORM, "gradient_norm") if gain else (NORM,)
        self.asks = ("gradient_product",) if self.is_calibrated else ()

    def allocate(self) -> None:
        workspace = self.workspace
        num_examples, rows = workspace.num_examples, self.fit_examples
        self.first_fit, self.fit_period = fit_schedule(num_examples, rows, workspace.batch_size)
        fixed = workspace.stored_views
        offsets = workspace.view_offset(workspace.draw_views(0) if fixed is None else fixed)
        self.stores_views = offsets is not None and fixed is None
        if self.stores_views:
            self.register_buffer("next_views", workspace.draw_views(num_examples))
            offsets = workspace.view_offset(self.next_views)
        size = self.size = NUM_FEATURES + (offsets is not None)

        # What belongs to an example lies side by side: its features s_i, computed from the rest and the next view; how
        # many norms are recorded; the last of them, latest first.
        self.register_buffer("examples", torch.zeros(num_examples, size + 1 + HISTORY))
        self.features[:, BIAS] = 1
        if offsets is not None:
            self.features[:, -1] = offsets.cpu()
        self.register_buffer("rows", torch.zeros(rows, size + 2))  # of the fit: features, norm, weight
        self.register_buffer("coefficients", torch.zeros(2, size, dtype=torch.float64))  # c, d
        self.d[BIAS] = 1
        self.tree = SumTree(num_examples, num_sets=2)  # of <c, s_i> and of <d, s_i>
        self.tree.fill(torch.tensor([[0.0], [1.0]]))
        self.register_buffer("averages", torch.zeros(6, dtype=torch.float64))  # moments, agreement
        self.register_buffer("clipped", torch.zeros((), dtype=torch.int64))  # updates whose gain was limited
        # The same memory as arrays, which are quicker to look up than buffers.
        self._examples, self._rows = self.examples.numpy(), self.rows.numpy()
        self._coefficients, self._averages = self.coefficients.numpy(), self.averages.numpy()
        self._weights, self._totals = self.tree.weights.numpy(), self.tree.totals().numpy()

    @property
    def features(self) -> Tensor:
        """The features s_i of all examples (N, F)."""
        return self.examples[:, : self.size]

    @property
    def c(self) -> Tensor:
        return self.coefficients[0]

    @property
    def d(self) -> Tensor:
        return self.coefficients[1]

    @property
    def moments(self) -> Tensor:
        """Averages of 1, of R, the squared norm of the minibatch gradient, and of the loss layer's U1 and R1, (4,)."""
        return self.averages[:4]

    @property
    def agreement(self) -> Tensor:
        """Averages of 1 and of <g, g'>, (2,)."""
        return self.averages[4:]

    def warm_up(self, take_update: Callable[[], None]) -> None:
        super().warm_up(take_update)
        if self.is_calibrated:
            self._calibrate()
        self._fit()

    def draw(self) -> Draw:
        workspace = self.workspace
        _, total, k = self._mixture()
        if workspace.progress.examples_trained < workspace.num_examples:
            indices = workspace.candidates(workspace.batch_size)
            items = indices.cpu()
        else:
            items = self._sample(workspace.batch_size, total, k)
            indices = items.to(workspace.device)
        numbers = torch.empty(2, len(items))
        threshold = self.outlier_threshold or inf
        weigh(self._weights, items.numpy(), k, total / workspace.num_examples, threshold, numbers.numpy())
        weights, largest_inlier = numbers.to(workspace.device)
        batch = workspace.fetch(indices, self.next_views[indices] if self.stores_views else None)
        acts = workspace.progress.updates >= self.first_fit
        return Draw(batch, weights, {"largest_inlier": largest_inlier}, acts)

    def reweight(self, draw: Draw, signals: Signals) -> Tensor:
        """Scale the loss of outliers down to where their norm would be the largest inlier."""
        if self.outlier_threshold is None:
            return draw.weights
        return draw.weights * (draw.memo["largest_inlier"] / signals[NORM]).clamp_(max=1)

    def observe(self, draw: Draw, signals: Signals) -> None:
        update = self.workspace.progress.updates + 1
        indices, weights, norms = draw.batch.indices.cpu(), draw.weights.cpu(), signals[NORM].cpu()
        if self.has_gain:
            self._average(weights, signals)
            since = update - self.first_fit
            if self.is_calibrated and since >= 0 and since % self.calibrate_every == 0:
                self._calibrate()
        self._remember(draw, indices, norms, weights)
        if update >= self.first_fit:
            if update % self.fit_period == 0:
                self._fit()
            else:
                self._predict(indices)

    def gain(self) -> float:
        """Return the estimated gain ratio, between 1 and `max_gain`."""
        if not self.has_gain:
            return 1.0
        ratio = self.gain_ratio()
        if ratio > self.max_gain:
            self.clipped += 1
        return min(max(ratio, 1.0), self.max_gain)

    def gain_ratio(self) -> float:
        """Return r = E|g_U|^2 / E|g_R|^2 as estimated (section 4.4), without limits.

        To first order, the train-mode gradient of a batch is the mean of its w_i psi_i, where batch norm and dropout
        are part of psi. With U1 and R1 the second moments of one example's term, uniform and with RAIS's weights,

            r = 1 + (U1 - R1) / (b R) = 1 + (U1 / R1 - 1) (1 - (1 - 1 / b) rho),   rho = |E g|^2 / R.

        So R1's unit is only needed in the ratio U1 / R1, which the loss layer gives, and in R, which needs no norm of
        single examples. The first form is the paper's (equation 7), and `calibration` none takes it with the loss
        layer's U1 and R1 as they are.
        """
        _, whole, uniform, robust = self.moments.tolist()
        if not self.is_calibrated:
            return 1 + (uniform - robust) / self.workspace.batch_size / max(whole, TINY)
        excess = uniform / robust - 1 if robust else 0.0
        return 1 + excess * (1 - (1 - 1 / self.workspace.batch_size) * self.rho())

    def rho(self) -> float:
        """Return |E g|^2 / E|g|^2 of minibatch gradients, between 0 and 1; 0 before the first second batch."""
        filled, whole, _, _, filled_too, product = self._averages.tolist()
        return min(max(product * filled / max(whole * filled_too, TINY), 0.0), 1.0)

    def diagnostics(self) -> dict[str, float]:
        predicted, total, _ = self._mixture()
        numbers = {"share_uncertainty": float(1 - predicted / total)}
        if self.has_gain:
            numbers.update(gain_ratio=self.gain_ratio(), rho=self.rho(), gains_clipped=float(self.clipped))
        return numbers

    def _mixture(self) -> tuple[float, float, float]:
        """Return the sum of all <c, s_i>, the sum of all v_i, and k."""
        predicted, uncertainty = self._totals.tolist()
        k = robust_scale(uncertainty, self.workspace.num_examples)
        return predicted, predicted + k * uncertainty, k

    def _sample(self, size: int, total: float, k: float) -> Tensor:
        """Draw from p."""
        device, generator = self.workspace.device, self.workspace.generator
        masses = torch.rand(size, dtype=torch.float64, device=device, generator=generator).cpu()
        return self.tree.draw_at(masses.mul_(total), scales=(1.0, k))

    def _average(self, weights: Tensor, signals: Signals) -> None:
        """Move the averages of R, U1 and R1 towards this batch."""
        norms, whole = (signals[name].cpu().numpy() for name in (NORM, "gradient_norm"))
        average(self._averages, self.smoothing, whole.item(), weights.numpy(), norms)

    def _calibrate(self) -> None:
        """Move the averages behind rho towards this batch and a second one."""
        product = self.workspace.gradient_product(self.draw()).item()
        self.agreement.lerp_(torch.tensor([1.0, product], dtype=torch.float64), FORGETTING)

    def _remember(self, draw: Draw, indices: Tensor, norms: Tensor, weights: Tensor) -> None:
        """Keep the batch for the fit, with its features as drawn; then its norms, and the views of its next visits."""
        arrays = self._examples, indices.numpy(), norms.numpy()
        store(self._rows, self.workspace.progress.examples_trained, *arrays, weights.numpy())
        record(*arrays)
        if self.stores_views:
            where = draw.batch.indices
            assign(self.next_views, where, self.workspace.draw_views(len(where)))
            offsets = self.workspace.view_offset(self.next_views[where])
            assert offsets is not None
            self.features[indices, -1] = offsets.cpu()

    @QUIET
    def _fit(self) -> None:
        """Fit c and d to the recent rows, and predict all examples with them."""
        mean = self._examples[:, : self.size].mean(axis=0, dtype=np.float64)
        rows, size = self._rows, self.size
        c, d = fit(rows[:, :size], rows[:, size], rows[:, size + 1], mean)
        d[BIAS] = np.maximum(d[BIAS], SHARE_OF_BIAS * (d @ mean))
        self._coefficients[:] = c, d
        self.tree.fill(torch.from_numpy(self._predictions()))

    def _predict(self, indices: Tensor) -> None:
        """Predict the visited examples anew."""
        self.tree.update(indices, torch.from_numpy(self._predictions(indices)))

    def _predictions(self, indices: Tensor | None = None) -> Array:
        """Return <c, s> and <d, s> of the examples at `indices` (n,), else of all, (2, n)."""
        where = np.arange(len(self._examples)) if indices is None else indices.numpy()
        predictions = np.empty((2, len(where)))
        predict(self._coefficients, self._examples, where, predictions)
        return predictions

    def probabilities(self) -> Tensor:
        """Return p of Proposition 4.1: equal until the first fit."""
        _, total, k = self._mixture()
        prediction, uncertainty = self._weights
        return torch.from_numpy((prediction + k * uncertainty) / total).to(self.workspace.device)
