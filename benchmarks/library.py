"""What a guide adds to a training loop of one's own: LeNet, b=128, through a DataLoader without workers.

The plain loop shuffles. The other has the three lines of docs/own_loop.md, and takes every example's index through the
DataLoader too. They take turns step by step, so that both meet the same machine. A round is a pass over 6,000 examples,
with what a method does once in a pass. One thread.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import isbench
from benchmarks.measure import Row, Work, race, ratios
from isbench.models.cnn import LeNet

GOAL = 1.05
NUM_EXAMPLES, BATCH = 6000, 128
STEPS = NUM_EXAMPLES // BATCH  # of a pass
METHODS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "infobatch": {},
    "prioritized": {},
    "sgd_s": {},
    "c_sgd": {},
    "p_sgd": {},
    "online_batch_selection": {"recompute": None},
    "rais": {"gain": False, "weighted_norm": False},
}


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    torch.set_num_threads(1)
    inputs = torch.rand(NUM_EXAMPLES, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, torch.arange(NUM_EXAMPLES) % 10)
    for method, options in METHODS.items():
        guide = isbench.attach(
            method, num_examples=NUM_EXAMPLES, batch_size=BATCH, updates=10**6, targets=data.tensors[1], **options
        )
        guided = loop(DataLoader(isbench.indexed(data), batch_sampler=guide), guide)
        plain = loop(DataLoader(data, BATCH, shuffle=True, drop_last=True))
        guided(5 if quick else 7 * STEPS)  # so that the method has begun to choose: RAIS after 314 updates
        times = race([guided, plain], (1 if quick else 8) * STEPS, 1)
        ours, theirs = (np.reshape(each, (-1, STEPS)).sum(1).tolist() for each in times)
        yield Row(method, "plain loop through a DataLoader", ratios(ours, theirs), at_most=GOAL)


def loop(loader: DataLoader, guide: Any = None) -> Work:
    """Return a loop that goes on at each call, with a guide or without."""
    model = LeNet((1, 28, 28), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    stream = batches()

    def steps(count: int) -> None:
        for _ in range(count):
            *indices, inputs, targets = next(stream)
            logits = model(inputs)
            losses = F.cross_entropy(logits, targets, reduction="none" if guide else "mean")
            optimizer.zero_grad()
            (guide.loss(*indices, losses, logits) if guide else losses).backward()
            optimizer.step()

    return steps
