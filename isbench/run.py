"""One run, from a configuration to a finished record: resume, train, look, record, stop cleanly."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import Any

import torch

from isbench import locks
from isbench.build import Parts, build, instantiate, num_parameters, resolve_device
from isbench.config import RunConfig, recorded, run_folder, run_id, scratch_dir, tags
from isbench.errors import ConfigError, Diverged, Interrupted, UserError, memory_named
from isbench.loop import train
from isbench.probes.base import Probe
from isbench.recording.console import Console
from isbench.recording.environment import environment
from isbench.recording.record import ENDED, Outcome, Record, Row, Unrecorded, effective_rows, last_status, read_rows
from isbench.recording.wandb_sink import make_sink
from isbench.training import checkpoint
from isbench.training.budget import Boundaries
from isbench.training.device_load import counted, device_name
from isbench.training.evaluate import evaluate
from isbench.training.optimizers import penalty
from isbench.training.process import apply_numerics, quiet_garbage_collector, stop_signals
from isbench.training.ranks import Ranks, join

log = getLogger("isbench")
TRAIN_SUBSET_SEED = 0  # the same training examples are looked at in every run


def run(config: RunConfig) -> Outcome:
    """Train one configuration, or continue it where it was left; a finished run returns at once.

    Processes that were started together (`isbench.training.ranks.join`) train it together.

    Raises:
        UserError: something the user can put right, before the first step wherever that is possible.
        Interrupted: a signal asked for an end; the checkpoint is written.
    """
    device = resolve_device(config.device)
    ranks = join(device)
    config = replace(config, device=device.type)
    folder = run_folder(config)

    def ended() -> Outcome | None:
        status = ranks.first(ranks.attempt(lambda: last_status(read_rows(folder / "record.jsonl"))))
        if status is None or status[0] not in ENDED:
            return None
        log.info("%s: already %s", folder, status[0])
        return Outcome(folder, *status)

    if (outcome := ended()) is not None:
        return outcome
    numerics = config.numerics
    apply_numerics(numerics.deterministic, numerics.precision, numerics.threads)
    with memory_named(device.type):
        probe: Probe = ranks.attempt(lambda: instantiate("probe", config.probe))
        parts = ranks.attempt(lambda: build(config, device, ranks=ranks))
        ranks.attempt(lambda: probe.allocate(parts))
        try:
            parts.warm_up()
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"this configuration cannot take a step: {str(error).splitlines()[0]}") from error
    with ExitStack() as stack:

        def enter() -> Callable[[], int]:
            stack.enter_context(locked(folder))
            return stack.enter_context(counted(Path(scratch_dir(), "at-work", device_name(device))))

        count = ranks.attempt(enter if ranks.is_first else lambda: lambda: 1)
        if (outcome := ended()) is not None:  # by another process, while this one got ready
            return outcome
        return Attempt(config, folder, parts, probe, count, ranks).run()


class InUse(UserError):
    """Another process is at work on the run."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for one process. The lock goes with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}") from error
    with lock:
        if not locks.take(lock):
            raise InUse(f"{folder} is in use by another process")
        yield


