"""Residual networks: ResNet-18 (He et al. 2016a), its pre-activation form (2016b), and ResNet-50.

The 18-layer networks have the usual CIFAR stem, one 3x3 convolution and no pooling; larger images get ImageNet's, whose
map is a fourth as high and as wide. ResNet-50 is torchvision's, for the fine-tuning of Katharopoulos and Fleuret
(2018): ImageNet weights, a new head, batch norm with frozen statistics.
"""

import pickle
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from isbench.errors import ConfigError, DataError
from isbench.models.heads import Classifier
from isbench.models.layers import conv1x1, conv3x3, image_shape, init_convolutions
from isbench.models.norm import FrozenBatchNorm2d, Norm, make_norm

WIDTHS_18 = (64, 128, 256, 512)
LARGEST_FOR_CIFAR_STEM = 64  # pixels; of larger images it makes maps that take minutes and gigabytes

Stem = Literal["auto", "cifar", "imagenet"]  # auto goes by the size of the images


class BasicBlock(nn.Module):
    """conv, norm, ReLU, conv, norm; plus the input (projected and normalised if the shape changes); ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm1 = make_norm(norm, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.norm2 = make_norm(norm, out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride), make_norm(norm, out_channels))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(inputs)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))


class PreActBlock(nn.Module):
    """norm, ReLU, conv, norm, ReLU, conv; plus the input, or the projected pre-activation if the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm2 = make_norm(norm, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.projection = None if in_channels == out_channels else conv1x1(in_channels, out_channels, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        active = F.relu(self.norm1(inputs))
        shortcut = inputs if self.projection is None else self.projection(active)
        return shortcut + self.conv2(F.relu(self.norm2(self.conv1(active))))


def make_blocks(block: type[BasicBlock] | type[PreActBlock], norm: Norm) -> nn.Sequential:
    """Return the eight residual units of an 18-layer network; each change of width halves the map."""
    blocks = []
    in_channels = WIDTHS_18[0]
    for out_channels in WIDTHS_18:
        blocks.append(block(in_channels, out_channels, 1 if in_channels == out_channels else 2, norm))
        blocks.append(block(out_channels, out_channels, 1, norm))
        in_channels = out_channels
    return nn.Sequential(*blocks)


def make_stem(network: str, stem: Stem, input_shape: Sequence[int]) -> tuple[nn.Conv2d, nn.Module]:
    """Return the first convolution of an 18-layer network, and the pooling after it."""
    channels, height, width = image_shape(network, input_shape, at_least=32 if stem == "imagenet" else 8)
    if stem == "cifar" or (stem == "auto" and min(height, width) <= LARGEST_FOR_CIFAR_STEM):
        return conv3x3(channels, WIDTHS_18[0]), nn.Identity()
    convolution = nn.Conv2d(channels, WIDTHS_18[0], 7, stride=2, padding=3, bias=False)
    return convolution, nn.MaxPool2d(3, stride=2, padding=1)


class ResNet18(Classifier):
    """ResNet-18, for images of about 32 x 32 or, with ImageNet's stem, larger ones."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, norm: Norm = "batch", stem: Stem = "auto") -> None:
        super().__init__()
        self.stem, self.pool = make_stem("resnet18", stem, input_shape)
        self.norm = make_norm(norm, WIDTHS_18[0])
        self.blocks = make_blocks(BasicBlock, norm)
        self.head = nn.Linear(WIDTHS_18[-1], num_classes)
        init_convolutions(self)

    def features(self, inputs: Tensor) -> Tensor:
        return self.blocks(self.pool(F.relu(self.norm(self.stem(inputs))))).mean((2, 3))


class PreActResNet18(Classifier):
    """Pre-activation ResNet-18 (Johnson and Guestrin 2018 on SVHN and CIFAR), with the stem that fits the images."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, norm: Norm = "batch", stem: Stem = "auto") -> None:
        super().__init__()
        self.stem, self.pool = make_stem("preact_resnet18", stem, input_shape)
        self.blocks = make_blocks(PreActBlock, norm)
        self.norm = make_norm(norm, WIDTHS_18[-1])
        self.head = nn.Linear(WIDTHS_18[-1], num_classes)
        init_convolutions(self)

    def features(self, inputs: Tensor) -> Tensor:
        return F.relu(self.norm(self.blocks(self.pool(self.stem(inputs))))).mean((2, 3))


class ResNet50(Classifier):
    """torchvision's ResNet-50 with a new head.

    `weights` is the path of a state dict in torchvision's layout, or the name of torchvision weights to download, such
    as IMAGENET1K_V1. With `freeze_norm_statistics` the norm layers use the stored statistics in train mode too, and
    train their scale and shift.

    Raises:
        ConfigError: statistics are to be frozen without weights.
        DataError: the weights are missing, damaged or of another network.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        weights: str | None = None,
        freeze_norm_statistics: bool = False,
    ) -> None:
        super().__init__()
        image_shape("resnet50", input_shape, at_least=32, channels=3)
        if freeze_norm_statistics and weights is None:
            raise ConfigError("model.freeze_norm_statistics=true needs model.weights: untrained statistics say nothing")
        norm_layer = FrozenBatchNorm2d if freeze_norm_statistics else nn.BatchNorm2d
        self.trunk = torchvision.models.resnet50(norm_layer=norm_layer)
        num_features = self.trunk.fc.in_features
        self.trunk.fc = nn.Identity()
        self.head = nn.Linear(num_features, num_classes)
        if weights is not None:
            load_trunk(self.trunk, weights)

    def features(self, inputs: Tensor) -> Tensor:
        return self.trunk(inputs)


def load_trunk(trunk: nn.Module, weights: str) -> None:
    """Load torchvision's ResNet-50 weights, except its head, into `trunk`.

    Raises:
        DataError: the weights are missing, damaged or of another network.
    """
    given = {key: value for key, value in fetch_state_dict(weights).items() if not key.startswith("fc.")}
    expected = trunk.state_dict()
    wrong = [
        key
        for key in sorted(expected.keys() | given.keys())
        # Old files lack the batch counters; load_state_dict then starts them at zero.
        if not key.endswith("num_batches_tracked")
        and (key not in expected or key not in given or expected[key].shape != given[key].shape)
    ]
    if wrong:
        raise DataError(
            f"model.weights={weights} is no state dict of torchvision's resnet50: {len(wrong)} entries differ, "
            f"the first is {wrong[0]}"
        )
    trunk.load_state_dict(given)


def fetch_state_dict(weights: str) -> Mapping[str, Tensor]:
    """Return the state dict in the file `weights`, or download it if `weights` names torchvision weights."""
    entries = torchvision.models.ResNet50_Weights.__members__
    try:
        if weights in entries:
            return entries[weights].get_state_dict(progress=False, check_hash=True, weights_only=True)
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        valid = ", ".join(entries)
        raise DataError(f"model.weights={weights} is neither a file nor one of torchvision's {valid}") from error
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__  # an empty file gives a bare EOFError
        raise DataError(f"model.weights={weights} cannot be read, give the path of a state dict: {reason}") from error
    if not isinstance(state, Mapping):
        raise DataError(f"model.weights={weights} holds a {type(state).__name__}, not a state dict")
    return state
