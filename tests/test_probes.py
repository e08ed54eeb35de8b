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
from isbench.errors import ConfigError, Incompatible, UserError
from isbench.probes import loss_patterns
from isbench.probes.draws import Draws
from isbench.probes.gradient_variance import GradientVariance, distance, weighted_gradient
from isbench.probes.loss_patterns import LossPatterns, deciles, lasting_shares
from isbench.probes.scores import Scores, rounded
from isbench.recording.record import Record, read_rows
from isbench.run import run
from tests.conftest import TINY, build_parts, compose_config, tensors, train_parts, wait_for_rows
from tests.test_run import RUN, kill, start

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
    probes = [Scores(20, SIGNALS), GradientVariance(32, 8, 2, SIGNALS), LossPatterns(10), Draws(5)]
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


def counts(folder: Path, attempt: int, resumed_at: int, *updates: int) -> None:
    """Write what the record of a run holds when it has been evaluated at `updates`."""
    record = Record(folder / "record.jsonl")
    assert record.attempt == attempt
    record.append("start", resumed_at=resumed_at)
    for u in updates:
        record.append("evaluation", updates=u)


def test_measuring_leaves_no_trace(tmp_path: Path) -> None:
    plain = cnn7()
    train_parts(plain, points=1)
    plain_state = copy.deepcopy(plain.state_dict())  # dropout's stream is global
    watched = cnn7()
    probes = make_probes(watched)
    counts(tmp_path, 1, 0, *range(12))
    seen = []

    def measure(rate: float, gain: float) -> None:
        seen.extend(row for probe in probes for row in probe.measure(watched, tmp_path))

    measure(0.0, 1.0)
    train_parts(watched, measure, points=4)
    assert len(seen) == 5 * (1 + 4 + 10) + 10 * (1 + 2 + 3 + 4)
    assert watched.model.training and watched.progress.examples_scored == 0
    states = [plain_state, watched.state_dict()]
    for state in states:
        state["progress"].pop("seconds")
    assert all(torch.equal(one, other) for one, other in zip(*map(tensors, states), strict=True))


def test_measuring_twice_gives_the_same(tmp_path: Path) -> None:
    parts = cnn7()
    train_parts(parts)
    for probe in make_probes(parts):
        first = probe.measure(parts, tmp_path)
        torch.rand(3)  # a resumed run has come by another way
        assert probe.measure(parts, tmp_path) == first, type(probe).__name__
        json.dumps(first, allow_nan=False)


def test_other_measurements_have_other_pools() -> None:
    parts = tiny()
    probe = GradientVariance(32, 8, 2, SIGNALS)
    before = probe.measure(parts, Path())
    parts.progress.updates += 1
    assert probe.measure(parts, Path()) != before


def test_scores_are_those_of_each_example() -> None:
    parts = cnn7()
    train_parts(parts)
    probe = Scores(12, SIGNALS)
    probe.allocate(parts)
    (row,) = probe.measure(parts, Path())
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
        rows += probe.measure(parts, Path())
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
    rows = GradientVariance(3, 2, repeats, [signal]).measure(parts, Path())
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
    rows = GradientVariance(64, 8, 400, ["per_example_gradient_norm"]).measure(parts, Path())
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
    rows = GradientVariance(16, 4, 2, SIGNALS).measure(parts, Path())
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
    history = random.randint(0, 3, (5, 60)).astype(np.uint8)
    history[1:, :30] = history[0, :30]  # half of them never move
    shares = lasting_shares(history, 3)
    assert len(shares) == 4
    for first in range(4):
        for decile in range(3):
            sets = [{i for i in range(60) if one[i] == decile} for one in history[first:]]
            expected = len(set.intersection(*sets)) / len(sets[0])
            assert shares[first][decile] == pytest.approx(expected)


def measure_losses(parts: Parts, losses: Tensor, updates: int, folder: Path, monkeypatch) -> list[dict]:
    """Measure a run that has come to `updates` and has these losses."""
    monkeypatch.setattr(loss_patterns, "score", lambda *_: {"loss": losses})
    parts.progress.updates, parts.progress.examples_trained = updates, 16 * updates
    return LossPatterns(4).measure(parts, folder)


