"""The base class of all networks: a feature extractor and one linear head.

The split lets one forward pass give the signals of the last layer (upper bound, last-layer gradient norm) too.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from isbench.types import Forward


class Classifier(nn.Module):
    """A network whose logits are a linear function of its features.

    A subclass sets `head` and writes `features(inputs) -> (n, D)`.
    """

    head: nn.Linear

    @property
    def has_recurrent_layers(self) -> bool:
        """Whether gradients per example must be taken one by one, and with cuDNN off in evaluation mode."""
        return any(isinstance(module, nn.RNNBase) for module in self.modules())

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that take part in training."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def features(self, inputs: Tensor) -> Tensor:
        """Return the input of the last linear layer, (n, D)."""
        raise NotImplementedError

    def run(self, inputs: Tensor) -> Forward:
        """Return logits (n, C) and features (n, D) from one pass."""
        features = self.features(inputs)
        return Forward(self.head(features), features)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (n, C)."""
        return self.run(inputs).logits

    def differentiable(self) -> AbstractContextManager:
        """Allow a backward pass in evaluation mode, which cuDNN's recurrent layers refuse."""
        return torch.backends.cudnn.flags(enabled=False) if self.has_recurrent_layers else nullcontext()
