"""A multilayer perceptron with ReLU for inputs of any shape. Without hidden layers it is softmax regression."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from isbench.models.heads import Classifier


class MLP(Classifier):
    """Fully connected layers of widths `hidden`, then the head."""

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, hidden: Sequence[Annotated[int, Ge(1)]] = (256,)
    ) -> None:
        super().__init__()
        widths = [prod(input_shape), *hidden]
        layers = [nn.Sequential(nn.Linear(before, after), nn.ReLU()) for before, after in pairwise(widths)]
        self.body = nn.Sequential(nn.Flatten(), *layers)
        self.head = nn.Linear(widths[-1], num_classes)

    def features(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)
