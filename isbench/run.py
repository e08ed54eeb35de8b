"""One run, from a configuration to a finished record: resume, train, evaluate, record, stop cleanly.

`run` gets everything ready and holds the run's folder; an `Attempt` is what one process then does to the run. The timed
loop itself is `isbench.loop.train`; all that happens here happens while the clock stands still.
"""

import gc
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import Any

import torch

from isbench import locks
from isbench.build import Parts, build, load_source, num_parameters, resolve_device
from isbench.config import CHOSEN, RunConfig, on_device, recorded, run_folder, run_id, scratch_dir, tags
from isbench.errors import ConfigError, Diverged, Interrupted, UserError, memory_named
from isbench.files import LOCK, RECORD, checksum
from isbench.loop import train
from isbench.recording.console import Console
from isbench.recording.environment import environment
from isbench.recording.record import (
    ENDED,
    MOST_CPU_WAIT,
    Outcome,
    Record,
    Row,
    Unrecorded,
    effective_rows,
    last_status,
    learning_rates,
    read_rows,
    recorded_inputs,
)
from isbench.recording.wandb_sink import NullSink, WandbSink, make_sink
from isbench.training import checkpoint
from isbench.training.budget import Boundaries
from isbench.training.device_load import counted, device_name
from isbench.training.evaluate import evaluate
from isbench.training.forecast import forecast, seconds_of_evaluation, seconds_of_training
from isbench.training.optimizers import penalty
from isbench.training.process import apply_numerics, quiet_garbage_collector, stop_signals
from isbench.training.ranks import Ranks, join, loss_named
from isbench.training.schedule import replay
from isbench.training.streams import fixed_subset

log = getLogger("isbench")


def run(config: RunConfig) -> Outcome:
    """Train one configuration, or continue it where it was left; a finished run returns at once.

    Processes that were started together (`isbench.training.ranks.join`) train it together.

    Raises:
        UserError: something the user can put right, before the first step wherever that is possible.
        Interrupted: a signal asked for an end; the checkpoint is written.
    """
    device = resolve_device(config.device)
    ranks = join(device)
    config = on_device(config, device.type, ranks.size == 1)
    folder = run_folder(config)
    if (outcome := ended(folder, ranks)) is not None:
        ranks.attempt(lambda: compare_data(config, folder))
        return outcome
    rates = rates_of(config, ranks)
    apply_numerics(config.numerics.deterministic, config.numerics.precision, config.numerics.threads)
    with memory_named(device.type):
        parts = ranks.attempt(lambda: build(config, device, ranks=ranks))
        if rates is not None:
            parts.learning_rate, parts.schedule = 1.0, replay(rates, parts.progress)
        try:
            seconds_per_update = parts.warm_up()
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"this configuration cannot take a step: {str(error).splitlines()[0]}") from error
    with held(folder, device, ranks) as count_runs:
        # Another process may have ended the run while this one got ready.
        return ended(folder, ranks) or Attempt(config, folder, parts, ranks, count_runs, seconds_per_update).run()


def rates_of(config: RunConfig, ranks: Ranks) -> list[float] | None:
    """Return the learning rates that a run is to take from another, which is trained first where it is missing.

    Raises:
        ConfigError: the other run diverged, or the budget does not end at the same update.
    """
    if config.rates_of is None:
        return None
    name = config.rates_of["name"]
    if config.budget.unit == "seconds" or config.budget.effective:
        raise ConfigError(f"rates_of={name}: needs a budget of updates, epochs or examples, which all runs spend alike")
    outcome = run(replace(config, sampler=config.rates_of, rates_of=None, arm=name))
    if outcome.status != "finished":
        raise ConfigError(f"rates_of={name}: {outcome.folder} {outcome.status}, so that its rates end early")
    return ranks.first(ranks.attempt(lambda: learning_rates(read_rows(outcome.folder / RECORD))))


def ended(folder: Path, ranks: Ranks) -> Outcome | None:
    """Return how the run of a folder ended, or None if it can still be trained."""
    status = ranks.first(ranks.attempt(lambda: last_status(read_rows(folder / RECORD))))
    if status is None or status[0] not in ENDED:
        return None
    log.info("%s: already %s", folder, status[0])
    return Outcome(folder, *status)


