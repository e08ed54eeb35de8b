"""Which examples a sampler would draw least and most (Johnson and Guestrin 2018, Figure 1)."""

from typing import Annotated, Any

import torch
from annotated_types import Ge

from isbench.build import Parts
from isbench.errors import ConfigError, Incompatible
from isbench.probes.base import Probe
from isbench.probes.scores import rounded
from isbench.training.evaluate import evaluation_mode


class Draws(Probe):
    """Measure the probabilities of the next draw; tell the examples with the least and with the greatest.

    One row for each example, the most extreme first, ties by index: `rank` ("rarely" or "often"), `index`, `label`,
    `predicted` (the class that the model gives the un-augmented example), `probability` (times N: 1 is uniform).

    Args:
        count: number of examples at either end.
    """

    def __init__(self, count: Annotated[int, Ge(1)]):
        super().__init__()
        self.count = count

    def allocate(self, parts: Parts) -> None:
        n = parts.dataset.num_examples
        if self.count > n:
            raise ConfigError(f"probe.count={self.count} is larger than the training set ({n} examples)")
        if parts.sampler.probabilities() is None:
            raise Incompatible(
                f"probe=draws needs a sampler that has a probability for each example; {type(parts.sampler).__name__} "
                "has none"
            )

    def measure(self, parts: Parts) -> list[dict[str, Any]]:
        dataset = parts.dataset
        probabilities = parts.sampler.probabilities()
        assert probabilities is not None
        rarely, often = (probabilities.argsort(descending=is_falling, stable=True) for is_falling in (False, True))
        indices = torch.cat([rarely[: self.count], often[: self.count]])
        with evaluation_mode(parts.model), torch.no_grad():
            chunks = [dataset.plain(some) for some in indices.split(dataset.chunk_size)]
            predicted = torch.cat([parts.model(inputs).argmax(dim=1) for inputs, _ in chunks])
        columns = {
            "rank": ["rarely"] * self.count + ["often"] * self.count,
            "index": indices.tolist(),
            "label": dataset.targets[indices].tolist(),
            "predicted": predicted.tolist(),
            "probability": rounded(probabilities[indices] * dataset.num_examples),
        }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
