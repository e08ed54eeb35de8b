"""Mirrors runs to Weights & Biases: evaluation rows as the history of a W&B run, the record as one of its files.

W&B can wait for a server far longer than its timeouts say, even when Python exits. Therefore it runs in a process of
its own, which this module starts, feeds with JSON lines, and ends when its time is up. The training process never
imports wandb. When a scheduler ends a job it signals all processes, and W&B's service then loses its rows; a second
process sends them again.

W&B writes to `wandb/` in the folder of the group, a folder for each attempt at a run (`offline-run-*`, or `run-*` where
a server gets it too), which `wandb sync` can send. A server appends what it gets, whether it has it or not. Therefore
an attempt sends the rows that come after those of earlier attempts, and online those that the server lacks; and a run
that did not reach its server whole is written to the disk, whole, under an id of its own. Names of hosts and users,
paths and installed packages are left out.
"""

import json
import logging
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any

from isbench.errors import ConfigError
from isbench.files import RECORD_COPY
from isbench.recording.record import COLUMNS

log = logging.getLogger("isbench")
# What W&B draws without being asked. Counters are there to be chosen.
DRAWN = ("learning_rate", "gain", "train_loss", "objective", "test_loss", "test_error")
COUNTERS = ("attempt", *(name for name in COLUMNS if name not in DRAWN))
REFUSED, LOST = 1, 2  # exit codes of W&B's process: W&B refused, or its service is gone
SERVICE_ENDED = ("HandleAbandonedError", "MailboxClosedError")  # what W&B raises then, besides ConnectionError


