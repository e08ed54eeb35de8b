"""Ranks: the processes that train one run together, one for each device. Mostly there is one.

Every rank draws the whole global batch from the same streams, and learns from the signals of all ranks. A sampler's
state is therefore the same on every rank, and the same as on one device: samplers know nothing of ranks. The ranks
divide the costly work: each fetches its own part of every batch and pool, and passes it through the network. Torch's
DistributedDataParallel averages the gradients.
"""

import inspect
import logging
import os
from collections.abc import Callable, Hashable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Timer
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isbench.errors import ConfigError, UserError
from isbench.models.norm import add_up
from isbench.place import place, slurm_tasks, whole
from isbench.training.device_load import device_name
from isbench.types import Batch, Forward

log = logging.getLogger("isbench")
Anything = TypeVar("Anything")
SECONDS_BEFORE_A_WORD = 10.0  # that processes wait for each other at the start
# How torch calls it that each pass begins with the first rank's buffers: torch 2.13 has a new name.
_OPTIONS = inspect.signature(DistributedDataParallel).parameters
BUFFERS_OPTION = "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"


@dataclass(frozen=True)
class SharedBatch:
    """A batch without inputs: each rank fetches its part of them. It may stand wherever a `Batch` may."""

    indices: Tensor  # (n,) int64
    targets: Tensor  # (n,) int64
    views: Tensor  # (n, V) float32
    fetch: Callable[[Tensor, Tensor | None], Batch]  # takes indices and views

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def inputs(self) -> Tensor:
        """The inputs of all examples (n, ...), on every rank. Only methods that read inputs should use it."""
        return self.fetch(self.indices, self.views).inputs

    def take(self, positions: Tensor) -> "SharedBatch":
        """Return the examples at `positions` (k,), repeats allowed."""
        return SharedBatch(self.indices[positions], self.targets[positions], self.views[positions], self.fetch)

    def join(self, other: "SharedBatch") -> "SharedBatch":
        """Return these examples, followed by the other batch."""
        pairs = (self.indices, other.indices), (self.targets, other.targets), (self.views, other.views)
        indices, targets, views = (torch.cat(pair) for pair in pairs)
        return SharedBatch(indices, targets, views, self.fetch)


