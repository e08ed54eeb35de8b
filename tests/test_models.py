"""Networks against their published sizes and definitions, and the rules that every choice of conf/model must obey."""

import inspect
from importlib import import_module
from math import prod
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchvision
import yaml
from torch import nn

from isbench.errors import ConfigError, DataError, Incompatible
from isbench.models.cnn import CNN7, ConvNet, LeNet
from isbench.models.heads import Classifier
from isbench.models.lstm import LSTM
from isbench.models.mlp import MLP
from isbench.models.resnet import PreActResNet18, ResNet18, ResNet50
from isbench.models.wide_resnet import WideResNet

CONF = Path(__file__).parent.parent / "conf" / "model"
NAMES = ["cnn7", "convnet", "lenet", "lstm", "mlp", "preact_resnet18", "resnet18", "resnet50", "wrn_28_2"]
MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


def load_choice(name: str) -> tuple[type[Classifier], dict]:
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert options.pop("name") == name
    module, _, cls = options.pop("_target_").rpartition(".")
    return getattr(import_module(module), cls), options


def num_parameters(cls: type[Classifier], *args: object, **options: object) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in cls(*args, **options).parameters())


def test_every_choice_is_present() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == {*NAMES, "efficientnet_lite0"}  # has a file of its own


@pytest.mark.parametrize("name", NAMES)
def test_yaml_is_the_constructor_signature(name: str) -> None:
    cls, options = load_choice(name)
    parameters = list(inspect.signature(cls).parameters.values())
    assert [p.name for p in parameters[:2]] == ["input_shape", "num_classes"]
    defaults = {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters[2:]}
    assert options == defaults
    help_line = (CONF / f"{name}.yaml").read_text().splitlines()[0]
    assert help_line.startswith("# ") and len(help_line) < 90


@pytest.mark.parametrize("name", NAMES)
def test_choice_follows_the_classifier_protocol(name: str) -> None:
    cls, options = load_choice(name)
    torch.manual_seed(0)
    model = cls(CIFAR, 7, **options)
    inputs = torch.randn(4, *CIFAR)
    F.cross_entropy(model(inputs), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())  # nothing is unused

    model.eval()
    with torch.no_grad():
        logits, features = model.run(inputs)
        assert logits.shape == (4, 7) and features.shape == (4, model.head.in_features)
        assert torch.equal(model.head(model.features(inputs)), model(inputs))
        alone = torch.cat([model(one[None]) for one in inputs])
        torch.testing.assert_close(alone, logits, rtol=1e-4, atol=1e-5)
        mixed = model(inputs.to(memory_format=torch.channels_last))
        torch.testing.assert_close(mixed, logits, rtol=1e-4, atol=1e-5)


def test_published_sizes() -> None:
    assert num_parameters(LeNet, MNIST, 10) == 61_706  # LeCun et al. 1998 with dense C3 and linear output
    assert num_parameters(LeNet, (1, 32, 32), 10) == 61_706
    assert num_parameters(ConvNet, MNIST, 10) == 21_840
    assert num_parameters(MLP, MNIST, 10, hidden=[]) == 7_850
    assert num_parameters(ResNet18, CIFAR, 10) == 11_173_962
    assert num_parameters(WideResNet, CIFAR, 10, norm="batch") == 1_467_610
    # Table 1 of Zagoruyko and Komodakis 2016, in millions.
    for depth, width, millions in ((16, 8, 11.0), (28, 10, 36.5), (40, 4, 8.9)):
        assert round(num_parameters(WideResNet, CIFAR, 10, depth, width, "batch") / 1e6, 1) == millions
    published = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["num_params"]
    assert num_parameters(ResNet50, (3, 224, 224), 1000) == published


@pytest.mark.parametrize("cls", [ResNet18, PreActResNet18])
def test_the_stem_goes_by_the_size_of_the_images(cls: type[Classifier]) -> None:
    def side_of_map(side: int, **options: str) -> int:
        with torch.device("meta"):
            model = cls((3, side, side), 10, **options)
            return model.pool(model.stem(torch.empty(1, 3, side, side))).shape[-1]

    assert [side_of_map(side) for side in (32, 64, 65, 224)] == [32, 64, 17, 56]
    assert side_of_map(224, stem="cifar") == 224 and side_of_map(32, stem="imagenet") == 8
    with pytest.raises(Incompatible):
        side_of_map(16, stem="imagenet")


def test_resnet18_with_the_stem_of_imagenet_is_torchvisions() -> None:
    with torch.device("meta"):
        published = torchvision.models.resnet18(num_classes=10)
    assert num_parameters(ResNet18, (3, 224, 224), 10) == sum(p.numel() for p in published.parameters())


