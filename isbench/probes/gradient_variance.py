"""How far the gradient of a batch resampled from a pool is from that of the pool, by the score it is resampled by.

Katharopoulos and Fleuret (2018), section 4.1 and Figure 1: from a pool of 1,024 examples 128 are drawn with
replacement, uniformly or proportionally to a score, and weighted by 1 / (B g_i); the distance of their mean gradient to
the pool's is averaged over 10 such batches. Gradients are taken in evaluation mode: with batch norm in train mode a
batch's gradient is no mean of its examples' own, so that no weights make it unbiased, and dropout's noise would hide
that of sampling. Their network has neither, and the modes are the same there.

Deviation: every look takes a new pool, where the paper keeps the images that it drew once. Choices that it leaves open:
the pool's examples are distinct, and augmented as in training. The scores share their random numbers, which takes some
of the noise out of their ratios.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from isbench.build import Parts
from isbench.errors import ConfigError
from isbench.probes.base import Probe
from isbench.probes.scores import Fetch, evaluation_mode, gradient_chunk, score
from isbench.samplers.base import categorical
from isbench.signals import Score
from isbench.training.streams import derive_seed

Count = Annotated[int, Ge(1)]
UNIFORM = "uniform"


class GradientVariance(Probe):
    """Measure the distance between the gradients of resampled batches and of their pool.

    One row per signal and one for `uniform`: `signal`, `distance` (mean L2 over the repeats), `relative` (over that of
    uniform).

    Args:
        pool_size: B.
        batch_size: b, drawn from the pool with replacement.
        repeats: batches drawn by each signal.
        signals: of `isbench.signals.SCORES`.
    """

    def __init__(self, pool_size: Count, batch_size: Count, repeats: Count, signals: list[Score]):
        self.pool_size = pool_size
        self.batch_size = batch_size
        self.repeats = repeats
        self.signals = signals

    def allocate(self, parts: Parts) -> None:
        n = parts.dataset.num_examples
        if self.pool_size > n:
            raise ConfigError(f"probe.pool_size={self.pool_size} is larger than the training set ({n} examples)")

    def look(self, parts: Parts, folder: Path) -> list[dict[str, Any]]:
        dataset, device = parts.dataset, parts.dataset.device
        generator = torch.Generator(device)
        generator.manual_seed(derive_seed(parts.progress.updates, "gradient_variance"))
        pool = torch.randperm(dataset.num_examples, device=device, generator=generator)[: self.pool_size]
        views = dataset.draw_views(self.pool_size, generator)

        def fetch(positions: Tensor) -> tuple[Tensor, Tensor]:
            batch = dataset.fetch(pool[positions], views[positions])
            return batch.inputs, batch.targets

        whole, ones = torch.arange(self.pool_size, device=device), torch.ones(self.pool_size, device=device)
        state = generator.get_state()
        distances = {}
        with evaluation_mode(parts.model):
            center = weighted_gradient(parts, whole, fetch, ones)
            scores = {UNIFORM: ones, **score(parts, whole, fetch, self.signals)}
            for name, values in scores.items():
                generator.set_state(state)
                measured = []
                for _ in range(self.repeats):
                    positions, probabilities = categorical(values, self.batch_size, generator)
                    weights = (1 / (self.pool_size * probabilities)).float()
                    measured.append(distance(weighted_gradient(parts, positions, fetch, weights), center))
                distances[name] = torch.stack(measured).mean()
        return [
            {"signal": name, "distance": float(value), "relative": float(value / distances[UNIFORM])}
            for name, value in distances.items()
        ]


def weighted_gradient(parts: Parts, positions: Tensor, fetch: Fetch, weights: Tensor) -> list[Tensor]:
    """Return the gradient of mean(weights * losses), weights (n,), at `positions` (n,) for each trainable parameter."""
    parameters = [p for p in parts.model.parameters() if p.requires_grad]
    gradient = [torch.zeros_like(p) for p in parameters]
    chunk = gradient_chunk(parts)
    with differentiable(parts.model):
        for some, their_weights in zip(positions.split(chunk), weights.split(chunk), strict=True):
            inputs, targets = fetch(some)
            objective = their_weights.dot(parts.criterion(parts.model(inputs).float(), targets)) / len(positions)
            torch._foreach_add_(gradient, torch.autograd.grad(objective, parameters))
    return gradient


def differentiable(model: nn.Module) -> AbstractContextManager:
    """Allow a backward pass in evaluation mode, which cuDNN's recurrent layers refuse."""
    is_recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return torch.backends.cudnn.flags(enabled=False) if is_recurrent else nullcontext()


def distance(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """Return the L2 distance of two gradients, ()."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(torch._foreach_sub(one, other))))
