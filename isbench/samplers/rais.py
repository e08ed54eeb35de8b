"""RAIS: importance sampling from a robust prediction of every gradient norm (Johnson and Guestrin 2018).

"Training Deep Models Faster with Robust, Approximate Importance Sampling", Algorithm 4.1. Gradient norms recorded in
past training steps predict each example's norm and how uncertain that is; a convex fit on recent minibatches keeps both
honest (see `isbench.samplers.uncertainty`); the gain ratio raises the learning rate by what the sampling saves.
"""

from math import ceil

import torch
from torch import Tensor

from isbench.errors import ConfigError
from isbench.samplers.base import Sampler, Signals, last_of_repeats
from isbench.samplers.sum_tree import SumTree
from isbench.samplers.uncertainty import (
    BIAS,
    HISTORY,
    NUM_FEATURES,
    fit,
    history_features,
    outlier_factor,
    robust_scale,
)
from isbench.signals import FULL_GRADIENT
from isbench.types import Draw, Progress

CALIBRATIONS = ("full_gradient", "last_layer", "none")
LAST_LAYER = "last_layer_gradient_norm"
NORM = "logit_gradient_norm"
SHARE_OF_BIAS = 1e-4
TINY = 1e-300


def fit_schedule(num_examples: int, fit_examples: int, batch_size: int) -> tuple[int, int]:
    """Return the update, counted from 1, after which c and d are first fitted, and the updates from fit to fit."""
    period = ceil(fit_examples / batch_size)
    return ceil((num_examples + fit_examples) / batch_size / period) * period, period