def test_sizes_by_arithmetic() -> None:
    # Against ResNet-18: no norm after the stem or in the projections, the first norm of each wider group sees the
    # narrower map, and one norm more at the end.
    moved = -2 * 64 - 2 * (128 + 256 + 512) - 2 * (64 + 128 + 256) + 2 * 512
    assert num_parameters(PreActResNet18, CIFAR, 10) == 11_173_962 + moved
    # A norm of C channels has 2 C parameters per channel, or C + 1 per example.
    norm_channels = [16] + [32] * 8 + [64] * 8 + [128] * 8
    fewer = sum(channels - 1 for channels in norm_channels)
    assert num_parameters(WideResNet, CIFAR, 10) == 1_467_610 - fewer
    assert num_parameters(CNN7, MNIST, 10) == (9 + 1) * 20 + 5 * (9 * 20 + 1) * 20 + 6 * 2 * 20 + (320 + 1) * 10
    keras_lstm = 4 * ((1 + 128) * 128 + 128)
    assert num_parameters(LSTM, (784, 1), 10) == keras_lstm + 4 * 128 + 1290  # PyTorch has a second bias


def test_lenet_pads_mnist_to_the_size_of_the_paper() -> None:
    small, large = LeNet(MNIST, 10), LeNet((1, 32, 32), 10)
    large.load_state_dict(small.state_dict())
    images = torch.randn(3, *MNIST)
    torch.testing.assert_close(small(images), large(F.pad(images, (2, 2, 2, 2))))


def test_cnn7_head_is_the_last_convolution() -> None:
    model = CNN7(MNIST, 10).eval()
    logits, features = model.run(torch.randn(2, *MNIST))
    convolved = F.conv2d(features.view(2, 20, 4, 4), model.head.weight.view(10, 20, 4, 4), model.head.bias)
    torch.testing.assert_close(convolved[:, :, 0, 0], logits)


def test_dropout_acts_in_train_mode_only() -> None:
    for model in (CNN7(MNIST, 10), WideResNet(MNIST, 10, depth=10, width=1, dropout=0.5)):
        images = torch.randn(2, *MNIST)
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))


def test_lstm_reads_images_as_sequences_and_uses_the_last_state() -> None:
    model = LSTM((3, 4, 5), 10, hidden=6)
    images = torch.randn(2, 3, 4, 5)
    steps = torch.stack([images[:, :, row, column] for row in range(4) for column in range(5)], dim=1)
    assert torch.equal(model(images), model(steps))
    state = torch.zeros(2, 6)
    memory = torch.zeros(2, 6)
    for step in steps.unbind(1):
        gates = step @ model.lstm.weight_ih_l0.T + state @ model.lstm.weight_hh_l0.T
        gates = gates + model.lstm.bias_ih_l0 + model.lstm.bias_hh_l0
        enter, forget, cell, leave = gates.chunk(4, 1)
        memory = forget.sigmoid() * memory + enter.sigmoid() * cell.tanh()
        state = leave.sigmoid() * memory.tanh()
    torch.testing.assert_close(model.features(steps), state)
    assert model.lstm.bias_ih_l0.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12


@pytest.mark.parametrize("norm", ["batch", "layer", "weighted", "none"])
def test_norm_is_a_choice_of_every_network_that_has_one(norm: str) -> None:
    kinds = {"batch": "BatchNorm2d", "layer": "SampleLayerNorm", "weighted": "WeightedBatchNorm2d", "none": None}
    for cls in (ResNet18, PreActResNet18, WideResNet, CNN7):
        with torch.device("meta"):
            model = cls(CIFAR, 10, norm=norm)
        found = {type(layer).__name__ for layer in model.modules() if "Norm" in type(layer).__name__}
        assert found == {kinds[norm]} - {None}
        assert model(torch.empty(2, *CIFAR, device="meta")).shape == (2, 10)


def test_projections_read_what_the_papers_say() -> None:
    """Pre-activation ResNet projects relu(norm(x)); the wide network of Katharopoulos and Fleuret projects x itself."""
    preact = PreActResNet18(CIFAR, 10).blocks[2].eval()
    wide = WideResNet(CIFAR, 10).blocks[4].eval()
    for block in (preact, wide):
        nn.init.zeros_(block.conv2.weight)
    inputs = torch.randn(2, 64, 8, 8)
    active = F.relu(preact.norm1(inputs))
    torch.testing.assert_close(preact(inputs), F.conv2d(active, preact.projection.weight, stride=2))
    inputs = inputs[:, :32]
    torch.testing.assert_close(wide(inputs), F.conv2d(inputs, wide.shortcut.weight, stride=2))