@contextmanager
def loss_named() -> Iterator[None]:
    """Raise UserError, with one line, where another rank is gone: each library has a page of words for it."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise
        raise UserError(
            "another process of this run has ended, or is out of reach; the same command continues"
        ) from error


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks. Methods must be called on all ranks, in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the record, the checkpoints and the console."""
        return self.rank == 0

    def part(self, examples: Any) -> Any:
        """Return this rank's part of a tensor (n, ...), batch or range of examples; a shared batch is fetched.

        Parts have equal lengths, except that the last ones may be shorter or empty.
        """
        if self.size == 1:
            return examples
        length = -(-len(examples) // self.size)
        mine = slice(self.rank * length, (self.rank + 1) * length)
        if isinstance(examples, SharedBatch):
            return examples.fetch(examples.indices[mine], examples.views[mine])
        if isinstance(examples, Batch):
            return Batch(*(tensor[mine] for tensor in vars(examples).values()))
        return examples[mine]

    def gather(self, parts: dict[str, Tensor], n: int) -> dict[str, Tensor]:
        """Join the ranks' parts of each named tensor; return them whole, (n, ...) float32. One exchange for all."""
        if self.size == 1 or not parts:
            return parts
        columns = {
            name: part.float().flatten(1) if part.ndim > 1 else part.float()[:, None] for name, part in parts.items()
        }
        mine = torch.cat(list(columns.values()), dim=1)
        length = -(-n // self.size)
        padded = mine.new_zeros(length, mine.shape[1])
        padded[: len(mine)] = mine
        whole = mine.new_empty(length * self.size, mine.shape[1])
        dist.all_gather_into_tensor(whole, padded)
        pieces = whole[:n].split([column.shape[1] for column in columns.values()], dim=1)
        return {
            name: piece.reshape(n, *part.shape[1:]) for (name, part), piece in zip(parts.items(), pieces, strict=True)
        }

    def add_up(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks."""
        return add_up(tensor, self.size > 1)

    def largest(self, value: float) -> float:
        """Return the largest of the ranks' numbers. They wait for each other."""
        if self.size == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return float(number)

    def first(self, value: Anything) -> Anything:
        """Return the first rank's value."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    @loss_named()
    def list_all(self, value: Anything) -> list[Anything]:
        """Return the values of all ranks."""
        values = [value]
        if self.size > 1:
            values = [value] * self.size
            dist.all_gather_object(values, value)
        return values

    def agree(self, value: Hashable) -> bool:
        """Say whether all ranks have the same value."""
        return len(set(self.list_all(value))) == 1

    def attempt(self, function: Callable[[], Anything]) -> Anything:
        """Call a function. If it raises on one rank, raise on all, so that no rank waits for another in vain."""
        if self.size == 1:
            return function()
        try:
            result, error = function(), None
        except Exception as mistake:
            error = mistake
        errors = [mistake for mistake in self.list_all(error) if mistake is not None]
        if errors:
            errors[0].is_shared = True  # type: ignore[attr-defined] # so that one rank prints it
            raise errors[0]
        return result

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        if self.size > 1:
            dist.barrier()

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers of the first."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def averaged(self, model: nn.Module, run: Callable[[Tensor], Forward], share_buffers: bool) -> Callable:
        """Wrap `run`, which passes inputs through `model`, so that backward passes average the ranks' gradients.

        Args:
            share_buffers: also copy the first rank's buffers before each pass.
        """
        if self.size == 1:
            return run
        option: Any = {BUFFERS_OPTION: share_buffers}
        return DistributedDataParallel(_Pass(model, run), gradient_as_bucket_view=True, **option)


ALONE = Ranks()


class _Pass(nn.Module):
    """A pass through a network, as the module that DistributedDataParallel needs."""

    def __init__(self, model: nn.Module, run: Callable[[Tensor], Forward]):
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, inputs: Tensor) -> Forward:
        return self.run(inputs)


class LateMaximum:
    """The largest of the ranks' numbers, read one push late so that no rank waits for a slower one."""

    def __init__(self, first: float):
        self._latest = torch.tensor(first, dtype=torch.float64)
        self._work: dist.Work | None = None

    def push(self, value: float) -> float:
        """Send a number; return the largest of the numbers sent before, at first the constructor's."""
        largest = self.wait()
        self._latest = torch.tensor(value, dtype=torch.float64)
        self._work = dist.all_reduce(self._latest, dist.ReduceOp.MAX, async_op=True)
        return largest

    def wait(self) -> float:
        """Return the largest of the numbers sent last."""
        if self._work is not None:
            self._work.wait()
        return float(self._latest)


def join(device: torch.device) -> Ranks:
    """Return this process's rank among those that torchrun, or srun with several tasks, started to train on `device`.

    Raises:
        ConfigError: the processes cannot find each other, or some would share a GPU.
    """
    if not dist.is_initialized():
        if place().size == 1:
            return ALONE
        if slurm_tasks() > 1:
            read_slurm(os.environ)
        connect(device)
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    if device.type == "cuda":
        ranks.attempt(partial(check_gpus, ranks.list_all(device_name(device))))
    return ranks


def connect(device: torch.device) -> None:
    """Let torch connect the processes. Those that train on the CPU need no GPU, also where there is one.

    Raises:
        ConfigError: they do not find each other.
    """
    if device.type == "cuda":
        local_rank = whole(os.environ, "LOCAL_RANK", place().rank, 0)
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    others = f"waiting for the other {place().size - 1} of WORLD_SIZE={place().size} processes"
    patience = Timer(SECONDS_BEFORE_A_WORD, log.warning, [others])
    patience.daemon = True
    patience.start()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).partition("\n")[0].split())
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: the processes do not find each other: {reason}; between machines, "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network"
        ) from None
    finally:
        patience.cancel()


def check_gpus(names: Sequence[str]) -> None:
    """Check that each process has a GPU of its own, by the identity of each one's GPU: NCCL fails where two share one.

    Raises:
        ConfigError: some share one.
    """
    if (gpus := len(set(names))) < len(names):
        raise ConfigError(
            f"device=cuda: {len(names)} processes share {gpus} GPU{'s' * (gpus > 1)}, and each needs its own; "
            "start fewer (torchrun --nproc_per_node), or use device=cpu"
        )


def read_slurm(variables: MutableMapping[str, str]) -> None:
    """Set torch's variables from SLURM's. Variables that are set already stay: torchrun inside a task wins."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    job = SlurmJobEnvironment()
    step = whole(variables, "SLURM_JOB_ID", None, 0) * 10 + whole(variables, "SLURM_STEP_ID", None, 0)
    try:
        found = {
            "MASTER_ADDR": job.hostnames[0],
            "MASTER_PORT": 20_000 + step % 10_000,  # below the ports that systems give out by themselves
            "RANK": job.global_rank,
            "WORLD_SIZE": variables["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": job.local_rank,
        }
    except (LookupError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"SLURM_STEP_NUM_TASKS: srun's other variables do not say where the tasks are: {error}"
        ) from None
    for name, value in found.items():
        if not variables.get(name):
            variables[name] = str(value)
