"""RHO-LOSS: pick a pool's examples that are still learnable: their loss is above that of a model not trained on them.

Mindermann et al. (2022), "Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet Learnt",
Algorithm 1, the variant without holdout data. `python -m isbench.studies.irreducible_loss` makes the table of
irreducible losses, outside the clock as in the paper.
"""

import logging
import pickle

import torch
from torch import Tensor

from isbench.errors import ConfigError
from isbench.samplers.base import Sampler
from isbench.types import Draw

log = logging.getLogger("isbench")
LOSSES, CHECKSUM = "irreducible_loss", "data_checksum"  # what a file of them holds


class RhoLoss(Sampler):
    """Train on the b examples of a pool with the highest reducible loss: loss minus irreducible loss.

    Pools come from shuffled passes and are scored in evaluation mode, on the views that are trained on.

    Args:
        table: file of the irreducible losses (N,), which says of which data set they are, as the study writes it; or
            with a tensor (N,) alone. null is zero: the paper's "train loss" baseline.
        pool_size: n_B; null is 10 b, as in the paper.

    Estimator: biased (towards high reducible loss)
    Memory: 12 bytes per example, the order of the pass included
    Cost: a forward pass over the pool per update
    GPU-CPU syncs: 0 per update
    """

    asks = ("score",)
    made_by = {"table": "python -m isbench.studies.irreducible_loss"}
    irreducible: Tensor  # (N,)

    def __init__(self, table: str | None = None, pool_size: int | None = None):
        super().__init__()
        self.table = table
        self.pool_size = pool_size

    def allocate(self) -> None:
        n, b = self.workspace.num_examples, self.workspace.batch_size
        self._size = 10 * b if self.pool_size is None else self.pool_size
        self.check_pool(self._size)
        table = torch.zeros(n) if self.table is None else read_table(self.table, n, self.workspace.data_checksum())
        self.register_buffer("irreducible", table)

    def draw(self) -> Draw:
        workspace = self.workspace
        b = workspace.batch_size
        pool = workspace.fetch(workspace.candidates(self._size))
        reducible = workspace.score(pool, "loss") - self.irreducible[pool.indices]
        return Draw(pool.take(reducible.topk(b).indices), torch.ones(b, device=workspace.device))

    def diagnostics(self) -> dict[str, float]:
        return {"irreducible_loss": float(self.irreducible.mean())}


def read_table(path: str, num_examples: int, data_checksum: str | None = None) -> Tensor:
    """Return the irreducible losses (N,) saved in a file.

    Args:
        data_checksum: of the data set that they must be of, where both sides know it.

    Raises:
        ConfigError: a file that cannot be read, that is not of N finite numbers, or of another data set.
    """
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(
            f"sampler.table={path}: no such file; make it with python -m isbench.studies.irreducible_loss"
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
        raise ConfigError(f"sampler.table={path}: not a file that torch.load can read") from None
    made_of = None
    if isinstance(table, dict) and table.keys() == {LOSSES, CHECKSUM}:
        table, made_of = table[LOSSES], table[CHECKSUM]
    if not isinstance(table, Tensor) or table.shape != (num_examples,):
        kind = f"a tensor of shape {tuple(table.shape)}" if isinstance(table, Tensor) else f"a {type(table).__name__}"
        raise ConfigError(f"sampler.table={path}: holds {kind}; the training set needs shape ({num_examples},)")
    if table.is_complex() or table.layout != torch.strided:
        raise ConfigError(
            f"sampler.table={path}: holds {table.dtype}, {table.layout}; real numbers one by one are needed"
        )
    if not table.isfinite().all():
        raise ConfigError(f"sampler.table={path}: holds values that are not finite")
    if made_of is None:
        log.warning("sampler.table=%s does not say which data set it is of: that is not checked", path)
    elif data_checksum not in (None, made_of):
        raise ConfigError(
            f"sampler.table={path}: made of another data set (checksum {made_of}, this one's is {data_checksum}); "
            "make it again with python -m isbench.studies.irreducible_loss"
        )
    return table.float()
