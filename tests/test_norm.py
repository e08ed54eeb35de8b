"""Weighted batch norm against `nn.BatchNorm2d` and repeated examples; per-example layer norm against its definition."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from isbench.models.norm import (
    FrozenBatchNorm2d,
    SampleLayerNorm,
    StatisticsWeights,
    WeightedBatchNorm2d,
    turn_batch_norm_into,
)

CHANNELS = 3


def images(n: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([0.5, 1.0, 4.0], dtype=dtype)[:, None, None]
    return torch.randn(n, CHANNELS, 5, 2, generator=generator, dtype=dtype) * scales + scales


def pair() -> tuple[nn.BatchNorm2d, WeightedBatchNorm2d]:
    """A batch norm and a weighted one of the same, uneven parameters and buffers."""
    plain, weighted = nn.BatchNorm2d(CHANNELS).double(), WeightedBatchNorm2d(CHANNELS).double()
    with torch.no_grad():
        for k, value in enumerate((plain.weight, plain.bias, plain.running_mean, plain.running_var)):
            value.copy_(torch.tensor([0.3, 1.7, 0.9]) + k)
    weighted.load_state_dict(plain.state_dict())
    return plain, weighted


def backward(layer: nn.Module, inputs: Tensor, coefficients: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the output and the gradients of sum(coefficients * sin(output))."""
    inputs = inputs.clone().requires_grad_()
    outputs = layer(inputs)
    grads = torch.autograd.grad((coefficients * outputs.sin()).sum(), [inputs, layer.weight, layer.bias])
    return outputs.detach(), list(grads)


def assert_same_buffers(one: nn.Module, other: nn.Module) -> None:
    buffers = dict(other.named_buffers())
    for name, value in one.named_buffers():
        torch.testing.assert_close(value, buffers[name], rtol=0, atol=1e-12, msg=name)


def test_unit_weights_are_plain_batch_norm() -> None:
    plain, weighted = pair()
    statistics = StatisticsWeights(weighted)
    for seed in range(3):
        inputs, coefficients = images(seed=seed), images(seed=10 + seed)
        expected, expected_grads = backward(plain, inputs, coefficients)
        with statistics.using(torch.ones(4, dtype=torch.float64)):
            outputs, grads = backward(weighted, inputs, coefficients)
        torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(grads, expected_grads, rtol=0, atol=1e-10)
    assert_same_buffers(plain, weighted)


def test_scale_of_the_weights_matters_to_the_number_of_examples_alone() -> None:
    plain, weighted = pair()
    inputs, coefficients = images(), images(seed=1)
    expected, expected_grads = backward(plain, inputs, coefficients)
    with StatisticsWeights(weighted).using(torch.full((4,), 0.37, dtype=torch.float64)):
        outputs, grads = backward(weighted, inputs, coefficients)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=0, atol=1e-10)
    torch.testing.assert_close(weighted.running_mean, plain.running_mean)
    assert (weighted.running_var > plain.running_var).all()  # fewer examples, larger correction


def test_integer_weights_are_repeated_examples() -> None:
    plain, weighted = pair()
    inputs, coefficients = images(), images(seed=1)
    counts = torch.tensor([1, 3, 2, 5])
    repeated = inputs.clone().requires_grad_()
    outputs = plain(repeated.repeat_interleave(counts, 0))
    objective = (coefficients.repeat_interleave(counts, 0) * outputs.sin()).sum()
    expected_grads = torch.autograd.grad(objective, [repeated, plain.weight, plain.bias])
    with StatisticsWeights(weighted).using(counts.double()):
        weighted_outputs, grads = backward(weighted, inputs, counts[:, None, None, None] * coefficients)
    torch.testing.assert_close(weighted_outputs.repeat_interleave(counts, 0), outputs, rtol=0, atol=1e-12)
    torch.testing.assert_close(grads, list(expected_grads), rtol=0, atol=1e-10)
    assert_same_buffers(plain, weighted)


def test_any_weights_against_the_definition() -> None:
    _, weighted = pair()
    inputs, weights = images(), torch.tensor([0.2, 2.5, 0.7, 1.1], dtype=torch.float64)
    before = copy.deepcopy(weighted)
    with StatisticsWeights(weighted).using(weights):
        outputs = weighted(inputs)
    for c in range(CHANNELS):
        values = [
            (w, v) for w, image in zip(weights.tolist(), inputs, strict=True) for v in image[c].flatten().tolist()
        ]
        total = sum(w for w, _ in values)
        mean = sum(w * v for w, v in values) / total
        variance = sum(w * (v - mean) ** 2 for w, v in values) / total
        expected = before.weight[c] * (inputs[:, c] - mean) / (variance + 1e-5) ** 0.5 + before.bias[c]
        torch.testing.assert_close(outputs[:, c], expected)
        unbiased = variance * total / (total - 1)
        assert weighted.running_mean[c].item() == pytest.approx(0.9 * before.running_mean[c].item() + 0.1 * mean)
        assert weighted.running_var[c].item() == pytest.approx(0.9 * before.running_var[c].item() + 0.1 * unbiased)


