"""The tau beyond which presampling pays on this machine, beside the papers' (B + 3b) / (3b).

Katharopoulos and Fleuret (2018) count a forward pass as one unit and a backward pass as two. Here a forward pass is
measured in evaluation mode without gradients, and a backward pass is a training step of b=128 minus its forward pass.
To score B=640 pays if tau exceeds (forward of B + training step of b) / (training step of b). A run with
`sampler.gate=measured` measures whole updates instead, with augmentation, signals, and on a GPU as experiments run.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.measure import Row, race
from benchmarks.runs import CIFAR, MNIST, bare_loop, copied, experiment_numerics, make_parts
from isbench.samplers.presample import Presample

POOL, BATCH = 640, 128
MODELS = {"lenet": MNIST, "cnn7": MNIST, "wrn_28_2": CIFAR, "resnet18": CIFAR, "lstm": MNIST}


def break_even(scoring: float, step: float) -> float:
    """Return the tau beyond which scoring pays, from the seconds of scoring and of a training step."""
    return (scoring + step) / step


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    papers = break_even(POOL, 3 * BATCH)
    for model, data in MODELS.items():
        scoring, evaluation, forward, step = measure(device, [*data, f"model={model}"], rounds_of(model, quick))
        backward = [(s - f) / e for s, f, e in zip(step, forward, evaluation, strict=True)]
        taus = [break_even(*pair) for pair in zip(scoring, step, strict=True)]
        yield Row(f"{model}: backward", "forward in evaluation mode", backward, note="papers: 2")
        yield Row(f"{model}: break-even tau", f"papers: {papers:.3f}", taus, note="B=640, b=128")
        tau = measured_by_a_run(device, *data, f"model={model}")
        yield Row(f"{model}: break-even tau of a run", f"papers: {papers:.3f}", [tau], note="sampler.gate=measured")


def rounds_of(model: str, quick: bool) -> int:
    if quick:
        return 2
    return 15 if model == "lenet" else 4


def measure(device: torch.device, choices: Sequence[str], rounds: int) -> list[list[float]]:
    """Return the seconds of each round: evaluation of B, evaluation of b, training forward pass of b, step of b."""
    parts = make_parts(device, *choices, *experiment_numerics(device))
    model, _ = copied(parts)
    pool, _ = parts.dataset.plain(torch.arange(POOL, device=device))
    inputs, targets = parts.dataset.plain(torch.arange(BATCH, device=device))

    def evaluate(inputs: torch.Tensor, count: int) -> None:
        model.eval()
        with torch.no_grad():
            for _ in range(count):
                model(inputs)
        model.train()

    def forward(count: int) -> None:
        for _ in range(count):
            F.cross_entropy(model(inputs), targets)

    return race([partial(evaluate, pool), partial(evaluate, inputs), forward, bare_loop(parts)], rounds)


def measured_by_a_run(device: torch.device, *choices: str) -> float:
    """Return the threshold of a sampler that measures it during its warm-up."""
    parts = make_parts(device, *choices, "sampler=upper_bound", "sampler.gate=measured", *experiment_numerics(device))
    parts.sampler.draw()
    assert isinstance(parts.sampler, Presample)
    return parts.sampler.tau_threshold
