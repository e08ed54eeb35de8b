"""Helpers of the networks: a check of the input's shape, convolutions without bias, and their initialisation."""

from collections.abc import Sequence

from torch import nn

from isbench.errors import Incompatible


def image_shape(
    network: str, input_shape: Sequence[int], at_least: int, channels: int | None = None
) -> tuple[int, int, int]:
    """Return (channels, height, width) of a data set's images.

    Raises:
        Incompatible: the inputs are no images, are smaller than `at_least` pixels, or lack `channels` channels.
    """
    if len(input_shape) == 3 and min(input_shape[1:]) >= at_least and channels in (None, input_shape[0]):
        num_channels, height, width = input_shape
        return num_channels, height, width
    if len(input_shape) == 3:
        given = f"images of {input_shape[0]} x {input_shape[1]} x {input_shape[2]}"
    elif len(input_shape) == 2:
        given = f"sequences of {input_shape[0]} steps"
    else:
        given = f"inputs of shape {tuple(input_shape)}"
    needed = f"({channels or 'channels'}, height, width) of at least {at_least} x {at_least}"
    raise Incompatible(f"{network} needs images {needed}; this data set gives {given}")


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a padded 3x3 convolution without bias (a norm layer supplies it)."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    """Return a 1x1 convolution without bias: the projection of a residual unit that changes the shape."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def init_convolutions(model: nn.Module) -> None:
    """Draw convolution weights as He et al. (2015) do for ReLU, by fan-out as in their residual networks."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
