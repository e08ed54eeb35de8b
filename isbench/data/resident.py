"""The training and test set, gathered in batches that are augmented and normalised on the device.

The inputs lie there too, or in the memory of the host, or on a disk from which they are mapped. From these two the host
gathers a batch into pinned memory, and it is copied from there. The bits of a batch are the same.

With `slots`, an example is a pair of an image and one fixed view of it: the pre-augmented training set of Katharopoulos
and Fleuret 2018 (1.5 million images), where a method can remember a score per augmented image. Only the small tables of
the pairs are stored.
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
    """A source for a device. N counts slots where there are any, else training images.

    `stored_views` is (N, V), one per slot, or None without slots.

    Raises: ConfigError where `residency` is "device" and the inputs do not fit there.
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
            generator = torch.Generator().manual_seed(slot_seed)  # on the CPU: the same slots on every device
            base = _spread(slots, len(targets), generator)
            targets = targets[base]
            self._base = base.to(device)
            self.stored_views = augmentation.draw_views(slots, generator, "cpu").to(device)

        self.targets = targets.to(device)
        self.num_examples = len(self.targets)
        self._residency = residency
        # As bytes, and normalised batch by batch: a fourth of the memory, and no slower, since a batch's rows are cold.
        self._images, self._test_inputs = source.train_inputs, source.test_inputs
        if residency == "device":
            try:
                self._images, self._test_inputs = self._images.to(self.device), self._test_inputs.to(self.device)
            except torch.OutOfMemoryError:
                num_bytes = source.train_inputs.nbytes + source.test_inputs.nbytes
                raise ConfigError(
                    f"dataset.residency=device: {num_bytes / 1e9:,.1f} GB of {source.name} are more than the GPU has "
                    "room for; use dataset.residency=host or disk"
                ) from None
        self.test_targets = source.test_targets.to(device)

    def draw_views(self, k: int, generator: torch.Generator) -> Tensor:
        """Draw `k` fresh views, (k, V)."""
        return self.augmentation.draw_views(k, generator, self.device)

    def fetch(self, indices: Tensor, views: Tensor | None) -> Batch:
        """Gather the examples at `indices` (k,) under `views` (k, V). Slots have their own views and ignore these."""
        if self.stored_views is not None:
            views = self.stored_views[indices]
        elif views is None:
            raise ValueError("without slots, fetch needs the views to apply")
        inputs = self._normalize(self.augmentation.apply(self._gather(indices), views))
        return Batch(indices, inputs, self.targets.index_select(0, indices), views)

    def view_offset(self, views: Tensor) -> Tensor | None:
        """Return how far each view moves the image, in pixels (k,), or None where nothing is moved."""
        return self.augmentation.offset(views)

    def plain(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return un-augmented, normalised inputs and their targets."""
        return self._normalize(self._gather(indices)), self.targets[indices]

    @property
    def chunk_size(self) -> int:
        """How many examples go through a network together where no gradient is kept: fewer the larger they are."""
        return max(1, min(4096, 2**22 // math.prod(self.input_shape)))

    @property
    def num_test(self) -> int:
        return len(self.test_targets)

    @property
    def test_inputs(self) -> Tensor:
        """All test inputs, normalised. Prefer `test_chunk` where the set may be large."""
        return self.test_chunk(0, self.num_test)[0]

    def test_chunk(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return test inputs, normalised, and targets from `start` to `stop`."""
        inputs = self._test_inputs[start:stop]
        if inputs.device.type != self.device.type:
            inputs = inputs.pin_memory().to(self.device, non_blocking=True)
        return self._normalize(inputs), self.test_targets[start:stop]

    def _gather(self, indices: Tensor) -> Tensor:
        images = indices if self._base is None else self._base[indices]
        if self._residency == "device":
            return self._images.index_select(0, images)
        images = images.cpu()
        if self._residency == "disk":
            read_ahead(self._images, images)
        if self.device.type == "cpu":
            return self._images.index_select(0, images)
        # The allocator of pinned memory gives a block to nobody else before copies from it have ended.
        rows = torch.empty(len(images), *self.input_shape, dtype=self._images.dtype, pin_memory=True)
        torch.index_select(self._images, 0, images, out=rows)
        return rows.to(self.device, non_blocking=True)

    def _normalize(self, inputs: Tensor) -> Tensor:
        """Return (inputs / 255 - mean) / std in float32; a float argument is overwritten."""
        # On a CPU these three passes take 0.07 ms for 128 images of 3 x 32 x 32, a broadcasting addcmul 1.3 ms.
        return inputs.float().mul_(self._scale).add_(self._shift)


def _spread(slots: int, num_images: int, generator: torch.Generator) -> Tensor:
    """Map slots to images at random, so that no two images differ by more than one slot."""
    images = torch.randperm(num_images, generator=generator)
    return images[torch.randperm(slots, generator=generator) % num_images]
