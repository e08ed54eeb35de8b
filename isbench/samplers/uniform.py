"""Uniform sampling, the baseline of every comparison."""

import torch
from torch import Tensor

from isbench.samplers.base import Sampler
from isbench.types import Draw


class Uniform(Sampler):
    """Draw every example equally often, in shuffled passes, with weights 1.

    Args:
        replacement: draw independently from the whole set instead.

    Estimator: unbiased
    Memory: 8 bytes per example, the order of the pass; none with replacement
    Cost: one shuffle per pass
    GPU-CPU syncs: 0 per update
    """

    ones: Tensor

    def __init__(self, replacement: bool = False):
        super().__init__()
        self.replacement = replacement

    def allocate(self) -> None:
        self.register_buffer("ones", torch.ones(self.workspace.batch_size), persistent=False)

    def draw(self) -> Draw:
        workspace = self.workspace
        choose = workspace.uniform if self.replacement else workspace.candidates
        batch = workspace.fetch(choose(workspace.batch_size))
        return Draw(batch, self.ones)

    def probabilities(self) -> Tensor:
        """Return 1 / N each: of a pass, what is known of it without its order."""
        n = self.workspace.num_examples
        return torch.full((n,), 1 / n, dtype=torch.float64, device=self.workspace.device)
