"""RAIS: its history, its draws, its weights and its gain ratio."""

import copy
import math
import tracemalloc

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isbench.build import Parts
from isbench.errors import ConfigError
from isbench.samplers import rais
from isbench.samplers.rais import RAIS, fit_schedule
from isbench.samplers.uncertainty import BIAS, HISTORY, NUM_FEATURES
from isbench.types import Draw
from tests.conftest import TINY, build_parts, tiny_overrides, train_parts
from tests.test_uncertainty import slow_features


def build_rais(*overrides: str) -> Parts:
    return build_parts(*tiny_overrides("rais"), *overrides)


def trained_rais(*overrides: str) -> Parts:
    parts = build_rais(*overrides)
    train_parts(parts)
    return parts


def true_probabilities(sampler: RAIS) -> Tensor:
    """Return p of all examples by the formula."""
    features = sampler.features.double()
    predictions, uncertainties = features @ sampler.c, features @ sampler.d
    v = predictions + math.sqrt(len(features) / float(uncertainties.sum())) * uncertainties
    return v / v.sum()


def mean_gradient(parts: Parts) -> Tensor:
    inputs, targets = parts.dataset.plain(torch.arange(parts.dataset.num_examples))
    loss = parts.criterion(parts.model(inputs), targets).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(parts.model.parameters()))]).double()


def step_gradient(parts: Parts, draw: Draw, weight_decay: float = 0.0) -> Tensor:
    parts.step.compute_gradient(draw)
    return torch.cat([(p.grad + weight_decay * p.detach()).flatten() for p in parts.model.parameters()]).double()


def test_schedule_of_fits_as_published() -> None:
    assert fit_schedule(50_000, 20_000, 128) == (628, 157)  # CIFAR
    assert fit_schedule(12_000, 20_000, 128) == (314, 157)  # rotated MNIST
    assert fit_schedule(604_388, 20_000, 64) == (10_016, 313)  # SVHN


def test_first_pass_is_sequential_then_uniform_until_the_first_fit() -> None:
    parts = build_rais()
    sampler, seen = parts.sampler, []
    observe, fit = sampler.observe, sampler._fit
    sampler.observe = lambda draw, signals: (seen.append(draw), observe(draw, signals))
    fits: list[int] = []
    sampler._fit = lambda: (fits.append(parts.progress.updates + 1), fit())
    train_parts(parts)
    first = torch.cat([draw.batch.indices for draw in seen[:10]])
    assert torch.equal(first.sort().values, torch.arange(160))
    assert len(torch.cat([draw.batch.indices for draw in seen[10:20]]).unique()) < 160
    assert fits == [16, 20, 24, 28, 32, 36, 40]  # t >= (160 + 64) / 16, multiples of 64 / 16
    assert all((draw.weights == 1).all() for draw in seen[:16])
    assert all((draw.weights != 1).any() for draw in seen[16:])


def test_histories_features_and_rows_against_slow_versions() -> None:
    """With crops, repeats in a batch and histories of different lengths."""
    parts = build_rais("augmentation=crop", "budget.limit=160")
    sampler, observe = parts.sampler, parts.sampler.observe
    history: list[list[float]] = [[] for _ in range(160)]
    rows: list[tuple[list[float], float, float]] = []
    repeats = 0

    def features(i: int) -> list[float]:
        offset = sampler.next_views[i, :2].double().square().sum().sqrt()
        return [*slow_features(history[i]), float(offset)]

    def watch(draw, signals):
        nonlocal repeats
        indices, norms = draw.batch.indices.tolist(), signals["logit_gradient_norm"].double().tolist()
        repeats += len(indices) - len(set(indices))
        assert torch.equal(draw.batch.views, sampler.next_views[draw.batch.indices])
        rows.extend(zip(map(features, indices), norms, draw.weights.tolist(), strict=True))
        before = sampler.next_views.clone()
        observe(draw, signals)
        for i, norm in dict(zip(indices, norms, strict=True)).items():
            history[i].insert(0, norm)
        unseen = torch.ones(160, dtype=torch.bool).index_fill(0, draw.batch.indices, False)
        assert torch.equal(before[unseen], sampler.next_views[unseen])
        assert not torch.equal(before, sampler.next_views)

    sampler.observe = watch
    train_parts(parts)
    assert repeats > 10 and min(map(len, history)) < HISTORY < max(map(len, history))
    expected = torch.tensor([features(i) for i in range(160)])
    assert torch.allclose(sampler.features, expected, rtol=1e-5, atol=1e-6)
    latest = torch.zeros_like(sampler.rows)
    for position, (row, norm, weight) in enumerate(rows):
        latest[position % 64] = torch.tensor([*row, norm, weight])
    assert torch.allclose(sampler.rows, latest, rtol=1e-5, atol=1e-6)