def compare_data(config: RunConfig, folder: Path) -> None:
    """Check that the data of a run that ended are still those that it was trained on, where they are here.

    Raises:
        UserError: they have changed.
    """
    at_hand = {"download": False} if "download" in config.dataset else {}
    try:
        source = load_source(config.dataset | at_hand, config.data_dir)
    except (UserError, OSError) as error:
        log.info("%s: its data cannot be compared with what is here: %s", folder, error)
    else:
        check_unchanged(folder, inputs_of(config, source.checksum()))


def inputs_of(config: RunConfig, data_checksum: str) -> dict[str, str]:
    """Return the checksums of what a run reads: of its data set, and of each file that a choice names."""
    files = {
        f"{group}.{key}": Path(value)
        for group in CHOSEN
        for key, value in getattr(config, group).items()
        if isinstance(value, str) and {".", "/"} & set(value) and key != "_target_"
    }
    return {"dataset": data_checksum} | {key: checksum(path) for key, path in files.items() if path.is_file()}


def check_unchanged(folder: Path, now: dict[str, str], **before: Any) -> None:
    """Raise UserError where what a run reads is not what it has read, as its record, or `before`, has it."""
    before = recorded_inputs(read_rows(folder / RECORD)) | before
    for key in before.keys() & now.keys():
        if before[key] != now[key]:
            what = "the data set" if key == "dataset" else key
            raise UserError(
                f"{folder}: {what} has changed since this run began; restore it, delete the folder, or add group=NAME "
                "for a run of its own"
            )


class InUse(UserError):
    """Another process is at work on the run."""


@contextmanager
def held(folder: Path, device: torch.device, ranks: Ranks) -> Iterator[Callable[[], int]]:
    """Lock the folder for these ranks and join the runs on the device; yield what counts them (see `counted`)."""
    with ExitStack() as stack:

        def enter() -> Callable[[], int]:
            stack.enter_context(locked(folder))
            return stack.enter_context(counted(Path(scratch_dir(), "at-work", device_name(device))))

        yield ranks.attempt(enter if ranks.is_first else lambda: lambda: 1)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for one process. The system releases the lock when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "a+", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}") from error
    with lock:
        if not locks.take(lock):
            lock.seek(0)
            raise InUse(f"{folder} is in use by another process (pid {lock.read(20) or 'unknown'})")
        with suppress(OSError):  # on a full disk it stays empty
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), str(os.getpid()).encode())
        yield


def open_sink(config: RunConfig, folder: Path, facts: Mapping[str, Any], next_step: int = 0) -> WandbSink | NullSink:
    """Open the W&B mirror of a run.

    Args:
        facts: what W&B shows beside the configuration.
        next_step: the first update that no row of earlier attempts is about.

    Raises:
        ConfigError: W&B refuses a name, or one of its environment variables.
    """
    arm, identity = config.arm or config.sampler["name"], run_id(config)
    group = "" if config.group is None else f"-{hashlib.sha256(config.group.encode()).hexdigest()[:4]}"
    settings = {
        "project": config.logging.project,
        "entity": config.logging.entity,
        "run_group": config.group,
        "run_job_type": arm,
        "run_tags": tags(config),
        "run_id": identity + group,  # groups may share runs, and W&B has an id once in a project
        "run_name": f"{arm}-s{config.seed}-{identity}",
        "root_dir": str(Path(config.runs_dir, config.group or "")),
    }
    shown = {"run_id": identity, **recorded(config), **facts}
    seconds = config.logging.timeout_seconds
    return make_sink(config.logging.mode, seconds, folder / RECORD, shown, settings, next_step)