def test_tiny_weights_keep_the_running_variance_positive() -> None:
    _, weighted = pair()
    weighted.running_var.zero_()
    with StatisticsWeights(weighted).using(torch.full((4,), 1e-3, dtype=torch.float64)):
        weighted(images())
    assert (weighted.running_var > 0).all() and weighted.running_var.isfinite().all()


def test_without_weights_and_in_eval_mode_it_is_plain_batch_norm() -> None:
    plain, weighted = pair()
    statistics = StatisticsWeights(weighted)
    weights = torch.tensor([1.0, 9.0, 1.0, 1.0], dtype=torch.float64)
    assert torch.equal(weighted(images()), plain(images()))
    with pytest.raises(ZeroDivisionError), statistics.using(weights):
        raise ZeroDivisionError
    assert torch.equal(weighted(images()), plain(images()))  # cleared despite the exception
    plain.eval(), weighted.eval()
    with statistics.using(weights):
        assert torch.equal(weighted(images()), plain(images()))
    assert_same_buffers(plain, weighted)


def test_half_precision_and_memory_format_follow_the_built_in_layer() -> None:
    plain, weighted = nn.BatchNorm2d(CHANNELS), WeightedBatchNorm2d(CHANNELS)
    inputs = images(8, dtype=torch.float32).bfloat16().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16), StatisticsWeights(weighted).using(torch.ones(8)):
        expected, outputs = plain(inputs), weighted(inputs)
    assert outputs.dtype == expected.dtype == torch.bfloat16
    assert outputs.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(weighted.running_var, plain.running_var, rtol=1e-5, atol=1e-6)


@pytest.fixture
def group() -> Iterator[None]:
    """A group of processes that has this one alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("is_shared", [False, True])
def test_compiles_into_one_graph(is_shared: bool, group: None) -> None:
    _, weighted = pair()
    compiled_layer = copy.deepcopy(weighted)
    compiled = torch.compile(compiled_layer, fullgraph=True, backend="eager")
    for weights in (torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), torch.tensor([4.0, 1.0, 1.0, 1.0]).double()):
        with StatisticsWeights(weighted).using(weights):
            expected = weighted(images())
        with StatisticsWeights(compiled_layer, is_shared=is_shared).using(weights):
            torch.testing.assert_close(compiled(images()), expected)
    assert_same_buffers(weighted, compiled_layer)
    assert not any(buffer.requires_grad for buffer in compiled_layer.buffers())


def test_turning_batch_norm_keeps_tensors_and_spares_frozen_layers() -> None:
    model = nn.Sequential(nn.Conv2d(CHANNELS, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    model.append(FrozenBatchNorm2d(4))
    reference = copy.deepcopy(model)
    tensors = {name: value.data_ptr() for name, value in model.state_dict().items()}
    turn_batch_norm_into(WeightedBatchNorm2d, model)
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == tensors
    assert [type(layer) for layer in model.modules()].count(WeightedBatchNorm2d) == 2
    assert type(model[3]) is FrozenBatchNorm2d
    inputs = images(dtype=torch.float32)
    with StatisticsWeights(model).using(torch.ones(4)):
        torch.testing.assert_close(model(inputs), reference(inputs))
    with StatisticsWeights(model).using(torch.tensor([1.0, 50.0, 1.0, 1.0])):
        assert not torch.allclose(model(inputs), reference(inputs))


def test_frozen_batch_norm_trains_scale_and_shift_only() -> None:
    plain, _ = pair()
    frozen = FrozenBatchNorm2d(CHANNELS).double()
    frozen.load_state_dict(plain.state_dict())
    outputs, grads = backward(frozen, images(), images(seed=1))
    assert torch.equal(outputs, plain.eval()(images()))
    assert_same_buffers(frozen, plain)
    assert all(grad.abs().sum() > 0 for grad in grads)


def test_sample_layer_norm_against_the_definition() -> None:
    layer = SampleLayerNorm(CHANNELS).double()
    with torch.no_grad():
        layer.weight.fill_(1.5)
        layer.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    assert [tuple(p.shape) for p in layer.parameters()] == [(1,), (CHANNELS,)]
    inputs = images()
    for image, output in zip(inputs, layer(inputs), strict=True):
        standard = (image - image.mean()) / (image.var(correction=0) + 1e-3).sqrt()
        torch.testing.assert_close(output, 1.5 * standard + layer.bias[:, None, None])
