"""Presampling: tau, the gate, the two sizes, and what makes the weighted batch unbiased."""

import math
import time

import pytest
import torch
from torch import Tensor

from isbench.build import Parts
from isbench.errors import ConfigError
from isbench.samplers.presample import GatedPresample, Presample, variance_reduction
from isbench.signals import per_example
from isbench.types import Draw
from tests.conftest import LENET, TINY, build_parts, example_gradients, train_parts

OPEN = 1e6  # a tau above every threshold
VARIANTS = ("upper_bound", "loss", "presample_constant_time", "presample_constant_variance")


def build_sampler(*overrides: str) -> tuple[Parts, GatedPresample]:
    parts = build_parts(*TINY, *overrides)
    assert isinstance(parts.sampler, GatedPresample)
    return parts, parts.sampler


def spread_scores(n: int, spread: float = 1.0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(n)).mul(spread).exp()


# tau


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_three_forms_of_tau_agree(spread: float) -> None:
    scores = spread_scores(50, spread)
    g = scores.double() / scores.double().sum()
    equation = (1 - (g - 1 / 50).square().sum() / g.square().sum()) ** -0.5
    effective_size = 1 / g.square().sum()
    tau = variance_reduction(scores)
    torch.testing.assert_close(tau, equation)
    torch.testing.assert_close(tau, (50 * g.square().sum()).sqrt())
    torch.testing.assert_close(tau, (50 / effective_size).sqrt())
    assert 1 < tau < math.sqrt(50)


