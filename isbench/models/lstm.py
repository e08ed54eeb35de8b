"""An LSTM for sequences, or for images pixel by pixel (permuted MNIST, Katharopoulos and Fleuret 2018, section 4.4).

Weights start as in Keras, which the paper used: Glorot-uniform input weights, orthogonal recurrent weights, and a bias
of one in the forget gates, without which the cell remembers nothing over 784 steps. PyTorch's cell has two biases per
gate, Keras has one; the second starts at zero.
"""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from isbench.errors import Incompatible
from isbench.models.heads import Classifier


class LSTM(Classifier):
    """One LSTM layer of width `hidden`; the head reads its last state.

    Inputs are sequences (n, T, F), or images (n, C, H, W), read row by row as H W steps of C values.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, hidden: Annotated[int, Ge(1)] = 128) -> None:
        super().__init__()
        if len(input_shape) not in (2, 3):
            raise Incompatible(
                "lstm needs sequences (steps, values) or images (channels, height, width); "
                f"this data set gives inputs of shape {tuple(input_shape)}"
            )
        values = input_shape[1] if len(input_shape) == 2 else input_shape[0]
        self.lstm = nn.LSTM(values, hidden, batch_first=True)
        self.head = nn.Linear(hidden, num_classes)
        weight_ih, weight_hh, bias_ih, bias_hh = self.lstm.parameters()
        nn.init.xavier_uniform_(weight_ih)
        nn.init.orthogonal_(weight_hh)
        nn.init.zeros_(bias_ih)
        nn.init.zeros_(bias_hh)
        nn.init.ones_(bias_ih[hidden : 2 * hidden])  # gates are ordered input, forget, cell, output

    def features(self, inputs: Tensor) -> Tensor:
        steps = inputs.flatten(2).transpose(1, 2) if inputs.dim() == 4 else inputs
        _, (hidden, _) = self.lstm(steps)
        return hidden[-1]