@dataclass
class Attempt:
    """One process's work on a run: everything that happens around the timed loop."""

    config: RunConfig
    folder: Path
    parts: Parts
    ranks: Ranks
    count_runs: Callable[[], int]
    seconds_per_update: float  # about

    def __post_init__(self) -> None:
        dataset = self.parts.dataset
        self.progress = self.parts.progress
        self.record = Record(self.folder / RECORD) if self.ranks.is_first else Unrecorded()
        self.inputs = inputs_of(self.config, self.parts.source.checksum())
        self.saved_at = time.monotonic()
        self.train_subset = fixed_subset(dataset.num_examples, self.config.evaluation.train_examples).to(dataset.device)

    def run(self) -> Outcome:
        """Resume if there is a checkpoint, train to the end of the budget, close the record."""
        self.resume()
        self.begin()
        status, reason = "interrupted", ""
        try:
            for line in self.first_lines():
                log.info("%s", line)
            self.train()
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

    def resume(self) -> None:
        """Put the newest checkpoint in place, if there is one."""
        state = self.ranks.attempt(lambda: checkpoint.load(self.folder))
        try:
            updates = None if state is None else state["parts"]["progress"]["updates"]
            if not self.ranks.agree(updates):
                raise UserError(
                    f"{self.folder}: not all processes see the same checkpoint; runs_dir must be a folder of all"
                )
            if state is None:
                return
            check_unchanged(self.folder, self.inputs, dataset=state["data_checksum"])
            self.parts.load_state_dict(state["parts"])
            if len(state["own_streams"]) == self.ranks.size:
                self.parts.streams.load_own_state(state["own_streams"][self.ranks.rank])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.folder}: another version of isbench wrote its checkpoint; delete the folder to start again"
            ) from error
        log.info("%s: continues after update %d", self.folder.name, self.progress.updates)

    def begin(self) -> None:
        """Write this attempt's first row, and open the W&B mirror and the console."""
        config, parts = self.config, self.parts
        rows = read_rows(self.folder / RECORD)
        earlier = [row for row in effective_rows(rows) if row["updates"] <= self.progress.updates]
        next_step = 1 + max((row["updates"] for row in rows if row["kind"] == "evaluation"), default=-1)
        self.concurrent_before = max((row.get("concurrent_runs", 1) for row in earlier), default=1)
        self.waited_before = sum(row.get("cpu_wait", math.nan) * row["train_seconds"] for row in earlier[-1:])
        self.is_warned = False
        self.boundaries = Boundaries(parts.budget, config.evaluation.points, self.progress, self.ranks)
        facts: dict[str, Any] = {
            "num_parameters": num_parameters(parts.model),
            "data": {
                "provenance": parts.source.provenance,
                "checksum": self.inputs["dataset"],
                "num_examples": parts.dataset.num_examples,
                "classes": parts.source.class_counts(),
                "remarks": parts.source.remarks,
            },
            "files": {key: digits for key, digits in self.inputs.items() if key != "dataset"},
            "environment": environment(config.device) | {"ranks": self.ranks.size},
        }
        # Before the first row, so that what W&B refuses leaves none.
        self.sink = self.ranks.attempt(
            lambda: open_sink(config, self.folder, facts, next_step) if self.ranks.is_first else NullSink()
        )
        self.append(
            "start",
            time=now(),
            resumed_at=self.progress.updates,
            run_id=run_id(config),
            config=recorded(config),
            **facts,
        )
        for row in earlier:
            self.sink.log(row)
        self.console = Console(self.folder.name)

    def first_lines(self) -> Iterator[str]:
        """Yield what one should know before training: the data, and how long it takes if that is long."""
        source, progress = self.parts.source, self.progress
        yield from (f"data: {line}" for line in (source.description(), *source.remarks))
        if self.config.device == "cpu" and self.ranks.is_first:
            count = (len(self.train_subset) + self.parts.dataset.num_test) / self.ranks.size
            evaluation = seconds_of_evaluation(self.parts.model, self.parts.criterion, self.parts.dataset, count)
            training = seconds_of_training(self.parts.budget, progress, self.config.batch_size, self.seconds_per_update)
            points = self.config.evaluation.points - self.boundaries.passed + (progress.updates == 0)
            if line := forecast(training, evaluation, points):
                yield line

    def train(self) -> None:
        """Train from where the run stands to the end of the budget."""
        parts = self.parts
        with loss_named(), memory_named(self.config.device), quiet_garbage_collector(), stop_signals(self.boundaries):
            if self.progress.updates == 0:
                self.evaluate(parts.rate(0.0), 1.0)
            train(
                parts.sampler,
                parts.step,
                parts.rate,
                parts.budget,
                self.boundaries,
                self.progress,
                parts.clock,
                self.at_boundary,
            )

    def at_boundary(self, learning_rate: float, gain: float) -> None:
        """Evaluate, record and save as far as each is due. The clock is paused."""
        rates = self.parts.step.report(self.progress.updates)
        self.check_ranks()
        self.append("rate", updates=list(rates), learning_rate=list(rates.values()))
        if self.boundaries.take_evaluation(self.progress):
            self.evaluate(learning_rate, gain)
        is_due = time.monotonic() - self.saved_at >= self.config.checkpoint.seconds
        if self.boundaries.is_stopping or self.ranks.first(is_due):
            self.save()
        if self.boundaries.is_stopping:
            raise Interrupted(f"{self.folder.name}: stopped after update {self.progress.updates}")
        gc.collect()

    def evaluate(self, learning_rate: float, gain: float) -> None:
        """Append a row with the model's losses and errors, then the rows of the probe."""
        parts, progress = self.parts, self.progress
        train_loss, test_loss, test_error = self.losses()
        row = self.append(
            "evaluation",
            updates=progress.updates,
            effective_updates=progress.effective_updates,
            acted_updates=progress.acted_updates,
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
            cpu_wait=self.cpu_wait(),
            **{f"sampler/{name}": value for name, value in parts.sampler.diagnostics().items()},
        )
        self.sink.log(row)
        self.console.update(parts.budget.fraction(progress), row)
        if not math.isfinite(train_loss + test_loss):
            raise Diverged(f"the loss of the model after update {progress.updates} was not finite")
        measured = self.ranks.attempt(lambda: parts.probe.measure(parts) if self.ranks.is_first else [])
        for values in self.ranks.first(measured):
            self.append("probe", updates=progress.updates, epoch=progress.epoch, **values)

    def losses(self) -> tuple[float, float, float]:
        """Return the loss on the fixed training examples, and loss and error on the test set."""
        model, criterion, dataset = self.parts.model, self.parts.criterion, self.parts.dataset
        chunk = dataset.chunk_size
        self.ranks.share_buffers(model)
        train_chunks = (dataset.plain(some) for some in self.ranks.part(self.train_subset).split(chunk))
        train_loss, _ = evaluate(model, criterion, train_chunks, self.ranks)
        mine = self.ranks.part(range(dataset.num_test))
        test_chunks = (dataset.test_chunk(i, min(i + chunk, mine.stop)) for i in mine[::chunk])
        return train_loss, *evaluate(model, criterion, test_chunks, self.ranks)

    def save(self) -> None:
        """Write a checkpoint."""
        state = {
            "parts": self.parts.state_dict(),
            "own_streams": self.ranks.list_all(self.parts.streams.own_state()),
            "data_checksum": self.inputs["dataset"],
        }
        self.ranks.attempt(lambda: checkpoint.save(self.folder, state) if self.ranks.is_first else None)
        self.saved_at = time.monotonic()

    def check_ranks(self) -> None:
        """Raise UserError unless all ranks hold the same model; equal draws and gradients keep it the same."""
        if self.ranks.size > 1:
            total = torch.stack([p.detach().double().sum() for p in self.parts.model.parameters()]).sum()
            if not self.ranks.agree((self.progress.examples_scored, repr(float(total)))):
                raise UserError(
                    f"{self.folder.name}: after update {self.progress.updates} the processes hold different models; "
                    "numerics=reproducible keeps them alike"
                )

    def append(self, kind: str, **values: Any) -> Row:
        """Add a row to the record, on all ranks or none."""
        return self.ranks.attempt(lambda: self.record.append(kind, **values))

    def cpu_wait(self) -> float:
        """Return the share of the training seconds in which a thread waited for a core; warn where it is large."""
        waited = self.waited_before + self.ranks.largest(self.parts.clock.core_wait.seconds)
        share = waited / self.progress.seconds if self.progress.seconds else 0.0
        if share > MOST_CPU_WAIT and self.progress.seconds > 1 and not self.is_warned:
            self.is_warned = True
            log.warning(
                "%s: other programs take its cores: it has waited for one during %.0f %% of its %.0f s, which a report "
                "will not compare",
                self.folder.name,
                100 * share,
                self.progress.seconds,
            )
        return share

    def concurrent_runs(self) -> int:
        """Return the largest number of runs, this one included, that have trained on this device at once so far."""
        return max(self.concurrent_before, self.count_runs())


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
