"""Per-example signals against autograd, one example at a time."""

import math

import pytest
import torch
from torch import Tensor, nn

from isbench.models.cnn import LeNet
from isbench.models.heads import Classifier
from isbench.models.mlp import MLP
from isbench.signals import FULL_GRADIENT, PER_EXAMPLE, SCORES, CrossEntropy, per_example, per_example_gradient_norm
from isbench.types import Forward

SCALARS = tuple(name for name in PER_EXAMPLE if name != "features")


def make_model(name: str) -> Classifier:
    torch.manual_seed(1)
    model = MLP((1, 28, 28), 10, hidden=(12,)) if name == "mlp" else LeNet((1, 28, 28), 10)
    with torch.no_grad():
        model.head.weight *= 4  # spread the logits
    return model.double()


def make_batch(n: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(n, 1, 28, 28, dtype=torch.float64, generator=generator),
        torch.randint(10, (n,), generator=generator),
    )


def example_losses(model: nn.Module, label_smoothing: float) -> list[Tensor]:
    """Return the loss of each example, each from a forward pass of its own, in plain arithmetic."""
    losses = []
    for example, target in zip(*make_batch(), strict=True):
        log_probabilities = model(example[None])[0].log_softmax(dim=0)
        smoothed = torch.full((10,), label_smoothing / 10, dtype=torch.float64)
        smoothed[target] += 1 - label_smoothing
        losses.append(-(smoothed * log_probabilities).sum())
    return losses


def gradient_norms(losses: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """Return the norm of each loss's gradient over all of `parameters`, by one backward pass each."""
    norms = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters)
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    return torch.stack(norms)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_norms_equal_autograd(name: str, label_smoothing: float) -> None:
    model, criterion = make_model(name), CrossEntropy(label_smoothing)
    inputs, targets = make_batch()
    forward = model.run(inputs)
    signals = per_example(SCALARS, forward, targets, criterion)

    losses = example_losses(model, label_smoothing)
    torch.testing.assert_close(signals["loss"].double(), torch.stack(losses).detach(), rtol=1e-5, atol=1e-6)

    head = gradient_norms(losses, list(model.head.parameters()))
    torch.testing.assert_close(signals["last_layer_gradient_norm"].double(), head, rtol=1e-4, atol=1e-6)

    full = gradient_norms(example_losses(model, label_smoothing), list(model.parameters()))
    ours = per_example_gradient_norm(model, criterion, inputs, targets)
    torch.testing.assert_close(ours.double(), full, rtol=1e-5, atol=1e-8)
    assert (signals["last_layer_gradient_norm"].double() <= full * (1 + 1e-5)).all(), "a part exceeds the whole"

    logits = forward.logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(
        nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing), logits
    )
    torch.testing.assert_close(signals["logit_gradient_norm"].double(), gradient.norm(dim=1), rtol=1e-4, atol=1e-6)


def test_chunks_do_not_change_gradient_norms() -> None:
    model, criterion = make_model("mlp"), CrossEntropy()
    inputs, targets = make_batch()
    whole = per_example_gradient_norm(model, criterion, inputs, targets)
    one_by_one = per_example_gradient_norm(model, criterion, inputs, targets, max_elements=1)
    torch.testing.assert_close(whole, one_by_one, rtol=1e-12, atol=0)


def test_frozen_parameters_do_not_count() -> None:
    model, criterion = make_model("mlp"), CrossEntropy()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("head")
    inputs, targets = make_batch()
    signals = per_example(("last_layer_gradient_norm",), model.run(inputs), targets, criterion)
    ours = per_example_gradient_norm(model, criterion, inputs, targets)
    torch.testing.assert_close(ours.float(), signals["last_layer_gradient_norm"], rtol=1e-4, atol=1e-6)


def test_the_norm_of_the_logit_gradient_lies_between_0_and_sqrt_2() -> None:
    sure = torch.zeros(3, 10)
    sure[:, 4] = 200.0
    targets = torch.tensor([4, 5, 0])
    forward = Forward(sure, torch.zeros(3, 2))
    norms = per_example(("logit_gradient_norm",), forward, targets, CrossEntropy())["logit_gradient_norm"]
    torch.testing.assert_close(norms, torch.tensor([0.0, math.sqrt(2), math.sqrt(2)]))
    even = Forward(torch.zeros(3, 10), torch.zeros(3, 2))  # 1/10 - 1 once and 1/10 nine times
    norms = per_example(("logit_gradient_norm",), even, targets, CrossEntropy())["logit_gradient_norm"]
    torch.testing.assert_close(norms, torch.full((3,), math.sqrt(0.9)))


def test_signals_carry_no_graph_and_are_float32() -> None:
    model = make_model("lenet")
    inputs, targets = make_batch()
    for name, signal in per_example(tuple(PER_EXAMPLE), model.run(inputs), targets, CrossEntropy()).items():
        assert not signal.requires_grad and signal.dtype == torch.float32, name
        assert signal.shape == ((len(targets), model.head.in_features) if name == "features" else (len(targets),))


def test_true_class_probability_is_the_loss_in_other_words() -> None:
    model = make_model("mlp")
    inputs, targets = make_batch()
    signals = per_example(("loss", "true_class_probability"), model.run(inputs), targets, CrossEntropy())
    torch.testing.assert_close(signals["true_class_probability"], (-signals["loss"]).exp())


def test_scores_are_numbers() -> None:
    assert {*SCORES, "features"} == {*PER_EXAMPLE, FULL_GRADIENT}
