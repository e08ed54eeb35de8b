"""A sum tree: draws proportional to N changing weights, and updates of some of them, without work over all N.

The leaves hold the weights; a node of each level above holds the sum of 64 nodes below it; the root is one list of at
most 16,384 nodes with its running sums. A draw looks a mass up in the root and then in one row of 64 per level; an
update recomputes one row per level and the root's running sums. There is one level below the root up to a million
leaves, and there are two up to 67 million: wide levels need few calls, where a binary tree needs a chain of log2(N).

Sums are float64 and always recomputed from the nodes below, so errors do not build up over updates.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FAN_OUT = 64
MAX_ROOT = 2**14


class SumTree(nn.Module):
    """Non-negative weights of `num_items` items, held in buffers; all zero at first.

    There may be several sets of weights for the same items. They lie one after the other, so that one call draws from
    or changes all of them; each begins with a node of the root, so that the totals of the sets are sums of nodes. Leaf
    `set * stride + item` holds a weight.

    An item of zero weight is never drawn while the total is positive and finite; otherwise the indices drawn are
    arbitrary, but valid.

    Memory: 8.3 bytes per weight. Cost: O(log N) per item drawn or updated. Host reads: none.
    """

    leaves: Tensor  # (rows, 64), filled up with zeros
    root: Tensor
    running: Tensor  # sums of the first 0, 1, ... nodes of the root
    zero: Tensor

    def __init__(self, num_items: int, num_sets: int = 1):
        super().__init__()
        self.num_items = num_items
        self.num_sets = num_sets
        depth = 1  # levels below the root
        while num_sets * ceil_div(num_items, FAN_OUT**depth) > MAX_ROOT:
            depth += 1
        self._levels = ["leaves", *(f"level_{i}" for i in range(1, depth))]
        self.stride = ceil_div(num_items, FAN_OUT**depth) * FAN_OUT**depth
        size = num_sets * self.stride
        for name in self._levels:
            size //= FAN_OUT
            self.register_buffer(name, torch.zeros(size, FAN_OUT, dtype=torch.float64))
        self.register_buffer("root", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("running", torch.zeros(size + 1, dtype=torch.float64))
        self.register_buffer("zero", torch.zeros((), dtype=torch.float64), persistent=False)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return the weights at the leaves `indices` (k,), float64."""
        return self.leaves.view(-1).index_select(0, indices)

    def total(self) -> Tensor:
        """Return the sum of all weights, ()."""
        return self.running[-1]

    def totals(self) -> Tensor:
        """Return the sum of each set, (num_sets,)."""
        return self.root.view(self.num_sets, -1).sum(dim=1)

    def update(self, indices: Tensor, weights: Tensor) -> None:
        """Set the weights (k,) at the leaves `indices` (k,); of a repeated index the last counts."""
        leaves = self.leaves.view(-1)
        # The last of the repeats wins on any device: positions compete in the leaves, which are overwritten next.
        positions = torch.arange(len(indices), dtype=torch.float64, device=leaves.device)
        leaves.scatter_reduce_(0, indices, positions, "amax", include_self=False)
        last = leaves.index_select(0, indices).long()
        self.put(indices, weights.double().index_select(0, last))

    def put(self, indices: Tensor, weights: Tensor) -> None:
        """Set the weights (k,), float64, at the leaves `indices` (k,); repeats of an index have equal weights."""
        self.leaves.view(-1).index_copy_(0, indices, weights)
        nodes, level = indices, self.leaves
        for name in [*self._levels[1:], "root"]:
            nodes = nodes // FAN_OUT
            sums = level.index_select(0, nodes).sum(dim=1)
            level = getattr(self, name)
            level.view(-1).index_copy_(0, nodes, sums)
        self._sum_root()

    def fill(self, weights: Tensor) -> None:
        """Set all weights, (num_items,) or (num_sets, num_items)."""
        self.leaves.view(self.num_sets, -1)[:, : self.num_items] = weights
        level = self.leaves
        for name in [*self._levels[1:], "root"]:
            sums = level.sum(dim=1)
            level = getattr(self, name)
            level.view(-1).copy_(sums)
        self._sum_root()

    def draw(self, k: int, generator: torch.Generator, stratified: bool = False) -> Tensor:
        """Return k items (k,) drawn with replacement, proportionally to the weights.

        If stratified, one is drawn from each of k equal parts of the total, in this order.
        """
        masses = torch.rand(k, dtype=torch.float64, device=self.root.device, generator=generator)
        if stratified:
            masses = (masses + torch.arange(k, device=masses.device)) / k
        return self.draw_at(masses * self.total())

    def draw_at(self, masses: Tensor) -> Tensor:
        """Return the items (k,) at which the running sum of the weights, set after set, first exceeds `masses` (k,).

        Masses lie from 0 to the total. One that rounding has carried to the end of its row is put back inside: the
        first running sum to exceed a mass is then that of an item that is not zero.
        """
        masses = torch.minimum(masses, torch.nextafter(self.running[-1], self.zero))
        nodes = torch.searchsorted(self.running, masses, right=True).sub_(1)
        masses = (masses - self.running.index_select(0, nodes))[:, None]
        for name in reversed(self._levels):
            level = getattr(self, name)
            rows = level.index_select(0, nodes.clamp_(max=len(level) - 1))
            sums = running_sums(rows)
            masses = torch.minimum(masses, torch.nextafter(sums[:, -1:], self.zero))
            children = torch.searchsorted(sums, masses, right=True).clamp_(max=FAN_OUT - 1)
            nodes = torch.add(children[:, 0], nodes, alpha=FAN_OUT)
            if name != "leaves":
                masses = (masses - (sums - rows).gather(1, children)).clamp_(min=0)
        return nodes.remainder_(self.stride).clamp_(max=self.num_items - 1)

    def _sum_root(self) -> None:
        self.running[1:] = running_sums(self.root)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def running_sums(rows: Tensor) -> Tensor:
    """Return the running sums of non-negative numbers (..., n) along the last dimension, (..., n).

    They never fall, and stay exactly equal over zeros.
    """
    return rows.cumsum(dim=-1) if rows.device.type == "cpu" else sums_by_doubling(rows)


def sums_by_doubling(rows: Tensor) -> Tensor:
    """Return the running sums of `rows` (..., n) by log2(n) elementwise additions.

    The order of addition is fixed and keeps the promises of `running_sums`; that of a parallel scan need not, and
    reproducible mode refuses float scans on CUDA.
    """
    n = rows.shape[-1]
    width = 2 ** (n - 1).bit_length()
    sums = F.pad(rows, (0, width - n))
    half = 1
    while half < width:
        pairs = sums.view(*rows.shape[:-1], -1, 2, half)
        pairs[..., 1, :] += pairs[..., 0, -1:]
        half *= 2
    return sums[..., :n]
