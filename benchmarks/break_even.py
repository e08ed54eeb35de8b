"""Where presampling pays off on this machine: the measured break-even tau beside the papers' (B + 3b) / (3b).

Katharopoulos and Fleuret (2018) count a forward pass as one unit and a backward pass as two. Here a forward pass is
measured in evaluation mode without gradients on B=640 examples, a backward pass as a training step of b=128 less its
forward pass; scoring B pays off where tau exceeds (forward of B + training step of b) / (training step of b).
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from benchmarks.measure import Row, race
from benchmarks.runs import CIFAR, MNIST, bare_loop, copied, make_parts

POOL, BATCH = 640, 128
MODELS = {"lenet": MNIST, "cnn7": MNIST, "wrn_28_2": CIFAR, "resnet18": CIFAR, "lstm": MNIST}


def break_even(scoring: float, step: float) -> float:
    """Return tau beyond which an update with scoring is worth its cost, from the seconds of both parts."""
    return (scoring + step) / step


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    papers = break_even(POOL, 3 * BATCH)
    for model, data in MODELS.items():
        scoring, forward, step = measure(device, [*data, f"model={model}"], rounds=rounds_of(model, quick))
        forward_of_b = [seconds * BATCH / POOL for seconds in scoring]
        backward = [(s - f) / e for s, f, e in zip(step, forward, forward_of_b, strict=True)]
        taus = [break_even(*pair) for pair in zip(scoring, step, strict=True)]
        yield Row(f"{model}: backward", "forward in evaluation mode", backward, note="papers: 2")
        yield Row(f"{model}: break-even tau", f"papers: {papers:.3f}", taus, note="B=640, b=128")


def rounds_of(model: str, quick: bool) -> int:
    if quick:
        return 2
    return 15 if model == "lenet" else 4


def measure(device: torch.device, choices: Sequence[str], rounds: int) -> list[list[float]]:
    """Return seconds of scoring B, of the training forward pass of b, and of a training step of b, by round."""
    parts = make_parts(device, *choices, "numerics.threads=1")
    model, _ = copied(parts)
    pool, _ = parts.dataset.plain(torch.arange(POOL, device=device))
    inputs, targets = parts.dataset.plain(torch.arange(BATCH, device=device))

    def score(count: int) -> None:
        model.eval()
        with torch.no_grad():
            for _ in range(count):
                model(pool)
        model.train()

    def forward(count: int) -> None:
        for _ in range(count):
            F.cross_entropy(model(inputs), targets)

    return race([score, forward, bare_loop(parts)], rounds)
