"""Makes the table that RHO-LOSS needs: for each training example, the loss of a model that has not trained on it.

Mindermann et al. (2022), the variant without holdout data: split the training set at random in two halves, train a
model uniformly on each, and keep its losses on the other half from the evaluation at which their mean is lowest (the
paper's choice of checkpoint). The settings come from a recorded run:

    python -m isbench sampler=uniform dataset=mnist5k model=lenet      # prints the path of its record
    python -m isbench.studies.irreducible_loss RECORD table.pt
    python -m isbench sampler=rho_loss sampler.table=table.pt dataset=mnist5k model=lenet
"""

import io
import sys
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor

from isbench.build import build, load_source, resolve_device
from isbench.config import RunConfig, default_data_dir
from isbench.errors import Diverged, Incompatible, UserError
from isbench.files import RECORD, write_whole
from isbench.loop import train
from isbench.recording.record import read_rows
from isbench.samplers.base import EpochSampler
from isbench.samplers.rho_loss import CHECKSUM, LOSSES
from isbench.terminal import outlive_terminal
from isbench.training.budget import Boundaries
from isbench.training.clock import Clock
from isbench.training.process import apply_numerics
from isbench.training.streams import derive_seed

UNIFORM = {"name": "uniform", "_target_": "isbench.samplers.uniform.Uniform"}


class Subset(EpochSampler):
    """Shuffled passes over `members`, indices (m,) of the training set."""

    def __init__(self, members: Tensor):
        super().__init__()
        self.members = members

    def plan(self) -> tuple[Tensor, Tensor]:
        workspace = self.workspace
        order = torch.randperm(len(self.members), device=workspace.device, generator=workspace.generator)
        return self.members[order], torch.ones(len(order), device=workspace.device)


def held_out_losses(config: RunConfig, members: Tensor, clock: Clock | None = None) -> Tensor:
    """Train on `members` (m,) alone; return the losses (N,) from when their mean over all others was lowest.

    Raises:
        Diverged: training met a value that is not finite.
    """
    device = resolve_device(config.device)
    parts = build(replace(config, sampler=UNIFORM), device, clock)
    sampler = Subset(members.to(device))
    sampler.bind(parts.workspace)
    others = torch.ones(parts.dataset.num_examples, dtype=torch.bool, device=device)
    others[sampler.members] = False
    boundaries = Boundaries(parts.budget, config.evaluation.points, parts.progress)
    best: list[Tensor] = []

    def at_boundary(rate: float, gain: float) -> None:
        boundaries.take_evaluation(parts.progress)
        parts.step.report(parts.progress.updates)
        losses = parts.workspace.score_dataset("loss")
        if not best or losses[others].mean() < best[0][others].mean():
            best[:] = [losses]

    train(sampler, parts.step, parts.rate, parts.budget, boundaries, parts.progress, parts.clock, at_boundary)
    return best[0].cpu()


def irreducible_loss(config: RunConfig) -> Tensor:
    """Return the irreducible loss of every training example, (N,) on the CPU."""
    if config.slots is not None:
        raise Incompatible(f"slots={config.slots}: the views of one image would fall into both halves; use slots=null")
    if config.rates_of is not None:
        raise Incompatible("rates_of: half a training set has no run whose rates it could take; use rates_of=null")
    num_examples = len(load_source(config.dataset, config.data_dir).train_targets)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "halves"))
    first, second = torch.randperm(num_examples, generator=generator).tensor_split(2)
    table = torch.empty(num_examples)
    for members, others in ((first, second), (second, first)):
        table[others] = held_out_losses(config, members)[others]
    return table


def check_new(path: Path) -> None:
    """Check that a file can be written, before anything is computed for it.

    Raises:
        SystemExit: it cannot, or something is there already.
    """
    try:
        if path.exists() or path.is_symlink():
            kind = "is a folder" if path.is_dir() else "is there already"
            sys.exit(f"isbench: {path}: {kind}; name a new file")
        write_whole(path)
        path.unlink()
    except OSError as error:
        sys.exit(f"isbench: {path}: cannot be written: {error.strerror}")


def main(arguments: list[str]) -> None:
    """Write the table for a recorded run."""
    if len(arguments) != 2:
        sys.exit("usage: python -m isbench.studies.irreducible_loss RECORD TABLE (a record.jsonl; a new file)")
    outlive_terminal()
    record, path = map(Path, arguments)
    if record.is_dir():
        record /= RECORD
    starts = [row for row in read_rows(record) if row["kind"] == "start"]
    if not starts:
        sys.exit(f"isbench: {record}: no run is recorded there; name the record.jsonl of a run")
    check_new(path)
    config = TypeAdapter(RunConfig).validate_python(starts[-1]["config"] | {"data_dir": default_data_dir()})
    numerics = config.numerics
    apply_numerics(numerics.deterministic, numerics.precision, numerics.threads)
    try:
        table = irreducible_loss(config)
        content = io.BytesIO()
        torch.save({LOSSES: table, CHECKSUM: load_source(config.dataset, config.data_dir).checksum()}, content)
        write_whole(path, content.getvalue())
    except (UserError, Diverged, OSError) as error:
        sys.exit(f"isbench: {error}")
    print(f"{path}: {len(table)} irreducible losses, mean {table.mean():.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