class RAIS(Sampler):
    """Sample proportionally to a robust estimate of the gradient norm, in which uncertain examples weigh more.

    The first pass is in shuffled order, then sampling is uniform until the first fit. An example is drawn with
    probability p_i proportional to <c, s_i> + k <d, s_i> (Proposition 4.1) and weighted by 1 / (N p_i). A step does no
    work over N: both terms lie in a sum tree, side by side, in which only visited examples change.

    The paper records the gradient norm at the loss layer in place of the whole gradient's, and does not say how its
    gain ratio, r = 1 + (U1 - R1) / (b R), brings the units of U1 and R1 together with those of R, the squared norm of
    the minibatch gradient. `calibration` does:

    - full_gradient: U1 - R1 is multiplied by kappa^2, the ratio of the squared norms of whole and loss-layer gradients,
      measured on a few examples of some batches. The default: the only one that estimates the paper's ratio. Both norms
      of kappa are taken in evaluation mode, since with batch norm an example has a gradient of its own only there.
    - last_layer: the exact gradient norms of the last layer instead. Free, but what the other layers gain is missed.
    - none: as the text of the paper reads; r then depends on the scale of the parameters.

    Choices that the paper leaves open: fits are synchronous and on the clock, by a solver of our own; c starts at 0 and
    d at the constant alone, which is uniform sampling; a history shorter than a window is used whole; an example that
    repeats in a batch is recorded once; norm weights are scaled to sum to one. Deviations: the constant keeps a share
    of 1e-4 of all uncertainty, so that no probability is zero; the gain ratio is limited to `max_gain`, and its moments
    leave the scaling of outliers aside.

    If the augmentation moves the image, the view of an example's next visit is drawn after each visit and kept, for its
    offset is a feature. Weights are then unbiased for the examples in their present views; but a view waits longer the
    less likely it is drawn, so over time unlikely views count a little more than others.

    Args:
        fit_examples: |D|, how many recent rows c and d are fitted to; every ceil(|D| / b) updates.
        smoothing: alpha, the weight of the present in the averages of the gain ratio.
        gain: raise the learning rate by the gain ratio and advance the schedule by it.
        max_gain: the largest gain ratio used.
        calibration: see above.
        calibrate_every: updates between measurements of kappa.
        calibration_examples: examples per measurement.
        outlier_threshold: Q beyond which an example's loss is scaled down; null for never.
        weighted_norm: weight the statistics of batch norm by 1 / (N p_i).

    Estimator: unbiased (of the examples in their stored views), outliers aside
    Memory: 133 bytes per example; 4 more and the size of a view where offsets are a feature
    Cost: O(log N) per draw; a convex fit and O(N) predictions every ceil(|D| / b) updates
    Host reads: 1 per update (the gain; none without), about 30 per fit
    """

    examples: Tensor
    next_views: Tensor
    rows: Tensor
    coefficients: Tensor
    scales: Tensor
    set_starts: Tensor
    averages: Tensor
    clipped: Tensor

    def __init__(
        self,
        fit_examples: int = 20_000,
        smoothing: float = 0.01,
        gain: bool = True,
        max_gain: float = 20.0,
        calibration: str = "full_gradient",
        calibrate_every: int = 50,
        calibration_examples: int = 16,
        outlier_threshold: float | None = 100.0,
        weighted_norm: bool = True,
    ):
        super().__init__()
        for key, value in (
            ("fit_examples", fit_examples),
            ("calibrate_every", calibrate_every),
            ("calibration_examples", calibration_examples),
            ("max_gain", max_gain),
        ):
            if not value >= 1:
                raise ConfigError(f"sampler.{key}={value}: must be at least 1")
        if not 0 < smoothing <= 1:
            raise ConfigError(f"sampler.smoothing={smoothing}: must be greater than 0 and at most 1")
        if calibration not in CALIBRATIONS:
            raise ConfigError(f"sampler.calibration={calibration}: choose one of {', '.join(CALIBRATIONS)}")
        if outlier_threshold is not None and not outlier_threshold > 0:
            raise ConfigError(f"sampler.outlier_threshold={outlier_threshold}: must be greater than 0, or null")
        self.fit_examples = fit_examples
        self.smoothing = smoothing
        self.has_gain = gain
        self.max_gain = max_gain
        self.calibration = calibration
        self.calibrate_every = calibrate_every
        self.calibration_examples = calibration_examples
        self.outlier_threshold = outlier_threshold
        self.weighted_norm = weighted_norm
        self.gain_norm = LAST_LAYER if calibration == "last_layer" else NORM
        self.observes = tuple(dict.fromkeys((NORM, "gradient_norm", self.gain_norm))) if gain else (NORM,)

    def allocate(self, workspace) -> None:
        num_examples, rows = workspace.num_examples, self.fit_examples
        self.first_fit, self.fit_period = fit_schedule(num_examples, rows, workspace.batch_size)
        fixed = workspace.dataset.stored_views
        self.has_offset = workspace.view_offset(workspace.draw_views(0) if fixed is None else fixed[:0]) is not None
        self.stores_views = self.has_offset and fixed is None
        if self.stores_views:
            self.register_buffer("next_views", workspace.draw_views(num_examples))
        size = self.size = NUM_FEATURES + self.has_offset

        # What belongs to an example lies side by side, so that a step gathers and scatters it once: its features s_i,
        # computed from the rest and the next view; how many norms are recorded; the last of them, latest first.
        self.register_buffer("examples", torch.zeros(num_examples, size + 1 + HISTORY))
        self.features[:, BIAS] = 1
        if self.has_offset:
            self.features[:, -1] = workspace.view_offset(self.next_views if fixed is None else fixed)
        self.register_buffer("rows", torch.zeros(rows, size + 2))  # of the fit: features, norm, weight
        self.register_buffer("coefficients", torch.zeros(2, size, dtype=torch.float64))  # c, d
        self.d[BIAS] = 1
        # The tree holds <c, s_i>, then <d, s_i> times k as it was at the last fit. Both then have the unit of norms,
        # and neither is lost to rounding in the running sums of the other.
        self.register_buffer("scales", torch.ones(2, 1, dtype=torch.float64))  # 1 and that k
        self.tree = SumTree(num_examples, num_sets=2)
        self.tree.fill(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
        self.register_buffer("set_starts", torch.tensor([[0], [self.tree.stride]]), persistent=False)
        self.register_buffer("averages", torch.zeros(4, dtype=torch.float64))  # moments and units
        self.register_buffer("clipped", torch.zeros((), dtype=torch.int64))  # updates whose gain was limited

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
        """Averages of R and of b (U1 - R1), (2,)."""
        return self.averages[:2]

    @property
    def units(self) -> Tensor:
        """Averages of the squared norms of whole and loss-layer gradients, (2,)."""
        return self.averages[2:]

    def draw(self, progress: Progress) -> Draw:
        workspace = self.workspace
        predicted, total, k = self._mixture()
        if progress.examples_trained < workspace.num_examples:
            indices = workspace.candidates(workspace.batch_size)
        else:
            indices = self._sample(workspace.batch_size, predicted, total, k)
        examples = self.examples.index_select(0, indices)
        prediction, uncertainty = self._predictions(examples[:, : self.size]).unbind()
        weights = total / workspace.num_examples / torch.addcmul(prediction, k, uncertainty)
        batch = workspace.fetch(indices, self.next_views[indices] if self.stores_views else None)
        memo = {"examples": examples, "prediction": prediction, "uncertainty": uncertainty}
        return Draw(batch, weights.float(), memo)

    def reweight(self, draw: Draw, signals: Signals) -> Tensor:
        if self.outlier_threshold is None:
            return draw.weights
        prediction, uncertainty = draw.memo["prediction"], draw.memo["uncertainty"]
        return draw.weights * outlier_factor(signals[NORM], prediction, uncertainty, self.outlier_threshold).float()

    def observe(self, draw: Draw, signals: Signals) -> None:
        update = self.workspace.progress.updates + 1
        self._store(draw, signals[NORM])
        if self.has_gain:
            self._average(draw, signals)
            since = update - self.first_fit
            if self.calibration == "full_gradient" and since >= 0 and since % self.calibrate_every == 0:
                self._calibrate(draw)
        examples = self._remember(draw, signals[NORM])
        if update >= self.first_fit:
            if update % self.fit_period == 0:
                self._fit()
            else:
                self._predict(draw.batch.indices, examples)

    def gain(self) -> float:
        """Return the estimated gain ratio (section 4.4, equation 7), between 1 and `max_gain`. One host read."""
        if not self.has_gain:
            return 1.0
        ratio, _ = self._gain_ratio()
        if ratio > self.max_gain:
            self.clipped += 1
        return min(max(ratio, 1.0), self.max_gain)

    def diagnostics(self) -> dict[str, float]:
        predicted, total, _ = self._mixture()
        numbers = {"share_uncertainty": float(1 - predicted / total)}
        if self.has_gain:
            ratio, unit = self._gain_ratio()
            numbers.update(gain_ratio=ratio, kappa=unit**0.5, gains_clipped=float(self.clipped))
        return numbers

    def _predictions(self, features: Tensor) -> Tensor:
        """Return <c, s> and <d, s> of features s (n, F), (2, n)."""
        return self.coefficients @ features.double().T

    def _mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum of all <c, s_i>, the sum of all v_i, and k."""
        predicted, uncertainty = (self.tree.totals() / self.scales[:, 0]).unbind()
        k = robust_scale(uncertainty, self.workspace.num_examples)
        return predicted, torch.addcmul(predicted, k, uncertainty), k

    def _sample(self, size: int, predicted: Tensor, total: Tensor, k: Tensor) -> Tensor:
        """Draw from p. A mass beyond the first set of the tree shrinks as k has grown since the second was filled."""
        device, generator = self.workspace.device, self.workspace.generator
        masses = torch.rand(size, dtype=torch.float64, device=device, generator=generator) * total
        beyond = (masses - predicted).clamp_(min=0)
        return self.tree.draw_at(torch.addcmul(masses, beyond, self.scales[1] / k - 1))

    def _store(self, draw: Draw, norms: Tensor) -> None:
        """Keep the batch for the fit. Features are those of the draw."""
        features = draw.memo["examples"][:, : self.size]
        rows = torch.cat([features, norms[:, None], draw.weights[:, None]], dim=1)
        place = self.workspace.progress.examples_trained % self.fit_examples
        while len(rows) > 0:
            part = rows[: self.fit_examples - place]
            self.rows[place : place + len(part)] = part
            rows, place = rows[len(part) :], 0

    def _remember(self, draw: Draw, norms: Tensor) -> Tensor:
        """Put the norms in front of the histories, draw the views of the next visits, and update the features.

        Returns what is now stored of the batch's examples, alike for repeats.
        """
        indices, size = draw.batch.indices, self.size
        _, offsets, lengths, history = draw.memo["examples"].split(
            [NUM_FEATURES, size - NUM_FEATURES, 1, HISTORY], dim=1
        )
        history = torch.cat([norms[:, None], history[:, :-1]], dim=1)
        lengths = (lengths + 1).clamp_(max=HISTORY)
        if self.stores_views:
            views = self.workspace.draw_views(len(indices))
            distances = self.workspace.view_offset(views)
            assert distances is not None
            offsets = distances[:, None]
            self.next_views[indices] = last_of_repeats(indices, views)
        features = history_features(history, lengths[:, 0]).float()
        examples = last_of_repeats(indices, torch.cat([features, offsets, lengths, history], dim=1))
        self.examples.index_copy_(0, indices, examples)
        return examples

    def _average(self, draw: Draw, signals: Signals) -> None:
        """Move the moments towards those of this batch."""
        norms = signals[self.gain_norm]
        weighted = draw.weights * norms
        whole, gained = signals["gradient_norm"].square(), weighted.dot(norms - weighted)
        self.moments.lerp_(torch.stack([whole, gained]).double(), self.smoothing)

    def _calibrate(self, draw: Draw) -> None:
        """Move the unit of the recorded norms towards that of the first few examples of this batch, as reweighted."""
        few = torch.arange(min(self.calibration_examples, len(draw.batch)), device=draw.weights.device)
        batch, weights = draw.batch.take(few), draw.weights[few].double()
        squares = [self.workspace.score(batch, signal).double().square() for signal in (FULL_GRADIENT, NORM)]
        forget = (1 - self.smoothing) ** self.calibrate_every  # as fast as the moments
        self.units.lerp_(torch.stack([weights.dot(square) for square in squares]), 1 - forget)

    def _gain_ratio(self) -> tuple[float, float]:
        """Return r and kappa^2."""
        whole, gained, true, recorded = self.averages.tolist()
        unit = 1.0
        if self.calibration == "full_gradient":
            unit = true / recorded if recorded else 0.0
        return 1 + unit * gained / self.workspace.batch_size**2 / max(whole, TINY), unit

    def _fit(self) -> None:
        """Fit c and d to the recent rows, and predict all examples with them."""
        features = self.features.double()
        mean = features.mean(dim=0)
        rows, norms, weights = self.rows.double().split([self.size, 1, 1], dim=1)
        c, d = fit(rows, norms[:, 0], weights[:, 0], mean)
        d[BIAS] = torch.maximum(d[BIAS], SHARE_OF_BIAS * (d @ mean))
        self.coefficients.copy_(torch.stack([c, d]))
        predictions = self._predictions(features)
        self.scales[1] = robust_scale(predictions[1].sum(), len(features))
        self.tree.fill(predictions * self.scales)

    def _predict(self, indices: Tensor, examples: Tensor) -> None:
        """Predict the visited examples anew."""
        predictions = self._predictions(examples[:, : self.size])
        self.tree.put((self.set_starts + indices).view(-1), (predictions * self.scales).view(-1))