def test_probabilities_and_frequencies_of_the_mixture() -> None:
    parts = trained_rais()
    sampler = parts.sampler
    p = true_probabilities(sampler)
    assert p.max() > 3 * p.min(), "the test needs an uneven distribution"
    draw = sampler.draw()
    assert torch.allclose(draw.weights.double(), 1 / (160 * p[draw.batch.indices]), rtol=1e-5)
    counts = torch.bincount(sampler._sample(200_000, *sampler._mixture()[1:]), minlength=160)
    expected = 200_000 * p
    statistic = float(((counts - expected).square() / expected).sum())  # chi-square with 159 degrees of freedom
    assert abs(statistic - 159) < 4 * math.sqrt(2 * 159)


def test_unbiased_on_lenet() -> None:
    small = [override for override in tiny_overrides("rais") if not override.startswith("model")]
    parts = build_parts(*small, "model=lenet", "sampler.outlier_threshold=null", "optimizer.lr=0.05")
    train_parts(parts)
    p = true_probabilities(parts.sampler)
    assert p.max() > 3 * p.min()
    full = mean_gradient(parts)
    directions = torch.randn(len(full), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = [step_gradient(parts, parts.sampler.draw()) @ directions for _ in range(400)]
    values = torch.stack(draws) - full @ directions
    error = values.std(dim=0) / math.sqrt(len(draws))
    assert (values.mean(dim=0).abs() < 4 * error).all()
    assert (error < 0.2 * (full @ directions).abs().max()).all(), "the test must have power"


def test_gain_is_exactly_one_while_sampling_is_uniform() -> None:
    parts = build_rais("budget.limit=16")
    train_parts(parts)
    assert parts.progress.effective_updates == 16.0


def moments_of(gradients: Tensor) -> tuple[float, float]:
    """Return E|g|^2 and |E g|^2 of independent gradients (n, P), without bias."""
    n, second = len(gradients), gradients.square().sum(dim=1).mean()
    return float(second), float((n * gradients.mean(dim=0).square().sum() - second) / (n - 1))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_gain_ratio_against_the_gradients_of_training(norm: str, dropout: float, monkeypatch) -> None:
    """At frozen weights, over many batches: the formula, then the estimate with the loss layer's second moments."""
    monkeypatch.setattr(rais, "FORGETTING", 1e-3)  # averages as good as plain means
    size, batches, decay = 32, 70, 0.003
    parts = build_parts(
        *(override for override in TINY if not override.startswith(("dataset", "model"))),
        *("dataset=mnist5k", "model=cnn7", f"model.norm={norm}", f"model.dropout={dropout}"),
        *("sampler=rais", "sampler.fit_examples=500", "sampler.smoothing=0.001", "sampler.outlier_threshold=null"),
        *("optimizer.lr=0.05", f"optimizer.weight_decay={decay}", f"batch_size={size}", "budget.limit=60"),
    )
    train_parts(parts)
    sampler, workspace = parts.sampler, parts.workspace
    # What a good fit would predict. It is past the first pass, and stands still.
    norms = workspace.score_dataset("logit_gradient_norm").double()
    sampler.tree.fill(torch.stack([norms, torch.full_like(norms, 0.01 * float(norms.mean()))]))
    sampler._remember = sampler._fit = sampler._predict = lambda *_: None
    parts.progress.examples_trained, parts.progress.updates = workspace.num_examples, sampler.first_fit - 1
    sampler.calibrate_every = 1
    sampler.averages.zero_()
    drawn, uniform = [], []
    for _ in range(batches):
        indices = workspace.uniform(size)
        draw = Draw(workspace.fetch(indices), torch.ones(size), {"largest_inlier": torch.ones(size)})
        uniform.append(step_gradient(parts, draw, decay))
        draw = sampler.draw()
        drawn.append(step_gradient(parts, draw, decay))
        sampler.observe(draw, parts.step.compute_gradient(draw))
    (u, u_mean), (r, r_mean) = moments_of(torch.stack(uniform)), moments_of(torch.stack(drawn))
    second_moments = (size * u - (size - 1) * u_mean) / (size * r - (size - 1) * r_mean)  # U1 / R1 of whole gradients
    formula = 1 + (second_moments - 1) * (1 - (1 - 1 / size) * sampler.rho())
    assert formula == pytest.approx(u / r, rel=0.1)
    # The loss layer in place of all layers: measured, not derived.
    assert 1 / 1.6 < sampler.gain_ratio() / (u / r) < 1.6
    _, _, first, other = sampler.moments.tolist()
    assert sampler.gain_ratio() <= max(1.0, first / other)


def test_a_second_batch_leaves_no_trace() -> None:
    """Gradient, weights and running statistics stay; the product is that of the two whole gradients."""
    small = [override for override in tiny_overrides("rais") if not override.startswith("model")]
    parts = build_parts(*small, "model=cnn7", "model.dropout=0", "optimizer.weight_decay=0.01")
    train_parts(parts)
    first, second = parts.sampler.draw(), parts.sampler.draw()
    one, other = (step_gradient(parts, draw, 0.01) for draw in (second, first))
    state = copy.deepcopy(parts.model.state_dict())
    gradients = [p.grad.clone() for p in parts.model.parameters()]
    scored = parts.progress.examples_scored
    product = parts.workspace.gradient_product(second)
    assert float(product) == pytest.approx(float(one @ other), rel=1e-4)
    assert parts.progress.examples_scored == scored + 16
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients, parts.model.parameters(), strict=True))
    assert all(torch.equal(value, state[name]) for name, value in parts.model.state_dict().items())