def test_tau_at_its_ends() -> None:
    assert variance_reduction(torch.full((7,), 0.3)) == pytest.approx(1)
    assert variance_reduction(torch.eye(9)[4] * 2.5) == pytest.approx(3)
    assert variance_reduction(torch.zeros(5)) == 1
    assert variance_reduction(torch.tensor([1e30, 3e38, 2e38])).isfinite()
    assert variance_reduction(torch.tensor([1.0, math.nan])).isnan()
    assert variance_reduction(torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(math.sqrt(14 / 3) / 2)


def test_tau_measures_the_variance_that_sampling_by_the_scores_removes() -> None:
    """Over one draw, uniform minus weighted second moment of the norm is mean(G^2) - mean(G)^2."""
    norms = spread_scores(40).double()
    g = norms / norms.sum()
    uniform = (norms.square() / 40).sum()
    weighted = (g * (norms / (40 * g)).square()).sum()
    torch.testing.assert_close(uniform - weighted, norms.square().mean() - norms.mean().square())
    torch.testing.assert_close(uniform - weighted, norms.mean().square() * 40 * (g - 1 / 40).square().sum())
    torch.testing.assert_close(uniform / weighted, variance_reduction(norms).square())


# The gate


def set_tau(sampler: GatedPresample, tau: float) -> None:
    sampler.tau.fill_(tau)
    sampler.reading.fill(tau)


def test_the_gate_reads_tau_one_update_late_also_after_a_resume() -> None:
    parts, sampler = build_sampler("sampler=upper_bound", "sampler.pool_size=48")
    read, written = [], []
    for _ in range(6):
        read.append(sampler.reading.value())
        parts.take_update()
        written.append(float(sampler.tau))
        state = parts.state_dict()
        parts, sampler = build_sampler("sampler=upper_bound", "sampler.pool_size=48")
        parts.load_state_dict(state)
    assert read == [0.0, 0.0, *written[:4]]


def test_a_measured_gate_compares_seconds_and_is_resumed_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, sampler = build_sampler("sampler=upper_bound", "sampler.pool_size=48", "sampler.gate=measured")
    seconds = iter([0.004, 0.003])  # an update, then the scoring of a pool
    monkeypatch.setattr(parts.workspace, "seconds", lambda function: (function(), next(seconds))[1])
    published = sampler.tau_threshold
    parts.warm_up()
    assert sampler.tau_threshold == published, "a trace of the warm-up"
    sampler.draw()
    assert sampler.tau_threshold == pytest.approx(1.75)
    other = build_sampler("sampler=upper_bound", "sampler.pool_size=48", "sampler.gate=measured")[0]
    monkeypatch.setattr(other.workspace, "seconds", lambda function: 1.0)
    other.warm_up()
    other.load_state_dict(parts.state_dict())
    other.progress.updates = 1
    other.sampler.draw()
    assert other.sampler.tau_threshold == pytest.approx(1.75)


def test_seconds_of_a_call() -> None:
    parts, _ = build_sampler("sampler=upper_bound", "sampler.pool_size=48")
    assert 0.004 < parts.workspace.seconds(lambda: time.sleep(0.005), calls=3) < 0.5


@pytest.mark.parametrize("b, pool_size, threshold", [(128, 640, 8 / 3), (16, 48, 2.0), (32, 128, 7 / 3)])
def test_the_default_threshold_is_break_even(b: int, pool_size: int, threshold: float) -> None:
    _, sampler = build_sampler(
        "dataset.num_examples=640", f"batch_size={b}", "sampler=upper_bound", f"sampler.pool_size={pool_size}"
    )
    assert sampler.tau_threshold == pytest.approx(threshold)


def test_the_gate_opens_strictly_above_the_threshold_and_closes_again() -> None:
    parts, sampler = build_sampler("sampler=upper_bound", "sampler.pool_size=48", "sampler.tau_threshold=1.5")
    for tau, is_open in ((1.5, False), (math.nextafter(1.5, 2), True), (1.4999, False), (math.nan, False)):
        set_tau(sampler, tau)
        scored = parts.progress.examples_scored
        draw = sampler.draw()
        assert sampler.is_open is is_open
        assert parts.progress.examples_scored - scored == (48 if is_open else 0)
        assert torch.equal(draw.weights, torch.ones(16)) is not is_open


@pytest.mark.parametrize("name, scored", [("upper_bound", 0), ("loss", 0), ("gradient_norm", 16)])
def test_a_closed_gate_learns_from_the_training_pass(name: str, scored: int) -> None:
    parts, sampler = build_sampler(f"sampler={name}", "sampler.pool_size=48", "sampler.tau_threshold=100")
    draw = sampler.draw()
    forward = parts.model.run(draw.batch.inputs)
    expected = 0.0
    signals = parts.step.compute_gradient(draw)
    for _ in range(3):  # the model does not change in between, so neither do the scores
        if name == "gradient_norm":
            scores = parts.workspace.score(draw.batch, sampler.signal)
            parts.progress.examples_scored -= len(scores)
        else:
            scores = per_example((sampler.signal,), forward, draw.batch.targets, parts.criterion)[sampler.signal]
        before = parts.progress.examples_scored
        sampler.observe(draw, signals)
        assert parts.progress.examples_scored - before == scored
        expected = 0.9 * expected + 0.1 * float(variance_reduction(scores))
        assert float(sampler.tau) == pytest.approx(expected, rel=1e-6)


def test_an_open_gate_updates_tau_from_the_pool_alone() -> None:
    parts, sampler = build_sampler("sampler=upper_bound", "sampler.pool_size=48")
    fixed_scores(parts, scores := spread_scores(48))
    set_tau(sampler, 5.0)
    draw = sampler.draw()
    expected = 0.9 * 5 + 0.1 * float(variance_reduction(scores))
    assert float(sampler.tau) == pytest.approx(expected, rel=1e-12)
    sampler.observe(draw, parts.step.compute_gradient(draw))
    assert float(sampler.tau) == pytest.approx(expected, rel=1e-12)


def test_training_opens_the_gate() -> None:
    parts, sampler = build_sampler("sampler=upper_bound", "sampler.pool_size=32", "optimizer.lr=0.1")
    opened = []
    train_parts(parts, lambda rate, gain: opened.append(sampler.is_open), points=40)
    first = opened.index(True)
    assert first > 5, "the average starts at 0 and needs time"
    assert parts.progress.examples_scored == 32 * sum(opened)


# The batch


def fixed_scores(parts: Parts, scores: Tensor) -> list:
    """Let every pool have these scores; return the list in which the pools are kept."""
    pools = []

    def score(pool, signal):
        pools.append(pool)
        return scores

    parts.workspace.score = score  # type: ignore[method-assign]
    return pools


@pytest.mark.parametrize("name", VARIANTS)
def test_the_batch_is_made_of_the_pool_and_weighted_by_1_over_B_g(name: str) -> None:
    pool_sizes = ["sampler.pool_size=48"] if name in ("loss", "upper_bound") else []
    parts, sampler = build_sampler(f"sampler={name}", *pool_sizes, "augmentation=crop")
    set_tau(sampler, OPEN)
    num_scored, num_drawn = sampler.sizes(OPEN)
    scores = spread_scores(num_scored)
    pools = fixed_scores(parts, scores)
    parts.workspace.uniform = parts.workspace.candidates  # type: ignore[method-assign] # no example twice in a pool
    for _ in range(3):
        draw = sampler.draw()
        pool = pools.pop()
        assert len(pool) == num_scored and len(draw.batch) == num_drawn
        same = (draw.batch.inputs[:, None] == pool.inputs[None]).flatten(2).all(dim=2)
        assert same.any(dim=1).all(), "trained inputs must be the very inputs that were scored"
        positions = same.int().argmax(dim=1)
        assert torch.equal(draw.batch.targets, pool.targets[positions])
        assert torch.equal(draw.batch.views, pool.views[positions])
        torch.testing.assert_close(draw.weights, scores.sum() / (num_scored * scores[positions]))


@pytest.mark.parametrize("name", VARIANTS)
def test_resampling_gives_the_mean_of_the_pool(name: str) -> None:
    pool_sizes = ["sampler.pool_size=48"] if name in ("loss", "upper_bound") else []
    parts, sampler = build_sampler(f"sampler={name}", *pool_sizes)
    num_scored = sampler.sizes(OPEN)[0]
    indices = parts.workspace.uniform(num_scored)
    parts.workspace.uniform = lambda k: indices  # type: ignore[method-assign]
    fixed_scores(parts, spread_scores(num_scored))
    values = torch.randn(parts.dataset.num_examples, generator=torch.Generator().manual_seed(8)).double()
    estimates = []
    for _ in range(1500):
        set_tau(sampler, OPEN)
        draw = sampler.draw()
        estimates.append((draw.weights * values[draw.batch.indices]).mean())
    means = torch.stack(estimates)
    standard_error = means.std() / math.sqrt(len(means))
    assert (means.mean() - values[indices].mean()).abs() < 4 * standard_error


@pytest.mark.parametrize("name", ["upper_bound", "presample_constant_time", "presample_constant_variance"])
def test_the_gradient_is_unbiased(name: str) -> None:
    """LeNet, partly trained: the mean over draws against the full gradient, along random directions."""
    pool_sizes = ["sampler.pool_size=32"] if name == "upper_bound" else []
    parts = build_parts(*LENET, f"sampler={name}", *pool_sizes, "optimizer.lr=0.05")
    sampler = parts.sampler
    assert isinstance(sampler, GatedPresample)
    train_parts(parts)
    gradients = example_gradients(parts)

    set_tau(sampler, OPEN)
    draw = sampler.draw()
    parts.step.compute_gradient(draw)
    stepped = torch.cat([p.grad.flatten() for p in parts.model.parameters() if p.grad is not None])
    by_hand = (draw.weights[:, None] * gradients[draw.batch.indices]).mean(dim=0)
    torch.testing.assert_close(stepped, by_hand, rtol=1e-3, atol=1e-5)

    directions = torch.randn(gradients.shape[1], 20, generator=torch.Generator().manual_seed(4))
    projected = (gradients @ directions).double()
    weighted, unweighted, repeats = [], [], 0
    for _ in range(600):
        set_tau(sampler, OPEN)
        draw = sampler.draw()
        batch = draw.batch
        repeats += len(batch) - len(batch.indices.unique())
        weighted.append((draw.weights[:, None] * projected[batch.indices]).mean(dim=0))
        unweighted.append(projected[batch.indices].mean(dim=0))
    assert repeats > 0

    def standard_errors(estimates: list[Tensor]) -> Tensor:
        means = torch.stack(estimates)
        return (means.mean(dim=0) - projected.mean(dim=0)) / (means.std(dim=0) / math.sqrt(len(means)))

    assert standard_errors(weighted).abs().max() < 4
    assert standard_errors(unweighted).abs().max() > 4, "without weights the bias must show"


@pytest.mark.parametrize("name", VARIANTS)
def test_extreme_scores(name: str) -> None:
    pool_sizes = ["sampler.pool_size=48"] if name in ("loss", "upper_bound") else []
    parts, sampler = build_sampler(f"sampler={name}", *pool_sizes)
    num_scored = sampler.sizes(OPEN)[0]
    spread = spread_scores(num_scored)

    def draw(scores: Tensor) -> Draw:
        fixed_scores(parts, scores)
        set_tau(sampler, OPEN)
        return sampler.draw()

    assert torch.equal(draw(torch.zeros(num_scored)).weights, torch.ones(sampler.sizes(OPEN)[1]))
    torch.testing.assert_close(draw(torch.full((num_scored,), 3e38)).weights, torch.ones(sampler.sizes(OPEN)[1]))
    huge = draw(torch.where(torch.arange(num_scored) == 2, 1e38, spread)).weights
    torch.testing.assert_close(huge, torch.full_like(huge, 1 / num_scored))
    for bad in (math.nan, math.inf):
        assert draw(torch.where(torch.arange(num_scored) == 2, bad, spread)).weights.isnan().all()
        assert sampler.tau.isnan()


# The two sizes of the variants


@pytest.mark.parametrize(
    "tau, sizes",
    [
        (2.0, (160, 74)),  # 64 would do, 192 could be scored; midway 160, then (384 - 160) / 3 = 74.7
        (4.0, (208, 58)),  # 32 would do, 288 could be scored; midway 208, then 176 / 3 = 58.7
        (5.0, (217, 55)),  # 25.6 would do, 307.2 could be scored; midway 217.6, then 167 / 3 = 55.7
        (11.0, (217, 55)),  # never fewer than 0.2 b
    ],
)
def test_sizes_of_constant_time(tau: float, sizes: tuple[int, int]) -> None:
    _, sampler = build_sampler("batch_size=128", "sampler=presample_constant_time")
    assert sampler.sizes(tau) == sizes
    scored, drawn = sizes
    assert 3 * 128 - 3 < scored + 3 * drawn <= 3 * 128, "the work of a uniform update"


def test_constant_time_with_the_smallest_batches() -> None:
    for b in (1, 2, 3):
        _, sampler = build_sampler(f"batch_size={b}", "sampler=presample_constant_time")
        assert all(size >= 1 for tau in (1.0, 2.1, 100.0) for size in sampler.sizes(tau))
        _, sampler = build_sampler(f"batch_size={b}", "sampler=presample_constant_variance")
        assert sampler.sizes(100.0) == (b, 1)


def test_sizes_of_constant_variance() -> None:
    _, sampler = build_sampler("batch_size=128", "sampler=presample_constant_variance")
    assert sampler.tau_threshold == pytest.approx(15 / 7)
    assert sampler.sizes(15 / 7) == (128, 85)  # 2/3 of the batch: scoring is just paid for
    assert sampler.sizes(4.0) == (128, 57)
    _, sampler = build_sampler("sampler=presample_constant_variance", "sampler.extra_fraction=0")
    assert sampler.tau_threshold == pytest.approx(1.5)


@pytest.mark.parametrize(
    "overrides, key",
    [
        (("sampler=loss", "sampler.signal=features"), "sampler.signal=features"),
        (("sampler=loss", "sampler.tau_momentum=1.5"), "^sampler.tau_momentum=1.5: must be less than 1$"),
        (("sampler=loss", "sampler.pool_size=15"), "sampler.pool_size=15"),
        (("sampler=loss", "sampler.pool_size=161"), "sampler.pool_size=161"),
        (("sampler=loss", "sampler.gate=measured", "sampler.tau_threshold=2"), "sampler.tau_threshold=2"),
        (("sampler=presample_constant_time", "sampler.tau_threshold=0.9"), "sampler.tau_threshold=0.9"),
        (("sampler=presample_constant_variance", "sampler.extra_fraction=0.7"), "sampler.extra_fraction=0.7"),
    ],
)
def test_bad_values(overrides: tuple[str, ...], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        build_parts(*TINY, *overrides)


def test_the_papers_settings_are_the_defaults() -> None:
    sampler = Presample("logit_gradient_norm")
    assert (sampler.pool_size, sampler.tau_momentum) == (640, 0.9)
