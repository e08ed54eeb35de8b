"""Screening: a tiny network, trained beside the model, looks at every candidate; the model trains on the least certain.

Our own method. Its parts are known: least confidence (Lewis and Gale 1994), selection by a proxy (Coleman et al. 2020,
before training), and by the loss of a second network (RHO-LOSS, Mindermann et al. 2022). docs/samplers.md says when to
use it, and what is open.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from isbench.errors import ConfigError, Incompatible
from isbench.models.proxy import PROXIES, shrink
from isbench.samplers.base import EpochSampler, LateReading

Share = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(1)]
NUM_TESTED = 1000  # examples at least, evenly apart, on which the record's error of the proxy is measured
# From these shares of the budget on, a proxy that is wrong so many times as often as max_error is dropped.
PATIENCE = ((1 / 8, 1.5), (1 / 4, 1.0))


class Screen(EpochSampler):
    """Train on the part of a pool of which a tiny network is least certain, and on a few examples of its rest.

    The proxy sees each image un-augmented (or in its stored view), averaged down to at most 16 x 16. One pass of it
    serves `look_every` updates: it scores a pool for each, and its backward pass takes one step of Adam on all of them.
    Of a batch, (1 - eps) b are the least certain of their pool, the others uniform among the rest. Pools come from
    shuffled passes. Batches are uniform at both ends of the budget, while the proxy knows too little, and once the data
    have been seen so often that choosing among them would repeat a few. A proxy that is wrong more than 1.5 times as
    often as it may be after an eighth of the budget, or that still knows too little after a fourth, is dropped.

    Args:
        pool_ratio: B / b, the size of a pool over that of a batch.
        eps: share of the batch drawn uniformly from what the score left.
        beta: 0: all weights are 1. 1: unbiased (needs eps > 0).
        score: uncertainty: 1 - max_c p_c, which needs no label. loss: -log p_y.
        proxy: perceptron, or convolutional (for images).
        width: of the proxy's hidden layer, or channels of its first.
        proxy_lr: rate of its Adam.
        look_every: updates that one pass of the proxy decides on.
        start: share of the budget before which batches are uniform; the proxy learns all the same.
        stop: share of the budget from which batches are uniform.
        max_error: share of candidates that the proxy gets wrong above which batches are uniform.
        max_passes: passes over the training set, trained on, from which batches are uniform.

    Estimator: biased (towards uncertain examples; unbiased with beta=1)
    Memory: 8 bytes per example, the order of the pass, and 2 per number of the small image
    Cost: a pass of the proxy over the pool; before the first selected batch, a look at the whole training set
    GPU-CPU syncs: 1 per update at most (one per look, of the error), without stalling the GPU
    """

    asks = ("plain", "input_shape", "targets")
    remembers = (*EpochSampler.remembers, "_error")
    weights: Tensor  # (b,), of a selected batch

    def __init__(
        self,
        pool_ratio: Annotated[float, Ge(1)] = 4.0,
        eps: Share = 0.1,
        beta: Share = 0.0,
        score: Literal["uncertainty", "loss"] = "uncertainty",
        proxy: Literal["perceptron", "convolutional"] = "perceptron",
        width: Count = 32,
        proxy_lr: Annotated[float, Gt(0)] = 0.01,
        look_every: Count = 4,
        start: Share = 0.02,
        stop: Share = 0.9,
        max_error: Share = 0.4,
        max_passes: Annotated[float, Gt(0)] = 3.0,
    ):
        super().__init__()
        self.pool_ratio = pool_ratio
        self.eps = eps
        self.beta = beta
        self.score = score
        self.kind = proxy
        self.width = width
        self.proxy_lr = proxy_lr
        self.look_every = look_every
        self.start = start
        self.stop = stop
        self.max_error = max_error
        self.max_passes = max_passes

    def allocate(self) -> None:
        super().allocate()
        workspace = self.workspace
        b = workspace.batch_size
        self.pool_size = int(self.pool_ratio * b)
        self.check_pool(self.pool_size, "pool_ratio")
        self.num_top = round((1 - self.eps) * b)
        if self.beta > 0 and self.num_top == b:
            raise ConfigError(f"sampler.beta={self.beta}: needs an eps of which a batch has at least one example")
        if self.kind == "convolutional" and len(workspace.input_shape) != 3:
            raise Incompatible(f"sampler.proxy=convolutional needs images, not inputs of {workspace.input_shape}")
        shape = shrink(torch.empty(1, *workspace.input_shape)).shape[1:]
        proxy = PROXIES[self.kind]
        self.proxy = proxy(shape, workspace.num_classes, self.width, workspace.generator, self.proxy_lr)
        self._error = LateReading(1.0)  # share of the last look's examples that the proxy got wrong
        self._small: Tensor | None = None  # (N, ...) float16: all small images, from the first selected batch on
        self.register_buffer("weights", self._weights_of_a_batch(), persistent=False)

    def warm_up(self, take_update: Callable[[], None]) -> None:
        super().warm_up(take_update)
        pools = self._pools()
        self._choose(self._look(pools))  # batches are uniform at first
        self._small = None  # to be made on the clock

    def plan(self) -> tuple[Tensor, Tensor]:
        """Return the examples of the next `look_every` batches, one batch after the other, and their weights."""
        workspace = self.workspace
        spent = workspace.fraction()
        passes = workspace.progress.updates * workspace.batch_size / workspace.num_examples
        error = self._error.value()
        is_good = error <= self.max_error
        is_dropped = any(spent >= share and error > times * self.max_error for share, times in PATIENCE)
        learns = spent < self.stop and passes < self.max_passes and not is_dropped
        self.acts = learns and is_good and spent >= self.start
        if self.acts:
            pools = self._pools()
            certainty = self._look(pools)
            chosen = pools.gather(1, self._choose(certainty))
            # A proxy that is no longer finite must not go unnoticed.
            weights = torch.add(self.weights, certainty.amin(1, keepdim=True), alpha=0)
            return chosen.flatten(), weights.flatten()
        indices = workspace.candidates(self.look_every * workspace.batch_size)
        if learns:
            self._look(indices)
        return indices, torch.ones(len(indices), device=indices.device)

    def diagnostics(self) -> dict[str, float]:
        n = self.workspace.num_examples  # in files they may be sorted by class
        some = torch.arange(0, n, max(1, n // NUM_TESTED), device=self.workspace.device)
        targets = self.workspace.targets[some]
        probabilities, _ = self.proxy.gradient(shrink(self.workspace.plain(some).inputs), targets)
        return {"proxy_error": float((probabilities.argmax(0) != targets).float().mean())}

    def _weights_of_a_batch(self) -> Tensor:
        """Return weights (b,). With beta=1 the batch's mean is that of its pool in expectation; the sum is b anyway."""
        b, m, pool = self.workspace.batch_size, self.num_top, self.pool_size
        weights = torch.ones(b)
        if self.beta > 0:
            weights[:m], weights[m:] = b / pool, b * (pool - m) / (pool * (b - m))
        return 1 + self.beta * (weights - 1)

    def _pools(self) -> Tensor:
        """Return the candidates of the next updates, (k, B)."""
        return self.workspace.candidates(self.look_every * self.pool_size).view(self.look_every, self.pool_size)

    def _look(self, indices: Tensor) -> Tensor:
        """Return how certain the proxy is of examples, in the shape of `indices`, and let it learn from them."""
        flat = indices.flatten()
        targets = self.workspace.targets.index_select(0, flat)
        probabilities = self.proxy.look(self._small_images(flat).float(), targets)
        highest, predicted = probabilities.max(0)  # argmax alone takes ten times as long
        self._error.push((predicted != targets).count_nonzero() / len(flat))
        certainty = highest if self.score == "uncertainty" else probabilities.gather(0, targets[None])
        return certainty.view_as(indices)

    def _choose(self, certainty: Tensor) -> Tensor:
        """Return positions (k, b) in k pools (k, B): of the least certain, then of a uniform draw of the others."""
        top = certainty.topk(self.num_top, dim=1, largest=False, sorted=False).indices
        keys = torch.rand(certainty.shape, device=certainty.device, generator=self.workspace.generator)
        rest = keys.scatter_(1, top, -1.0).topk(self.workspace.batch_size - self.num_top, dim=1, sorted=False).indices
        return torch.cat([top, rest], dim=1)

    def _small_images(self, indices: Tensor) -> Tensor:
        """Return the small images of examples (n,). Those of all are made when the first batch is to be selected."""
        workspace = self.workspace
        if self._small is None and self.acts:
            everything = torch.arange(workspace.num_examples, device=workspace.device)
            self._small = torch.cat([self._shrunk(some) for some in everything.split(256)])
        return self._shrunk(indices) if self._small is None else self._small.index_select(0, indices)

    def _shrunk(self, indices: Tensor) -> Tensor:
        return shrink(self.workspace.plain(indices).inputs).half()