def test_gain_without_units_is_the_text_of_the_paper() -> None:
    sampler = build_rais("sampler.calibration=none").sampler
    sampler.moments.copy_(torch.tensor([1.0, 0.5, 12.0, 4.0]))
    assert sampler.gain_ratio() == 1 + (12 - 4) / (16 * 0.5)


@pytest.mark.parametrize(("product", "rho"), [(0.05, 0.25), (-0.1, 0.0), (5.0, 1.0)])
def test_gain_ratio_by_hand(product: float, rho: float) -> None:
    """R = 0.4, of averages that are half and a quarter filled."""
    sampler = build_rais().sampler
    sampler.moments.copy_(torch.tensor([0.5, 0.2, 12.0, 4.0]))
    sampler.agreement.copy_(torch.tensor([0.25, product / 2]))
    assert sampler.rho() == pytest.approx(rho)
    assert sampler.gain_ratio() == pytest.approx(1 + 2 * (1 - 15 / 16 * rho))


def test_gain_is_limited_and_the_limit_logged() -> None:
    sampler = build_rais("sampler.max_gain=5").sampler
    sampler.moments.copy_(torch.tensor([1.0, 1.0, 8.0, 1.0]))
    assert sampler.diagnostics()["gain_ratio"] == 8.0
    assert sampler.gain() == 5.0 and sampler.diagnostics()["gains_clipped"] == 1.0
    sampler.moments.copy_(torch.tensor([1.0, 1.0, 0.1, 1.0]))
    assert sampler.gain() == 1.0 and sampler.diagnostics()["gains_clipped"] == 1.0
    sampler.moments.copy_(torch.tensor([1.0, torch.nan, 1.0, 1.0]))
    assert math.isnan(sampler.gain())


