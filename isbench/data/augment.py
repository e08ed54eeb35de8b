"""Augmentations of batches of images, in two steps: `draw_views` is random, `apply` is not.

A view holds the random parameters of one augmentation. So a sampler can draw a view, score the example under it, and
later train on the same pixels. Images keep the units 0..255 and are normalised afterwards, so zero padding is black.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from isbench.errors import Incompatible


class Augmentation:
    """No augmentation; the base class of the others. V is `num_parameters`."""

    num_parameters: int = 0

    def check(self, input_shape: Sequence[int]) -> None:
        """Raise Incompatible if inputs of this shape (of one example) cannot be augmented."""

    def draw_views(self, k: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
        """Draw the parameters of `k` augmentations, (k, V) float32. The generator must live on `device`."""
        return torch.empty(k, 0, device=device)

    def apply(self, images: Tensor, views: Tensor) -> Tensor:
        """Return uint8 images (k, C, H, W), augmented by views (k, V): uint8 or float32, in units of 0..255."""
        return images

    def offset(self, views: Tensor) -> Tensor | None:
        """Return how far each view moves its image, in pixels (k,), or None if this augmentation moves nothing."""
        return None


class Shift(Augmentation):
    """Move an image by whole pixels, up to `pixels` each way, then mirror half of the images if `flip`.

    Padding "zeros" gives the "pad, crop, flip" of He et al. 2016. Padding "edge" repeats the border, as Katharopoulos
    and Fleuret 2018 do; they shift by up to 10 % of the size, also by fractions of a pixel, which they interpolate.
    A view is (down, right, mirrored).
    """

    def __init__(self, pixels: Annotated[int, Ge(0)], padding: Literal["zeros", "edge"], flip: bool) -> None:
        self.pixels = pixels
        self.padding = padding
        self.flip = flip
        self.num_parameters = 3

    def check(self, input_shape: Sequence[int]) -> None:
        _require_images(input_shape)
        if self.pixels >= min(input_shape[1:]):
            raise Incompatible(
                f"augmentation.pixels={self.pixels} can move an image of shape {tuple(input_shape)} out of sight"
            )

    def draw_views(self, k: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
        views = torch.zeros(k, self.num_parameters, device=device)
        views[:, :2].random_(-self.pixels, self.pixels + 1, generator=generator)
        if self.flip:
            views[:, 2].random_(0, 2, generator=generator)
        return views

    def apply(self, images: Tensor, views: Tensor) -> Tensor:
        # One gather over a flat index takes half the time of slicing windows and mirroring some by `where`.
        k, channels, height, width = images.shape
        down, right, mirrored = views[:, :3].long().unsqueeze(2).unbind(1)  # (k, 1) each
        columns = torch.arange(width, device=images.device)
        rows = torch.arange(height, device=images.device) - down
        columns = torch.where(mirrored > 0, width - 1 - columns, columns) - right
        if self.padding == "edge":
            rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        else:
            images = F.pad(images, [self.pixels] * 4)
            rows, columns = rows + self.pixels, columns + self.pixels
        flat = rows.unsqueeze(2) * images.shape[3] + columns.unsqueeze(1)  # (k, H, W)
        flat = flat.flatten(1).unsqueeze(1).expand(-1, channels, -1)
        return images.flatten(2).gather(2, flat).view(k, channels, height, width)

    def offset(self, views: Tensor) -> Tensor:
        return views[:, :2].norm(dim=1)


class ShiftCutout(Shift):
    """Shift, then blank a square of `size` pixels at a random place (DeVries and Taylor 2017).

    Deviation: they fill the square with the mean colour of the data, here with one grey `fill` (0..255). The square may
    reach past the border. A view has two more parameters: the square's centre, as fractions of height and width.
    """

    def __init__(
        self,
        pixels: Annotated[int, Ge(0)],
        padding: Literal["zeros", "edge"],
        flip: bool,
        size: Annotated[int, Ge(0)],
        fill: Annotated[int, Ge(0), Le(255)],
    ) -> None:
        super().__init__(pixels, padding, flip)
        self.size = size
        self.fill = fill
        self.num_parameters = 5

    def draw_views(self, k: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
        views = super().draw_views(k, generator, device)
        views[:, 3:].uniform_(generator=generator)
        return views

    def apply(self, images: Tensor, views: Tensor) -> Tensor:
        images = super().apply(images, views)
        rows, columns = (self._blanked(size, views[:, 3 + axis]) for axis, size in enumerate(images.shape[2:]))
        blank = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)  # (k, 1, H, W)
        return images.mul_(~blank).add_(blank.to(images.dtype) * self.fill)

    def _blanked(self, length: int, fraction: Tensor) -> Tensor:
        """Return which of `length` rows or columns lie in the square, (k, length) bool."""
        start = (fraction * length).floor().unsqueeze(1) - self.size // 2
        positions = torch.arange(length, device=fraction.device)
        return (positions >= start) & (positions < start + self.size)


class Rotation(Augmentation):
    """Rotate an image by a random angle, as Johnson and Guestrin 2018 do for rotated MNIST. A view is the angle."""

    num_parameters = 1

    def check(self, input_shape: Sequence[int]) -> None:
        _require_images(input_shape)

    def draw_views(self, k: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
        return torch.rand(k, 1, generator=generator, device=device) * (2 * torch.pi)

    def apply(self, images: Tensor, views: Tensor) -> Tensor:
        return rotate(images, views[:, 0])


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Rotate images (k, C, H, W) counter-clockwise by angles (k,) in radians. Bilinear, black outside, float32."""
    if not len(images):  # affine_grid refuses an empty batch
        return images.float()
    height, width = images.shape[2:]
    sin, cos, zero = angles.sin(), angles.cos(), torch.zeros_like(angles)
    # The map takes a point of the output to its source. Its units are half the width and half the height.
    maps = torch.stack([cos, -sin * (height / width), zero, sin * (width / height), cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _require_images(input_shape: Sequence[int]) -> None:
    if len(input_shape) != 3:
        raise Incompatible(
            f"this augmentation needs images (C, H, W), not inputs of shape {tuple(input_shape)}; use augmentation=none"
        )