class Attempt:
    """One process's work on a run: everything that happens around the timed loop."""

    def __init__(
        self, config: RunConfig, folder: Path, parts: Parts, probe: Probe, count: Callable[[], int], ranks: Ranks
    ):
        self.config = config
        self.folder = folder
        self.parts = parts
        self.probe = probe
        self.count = count
        self.ranks = ranks
        self.record = Record(folder / "record.jsonl") if ranks.is_first else Unrecorded()
        self.id = run_id(config)
        self.data_checksum = parts.source.checksum()
        self.saved_at = time.monotonic()
        subset = torch.randperm(parts.dataset.num_examples, generator=torch.Generator().manual_seed(TRAIN_SUBSET_SEED))
        self.train_subset = subset[: config.evaluation.train_examples].to(parts.workspace.device)

    def run(self) -> Outcome:
        """Resume if there is a checkpoint, train to the end of the budget, close the record."""
        parts, progress = self.parts, self.parts.progress
        self.begin()
        status, reason = "interrupted", ""
        try:
            with memory_named(self.config.device), quiet_garbage_collector(), stop_signals(self.boundaries):
                if progress.updates == 0:
                    self.look(parts.rate(0.0), 1.0)
                train(
                    parts.sampler,
                    parts.step,
                    parts.rate,
                    parts.budget,
                    self.boundaries,
                    progress,
                    parts.clock,
                    self.at_boundary,
                )
            status = "finished"
        except Diverged as error:
            status, reason = "diverged", f"{error} (sampler {self.config.sampler['name']})"
        except (Interrupted, KeyboardInterrupt) as error:
            reason = str(error)
            raise
        except BaseException as error:
            status, reason = "failed", f"{type(error).__name__}: {error}"
            raise
        finally:
            try:
                self.record.append("end", status=status, reason=reason, concurrent_runs=self.concurrent_runs())
            finally:
                self.console.close(status, reason)
                self.sink.finish(status, reason)
        if self.config.checkpoint.keep:
            self.save()
        elif self.ranks.is_first:
            checkpoint.remove(self.folder)
        return Outcome(self.folder, status, reason)

    def begin(self) -> None:
        """Resume, and open what is written to: the record with a row on this attempt, the mirror, the console."""
        self.resume()
        progress = self.parts.progress
        rows = effective_rows(read_rows(self.folder / "record.jsonl"))
        earlier = [row for row in rows if row["updates"] <= progress.updates]
        self.concurrent_before = max((row.get("concurrent_runs", 1) for row in earlier), default=1)
        self.boundaries = Boundaries(self.parts.budget, self.config.evaluation.points, progress, self.ranks)
        self.append(
            "start",
            time=now(),
            resumed_at=progress.updates,
            run_id=self.id,
            config=recorded(self.config),
            num_parameters=num_parameters(self.parts.model),
            data={
                "provenance": self.parts.source.provenance,
                "checksum": self.data_checksum,
                "num_examples": self.parts.dataset.num_examples,
            },
            environment=environment(self.config.device) | {"ranks": self.ranks.size},
        )
        logging = self.config.logging
        self.sink = make_sink(
            logging.mode if self.ranks.is_first else "off",
            logging.timeout_seconds,
            {
                "project": logging.project,
                "entity": logging.entity,
                "group": self.config.group,
                "tags": tags(self.config),
                "id": self.id,
                "name": self.folder.name,
                "config": recorded(self.config),
                "dir": str(self.folder),
            },
        )
        self.console = Console(self.folder.name)

    def resume(self) -> None:
        """Put the newest checkpoint in place, if there is one."""
        state = self.ranks.attempt(lambda: checkpoint.load(self.folder))
        try:
            updates = state and state["parts"]["progress"]["updates"]
            if len(set(self.ranks.list_all(updates))) > 1:
                raise UserError(
                    f"{self.folder}: not all processes see the same checkpoint; runs_dir must be a folder of all"
                )
            if state is None:
                return
            if state["data_checksum"] != self.data_checksum:
                raise UserError(
                    f"{self.folder}: the data set has changed since this run began; restore it, or delete the folder"
                )
            self.parts.load_state_dict(state["parts"])
            if len(state["own_streams"]) == self.ranks.size:
                self.parts.streams.load_own_state(state["own_streams"][self.ranks.rank])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.folder}: another version of isbench wrote its checkpoint; delete the folder to start again"
            ) from error
        log.info("%s: continues after update %d", self.folder.name, self.parts.progress.updates)

    def concurrent_runs(self) -> int:
        """Return the largest number of runs that have trained on this device at once, this one included, so far."""
        return max(self.concurrent_before, self.count())

    def append(self, kind: str, **values: Any) -> Row:
        """Add a row to the record, on all ranks or none."""
        return self.ranks.attempt(lambda: self.record.append(kind, **values))

    def check_ranks(self) -> None:
        """Make sure that all ranks hold the same model, as equal draws and gradients keep them."""
        if self.ranks.size > 1:
            progress, parameters = self.parts.progress, list(self.parts.model.parameters())
            total = torch.stack([parameter.detach().double().sum() for parameter in parameters]).sum()
            if len(set(self.ranks.list_all((progress.examples_scored, repr(float(total)))))) > 1:
                raise UserError(
                    f"{self.folder.name}: after update {progress.updates} the processes hold different models; "
                    "numerics=reproducible keeps them alike"
                )

    def save(self) -> None:
        """Write a checkpoint."""
        state = {
            "parts": self.parts.state_dict(),
            "own_streams": self.ranks.list_all(self.parts.streams.own_state()),
            "data_checksum": self.data_checksum,
        }
        self.ranks.attempt(lambda: checkpoint.save(self.folder, state) if self.ranks.is_first else None)
        self.saved_at = time.monotonic()

    def at_boundary(self, learning_rate: float, gain: float) -> None:
        """Look, record, save. The clock is paused."""
        rates = self.parts.step.report(self.parts.progress.updates)
        self.check_ranks()
        self.append("rate", updates=list(rates), learning_rate=list(rates.values()))
        if self.boundaries.take_evaluation(self.parts.progress):
            self.look(learning_rate, gain)
        is_due = time.monotonic() - self.saved_at >= self.config.checkpoint.seconds
        if self.boundaries.is_stopping or self.ranks.first(is_due):
            self.save()
        if self.boundaries.is_stopping:
            raise Interrupted(f"{self.folder.name}: stopped after update {self.parts.progress.updates}")
        gc.collect()

    def look(self, learning_rate: float, gain: float) -> None:
        """Evaluate the model and append the row, then those of the probe."""
        parts, progress, chunk = self.parts, self.parts.progress, self.parts.dataset.chunk_size
        self.ranks.share_buffers(parts.model)
        train_chunks = (parts.dataset.plain(some) for some in self.ranks.part(self.train_subset).split(chunk))
        train_loss, _ = evaluate(parts.model, parts.criterion, train_chunks, self.ranks)
        mine = self.ranks.part(range(parts.dataset.num_test))
        test_chunks = (parts.dataset.test_chunk(i, min(i + chunk, mine.stop)) for i in mine[::chunk])
        test_loss, test_error = evaluate(parts.model, parts.criterion, test_chunks, self.ranks)
        row = self.append(
            "evaluation",
            updates=progress.updates,
            effective_updates=progress.effective_updates,
            epoch=progress.epoch,
            train_seconds=progress.seconds,
            examples_trained=progress.examples_trained,
            examples_scored=progress.examples_scored,
            learning_rate=learning_rate,
            gain=gain,
            train_loss=train_loss,
            objective=train_loss + penalty(parts.optimizer),
            test_loss=test_loss,
            test_error=test_error,
            concurrent_runs=self.concurrent_runs(),
            **{f"sampler/{name}": value for name, value in parts.sampler.diagnostics().items()},
        )
        self.sink.log(row)
        self.console.update(parts.budget.fraction(progress), row)
        if not math.isfinite(train_loss + test_loss):
            raise Diverged(f"the loss of the model after update {progress.updates} was not finite")
        found = self.ranks.attempt(lambda: self.probe.look(parts, self.folder) if self.ranks.is_first else [])
        for values in self.ranks.first(found):
            self.append("probe", updates=progress.updates, epoch=progress.epoch, **values)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
