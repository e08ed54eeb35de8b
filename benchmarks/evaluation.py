"""An evaluation on 10,000 test digits, compared with one epoch of training (LeNet, b=128).

A second comparison asks how many examples should pass a network together without gradients. Too many can be slower, if
they exceed a cache, or if the allocator returns large blocks to the system and gets them cleared again.
"""

from collections.abc import Iterator

import torch

from benchmarks.measure import Row, Work, race, ratios
from benchmarks.runs import MNIST, isbench_loop, make_parts
from isbench.training.evaluate import evaluate


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    parts = make_parts(device, *MNIST, "model=lenet", "numerics.threads=1")
    dataset, train = parts.dataset, isbench_loop(parts)

    def evaluate_all(count: int) -> None:
        for _ in range(count):
            starts = range(0, dataset.num_test, dataset.chunk_size)
            chunks = (dataset.test_chunk(start, start + dataset.chunk_size) for start in starts)
            evaluate(parts.model, parts.criterion, chunks)

    part = 0.1  # of an epoch, so that both sides of a round are short
    updates = round(part * dataset.num_examples / 128)
    evaluating, training = race([evaluate_all, lambda count: train(count * updates)], rounds=3 if quick else 9, steps=1)
    epochs = [seconds / part for seconds in training]
    yield Row("test evaluation", "one epoch of training", ratios(evaluating, epochs), at_most=0.1)
    inputs = dataset.test_chunk(0, 5120)[0]

    def forward(size: int) -> Work:
        @torch.no_grad()
        def passes(count: int) -> None:
            for _ in range(count):
                for chunk in inputs.split(size):
                    parts.model(chunk)

        return passes

    sizes = (128, 640, 4096)
    times = race([forward(size) for size in sizes], rounds=3 if quick else 9, steps=1)
    for size, seconds in list(zip(sizes, times, strict=True))[1:]:
        what = f"forward pass, {size:,} at once"
        yield Row(what, "128 at once, per example", ratios(seconds, times[0]), note="1 or less is as it should be")
