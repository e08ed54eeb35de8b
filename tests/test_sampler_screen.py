"""Screening: whom it chooses and how they are weighted, its proxy step by step, its phases, and what it looks at."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isbench.build import Parts
from isbench.errors import ConfigError, Incompatible
from isbench.models.proxy import PROXIES, Convolutional, shrink
from isbench.samplers.screen import Screen
from tests.conftest import TINY, build_parts, train_once, train_parts

N, B, POOL = 160, 16, 64
ALWAYS = ("sampler.start=0", "sampler.stop=1", "sampler.max_error=1", "sampler.max_passes=1000")
HERE = (*TINY, "sampler=screen", "sampler.look_every=4", *ALWAYS)


def build_screen(*overrides: str) -> tuple[Parts, Any]:
    parts = build_parts(*HERE, *overrides)
    assert isinstance(parts.sampler, Screen)
    return parts, parts.sampler


def softmax_by_hand(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def weights_of(sampler: Any) -> list[np.ndarray]:
    return [weight.double().numpy().copy() for weight in sampler.proxy.unpack(sampler.proxy.vector)]


def forward_by_hand(weights: list[np.ndarray], inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hidden units and the probabilities of a perceptron with one hidden layer."""
    first, bias, second, other_bias = weights
    hidden = np.maximum(inputs @ first.T + bias, 0)
    return hidden, softmax_by_hand(hidden @ second.T + other_bias.T)


