"""Probes against slow versions, one example at a time. Measuring leaves no trace."""

import copy
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from isbench.build import Parts
from isbench.errors import ConfigError, Incompatible
from isbench.probes.draws import Draws
from isbench.probes.gradient_variance import GradientVariance, distance, weighted_gradient
from isbench.probes.loss_patterns import LossPatterns, deciles, lasting_shares
from isbench.probes.scores import Scores, rounded
from isbench.recording.record import read_rows
from isbench.run import run
from isbench.samplers.base import Sampler
from tests.conftest import LENET, TINY, build_parts, compose_config, tensors, train_parts, wait_for_rows
from tests.test_run import RUN, start

SIGNALS = ["loss", "logit_gradient_norm", "per_example_gradient_norm"]


def tiny(*overrides: str) -> Parts:
    """Return a trained tiny run."""
    parts = build_parts(*TINY, *overrides)
    train_parts(parts)
    return parts


def cnn7(*overrides: str) -> Parts:
    """Return a tiny run of a network with batch norm and dropout."""
    others = [override for override in TINY if not override.startswith("model")]
    return build_parts(*others, "model=cnn7", "augmentation=crop", "budget.limit=12", *overrides)


def make_probes(parts: Parts) -> list:
    probes = [Scores(20, SIGNALS), GradientVariance(32, 8, 2, SIGNALS), Draws(5)]
    for probe in probes:
        probe.allocate(parts)
    return probes


def example_loss(parts: Parts, index: int) -> Tensor:
    """Return the loss of one un-augmented example in evaluation mode, by a forward pass of its own."""
    inputs, targets = parts.dataset.plain(torch.tensor([index]))
    parts.model.eval()
    loss = -parts.model(inputs)[0].log_softmax(dim=0)[targets[0]]
    parts.model.train()
    return loss


