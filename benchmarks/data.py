"""The data path: gather, shift, mirror and normalise 128 random images of 3 x 32 x 32.

It is compared with torchvision's transforms in a DataLoader with two workers, and with a copy of the fewest bytes that
must move: one byte read and four written per value.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.measure import Row, race, ratios
from benchmarks.runs import random_images
from isbench.data.augment import Shift
from isbench.data.resident import ResidentDataset

BATCH, LARGE_BATCH = 128, 8192
COPIED = 2**26  # float32 values, 256 MiB: beyond any cache


class Images(Dataset):
    """Arrays in memory, returned as transformed PIL images, as torchvision.datasets.CIFAR10 and MNIST do."""

    def __init__(self, inputs: Tensor, targets: Tensor, transform: transforms.Compose):
        self.inputs, self.targets, self.transform = inputs, targets, transform
        self.to_image = transforms.ToPILImage()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.to_image(self.inputs[index])), int(self.targets[index])


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    source = random_images(Path(), num_examples=4096 if quick else 16384, num_test=1, shape=(3, 32, 32))
    dataset = ResidentDataset(source, Shift(pixels=4, padding="zeros", flip=True), device)
    generator = torch.Generator(device).manual_seed(0)
    steps_of = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose([*steps_of, transforms.Normalize(source.mean, source.std)])
    images = Images(source.train_inputs, source.train_targets, transform)
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    copied = torch.zeros(COPIED, device=device), torch.zeros(COPIED, device=device)

    def passes_of(batch: int):
        def ours(passes: int) -> None:
            for _ in range(passes * (dataset.num_examples // batch)):
                indices = torch.randint(dataset.num_examples, (batch,), device=device, generator=generator)
                dataset.fetch(indices, dataset.draw_views(batch, generator))

        return ours

    def theirs(passes: int) -> None:
        for _ in range(passes):
            for inputs, targets in loader:
                inputs.to(device), targets.to(device)

    rounds = 3 if quick else 7
    theirs(1)  # starts the workers
    ours, loaded = race([passes_of(BATCH), theirs], rounds, steps=1, wall=True)
    speeds = [dataset.num_examples / seconds for seconds in ours]
    yield Row("isbench, b=128", "DataLoader with 2 workers: images/s", ratios(loaded, ours), at_least=10)
    yield Row("isbench, b=128", "", speeds, "images/s", note="for information")
    yield Row("DataLoader with 2 workers", "", [dataset.num_examples / s for s in loaded], "images/s", note="same")
    for batch in (BATCH, LARGE_BATCH)[: 1 if quick else 2]:
        ours, copy = race([passes_of(batch), lambda n: [copied[0].copy_(copied[1]) for _ in range(n)]], rounds)
        images_moved = dataset.num_examples // batch * batch
        least = [seconds / (8 * COPIED) * 5 * images_moved * 3 * 32 * 32 for seconds in copy]
        is_cuda = device.type == "cuda"
        goal, note = (2.0, "") if is_cuda and batch == LARGE_BATCH else (None, "a goal on a GPU, large batches only")
        yield Row(f"isbench, b={batch}", "bytes at the speed of a copy", ratios(ours, least), at_most=goal, note=note)