def averaged(images: np.ndarray, side: int) -> np.ndarray:
    """Return images averaged over squares of `side` pixels, pixel by pixel."""
    n, channels, height, width = images.shape
    small = np.zeros((n, channels, height // side, width // side))
    for row in range(height // side * side):
        for column in range(width // side * side):
            small[:, :, row // side, column // side] += images[:, :, row, column] / side**2
    return small


@pytest.mark.parametrize("score", ["uncertainty", "loss"])
def test_the_least_certain_of_each_pool_against_a_slow_version(score: str) -> None:
    parts, sampler = build_screen(f"sampler.score={score}", "dataset.num_examples=1280")  # nobody twice in a pool
    for _ in range(12):
        train_once(parts, 0.01)
    images = averaged(parts.dataset.plain(torch.arange(1280))[0].numpy(), 2).reshape(1280, -1)
    weights = weights_of(sampler)
    order = copy.deepcopy(parts.workspace)  # the stream of candidates from here
    indices, draw_weights = sampler.plan()
    assert len(indices) == 4 * B and (draw_weights == 1).all() and sampler.acts
    for batch in indices.split(B):
        pool = order.candidates(POOL).tolist()
        _, probabilities = forward_by_hand(weights, images[pool])
        truth = probabilities[np.arange(POOL), parts.dataset.targets[pool]]
        hardness = dict(zip(pool, 1 - (truth if score == "loss" else probabilities.max(axis=1)), strict=True))
        top, rest = batch[:14].tolist(), batch[14:].tolist()  # eps is 0.1: 14 of 16
        others = sorted(set(pool) - set(top), key=lambda i: -hardness[i])
        assert min(hardness[i] for i in top) > hardness[others[0]] - 1e-3  # images are kept in 16 bits
        assert len(set(top) | set(rest)) == B and set(rest) <= set(others)


def test_the_rest_is_uniform_among_what_the_score_left() -> None:
    parts, sampler = build_screen("sampler.eps=0.25")
    certainty = torch.arange(POOL).float().repeat(4, 1)  # of the first twelve least
    counts, times = torch.zeros(POOL), 1500
    for _ in range(times):
        chosen = sampler._choose(certainty)
        assert (chosen[:, :12].sort(dim=1).values == torch.arange(12)).all()
        assert all(len(row.unique()) == B for row in chosen)
        counts += chosen.flatten().bincount(minlength=POOL)
    share = 4 / (POOL - 12)
    error = (share * (1 - share) / (4 * times)) ** 0.5
    assert ((counts[12:] / (4 * times) - share).abs() < 4.5 * error).all()


@pytest.mark.parametrize("eps", [0.25, 0.5])
def test_with_beta_1_the_batch_stands_for_its_pool(eps: float) -> None:
    """Exactly: the top counts as it is, and each of the rest has the same chance. By beta, the bias goes to zero."""
    values = np.random.RandomState(0).randn(POOL)
    m = round((1 - eps) * B)
    biases = []
    for beta in (0.0, 0.5, 1.0):
        weights = build_screen(f"sampler.eps={eps}", f"sampler.beta={beta}")[1].weights.double().numpy()
        assert weights.sum() == pytest.approx(B) and len(weights) == B
        expected = (weights[:m] @ values[:m] + weights[m:].sum() * values[m:].mean()) / B
        biases.append(abs(expected - values.mean()))
    assert biases[2] < 1e-6 < biases[1] and biases[1] == pytest.approx(biases[0] / 2)


def test_the_weights_of_a_draw_are_those_of_its_places() -> None:
    parts, sampler = build_screen("sampler.beta=1", "sampler.eps=0.25")
    draw = train_once(parts, 0.01)
    torch.testing.assert_close(draw.weights[:12], torch.full((12,), B / POOL))
    torch.testing.assert_close(draw.weights[12:], torch.full((4,), B * (POOL - 12) / (POOL * 4)))


def test_one_pass_is_one_step_of_adam_on_all_pools() -> None:
    """The perceptron's gradient and Adam, written out in float64."""
    parts, sampler = build_screen()
    for step in range(1, 4):
        before = weights_of(sampler)
        if step == 1:
            moments = [np.zeros_like(w) for w in before], [np.zeros_like(w) for w in before]
        order = copy.deepcopy(parts.workspace)
        sampler.plan()
        indices = order.candidates(4 * POOL)
        inputs, targets = sampler._small[indices].flatten(1).double().numpy(), parts.dataset.targets[indices].numpy()
        hidden, probabilities = forward_by_hand(before, inputs)
        errors = probabilities.copy()
        errors[np.arange(len(targets)), targets] -= 1
        backward = (errors @ before[2]) * (hidden > 0)
        gradients = backward.T @ inputs, backward.sum(0), errors.T @ hidden, errors.sum(0)[:, None]
        for weight, gradient, first, second, now in zip(before, gradients, *moments, weights_of(sampler), strict=True):
            first += 0.1 * (gradient - first)
            second += 0.01 * (gradient**2 - second)
            change = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.99**step)) + 1e-8)
            np.testing.assert_allclose(now, weight - 0.01 * change, atol=2e-4)


def test_the_proxy_looks_once_for_several_updates() -> None:
    parts, sampler = build_screen("sampler.look_every=5", "budget.limit=40")
    looks = []
    look = sampler._look
    sampler._look = lambda indices: looks.append((parts.progress.updates, indices.shape)) or look(indices)
    train_parts(parts)
    assert looks == [(updates, (5, POOL)) for updates in range(0, 40, 5)]
    assert parts.progress.examples_scored == 0 and parts.progress.acted_updates == 40


def test_batches_are_uniform_before_start_and_from_stop_on() -> None:
    parts, sampler = build_screen("sampler.look_every=2", "sampler.start=0.1", "sampler.stop=0.75", "budget.limit=40")
    uniform = build_parts(*TINY, "sampler=uniform")
    acts, weights = [], []
    for update in range(40):
        before = weights_of(sampler)
        draw = train_once(parts, 0.01)
        acts.append(draw.acts)
        changed = any((w != now).any() for w, now in zip(before, weights_of(sampler), strict=True))
        assert changed is (update % 2 == 0 and update < 30), "it learns from uniform batches at first, not at the end"
        if update < 4:
            assert torch.equal(draw.batch.indices, train_once(uniform, 0.01).batch.indices), "the same shuffled passes"
        weights.append(draw.weights)
    assert acts == [4 <= update < 30 for update in range(40)]
    assert (torch.cat(weights) == 1).all()


def test_uncertainty_needs_no_label() -> None:
    def chosen(score: str, shift: int) -> Tensor:
        parts, sampler = build_screen(f"sampler.score={score}")
        for _ in range(5):
            sampler.plan()
        parts.workspace.targets = (parts.workspace.targets + shift) % 10
        return sampler.plan()[0]

    assert torch.equal(chosen("uncertainty", 0), chosen("uncertainty", 3))
    assert not torch.equal(chosen("loss", 0), chosen("loss", 3))


@pytest.mark.parametrize("proxy", ["perceptron", "convolutional"])
def test_it_learns_and_finds_the_hard_examples(proxy: str) -> None:
    """An eighth of the synthetic images is blended with the next class. Later the proxy knows them all by heart."""
    parts, sampler = build_screen("dataset.num_examples=1280", f"sampler.proxy={proxy}", "budget.limit=100")
    assert sampler.diagnostics()["proxy_error"] > 0.8
    counts = torch.zeros(1280)
    for _ in range(40):
        counts += train_once(parts, 0.0).batch.indices.bincount(minlength=1280)
    is_hard = torch.arange(1280) // 10 % 8 == 7
    assert counts[is_hard].mean() > 2 * counts[~is_hard].mean()
    assert sampler.diagnostics()["proxy_error"] < 0.2


@pytest.mark.parametrize(
    "overrides",
    [[], ["augmentation=rotation"], ["dataset.shape=[3,32,32]"], ["slots=200", "augmentation=crop"]],
    ids=["plain", "augmented", "colour", "slots"],
)
def test_it_looks_at_the_image_un_augmented_or_in_its_stored_view(overrides: list[str]) -> None:
    parts, sampler = build_screen(*overrides)
    parts.sampler.draw()
    everything = torch.arange(parts.dataset.num_examples)
    if parts.dataset.stored_views is None:
        images = parts.dataset.plain(everything)[0]
    else:
        images = parts.dataset.fetch(everything, None).inputs
    small = sampler._small
    expected = averaged(images.double().numpy(), 2)
    assert small.dtype == torch.float16
    np.testing.assert_allclose(small.double().numpy(), expected, rtol=1e-3, atol=2e-3)


def test_shrinking() -> None:
    shapes = {(3, 28, 28): (3, 14, 14), (3, 32, 32): (3, 16, 16), (1, 12, 40): (1, 12, 13), (3, 224, 224): (3, 16, 16)}
    for shape, small in shapes.items():
        images = torch.randn(2, *shape)
        assert shrink(images).shape[1:] == small
        factors = [-(-side // 16) for side in shape[1:]]
        torch.testing.assert_close(shrink(images), F.avg_pool2d(images, factors))
    sequences = torch.randn(2, 20, 3)
    assert shrink(sequences) is sequences


@pytest.mark.parametrize("kind", ["perceptron", "convolutional"])
def test_the_generator_alone_decides_the_first_weights(kind: Any) -> None:
    def vector(seed: int) -> Tensor:
        return PROXIES[kind]((3, 16, 13), 10, 8, torch.Generator().manual_seed(seed), 0.01).vector

    before = torch.get_rng_state()
    assert torch.equal(vector(0), vector(0)) and not torch.equal(vector(0), vector(1)) and vector(0).isfinite().all()
    assert torch.equal(torch.get_rng_state(), before), "the global stream must be as after any other sampler"


def test_the_convolutional_proxy_against_layers_of_torch() -> None:
    proxy = Convolutional((3, 16, 13), 10, 4, torch.Generator().manual_seed(0), 0.01)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )
    nn.utils.vector_to_parameters(proxy.vector.clone(), layers.parameters())
    optimizer = torch.optim.Adam(layers.parameters(), 0.01, betas=(0.9, 0.99))
    for seed in range(3):
        torch.manual_seed(seed)
        inputs, targets = torch.randn(32, 3, 16, 13), torch.randint(10, (32,))
        logits = layers(inputs)
        optimizer.zero_grad()
        F.cross_entropy(logits, targets).backward()
        optimizer.step()
        torch.testing.assert_close(proxy.look(inputs, targets), logits.detach().softmax(1).T)
        vector = nn.utils.parameters_to_vector(layers.parameters()).detach()
        torch.testing.assert_close(proxy.vector, vector, rtol=1e-2, atol=5e-4)  # a tiny gradient, over its tiny root


def test_the_small_images_are_made_on_the_clock_and_not_saved() -> None:
    parts, sampler = build_screen()
    parts.warm_up()
    assert sampler._small is None
    train_once(parts, 0.01)
    assert sampler._small is not None
    largest = max(value.numel() for value in sampler.state_dict().values() if isinstance(value, Tensor))
    assert largest < sampler._small.numel()


def test_sequences_have_a_perceptron_only() -> None:
    sequences = ("dataset.shape=[20,1]",)
    parts, _ = build_screen(*sequences)
    train_parts(parts)
    with pytest.raises(Incompatible, match="sampler.proxy=convolutional needs images"):
        build_screen(*sequences, "sampler.proxy=convolutional")


def test_a_proxy_that_is_not_finite_ends_the_run() -> None:
    parts, sampler = build_screen()
    with torch.no_grad():
        sampler.proxy.vector.fill_(math.nan)
    assert sampler.draw().weights.isnan().all()


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["pool_ratio=0.5"], "sampler.pool_ratio=0.5: must be greater than or equal to 1"),
        (["pool_ratio=11"], "sampler.pool_ratio=176 is larger than the training set"),
        (["eps=1.5"], "sampler.eps=1.5"),
        (["beta=-1"], "sampler.beta=-1"),
        (["eps=0", "beta=0.5"], "sampler.beta=0.5: needs an eps"),
        (["score=luck"], "sampler.score=luck: valid: loss, uncertainty"),
        (["proxy=oracle"], "sampler.proxy=oracle"),
        (["width=0"], "sampler.width=0"),
        (["proxy_lr=0"], "sampler.proxy_lr=0"),
        (["look_every=0"], "sampler.look_every=0"),
        (["stop=2"], "sampler.stop=2"),
    ],
)
def test_bad_values(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_screen(*(f"sampler.{override}" for override in overrides))
    assert complaint in str(error.value)


def test_batches_are_uniform_once_passes_are_many() -> None:
    parts, _ = build_screen("sampler.max_passes=2", "budget.limit=40")
    train_parts(parts)
    assert parts.progress.acted_updates == 2 * N / B


def test_batches_are_uniform_while_the_proxy_errs_and_it_goes_on_learning() -> None:
    parts, sampler = build_screen("sampler.max_error=0.4")
    for error, acts in ((0.5, False), (0.4, True), (1.0, False)):
        sampler._error.fill(error)
        steps = sampler.proxy.steps
        indices, _ = sampler.plan()
        assert sampler.acts == acts and len(indices) == 4 * B and sampler.proxy.steps == steps + 1


@pytest.mark.parametrize(
    ("error", "looks"),
    [(0.39, 20), (0.41, 5), (0.59, 5), (0.61, 3)],  # in 80 updates of which four share a look: a fourth, and an eighth
    ids=["good", "nearly good", "poor", "hopeless"],
)
def test_a_poor_proxy_is_dropped(error: float, looks: int) -> None:
    parts, sampler = build_screen("sampler.max_error=0.4", "budget.limit=80")
    sampler._error.push = lambda number: None
    sampler._error.fill(error)
    train_parts(parts)
    assert sampler.proxy.steps == looks and parts.progress.acted_updates == (80 if looks == 20 else 0)
    assert (sampler._small is None) is (looks < 20), "nothing was selected, so small images of all were never made"


def test_an_image_is_the_same_before_and_after_all_are_kept() -> None:
    _, sampler = build_screen()
    indices = torch.arange(5, 40)
    sampler.acts = False
    before = sampler._small_images(indices)
    assert sampler._small is None
    sampler.acts = True
    assert torch.equal(sampler._small_images(indices), before) and len(sampler._small) == N


def test_the_error_is_that_of_the_last_looks_examples() -> None:
    parts, sampler = build_screen()
    indices = torch.arange(64)
    probabilities, _ = sampler.proxy.gradient(sampler._small_images(indices).float(), parts.dataset.targets[indices])
    wrong = float((probabilities.argmax(0) != parts.dataset.targets[indices]).float().mean())
    sampler._look(indices)
    sampler._look(indices)  # the host reads late
    assert 0 < wrong < 1 and sampler._error.value() == pytest.approx(wrong)
