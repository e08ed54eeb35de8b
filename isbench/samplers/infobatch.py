"""InfoBatch: leave out a random part of the well-learned examples in each pass, and weight up those that stay.

Qin et al. (2024), "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning". Each example whose last
loss is below the mean is left out with probability r; those of that group that stay get the weight 1 / (1 - r). They
are left out independently, as in the paper's equations; the authors' code leaves out a fixed number, rounded up, which
makes the weight slightly wrong.
"""

import torch
from torch import Tensor

from isbench.errors import ConfigError
from isbench.samplers.base import EpochSampler, Signals, assign
from isbench.types import Draw

INITIAL_SCORE = 3.0  # any constant leaves the first pass whole; by the next, all but its last batch has a loss


class InfoBatch(EpochSampler):
    """Prune each pass at random among the examples with a loss below the mean, and reweight the rest.

    Scores are the last training losses. Passes that start once `stop` of the budget is spent are whole, with weights 1,
    to remove what bias is left from the scores themselves. The sum of weight times gradient over a pass of m examples
    is, in expectation, the sum over all N. One update averages its b examples, so its expectation is N / m times the
    full gradient, and there are m / N times as many: a pass moves as far as an unpruned one, in fewer updates. This
    is the paper's own reckoning; the learning rate is not touched.

    Args:
        prune: r, the probability with which a well-learned example is left out.
        stop: share of the budget after which nothing is pruned.

    Estimator: unbiased (sum over a pass, given the scores at its start)
    Memory: 16 bytes per example, the order of the pass included
    Cost: O(N) per pass; a sort of b per update
    Host reads: 1 per pass (its length)
    """

    observes = ("loss",)
    scores: Tensor  # (N,)

    def __init__(self, prune: float = 0.5, stop: float = 0.875):
        super().__init__()
        if not 0 <= prune < 1:
            raise ConfigError(f"sampler.prune={prune}: must be at least 0 and less than 1")
        if not 0 <= stop <= 1:
            raise ConfigError(f"sampler.stop={stop}: must be between 0 and 1")
        self.prune = prune
        self.stop = stop

    def allocate(self) -> None:
        super().allocate()
        self.register_buffer("scores", torch.full((self.workspace.num_examples,), INITIAL_SCORE))

    def plan(self) -> tuple[Tensor, Tensor]:
        workspace = self.workspace
        n, device, generator = workspace.num_examples, workspace.device, workspace.generator
        indices = torch.randperm(n, device=device, generator=generator)
        if workspace.fraction() >= self.stop:
            return indices, torch.ones(n, device=device)
        # In float64: the mean of equal float32 scores could round to above all of them.
        scores = self.scores[indices].double()
        is_low = scores < scores.mean()
        is_in = ~is_low | (torch.rand(n, device=device, generator=generator) >= self.prune)
        kept = is_in.nonzero().squeeze(1)
        return indices[kept], torch.where(is_low[kept], 1 / (1 - self.prune), 1.0)

    def observe(self, draw: Draw, signals: Signals) -> None:
        indices = draw.batch.indices
        assign(self.scores, indices, signals["loss"])

    def diagnostics(self) -> dict[str, float]:
        return {"kept_share": len(self._indices) / self.workspace.num_examples}
