"""The samplers in a training loop of one's own: the same draws and losses as a run, and what the loop is promised."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import isbench
from isbench.build import Parts
from isbench.errors import ConfigError, Incompatible
from isbench.guide import Guide
from isbench.loop import take_update
from isbench.samplers.uniform import Uniform
from tests.conftest import SAMPLERS, build_parts, tensors

UPDATES = 50  # a pass of 4,000 examples in batches of 128 takes 32, so that every history acts
RUN = ("dataset=mnist5k", "model=lenet", f"budget.limit={UPDATES}", "budget.unit=updates", "logging=off")
# Options with which a method needs no model but in training, and the options that a run needs for the same.
WITHOUT_SCORES = {
    "online_batch_selection": {"recompute": None},
    "rais": {"gain": False, "weighted_norm": False, "fit_examples": 1000},
}
# The others, and what each needs of a run or of the caller.
REFUSED = {
    "gradient_norm": "scorer=",
    "impon": "weight_norm",
    "impon_low": "weight_norm",
    "loss": "scorer=",
    "oracle": "mean_gradient",
    "presample_constant_time": "scorer=",
    "presample_constant_variance": "scorer=",
    "rho_loss": "scorer=",
    "selective_backprop": "scorer=",
    "upper_bound": "scorer=",
}
ALONE = [name for name in SAMPLERS if name not in REFUSED]


def run_parts(sampler: str, options: dict[str, Any]) -> Parts:
    words = {None: "null", True: "true", False: "false"}
    return build_parts(*RUN, f"sampler={sampler}", *(f"sampler.{key}={words.get(v, v)}" for key, v in options.items()))


def of_a_run(parts: Parts) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the indices, weights and loss of each update of a run."""
    rows = []
    for update in range(UPDATES):
        draw, _ = take_update(parts.sampler, parts.step, parts.rate(update / UPDATES), parts.progress)
        rows.append((draw.batch.indices, draw.weights, parts.step._losses[-1]))
    return rows


def of_a_loop(
    parts: Parts, guide: Guide, batches: Iterator[tuple[Tensor, Any]]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Train the model of `parts` as a user would."""
    for update, (indices, (inputs, targets)) in enumerate(batches):
        logits = parts.model(inputs)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        loss = guide.loss(indices, losses, logits)
        parts.optimizer.zero_grad()
        loss.backward()
        for group in parts.optimizer.param_groups:
            group["lr"] = parts.rate(update / UPDATES) * guide.gain
        parts.optimizer.step()
        yield indices, guide.weights, loss.detach()


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.mark.parametrize("sampler", ALONE)
def test_a_loop_trains_as_a_run_does(sampler: str) -> None:
    options = WITHOUT_SCORES.get(sampler, {})
    theirs, ours = run_parts(sampler, options), run_parts(sampler, options)
    data, before = ours.dataset, torch.get_rng_state()
    guide = isbench.attach(sampler, num_examples=4000, batch_size=128, updates=UPDATES, targets=data.targets, **options)
    batches = ((indices, data.plain(indices)) for indices in map(torch.tensor, guide))
    loop = list(of_a_loop(ours, guide, batches))
    assert torch.equal(torch.get_rng_state(), before), "the global stream is the user's"
    assert same(loop, of_a_run(theirs))
    assert same(guide.sampler.state_dict(), theirs.sampler.state_dict())
    assert same(ours.model.state_dict(), theirs.model.state_dict())


@pytest.mark.parametrize("sampler", REFUSED)
def test_what_a_loop_cannot_give_is_refused_at_once(sampler: str) -> None:
    with pytest.raises(Incompatible, match=REFUSED[sampler]) as complaint:
        isbench.attach(sampler, num_examples=4000, batch_size=128, updates=10)
    assert f"sampler={sampler} needs" in str(complaint.value) and "\n" not in str(complaint.value)