class NullSink:
    """The sink of `logging=off`."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, status: str, reason: str) -> None:
        """Do nothing."""


class WandbSink:
    """Send evaluation rows to a W&B run, on a server (mode `online`) or on the disk (`offline`).

    The constructor waits until W&B has started, so that its start is not timed: about a second, at most
    `timeout_seconds`. Without an account, or if no server answers by then, it logs one line and starts offline, for
    which it waits as long again. Errors of W&B after that are logged, never raised.

    Args:
        record: the run's record, which becomes a file of the W&B run at the end.
        config: shown beside the run, under keys without nesting; see `flat`.
        settings: of `wandb.Settings`, in types that JSON has, among them `root_dir` and `run_id`.
        next_step: the first that earlier attempts at the run did not reach. On the disk, rows before it are passed
            over, if there are files of these attempts.

    Raises:
        ConfigError: W&B refuses a setting, or one of its environment variables.
    """

    def __init__(
        self,
        mode: str,
        timeout_seconds: float,
        record: Path,
        config: Mapping[str, Any],
        settings: Mapping[str, Any],
        next_step: int = 0,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._opening: dict[str, Any] = {
            "record": str(record),
            "config": flat(config),
            "settings": dict(settings),
            "next_step": next_step,
        }
        self._sent: list[dict[str, Any]] = []
        state, text = self._open(mode)
        if state == "refused":
            self._stop()
            raise ConfigError(text)
        if state == "failed" and mode == "online":
            self._stop()
            self._open("offline")  # waits too: nothing may start inside the clock
            log.warning("W&B continues offline: %s; `wandb sync %s` sends the run later", text, self._folder)

    def log(self, row: Mapping[str, Any]) -> None:
        """Send the numbers of an evaluation row, as step `row["updates"]`. Returns at once."""
        numbers = {
            key: value for key, value in row.items() if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._send({"step": row["updates"], "row": numbers})

    def finish(self, status: str, reason: str) -> None:
        """Close the W&B run. After `timeout_seconds` give up, with one logged line.

        A run of which a server has only a part is then written to the disk, for twice as long.
        """
        self._send({"status": status, "reason": reason})
        problem = self._close()
        if problem and self._mode == "online":
            # The server has a part under the old id.
            self._opening["settings"]["run_id"] += time.strftime("-%Y%m%d%H%M%S")
            self._open("offline")
            self._send_again()
            log.warning("W&B's server lacks a part: %s; `wandb sync %s` sends the whole run", problem, self._folder)
            problem = self._close()
        if problem:
            log.warning("W&B is not complete: %s; `wandb sync %s` sends what it has", problem, self._folder)

    def _send(self, message: dict[str, Any]) -> None:
        self._sent.append(message)
        self._messages.put(message)

    def _send_again(self) -> None:
        for message in self._sent:
            self._messages.put(message)

    def _close(self) -> str:
        """Tell the other process that no more rows come, and wait for it to end. Return the problem, if any."""
        deadline = time.monotonic() + self._timeout_seconds
        try:
            code = self._exit_code(deadline)
            if code not in (0, REFUSED):
                self._stop()
                self._start(self._mode)
                self._send_again()
                code = self._exit_code(deadline)
            for line in self._stdout:
                self._take(line)
            return self._problem if code else ""
        except subprocess.TimeoutExpired:
            return f"it was stopped after {self._timeout_seconds:g} s"
        finally:
            self._stop()

    def _exit_code(self, deadline: float) -> int:
        self._messages.put(None)
        return self._process.wait(max(0.0, deadline - time.monotonic()))

    def _open(self, mode: str) -> tuple[str, str]:
        """Start the other process and wait for its answer; see `_mirror`. One that is late has failed."""
        self._start(mode)
        if not select.select([self._stdout], [], [], self._timeout_seconds)[0]:
            return "failed", f"no answer within {self._timeout_seconds:g} s"
        line = self._stdout.readline()
        return self._take(line) if line else ("failed", self._problem)

    def _start(self, mode: str) -> None:
        self._mode = mode
        self._problem = "its process ended"
        settings = self._opening["settings"]
        # Where W&B's folder will be; its answer names it.
        self._folder = f"{shlex.quote(settings['root_dir'])}/wandb/offline-run-*-{settings['run_id']}"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "isbench.recording.wandb_sink"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "WANDB_ERROR_REPORTING": "false"},
            start_new_session=True,  # Ctrl-C is for the training process alone
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdout = self._process.stdout
        self._messages: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._messages.put({**self._opening, "mode": mode, "timeout_seconds": self._timeout_seconds})
        Thread(target=_feed, args=(self._messages, self._process.stdin), daemon=True).start()

    def _take(self, line: bytes) -> tuple[str, str]:
        """Read an answer of the other process, and note the folder or the problem that it names."""
        state, text = json.loads(line)
        if state == "ready":
            self._folder = shlex.quote(text)
        else:
            self._problem = text
        return state, text

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._messages.put(None)
        self._stdout.close()


def make_sink(
    mode: str,
    timeout_seconds: float,
    record: Path,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    next_step: int = 0,
) -> WandbSink | NullSink:
    """Return the sink for a logging mode: offline, online or off. The other arguments are `WandbSink`'s."""
    return NullSink() if mode == "off" else WandbSink(mode, timeout_seconds, record, config, settings, next_step)


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration without nesting: `sampler: rais`, `sampler/alpha: 2`. W&B asks for keys without dots.

    The names of the functions and classes that are called stay out; the record has them.
    """
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}/")
        elif key == "name" and prefix:
            found[prefix[:-1]] = value
        elif key != "_target_":
            found[f"{prefix}{key}"] = value
    return found


def _feed(messages: "SimpleQueue[dict[str, Any] | None]", pipe: IO[bytes]) -> None:
    """Write messages to a pipe. It may be full or broken, so a thread does this."""
    with suppress(OSError), pipe:
        while (message := messages.get()) is not None:
            pipe.write(json.dumps(message, default=str).encode() + b"\n")
            pipe.flush()


def _settings(given: Mapping[str, Any], seconds: float) -> Any:
    """Return W&B's settings for a run that tells nothing about the machine.

    Raises:
        ConfigError: W&B refuses one of them, or of those in the environment.
    """
    import wandb
    from pydantic import ValidationError
    from wandb.errors import UsageError

    try:
        settings = wandb.Settings(
            **given,
            resume="allow",
            program="isbench",
            console="off",
            silent=True,
            # W&B must give up before the training process does, to say why and to complete its files.
            init_timeout=0.75 * seconds,
            finish_timeout=0.5 * seconds,
            finish_timeout_raises=True,
            host="",
            disable_git=True,
            disable_code=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        wandb.setup()  # reads the environment
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"W&B refuses {name}: {first['msg']}; see your variables WANDB_*") from None
    except UsageError as error:
        raise ConfigError(f"W&B refuses a setting: {error}; see your variables WANDB_*") from None
    return settings


def _open_run(config: Mapping[str, Any], settings: Any) -> Any:
    """Return a W&B run with seconds as the axis of its charts."""
    import wandb

    run = wandb.init(config=dict(config), settings=settings)
    run.define_metric("*", step_metric="train_seconds")
    for name in COUNTERS:
        run.define_metric(name, step_metric="train_seconds", hidden=True)
    return run


def _keep_record(record: Path, run: Any) -> None:
    """Make a copy of the record a file of the W&B run. It has every row and every bit, which W&B's history has not."""
    with suppress(FileNotFoundError):  # deleted, or there was no row yet
        shutil.copyfile(record, Path(run.dir, RECORD_COPY))
        run.save(Path(run.dir, RECORD_COPY), base_path=run.dir, policy="now", glob=False)