@pytest.mark.parametrize(
    ("cls", "shape", "message"),
    [
        (LeNet, (784, 1), r"lenet needs images .* at least 12 x 12; this data set gives sequences of 784 steps"),
        (ConvNet, (1, 8, 8), r"convnet needs images .* at least 16 x 16; this data set gives images of 1 x 8 x 8"),
        (CNN7, (1, 28, 27), r"cnn7 needs images .* at least 28 x 28; this data set gives images of 1 x 28 x 27"),
        (WideResNet, (20,), r"wide_resnet needs images .*; this data set gives inputs of shape \(20,\)"),
        (ResNet18, (784, 1), r"resnet18 needs images .*; this data set gives sequences of 784 steps"),
        (PreActResNet18, (784, 1), r"preact_resnet18 needs images .*; this data set gives sequences of 784 steps"),
        (ResNet50, (1, 224, 224), r"resnet50 needs images \(3, height, width\) .* gives images of 1 x 224 x 224"),
        (LSTM, (20,), r"lstm needs sequences .* gives inputs of shape \(20,\)"),
    ],
)
def test_unfit_shapes_are_incompatible(cls: type[Classifier], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(Incompatible, match=f"^{message}$") as caught:
        cls(shape, 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("cls", "side"), [(LeNet, 12), (ConvNet, 16), (CNN7, 28), (WideResNet, 4), (ResNet18, 8)])
def test_smallest_and_oblong_images_fit(cls: type[Classifier], side: int) -> None:
    for shape in ((2, side, side), (2, side, side + 9)):
        model = cls(shape, 10).eval()
        assert model(torch.randn(2, *shape)).shape == (2, 10)


def test_mlp_flattens_anything() -> None:
    for shape in ((20,), (784, 1), CIFAR):
        assert MLP(shape, 5, hidden=(16, 8))(torch.randn(3, *shape)).shape == (3, 5)
    assert MLP(MNIST, 10).head.in_features == 256
    assert MLP(MNIST, 10, hidden=()).head.in_features == prod(MNIST)


def test_wide_resnet_refuses_an_impossible_depth() -> None:
    for depth in (4, 27):
        with pytest.raises(ConfigError, match=rf"model\.depth={depth} "):
            WideResNet(CIFAR, 10, depth=depth)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A torchvision ResNet-50 with uneven norm statistics, and its state dict's file."""
    torch.manual_seed(0)
    original = torchvision.models.resnet50().eval()
    for layer in original.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(original.state_dict(), path)
    original.fc = nn.Identity()
    return original, path


def test_resnet50_loads_torchvision_weights(pretrained: tuple[nn.Module, Path]) -> None:
    original, path = pretrained
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = original(images)
        model = ResNet50((3, 64, 64), 67, weights=str(path)).eval()
        torch.testing.assert_close(model.features(images), expected)

    frozen = ResNet50((3, 64, 64), 67, weights=str(path), freeze_norm_statistics=True)
    logits, features = frozen.run(images)
    torch.testing.assert_close(features, expected)  # in train mode
    logits.sum().backward()
    assert all(p.grad is not None for p in frozen.parameters())
    assert torch.equal(frozen.trunk.bn1.running_mean, original.bn1.running_mean)


def test_resnet50_refuses_weights_it_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(weights: str, message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            ResNet50(CIFAR, 10, weights=weights)
        assert "\n" not in str(caught.value)

    damaged, other, tensor = (str(tmp_path / name) for name in ("damaged.pth", "other.pth", "tensor.pth"))
    Path(damaged).write_bytes(b"not a state dict")
    torch.save({"conv1.weight": torch.zeros(1)}, other)
    torch.save(torch.zeros(1), tensor)
    refuse(str(tmp_path / "none.pth"), "neither a file nor one of torchvision's IMAGENET1K_V1, IMAGENET1K_V2")
    refuse(damaged, "damaged.pth cannot be read")
    num_entries = 53 + 53 * 4  # convolutions; scale, shift, mean and variance of their norms
    refuse(other, f"other.pth is no state dict of torchvision's resnet50: {num_entries} entries .* first is bn1.bias")
    refuse(tensor, "tensor.pth holds a Tensor, not a state dict")

    def offline(url: str, progress: bool, check_hash: bool, weights_only: bool) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    refuse("IMAGENET1K_V2", "IMAGENET1K_V2 cannot be read, give the path of a state dict: .*no route to host")
    with pytest.raises(ConfigError, match="freeze_norm_statistics=true needs model.weights"):
        ResNet50(CIFAR, 10, freeze_norm_statistics=True)
