"""A sum tree: draws proportional to N changing weights, and updates of some of them, without work over all N.

The leaves hold the weights; a node of each level above holds the sum of a row of 16 nodes below it, up to a single
node, the total. A draw searches one row per level, and an update adds one up: log16(N) rows of two cache lines, where a
binary tree visits log2(N) nodes. A batch takes each level together, so that its cache misses overlap.

On a CPU an operation is one compiled loop, elsewhere a few tensor operations per level. Both add in the same order and
agree bit for bit. Sums are float64 and always recomputed from the nodes below: errors do not build up over updates.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from isbench.samplers.base import last_of_repeats
from isbench.samplers.compiled import compiled, inlined

FAN_OUT = 16


class SumTree(nn.Module):
    """Non-negative weights of `num_items` items, held in a buffer; all zero at first.

    There may be several sets of weights for the same items: as many trees, side by side.

    An item of zero weight is never drawn while the total is positive and finite; otherwise the items drawn are
    arbitrary, but valid.

    Memory: 8.5 bytes per weight. Cost: O(log N) per item drawn or updated. GPU-CPU syncs: none.
    """

    nodes: Tensor  # (sets, size): the leaves, then each level above in rows of 16 filled up with zeros, then the total
    zero: Tensor

    def __init__(self, num_items: int, num_sets: int = 1):
        super().__init__()
        self.num_items = num_items
        rows = [-(-num_items // FAN_OUT)]
        while rows[-1] > 1:
            rows.append(-(-rows[-1] // FAN_OUT))
        sizes = [FAN_OUT * count for count in rows]
        self._starts = np.cumsum([0, *sizes])  # where each level starts; the last is the total
        self.register_buffer("nodes", torch.zeros(num_sets, sum(sizes) + 1, dtype=torch.float64))
        self.register_buffer("zero", torch.zeros((), dtype=torch.float64), persistent=False)

    @property
    def weights(self) -> Tensor:
        """The weights (num_sets, num_items)."""
        return self.nodes[:, : self.num_items]

    def totals(self) -> Tensor:
        """Return the sum of each set, (num_sets,): a view."""
        return self.nodes[:, -1]

    def update(self, items: Tensor, weights: Tensor) -> None:
        """Set the weights (num_sets, k), or (k,) of one set, of `items` (k,); of a repeated item the last counts."""
        all_nodes = self.nodes
        weights = weights.double().view(-1, len(items))
        if is_compiled(all_nodes):
            _update(all_nodes.numpy(), self._starts, items.numpy(), weights.numpy())
            return
        for nodes, values in zip(all_nodes, weights, strict=True):
            nodes.index_copy_(0, items, last_of_repeats(items, values))
            above = items
            for below, start in zip(self._levels(nodes), self._starts[1:].tolist(), strict=True):
                above = above // FAN_OUT
                nodes.index_copy_(0, above + start, running_sums(below.index_select(0, above))[:, -1])

    def fill(self, weights: Tensor) -> None:
        """Set all weights, (num_sets, num_items) or (num_items,)."""
        self.weights[:] = weights
        if is_compiled(self.nodes):
            _add_up(self.nodes.numpy(), self._starts)
            return
        for nodes in self.nodes:
            for below, start in zip(self._levels(nodes), self._starts[1:].tolist(), strict=True):
                nodes[start : start + len(below)] = running_sums(below)[:, -1]

    def draw(self, k: int, generator: torch.Generator, stratified: bool = False) -> Tensor:
        """Return k items (k,) drawn with replacement, proportionally to the weights of the only set.

        If stratified, one is drawn from each of k equal parts of the total, in this order.
        """
        masses = torch.rand(k, dtype=torch.float64, device=self.nodes.device, generator=generator)
        if stratified:
            masses.add_(torch.arange(k, dtype=torch.float64, device=masses.device)).div_(k)
        return self.draw_at(masses.mul_(self.totals()))

    def draw_at(self, masses: Tensor, scales: Sequence[float] = (1.0,)) -> Tensor:
        """Return the items (k,) at which the running sum of the weights first exceeds `masses` (k,).

        The sets come one after the other, each multiplied by its scale. A mass of the total or more, or one that
        rounding has carried to the end of its row, takes the last item that adds to the running sum.
        """
        all_nodes = self.nodes
        if is_compiled(all_nodes):
            items = torch.empty(len(masses), dtype=torch.int64)
            _find(all_nodes.numpy(), self._starts, np.array(scales), masses.numpy(), items.numpy())
            return items
        items = torch.zeros(len(masses), dtype=torch.int64, device=masses.device)
        before = self.zero
        for nodes, scale in zip(all_nodes, scales, strict=True):
            rest = masses - before
            is_here = (rest >= 0) & (nodes[-1] > 0)
            items = torch.where(is_here, self._descend(nodes, rest / scale), items)
            before = before + nodes[-1] * scale
        return items

    def _descend(self, nodes: Tensor, masses: Tensor) -> Tensor:
        """Return the items of one set."""
        items = torch.zeros(len(masses), dtype=torch.int64, device=masses.device)
        masses = masses[:, None]
        for level in reversed(self._levels(nodes)):
            rows = level.index_select(0, items.clamp_(max=len(level) - 1))
            sums = running_sums(rows)
            inside = torch.minimum(masses, torch.nextafter(sums[:, -1:], self.zero))
            children = torch.searchsorted(sums, inside, right=True).clamp_(max=FAN_OUT - 1)
            masses = (masses - (sums - rows).gather(1, children)).clamp_(min=0)
            items = torch.add(children[:, 0], items, alpha=FAN_OUT)
        return items.clamp_(max=self.num_items - 1)

    def _levels(self, nodes: Tensor) -> list[Tensor]:
        """Return the nodes of each level of a set below its total, (rows, 16), leaves first."""
        return [level.view(-1, FAN_OUT) for level in nodes[:-1].split(np.diff(self._starts).tolist())]


def is_compiled(nodes: Tensor) -> bool:
    return nodes.device.type == "cpu"


def running_sums(rows: Tensor) -> Tensor:
    """Return the running sums of non-negative numbers (n, 16) along each row.

    They never fall, and stay exactly equal over zeros. Four elementwise additions keep this promise, which a parallel
    scan need not; and reproducible mode refuses float scans on CUDA.
    """
    sums = rows.clone()
    for half in (1, 2, 4, 8):
        pairs = sums.view(len(rows), -1, 2, half)
        pairs[:, :, 1] += pairs[:, :, 0, -1:]
    return sums


@inlined
def _running_sums(nodes: np.ndarray, start: int, sums: np.ndarray) -> None:
    """Write the running sums of the row that begins at `start`, as above."""
    for i in range(0, FAN_OUT, 2):
        sums[i] = nodes[start + i]
        sums[i + 1] = nodes[start + i] + nodes[start + i + 1]
    for half in (2, 4, 8):
        for middle in range(half, FAN_OUT, 2 * half):
            for i in range(middle, middle + half):
                sums[i] += sums[middle - 1]


@compiled("void(float64[:, ::1], int64[::1], int64[::1], float64[:, ::1])")
def _update(all_nodes: np.ndarray, starts: np.ndarray, items: np.ndarray, weights: np.ndarray) -> None:
    sums = np.empty(FAN_OUT)
    for s in range(len(all_nodes)):
        nodes, places = all_nodes[s], items.copy()
        for j in range(len(items)):
            nodes[items[j]] = weights[s, j]
        for level in range(1, len(starts)):
            for j in range(len(places)):
                places[j] //= FAN_OUT
                _running_sums(nodes, starts[level - 1] + places[j] * FAN_OUT, sums)
                nodes[starts[level] + places[j]] = sums[-1]


@compiled("void(float64[:, ::1], int64[::1])")
def _add_up(all_nodes: np.ndarray, starts: np.ndarray) -> None:
    sums = np.empty(FAN_OUT)
    for s in range(len(all_nodes)):
        nodes = all_nodes[s]
        for level in range(1, len(starts)):
            for row in range((starts[level] - starts[level - 1]) // FAN_OUT):
                _running_sums(nodes, starts[level - 1] + row * FAN_OUT, sums)
                nodes[starts[level] + row] = sums[-1]


@compiled("void(float64[:, ::1], int64[::1], float64[::1], float64[::1], int64[::1])")
def _find(all_nodes: np.ndarray, starts: np.ndarray, scales: np.ndarray, masses: np.ndarray, items: np.ndarray) -> None:
    rest, sets, sums = np.zeros(len(masses)), np.zeros(len(masses), np.int64), np.empty(FAN_OUT)
    items[:] = 0
    for j in range(len(masses)):
        before = 0.0
        for s in range(len(scales)):
            if masses[j] >= before and all_nodes[s, -1] > 0:
                sets[j], rest[j] = s, (masses[j] - before) / scales[s]
            before += all_nodes[s, -1] * scales[s]
    for level in range(len(starts) - 2, -1, -1):
        for j in range(len(items)):
            nodes, row = all_nodes[sets[j]], starts[level] + items[j] * FAN_OUT
            _running_sums(nodes, row, sums)
            child = 0
            for i in range(FAN_OUT):
                child += sums[i] <= rest[j]
            if child == FAN_OUT:
                child = 0
                for i in range(1, FAN_OUT):
                    if sums[i] > sums[i - 1]:
                        child = i
            rest[j] = max(rest[j] - (sums[child] - nodes[row + child]), 0.0)
            items[j] = items[j] * FAN_OUT + child