def _refusal(folder: Path) -> str:
    """Return why the server took no more rows, empty if it took all. W&B finishes alike, and only its log tells."""
    with suppress(OSError):
        for line in Path(folder, "logs", "debug-internal.log").read_text().splitlines():
            said = str(json.loads(line)["msg"])
            if said.startswith("filestream: fatal error: "):
                return said.removeprefix("filestream: fatal error: ").partition(" url=")[0]
    return ""


def _mirror() -> int:
    """Be the other process: read messages from standard input until it ends; return an exit status.

    On standard output go answers, in JSON: ["ready", W&B's folder for the run], then nothing unless
    ["failed", the reason]; or at once ["refused", the reason] where W&B does not accept its settings.
    """
    # A scheduler signals every process of a job, but this one stops at the end of its input. wandb's service inherits
    # the mask, but lets SIGINT and SIGTERM through.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2))
    # wandb and its service print to standard output, and the service would keep it open.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(state: str, text: str) -> None:
        print(json.dumps([state, " ".join(text.split())]), file=output, flush=True)

    run = None
    try:
        opening = json.loads(sys.stdin.readline())
        settings = _settings(opening["settings"] | {"mode": opening["mode"]}, opening["timeout_seconds"])
        earlier = list(Path(settings.wandb_dir).glob(f"*run-*-{settings.run_id}/*.wandb"))
        run = _open_run(opening["config"], settings)
        folder = run.sync_dir
        answer("ready", folder)
        if opening["mode"] == "online":
            first_step = run.starting_step
            for path in earlier:  # all that they have is sent now
                Path(f"{path}.synced").touch()
        else:
            first_step = opening["next_step"] if earlier else 0
        ending = {"status": "interrupted", "reason": "the process ended without a word"}
        for line in sys.stdin:
            message = json.loads(line)
            if "row" not in message:
                ending = message
            elif message["step"] >= first_step:
                run.log(message["row"], step=message["step"], commit=True)
        run.summary.update({key: text for key, text in ending.items() if text})
        _keep_record(Path(opening["record"]), run)
        run.finish(exit_code=0 if ending["status"] in ("finished", "skipped") else 1)
        if refusal := _refusal(Path(folder)):
            answer("failed", refusal)
            return REFUSED
    except ConfigError as error:
        answer("refused", str(error))
        return REFUSED
    except Exception as error:
        answer("failed", f"{type(error).__name__}: {error}")
        if run is None or not (isinstance(error, ConnectionError) or type(error).__name__ in SERVICE_ENDED):
            return REFUSED
        shutil.rmtree(run.sync_dir, ignore_errors=True)  # the next process sends all of it again
        return LOST
    return 0


if __name__ == "__main__":
    sys.exit(_mirror())
