"""How well a batch resampled from a pool by a score keeps the pool's gradient.

Katharopoulos and Fleuret (2018), section 4.1 and Figure 1: 128 examples are drawn from a pool of 1,024 with
replacement, uniformly or in proportion to a score, and weighted by 1 / (B g_i). The distance between the batch's mean
gradient and the pool's is averaged over 10 batches.

Gradients are taken in evaluation mode. In train mode batch norm makes the gradients of examples depend on each other,
so no weights are unbiased, and the noise of dropout would hide the noise of sampling. The paper's network has neither.

Deviation: every measurement takes a new pool; the paper draws its images once. The paper leaves two choices open: here
the pool's examples are distinct, and augmented as in training. All scores use the same random numbers, which makes
their ratios less noisy.
"""

from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from isbench.build import Parts
from isbench.errors import ConfigError
from isbench.probes.base import Probe
from isbench.probes.scores import Fetch, gradient_chunk, score
from isbench.samplers.base import categorical
from isbench.signals import Score
from isbench.training.evaluate import evaluation_mode
from isbench.training.streams import derive_seed

Count = Annotated[int, Ge(1)]
UNIFORM = "uniform"


class GradientVariance(Probe):
    """Measure the distance between the gradients of resampled batches and of their pool.

    One row for `uniform` and one for each signal: `signal`, `distance` (L2, mean over the repeats), `relative`
    (`distance` divided by the distance of uniform).

    Args:
        pool_size: B.
        batch_size: b, drawn from the pool with replacement.
        repeats: number of batches drawn by each signal.
        signals: names in `isbench.signals.SCORES`.
    """

    def __init__(self, pool_size: Count, batch_size: Count, repeats: Count, signals: list[Score]):
        super().__init__()
        self.pool_size = pool_size
        self.batch_size = batch_size
        self.repeats = repeats
        self.signals = signals

    def allocate(self, parts: Parts) -> None:
        n = parts.dataset.num_examples
        if self.pool_size > n:
            raise ConfigError(f"probe.pool_size={self.pool_size} is larger than the training set ({n} examples)")

    def measure(self, parts: Parts) -> list[dict[str, Any]]:
        dataset, device = parts.dataset, parts.dataset.device
        generator = torch.Generator(device).manual_seed(derive_seed(parts.progress.updates, "gradient_variance"))
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
    """Return the gradient of mean(weights * losses) for each trainable parameter; positions (n,), weights (n,)."""
    parameters = parts.model.trainable()
    gradient = [torch.zeros_like(p) for p in parameters]
    chunk = gradient_chunk(parts)
    with parts.model.differentiable():
        for some, their_weights in zip(positions.split(chunk), weights.split(chunk), strict=True):
            inputs, targets = fetch(some)
            objective = their_weights.dot(parts.criterion(parts.model(inputs).float(), targets)) / len(positions)
            torch._foreach_add_(gradient, torch.autograd.grad(objective, parameters))
    return gradient


def distance(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """Return the L2 distance between two gradients, ()."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(torch._foreach_sub(one, other))))
