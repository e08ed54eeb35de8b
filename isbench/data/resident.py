"""The data set of a run: gathers batches, then augments and normalises them on the device.

The inputs lie on the device, in the memory of the host, or in mapped files on a disk. From the last two the host
gathers a batch into pinned memory and copies it to the device. The bits of a batch are the same.

With `slots`, an example is an image with one fixed view: the pre-augmented training set of Katharopoulos and Fleuret
2018 (1.5 million images), in which a method can remember a score for each augmented image. Only the image's number and
the view are stored.
"""

import math

import torch
from torch import Tensor

from isbench.data.augment import Augmentation
from isbench.data.cache import read_ahead
from isbench.data.source import Residency, Source
from isbench.errors import ConfigError
from isbench.types import Batch


class ResidentDataset:
    """The training and test set on a device. N is the number of slots, or of training images without slots.

    Attributes:
        stored_views: the view of each slot (N, V), or None without slots.
        checksum: a function that returns the source's.

    Raises:
        ConfigError: `residency` is "device", and the device has too little memory.
        Incompatible: the augmentation does not suit the inputs.
    """

    def __init__(
        self,
        source: Source,
        augmentation: Augmentation,
        device: torch.device | str,
        slots: int | None = None,
        slot_seed: int = 0,
        residency: Residency = "device",
    ) -> None:
        self.augmentation = augmentation
        self.checksum = source.checksum
        self.device = torch.device(device)
        self.num_classes = source.num_classes
        self.input_shape = tuple(source.train_inputs.shape[1:])
        augmentation.check(self.input_shape)

        is_image = len(self.input_shape) == 3
        mean, std = (torch.tensor(values, device=device) for values in (source.mean, source.std))
        scale, shift = 1 / (255 * std), -mean / std
        self._scale, self._shift = (values.view(-1, 1, 1) if is_image else values for values in (scale, shift))

        targets = source.train_targets
        self._base: Tensor | None = None  # slot to image, (N,)
        self.stored_views: Tensor | None = None
        if slots is not None:
            generator = torch.Generator().manual_seed(slot_seed)  # on the CPU, so that every device has the same slots
            base = _spread(slots, len(targets), generator)
            targets = targets[base]
            self._base = base.to(device)
            self.stored_views = augmentation.draw_views(slots, generator, "cpu").to(device)

        self.targets = targets.to(device)
        self.num_examples = len(self.targets)
        self._residency = residency
        # Bytes take a fourth of the memory, and are no slower to normalise batch by batch: the rows are cold anyway.
        self._images, self._test_inputs = source.train_inputs, source.test_inputs
        if residency == "device":
            self._move_inputs(source.name)
        self.test_targets = source.test_targets.to(device)

    def draw_views(self, k: int, generator: torch.Generator) -> Tensor:
        """Draw `k` fresh views, (k, V)."""
        return self.augmentation.draw_views(k, generator, self.device)

    def fetch(self, indices: Tensor, views: Tensor | None) -> Batch:
        """Return the examples at `indices` (k,) under `views` (k, V). With slots, each has its stored view instead."""
        if self.stored_views is not None:
            views = self.stored_views[indices]
        elif views is None:
            raise ValueError("without slots, fetch needs the views to apply")
        inputs = self._normalize(self.augmentation.apply(self._gather(indices), views))
        return Batch(indices, inputs, self.targets.index_select(0, indices), views)

    def view_offset(self, views: Tensor) -> Tensor | None:
        """Return how far each view moves its image, in pixels (k,), or None if the augmentation moves nothing."""
        return self.augmentation.offset(views)

    def plain(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (k, ...), normalised but not augmented, and targets (k,)."""
        return self._normalize(self._gather(indices)), self.targets[indices]

    @property
    def chunk_size(self) -> int:
        """How many examples go through a network together without a gradient: fewer if they are large."""
        return max(1, min(4096, 2**22 // math.prod(self.input_shape)))

    @property
    def num_test(self) -> int:
        return len(self.test_targets)

    def test_chunk(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return the test inputs, normalised, and targets from `start` to `stop`."""
        inputs = self._test_inputs[start:stop]
        if inputs.device.type != self.device.type:
            inputs = inputs.pin_memory().to(self.device, non_blocking=True)
        return self._normalize(inputs), self.test_targets[start:stop]

    def _move_inputs(self, name: str) -> None:
        try:
            self._images, self._test_inputs = self._images.to(self.device), self._test_inputs.to(self.device)
        except torch.OutOfMemoryError:
            num_bytes = self._images.nbytes + self._test_inputs.nbytes
            raise ConfigError(
                f"dataset.residency=device: {num_bytes / 1e9:,.1f} GB of {name} are more than the GPU has "
                "room for; use dataset.residency=host or disk"
            ) from None

    def _gather(self, indices: Tensor) -> Tensor:
        images = indices if self._base is None else self._base[indices]
        if self._residency == "device":
            return self._images.index_select(0, images)
        images = images.cpu()
        if self._residency == "disk":
            read_ahead(self._images, images)
        if self.device.type == "cpu":
            return self._images.index_select(0, images)
        # The allocator does not reuse a pinned block before the copies from it have ended.
        rows = torch.empty(len(images), *self.input_shape, dtype=self._images.dtype, pin_memory=True)
        torch.index_select(self._images, 0, images, out=rows)
        return rows.to(self.device, non_blocking=True)

    def _normalize(self, inputs: Tensor) -> Tensor:
        """Return (inputs / 255 - mean) / std in float32; a float argument is overwritten."""
        # These passes are 20 times faster on a CPU than one broadcasting addcmul.
        return inputs.float().mul_(self._scale).add_(self._shift)


def _spread(slots: int, num_images: int, generator: torch.Generator) -> Tensor:
    """Return a random image for each slot (slots,); the images' numbers of slots differ by one at most."""
    images = torch.randperm(num_images, generator=generator)
    return images[torch.randperm(slots, generator=generator) % num_images]
