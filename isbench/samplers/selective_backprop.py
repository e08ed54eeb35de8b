"""Selective backprop: score candidates, keep those with a high loss, and train when a batch of them has gathered.

Jiang et al. (2019), "Accelerating Deep Learning by Focusing on the Biggest Losers". Deviations:

- candidates are scored in evaluation mode;
- selected examples wait across the end of an epoch, where the authors train a smaller batch;
- the first pass is not scored, since it selects everything.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from isbench.samplers.base import Sampler, assign
from isbench.types import Batch, Draw


def percentile(history: Tensor, losses: Tensor) -> Tensor:
    """Return the share of `history` (r,) strictly below each of `losses` (k,), in [0, 1)."""
    return torch.searchsorted(history.sort().values, losses) / len(history)


class SelectiveBackprop(Sampler):
    """Select each candidate with probability percentile(loss) ** beta, among the last R losses; train on full batches.

    Candidates come from shuffled passes and are trained on in the view that was scored. If losses do not change, 1 /
    (beta + 1) of the candidates are selected. A loss that is NaN is always selected, as is everything in a draw that
    has scored N candidates without filling its batch.

    Args:
        beta: selectivity; 0 selects everything.
        history_size: R.
        pool_size: candidates scored together; null is b.
        priming_passes: passes at the start in which everything is selected.
        staleness: an example is scored in one pass out of this many, and its last loss used in the others (the paper's
            Stale-SB).

    Estimator: biased (towards examples with a high loss)
    Memory: 8 bytes per example, the order of the pass, and 4 more if staleness > 1; up to b + pool_size queued inputs
    Cost: about beta + 1 forward passes per trained example (divided by staleness); a sort of R losses per pool
    GPU-CPU syncs: 1 per pool (how many were selected)
    """

    asks = ("score",)
    remembers = ("_queue", "_candidates", "_selected", "_recorded")
    history: Tensor  # (R,) a ring
    cached: Tensor  # (N,)

    def __init__(
        self,
        beta: Annotated[float, Ge(0)] = 3.0,
        history_size: Annotated[int, Ge(1)] = 1024,
        pool_size: Annotated[int, Ge(1)] | None = None,
        priming_passes: Annotated[int, Ge(0)] = 1,
        staleness: Annotated[int, Ge(1)] = 1,
    ):
        super().__init__()
        self.beta = beta
        self.history_size = history_size
        self.pool_size = pool_size
        self.priming_passes = priming_passes
        self.staleness = staleness

    def allocate(self) -> None:
        self._size = self.pool_size or self.workspace.batch_size
        self.check_pool(self._size, at_least=1)
        self.register_buffer("history", torch.zeros(self.history_size))
        if self.staleness > 1:
            self.register_buffer("cached", torch.zeros(self.workspace.num_examples))
        self._queue: Batch | None = None
        self._candidates = 0  # seen so far
        self._selected = 0
        self._recorded = 0  # losses written to the ring so far

    def warm_up(self, take_update: Callable[[], None]) -> None:
        super().warm_up(take_update)  # in the priming passes, which score nothing
        self.workspace.score(self.workspace.fetch(self.workspace.candidates(self._size)), "loss")

    def draw(self) -> Draw:
        workspace = self.workspace
        b, seen = workspace.batch_size, 0
        queue = self._queue
        while queue is None or len(queue) < b:
            selected = self._select(everything=seen >= workspace.num_examples)
            queue = selected if queue is None else queue.join(selected)
            seen += self._size
        positions = torch.arange(len(queue), device=workspace.device)
        self._queue = queue.take(positions[b:])
        acts = self._candidates > self.priming_passes * workspace.num_examples
        return Draw(queue.take(positions[:b]), torch.ones(b, device=workspace.device), acts=acts)

    def diagnostics(self) -> dict[str, float]:
        return {"selected_share": self._selected / max(1, self._candidates)}

    def _select(self, everything: bool) -> Batch:
        """Score one pool of candidates, if it is due, and return the selected ones."""
        workspace, n = self.workspace, self.workspace.num_examples
        start, self._candidates = self._candidates, self._candidates + self._size
        to_prime = self.priming_passes * n - start
        indices = workspace.candidates(self._size)
        if to_prime >= self._size:
            self._selected += self._size
            return workspace.fetch(indices)
        passes = range(start // n, (self._candidates - 1) // n + 1)
        pool = None
        if any((number - self.priming_passes) % self.staleness == 0 for number in passes):
            pool = workspace.fetch(indices)
            losses = workspace.score(pool, "loss")
            if self.staleness > 1:
                assign(self.cached, indices, losses)
        else:
            losses = self.cached[indices]
        chances = percentile(self._remember(losses), losses) ** self.beta
        uniform = torch.rand(self._size, device=workspace.device, generator=workspace.generator)
        is_selected = (uniform < chances) | losses.isnan()
        is_selected[: max(0, to_prime)] = True
        if everything:
            is_selected[:] = True
        positions = is_selected.nonzero().squeeze(1)
        self._selected += len(positions)
        return workspace.fetch(indices[positions]) if pool is None else pool.take(positions)

    def _remember(self, losses: Tensor) -> Tensor:
        """Write losses to the ring; return the part of it that is filled."""
        recent = losses[-self.history_size :]
        slots = torch.arange(self._recorded, self._recorded + len(recent), device=losses.device) % self.history_size
        self.history[slots] = recent
        self._recorded += len(recent)
        return self.history[: self._recorded]