def example_gradient(parts: Parts, index: int) -> Tensor:
    """Return the gradient of one example's loss over all parameters, flattened."""
    gradients = torch.autograd.grad(example_loss(parts, index), list(parts.model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def test_measuring_leaves_no_trace() -> None:
    plain = cnn7()
    train_parts(plain, points=1)
    plain_state = copy.deepcopy(plain.state_dict())  # dropout's stream is global
    watched = cnn7()
    probes = make_probes(watched)
    seen = []

    def measure(rate: float, gain: float) -> None:
        seen.extend(row for probe in probes for row in probe.measure(watched))

    measure(0.0, 1.0)
    train_parts(watched, measure, points=4)
    assert len(seen) == 5 * (1 + 4 + 10)
    assert watched.model.training and watched.progress.examples_scored == 0
    states = [plain_state, watched.state_dict()]
    for state in states:
        state["progress"].pop("seconds")
    assert all(torch.equal(one, other) for one, other in zip(*map(tensors, states), strict=True))


def test_measuring_twice_gives_the_same() -> None:
    parts = cnn7()
    train_parts(parts)
    for probe in make_probes(parts):
        first = probe.measure(parts)
        torch.rand(3)  # a resumed run has come by another way
        assert probe.measure(parts) == first, type(probe).__name__
        json.dumps(first, allow_nan=False)


def test_other_measurements_have_other_pools() -> None:
    parts = tiny()
    probe = GradientVariance(32, 8, 2, SIGNALS)
    before = probe.measure(parts)
    parts.progress.updates += 1
    assert probe.measure(parts) != before


def test_scores_are_those_of_each_example() -> None:
    parts = cnn7()
    train_parts(parts)
    probe = Scores(12, SIGNALS)
    probe.allocate(parts)
    (row,) = probe.measure(parts)
    assert list(row) == ["index", "label", *SIGNALS] and len(set(row["index"])) == 12
    assert row["index"] == sorted(row["index"])
    for position, index in enumerate(row["index"]):
        assert row["label"][position] == int(parts.dataset.targets[index])
        logits = parts.model.eval()(parts.dataset.plain(torch.tensor([index]))[0])[0].detach()
        to_logits = logits.softmax(dim=0)
        to_logits[row["label"][position]] -= 1
        expected = [example_loss(parts, index).detach(), to_logits.norm(), example_gradient(parts, index).norm()]
        for signal, value in zip(SIGNALS, expected, strict=True):
            assert row[signal][position] == pytest.approx(float(value), rel=1e-3, abs=1e-6), signal


def test_the_subset_is_the_same_in_every_run_and_can_be_everything() -> None:
    rows = []
    for examples, seed in ((30, 0), (30, 1), (None, 0)):
        parts = build_parts(*TINY, f"seed={seed}")
        probe = Scores(examples, ["loss"])
        probe.allocate(parts)
        rows += probe.measure(parts)
    assert rows[0]["index"] == rows[1]["index"] and rows[0]["loss"] != rows[1]["loss"]
    assert rows[2]["index"] == list(range(160)) and len(rows[2]["loss"]) == 160
    assert rows[0]["index"] != list(range(30))


def test_numbers_are_rounded_to_six_digits() -> None:
    assert rounded(torch.tensor([1234.56789, 0.000123456789, 0.0])) == [1234.57, 0.000123457, 0.0]
    assert math.isnan(rounded(torch.tensor([math.nan]))[0])


@pytest.mark.parametrize("signal", ["loss", "per_example_gradient_norm"])
def test_distances_have_the_expectation_of_all_possible_batches(signal: str) -> None:
    """Three examples, batches of two: nine batches, each with its probability, weights and distance."""
    parts = tiny("dataset.num_examples=3", "batch_size=2", "budget.limit=4")
    repeats = 1500
    rows = GradientVariance(3, 2, repeats, [signal]).measure(parts)
    assert [row["signal"] for row in rows] == ["uniform", signal]

    gradients = [example_gradient(parts, index) for index in range(3)]
    mean = torch.stack(gradients).mean(dim=0)
    losses = [float(example_loss(parts, index).detach()) for index in range(3)]
    norms = [float(gradient.norm()) for gradient in gradients]
    expected = {}
    for name, scores in (("uniform", [1.0, 1.0, 1.0]), (signal, losses if signal == "loss" else norms)):
        p = [score / sum(scores) for score in scores]
        values = [
            (p[i] * p[j], float(((gradients[i] / (3 * p[i]) + gradients[j] / (3 * p[j])) / 2 - mean).norm()))
            for i, j in itertools.product(range(3), repeat=2)
        ]
        expected[name] = sum(chance * value for chance, value in values)
        spread = math.sqrt(sum(chance * (value - expected[name]) ** 2 for chance, value in values))
        (row,) = (row for row in rows if row["signal"] == name)
        assert abs(row["distance"] - expected[name]) < 4 * spread / math.sqrt(repeats) + 1e-6
        assert row["relative"] == pytest.approx(row["distance"] / rows[0]["distance"])
    assert rows[0]["relative"] == 1


def test_the_gradient_norm_is_the_best_score_and_its_variance_is_known() -> None:
    """The root of the mean square would be sqrt((mean |g|)^2 - |mean g|^2) / sqrt(b); the mean is a little smaller."""
    parts = tiny("dataset.num_examples=64")
    rows = GradientVariance(64, 8, 400, ["per_example_gradient_norm"]).measure(parts)
    gradients = torch.stack([example_gradient(parts, index) for index in range(64)])
    norms, mean = gradients.norm(dim=1), gradients.mean(dim=0)
    for row, second_moment in zip(rows, (norms.square().mean(), norms.mean().square()), strict=True):
        bound = float(((second_moment - mean.square().sum()) / 8).sqrt())
        assert 0.8 * bound < row["distance"] < 1.02 * bound, row["signal"]
    assert rows[1]["relative"] < 0.95


def test_chunks_do_not_change_a_gradient(monkeypatch) -> None:
    parts = tiny()
    positions, weights = torch.tensor([5, 5, 90, 17, 3]), torch.tensor([0.5, 0.5, 2.0, 1.0, 3.0])
    expected = sum(w * example_gradient(parts, int(i)) for i, w in zip(positions, weights, strict=True)) / 5
    parts.model.eval()
    for size in (4096, 16):  # a chunk is an eighth
        monkeypatch.setattr(type(parts.dataset), "chunk_size", size)
        gradient = weighted_gradient(parts, positions, parts.dataset.plain, weights)
        flat = torch.cat([part.flatten() for part in gradient])
        torch.testing.assert_close(flat.double(), expected, rtol=1e-4, atol=1e-6)
        assert distance(gradient, [torch.zeros_like(part) for part in gradient]) == pytest.approx(float(flat.norm()))


def test_recurrent_networks_can_be_measured() -> None:
    parts = build_parts(*TINY[:2], "dataset.shape=[6,1]", "model=lstm", "batch_size=16", "numerics.threads=1")
    rows = GradientVariance(16, 4, 2, SIGNALS).measure(parts)
    assert all(row["distance"] > 0 for row in rows)


def test_deciles_by_sorting() -> None:
    generator = torch.Generator().manual_seed(3)
    losses = torch.randint(12, (47,), generator=generator).float()  # many ties
    order = sorted(range(47), key=lambda i: (-float(losses[i]), i))
    expected = [order.index(i) * 10 // 47 for i in range(47)]
    assert deciles(losses, 10).tolist() == expected
    assert torch.bincount(deciles(torch.zeros(40), 4)).tolist() == [10] * 4


def test_shares_by_intersecting_sets() -> None:
    random = np.random.RandomState(4)
    history = list(random.randint(0, 3, (5, 60)).astype(np.uint8))
    for later in history[1:]:
        later[:30] = history[0][:30]  # half of them never move
    shares = lasting_shares(history, 3)
    assert len(shares) == 4
    for first in range(4):
        for decile in range(3):
            sets = [{i for i in range(60) if one[i] == decile} for one in history[first:]]
            expected = len(set.intersection(*sets)) / len(sets[0])
            assert shares[first][decile] == pytest.approx(expected)


def seen_in_training(parts: Parts, monkeypatch) -> list[tuple[list[int], list[float], list[float]]]:
    """Train; return each step's examples, and their losses and gradient norms by passes of their own before the step.

    The network must do the same in training as in evaluation.
    """
    steps = []
    original = Sampler.observe

    def observe(sampler: Sampler, draw, signals) -> None:
        losses = parts.criterion(parts.model(draw.batch.inputs), draw.batch.targets)
        norms = []
        for loss in losses:
            gradients = torch.autograd.grad(loss, list(parts.model.parameters()), retain_graph=True)
            norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
        steps.append((draw.batch.indices.tolist(), losses.tolist(), norms))
        original(sampler, draw, signals)

    monkeypatch.setattr(Sampler, "observe", observe)
    train_parts(parts)
    return steps


def test_loss_patterns_are_of_the_losses_in_training(monkeypatch) -> None:
    """Passes of 47 examples in batches of 10: batches hold the end of a pass and the start of the next."""
    parts = build_parts(*TINY, "dataset.num_examples=47", "batch_size=10", "budget.limit=20", "probe=loss_patterns")
    assert parts.probe.measure(parts) == []
    steps = seen_in_training(parts, monkeypatch)
    visits = [visit for indices, losses, _ in steps for visit in zip(indices, losses, strict=True)]
    history = []
    for k in range(4):
        losses = dict(visits[47 * k : 47 * (k + 1)])
        ranking = sorted(losses, key=lambda i: (-losses[i], i))
        assert len(ranking) == 47
        history.append([{i for place, i in enumerate(ranking) if place * 10 // 47 == decile} for decile in range(10)])
    rows = parts.probe.measure(parts)
    assert [(row["first_epoch"], row["decile"]) for row in rows] == [(k, d) for k in (1, 2, 3) for d in range(1, 11)]
    assert len({row["share"] for row in rows}) > 2
    for row in rows:
        first, decile = int(row["first_epoch"]) - 1, row["decile"] - 1
        stayed = set.intersection(*(bins[decile] for bins in history[first:]))
        assert row["share"] == pytest.approx(len(stayed) / len(history[first][decile]))


def test_passes_beyond_those_that_are_followed_change_nothing() -> None:
    parts = build_parts(*TINY, "probe=loss_patterns", "probe.passes=2")
    rows = []
    train_parts(parts, lambda rate, gain: rows.append(parts.probe.measure(parts)), points=8)  # twice a pass
    assert rows[:3] == [[], [], []] and len(rows[3]) == 10 and all(later == rows[3] for later in rows[4:])


def test_examples_that_a_pass_leaves_out_keep_their_loss() -> None:
    parts = build_parts(*TINY, "probe=loss_patterns", "probe.passes=3", "probe.bins=2")
    probe, nan = parts.probe, float("nan")
    probe.losses = torch.tensor([[3.0, 2.0, 1.0, nan], [nan, 4.0, 5.0, 0.0], [nan, nan, nan, nan], [9.0] * 4])
    parts.progress.examples_trained = 2 * 160
    # first {3, 0} above {1, 2}, then {2, 1} above {0, 3}
    assert [row["share"] for row in probe.measure(parts)] == [0, 0]
    parts.progress.examples_trained = 3 * 160
    assert [row["share"] for row in probe.measure(parts)] == [0, 0, 1, 1]


def test_scores_in_training_are_those_of_each_examples_last_step(monkeypatch) -> None:
    parts = build_parts(*LENET, "budget.limit=13", "probe=scores_in_training")  # a pass has 10 steps
    steps = seen_in_training(parts, monkeypatch)
    last = {i: values for indices, *columns in steps for i, *values in zip(indices, *columns, strict=True)}
    (row,) = parts.probe.measure(parts)
    assert row["index"] == sorted(last) == list(range(160))
    assert row["label"] == parts.dataset.targets.tolist()
    for name, position in (("loss", 0), ("per_example_gradient_norm", 1)):
        assert row[name] == pytest.approx([last[i][position] for i in range(160)], rel=1e-4), name


def test_examples_without_a_step_have_no_scores() -> None:
    parts = build_parts(*TINY, "budget.limit=3", "probe=scores_in_training", "probe.signals=[logit_gradient_norm]")
    train_parts(parts)
    (row,) = parts.probe.measure(parts)
    assert len(row["index"]) == len(row["logit_gradient_norm"]) == 48 and list(row)[2:] == ["logit_gradient_norm"]


@pytest.mark.parametrize("probe", ["loss_patterns", "scores_in_training"])
def test_watching_leaves_no_trace(probe: str) -> None:
    """Not in weights, statistics of batch norm, dropout's stream, nor in the seconds of what is paid for."""
    plain, watched = cnn7(), cnn7(f"probe={probe}")
    for parts in (plain, watched):
        torch.manual_seed(0)  # dropout's stream is global
        parts.warm_up()
        train_parts(parts, points=1)
        parts.final = copy.deepcopy(parts.state_dict())
    states = [parts.final for parts in (plain, watched)]
    assert states[0].pop("probe") == {} and len(states[1].pop("probe")) == 1
    for state in states:
        state["progress"].pop("seconds")
    pairs = list(zip(*map(tensors, states), strict=True))
    assert len(pairs) > 10 and all(torch.equal(one, other) for one, other in pairs)
    assert watched.model.training


def test_a_warm_up_is_not_seen() -> None:
    parts = build_parts(*TINY, "probe=loss_patterns")
    parts.warm_up()
    assert parts.probe.losses.isnan().all()
    parts.take_update()
    assert (~parts.probe.losses.isnan()).sum() == 16


@pytest.mark.parametrize("probe", ["loss_patterns", "scores_in_training"])
def test_a_killed_run_ends_with_the_same_measurements(probe: str, tmp_path: Path) -> None:
    overrides = (f"probe={probe}", "budget.limit=107", "evaluation.points=9")  # boundaries inside of passes
    command = start(tmp_path / "killed", *overrides)
    wait_for_rows(tmp_path / "killed", 4)
    command.kill()
    measured = []
    for name in ("undisturbed", "killed"):
        outcome = run(compose_config(*RUN, *overrides, f"runs_dir={tmp_path / name}"))
        rows = [row for row in read_rows(outcome.folder / "record.jsonl") if row["kind"] == "probe"]
        attempts = {row["updates"]: row.pop("attempt") for row in rows}  # the last that measured there
        measured.append([row for row in rows if row["updates"] == 107])
        assert len(measured[-1]) and attempts[107] == (2 if name == "killed" else 1)
    assert measured[0] == measured[1]


def test_draws_are_the_extremes() -> None:
    parts = tiny("sampler=oracle")
    probe = Draws(7)
    probe.allocate(parts)
    rows = probe.measure(parts)
    norms = parts.sampler.norms.double()
    order = sorted(range(160), key=lambda i: (float(norms[i]), i))
    assert [row["index"] for row in rows if row["rank"] == "rarely"] == order[:7]
    assert [row["index"] for row in rows if row["rank"] == "often"] == order[:-8:-1]
    for row in rows:
        index = row["index"]
        assert row["label"] == int(parts.dataset.targets[index])
        logits = parts.model.eval()(parts.dataset.plain(torch.tensor([index]))[0])
        assert row["predicted"] == int(logits.argmax())
        assert row["probability"] == pytest.approx(float(norms[index] / norms.sum() * 160), rel=1e-5)


def test_equal_probabilities_go_by_index() -> None:
    rows = Draws(3).measure(build_parts(*TINY))
    assert [(row["rank"], row["index"], row["probability"]) for row in rows] == [
        (rank, index, 1.0) for rank in ("rarely", "often") for index in range(3)
    ]


@pytest.mark.parametrize("updates", [3, 40])
@pytest.mark.parametrize(
    "sampler",
    [
        ("oracle", "sampler.refresh_every=100"),
        ("prioritized", "sampler.beta=1", "sampler.normalize=false"),
        ("rais", "sampler.fit_examples=64"),
    ],
)
def test_probabilities_are_those_of_the_weights(sampler: tuple[str, ...], updates: int) -> None:
    """Where weights are 1 / (N p), a draw tells the probabilities of its examples."""
    parts = tiny(f"sampler={sampler[0]}", *sampler[1:], f"budget.limit={updates}")
    probabilities = parts.sampler.probabilities()
    assert probabilities.shape == (160,) and float(probabilities.sum()) == pytest.approx(1)
    assert updates < 10 or probabilities.max() > 1.5 * probabilities.min(), "not uniform by now"
    draw = parts.sampler.draw()
    expected = 1 / (160 * probabilities[draw.batch.indices])
    torch.testing.assert_close(draw.weights.double(), expected, rtol=1e-5, atol=0)


def test_probabilities_by_rank() -> None:
    parts = tiny("sampler=online_batch_selection")
    assert torch.equal(build_parts(*TINY).sampler.probabilities(), torch.full((160,), 1 / 160, dtype=torch.float64))
    sampler = parts.sampler
    sampler.s_end = 20.0
    s = sampler.pressure()
    assert s == pytest.approx(20)
    total = sum(s ** (-rank / 160) for rank in range(160))
    probabilities = sampler.probabilities()
    for rank, index in enumerate(sampler.ranking.tolist()):
        assert float(probabilities[index]) == pytest.approx(s ** (-rank / 160) / total)
    first_pass = build_parts(*TINY, "sampler=online_batch_selection").sampler.probabilities()
    torch.testing.assert_close(first_pass, torch.full((160,), 1 / 160, dtype=torch.float64))


def test_mistakes_are_reported() -> None:
    parts = build_parts(*TINY)
    for make, message in (
        (lambda: Scores(161, ["loss"]), "probe.examples=161 is larger than the training set"),
        (lambda: GradientVariance(161, 8, 2, ["loss"]), "probe.pool_size=161 is larger than the training set"),
        (lambda: LossPatterns(161, 5), "probe.bins=161 is larger than the training set"),
        (lambda: Draws(161), "probe.count=161 is larger than the training set"),
    ):
        with pytest.raises(ConfigError, match=message):
            make().allocate(parts)
    with pytest.raises(Incompatible, match="Presample has none"):
        Draws(5).allocate(build_parts(*TINY, "sampler=upper_bound", "sampler.pool_size=32"))