def test_without_gain_updates_count_once() -> None:
    parts = trained_rais("sampler.gain=false")
    assert parts.progress.effective_updates == 40.0
    assert parts.progress.examples_scored == 0
    assert (true_probabilities(parts.sampler) - 1 / 160).abs().max() > 1e-3


def test_outliers_are_scaled_to_the_threshold() -> None:
    parts = build_rais("sampler.outlier_threshold=100")
    draw = parts.sampler.draw()
    assert draw.memo["largest_inlier"].tolist() == [10.0] * 16  # c = 0, d = 1: 0 + sqrt(100 * 1)
    draw = Draw(draw.batch, torch.full((16,), 2.0), {"largest_inlier": torch.full((16,), 0.2)})
    norms = torch.linspace(0.01, 0.4, 16)
    weights = parts.sampler.reweight(draw, {"logit_gradient_norm": norms})
    expected = [2.0 if norm <= 0.2 else 2.0 * 0.2 / norm for norm in norms.tolist()]
    assert weights.tolist() == pytest.approx(expected) and weights.dtype == torch.float32


def test_every_example_keeps_a_chance() -> None:
    parts = trained_rais()
    sampler = parts.sampler
    sampler.features[:, 1:] = 0
    sampler.features[80:, 1:] = 1
    sampler.rows[:, :NUM_FEATURES] = sampler.features[64:128]
    sampler.rows[:, NUM_FEATURES] = sampler.features[
        64:128, 1
    ]  # exactly 0 or 1, as predicted: the first half needs no visit
    sampler._fit()
    draw = sampler.draw()
    assert true_probabilities(sampler).min() > 0
    assert draw.weights.isfinite().all() and (draw.weights > 0).all()


def test_a_nan_reaches_the_weights() -> None:
    parts = trained_rais()
    sampler = parts.sampler
    sampler.rows[5, NUM_FEATURES] = torch.nan
    sampler._fit()
    assert sampler.draw().weights.isnan().all()


def test_the_constant_is_the_start() -> None:
    sampler = build_rais().sampler
    assert not sampler.c.any() and sampler.d[BIAS] == 1 and sampler.d.sum() == 1
    assert sampler.features.shape == (160, NUM_FEATURES)


class LargestResult(TorchDispatchMode):
    """Notes the number of elements of the largest new tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        for out in result if isinstance(result, tuple | list) else (result,):
            if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in inputs:
                self.size = max(self.size, out.numel())
        return result


def test_a_step_does_no_work_over_all_examples() -> None:
    """Neither tensors nor arrays grow with N, and compiled loops see the batch alone."""
    sizes, peaks = {}, {}
    for n in (5_000, 40_000):
        parts = build_rais(f"dataset.num_examples={n}", "dataset.shape=[2,2]", "sampler.calibration=none")
        sampler = parts.sampler
        parts.progress.examples_trained, parts.progress.updates = 2 * n, sampler.first_fit
        signals = {"logit_gradient_norm": torch.rand(16), "gradient_norm": torch.ones(())}
        tracemalloc.start()
        with LargestResult() as largest:
            draw = sampler.draw()
            sampler.reweight(draw, signals)
            sampler.observe(draw, signals)
            sampler.gain()
        sizes[n], peaks[n] = largest.size, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert sizes[5_000] == sizes[40_000] < 5_000
    assert max(peaks.values()) < 8 * 40_000


def test_state_stays_on_the_host() -> None:
    """`meta` stands for any other device: what is moved there loses its values."""
    sampler = build_rais().sampler
    sampler.workspace.device = torch.device("meta")
    sampler.bind(sampler.workspace)
    assert {buffer.device.type for buffer in sampler.buffers()} == {"cpu"}


@pytest.mark.parametrize(
    "value",
    ["fit_examples=0", "smoothing=0", "smoothing=2", "max_gain=0.5", "calibration=kappa", "outlier_threshold=0"],
)
def test_bad_values_are_named(value: str) -> None:
    with pytest.raises(ConfigError, match=f"sampler.{value}"):
        build_rais(f"sampler.{value}")
