"""Small convolutional networks for MNIST and rotated MNIST."""

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from isbench.models.heads import Classifier
from isbench.models.layers import image_shape
from isbench.models.norm import Norm, make_norm


class LeNet(Classifier):
    """LeNet-5 (LeCun et al. 1998), with ReLU and max pooling.

    Images smaller than 32 x 32 are padded by two pixels, as the paper pads MNIST.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape("lenet", input_shape, at_least=12)
        padding = 2 if min(height, width) < 32 else 0
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, 5)
        height, width = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width))
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.fc2 = nn.Linear(120, 84)
        self.head = nn.Linear(84, num_classes)

    def features(self, inputs: Tensor) -> Tensor:
        hidden = F.max_pool2d(F.relu(self.conv1(inputs)), 2)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2)
        hidden = F.relu(self.fc1(hidden.flatten(1)))
        return F.relu(self.fc2(hidden))


class ConvNet(Classifier):
    """The network of Zakka's blog post on importance sampling (2018), with He-normal weights."""

    def __init__(self, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape("convnet", input_shape, at_least=16)
        self.conv1 = nn.Conv2d(channels, 10, 5)
        self.conv2 = nn.Conv2d(10, 20, 5)
        height, width = (((side - 4) // 2 - 4) // 2 for side in (height, width))
        self.fc = nn.Linear(20 * height * width, 50)
        self.head = nn.Linear(50, num_classes)
        for layer in (self.conv1, self.conv2, self.fc, self.head):
            nn.init.kaiming_normal_(layer.weight)

    def features(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(F.max_pool2d(self.conv1(inputs), 2))
        hidden = F.relu(F.max_pool2d(self.conv2(hidden), 2))
        return F.relu(self.fc(hidden.flatten(1)))


class CNN7(Classifier):
    """The Z2 baseline of Cohen and Welling (2016), which Johnson and Guestrin (2018) train on rotated MNIST.

    Six unpadded 3x3 convolutions of 20 channels, each with norm and ReLU. Max pooling follows the second and, as in the
    authors' code, dropout follows all others. The head is their seventh layer, a 4x4 convolution of the last map, which
    is 4x4 for images of 28 x 28 pixels. The last map of larger images is larger, and the head sees all of it.
    """

    WIDTH = 20

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        norm: Norm = "batch",
        dropout: Annotated[float, Ge(0), Le(1)] = 0.3,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape("cnn7", input_shape, at_least=28)
        self.dropout = dropout
        self.convs = nn.ModuleList(nn.Conv2d(channels if i == 0 else self.WIDTH, self.WIDTH, 3) for i in range(6))
        self.norms = nn.ModuleList(make_norm(norm, self.WIDTH) for _ in range(6))
        height, width = ((side - 4) // 2 - 8 for side in (height, width))
        self.head = nn.Linear(self.WIDTH * height * width, num_classes)

    def features(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            hidden = F.relu(norm(conv(hidden)))
            if i == 1:
                hidden = F.max_pool2d(hidden, 2)
            else:
                hidden = F.dropout(hidden, self.dropout, self.training)
        return hidden.flatten(1)
