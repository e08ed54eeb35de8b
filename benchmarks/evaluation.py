"""A full evaluation on the test set of MNIST's size, 10,000 digits, over one epoch of training (LeNet, b=128).

And whether a network should see many examples at once where no gradient is kept: beyond a cache, or a memory allocator
that returns large blocks to the system and has them cleared again, more at once is slower per example.
"""

from collections.abc import Iterator

import torch

from benchmarks.measure import Row, Work, race, ratios
from benchmarks.runs import MNIST, isbench_loop, make_parts
from isbench.training.evaluate import evaluate


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    parts = make_parts(device, *MNIST, "model=lenet", "numerics.threads=1")
    dataset, train = parts.dataset, isbench_loop(parts)

    def look(count: int) -> None:
        for _ in range(count):
            starts = range(0, dataset.num_test, dataset.chunk_size)
            chunks = (dataset.test_chunk(start, start + dataset.chunk_size) for start in starts)
            evaluate(parts.model, parts.criterion, chunks)

    part = 0.1  # of an epoch, so that both sides of a round are short
    updates = round(part * dataset.num_examples / 128)
    looking, training = race([look, lambda count: train(count * updates)], rounds=3 if quick else 9, steps=1)
    epochs = [seconds / part for seconds in training]
    yield Row("test evaluation", "one epoch of training", ratios(looking, epochs), at_most=0.1)
    inputs = dataset.test_inputs[:5120]

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
