"""Wide residual network (Zagoruyko and Komodakis 2016), as in the code of Katharopoulos and Fleuret (2018).

In their code projections read a unit's input, not its pre-activation, and image classifiers use layer norm per example.
Deviation: convolutions start He-normal, as in the original network; in their code they start Glorot-uniform.
"""

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from isbench.errors import ConfigError
from isbench.models.heads import Classifier
from isbench.models.layers import conv1x1, conv3x3, image_shape, init_convolutions
from isbench.models.norm import Norm, make_norm


class WideBlock(nn.Module):
    """norm, ReLU, conv, dropout, norm, ReLU, conv; plus the input (projected if the shape changes)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1 = make_norm(norm, in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm2 = make_norm(norm, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        is_same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if is_same else conv1x1(in_channels, out_channels, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.conv1(F.relu(self.norm1(inputs)))
        hidden = F.dropout(hidden, self.dropout, self.training)
        return self.shortcut(inputs) + self.conv2(F.relu(self.norm2(hidden)))


class WideResNet(Classifier):
    """WRN-`depth`-`width`: three groups of (depth - 4) / 6 blocks, of 16, 32 and 64 times `width` channels.

    Raises:
        ConfigError: `depth` is not 6 n + 4.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        depth: int = 28,
        width: Annotated[int, Ge(1)] = 2,
        norm: Norm = "layer",
        dropout: Annotated[float, Ge(0), Le(1)] = 0.0,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("wide_resnet", input_shape, at_least=4)
        if depth < 10 or depth % 6 != 4:
            raise ConfigError(
                f"model.depth={depth} is not possible: a wide resnet has 6 n + 4 layers, such as 16 or 28"
            )
        self.stem = conv3x3(channels, 16)
        blocks = []
        in_channels = 16
        for out_channels, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for i in range((depth - 4) // 6):
                blocks.append(WideBlock(in_channels, out_channels, stride if i == 0 else 1, norm, dropout))
                in_channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.norm = make_norm(norm, in_channels)
        self.head = nn.Linear(in_channels, num_classes)
        init_convolutions(self)

    def features(self, inputs: Tensor) -> Tensor:
        hidden = self.blocks(self.stem(inputs))
        return F.relu(self.norm(hidden)).mean((2, 3))