def test_loss_patterns_count_each_boundary_once(tmp_path: Path, monkeypatch) -> None:
    """Killed after the evaluation at update 30, resumed at 10, past other boundaries, as under a budget in seconds."""
    parts = build_parts(*TINY)
    generator = torch.Generator().manual_seed(5)
    losses = {u: torch.randn(160, generator=generator).cumsum(0) for u in (0, 10, 20, 25, 30, 35)}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir(), killed.mkdir()
    counts(undisturbed, 1, 0, 0, 10, 25, 35)
    rows = {u: measure_losses(parts, losses[u], u, undisturbed, monkeypatch) for u in (0, 10, 25, 35)}
    assert rows[0] == [] and [row["first_epoch"] for row in rows[35]] == [0.0] * 4 + [1.0] * 4 + [2.5] * 4
    assert [row["decile"] for row in rows[35]] == [1, 2, 3, 4] * 3

    counts(killed, 1, 0, 0, 10, 20, 30)
    for u in (0, 10, 20, 30):
        measure_losses(parts, losses[u], u, killed, monkeypatch)
    counts(killed, 2, 10, 25, 35)
    again = {u: measure_losses(parts, losses[u], u, killed, monkeypatch) for u in (25, 35)}
    assert again == {u: rows[u] for u in (25, 35)}


def test_the_loss_deciles_are_those_of_the_examples_losses(tmp_path: Path) -> None:
    parts = build_parts(*TINY)
    counts(tmp_path, 1, 0, 0)
    probe = LossPatterns(10)
    probe.allocate(parts)
    tops = []
    for _ in range(2):
        rows = probe.measure(parts, tmp_path)
        losses = [float(example_loss(parts, index).detach()) for index in range(160)]
        tops.append(set(sorted(range(160), key=lambda i: -losses[i])[:16]))
        train_parts(parts)
    assert rows[0] == {"first_epoch": 0.0, "decile": 1, "share": len(tops[0] & tops[1]) / 16}


def test_a_killed_run_ends_with_the_same_measurements(tmp_path: Path) -> None:
    overrides = ("probe=loss_patterns", "budget.limit=200", "evaluation.points=10")
    process = start(tmp_path / "killed", *overrides)
    wait_for_rows(tmp_path / "killed", 4)
    kill(process)
    measured = []
    for name in ("undisturbed", "killed"):
        outcome = run(compose_config(*RUN, *overrides, f"runs_dir={tmp_path / name}"))
        rows = [row for row in read_rows(outcome.folder / "record.jsonl") if row["kind"] == "probe"]
        attempts = {row["updates"]: row.pop("attempt") for row in rows}  # the last that measured there
        measured.append([row for row in rows if row["updates"] == 200])
        assert len(measured[-1]) == 10 * 10 and set(attempts) == set(range(20, 201, 20))
    assert measured[0] == measured[1] and attempts[20] == 1 and attempts[200] == 2


def test_a_damaged_history_is_reported(tmp_path: Path) -> None:
    parts = build_parts(*TINY)
    LossPatterns(10).measure(parts, tmp_path)
    path = tmp_path / loss_patterns.FILE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read; delete"):
        LossPatterns(10).measure(parts, tmp_path)


def test_draws_are_the_extremes() -> None:
    parts = tiny("sampler=oracle")
    probe = Draws(7)
    probe.allocate(parts)
    rows = probe.measure(parts, Path())
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
    rows = Draws(3).measure(build_parts(*TINY), Path())
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
        (lambda: LossPatterns(161), "probe.bins=161 is larger than the training set"),
        (lambda: Draws(161), "probe.count=161 is larger than the training set"),
    ):
        with pytest.raises(ConfigError, match=message):
            make().allocate(parts)
    with pytest.raises(Incompatible, match="Presample has none"):
        Draws(5).allocate(build_parts(*TINY, "sampler=upper_bound", "sampler.pool_size=32"))
