"""Mirrors evaluation rows to Weights & Biases, under the same run id.

W&B can wait for a server far longer than its timeouts say, even when Python exits. Therefore it runs in a process of
its own, which this module starts, feeds with JSON lines, and ends when its time is up. The training process never
imports wandb. When a scheduler ends a job it signals all processes, and W&B's service then loses its rows; a second
process sends them again.

W&B also writes to the run's folder (`wandb/offline-run-*` or `wandb/run-*`), for `wandb sync`. A resumed run leaves one
folder for each attempt; every row carries its step, so `wandb sync` joins them. Names of hosts and users, paths and
installed packages are left out.
"""

import json
import logging
import os
import select
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

log = logging.getLogger("isbench")
REFUSED, LOST = 1, 2  # exit codes of W&B's process: W&B refused, or its service is gone


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
    which it waits as long again. Errors of W&B are logged, never raised.

    Args:
        opening: arguments of `wandb.init`, in types that JSON has, among them `dir`.
    """

    def __init__(self, mode: str, timeout_seconds: float, opening: Mapping[str, Any]) -> None:
        self._timeout_seconds = timeout_seconds
        self._opening = opening
        self._sent: list[dict[str, Any]] = []
        deadline = time.monotonic() + timeout_seconds
        self._start(mode)
        answer = self._answer(deadline)
        if mode == "online" and answer != "ready":
            self._stop()
            self._start("offline")
            log.warning("W&B continues offline: %s; `%s` sends the run later", answer, self._sync)
            self._answer(time.monotonic() + timeout_seconds)  # waits too: nothing may start inside the clock

    def log(self, row: Mapping[str, Any]) -> None:
        """Send the numbers of an evaluation row, as step `row["updates"]`. Returns at once."""
        numbers = {
            key: value for key, value in row.items() if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._send({"step": row["updates"], "row": numbers})

    def finish(self, status: str, reason: str) -> None:
        """Close the W&B run. After `timeout_seconds` give up, with one logged line."""
        deadline = time.monotonic() + self._timeout_seconds
        self._send({"status": status, "reason": reason})
        try:
            code = self._exit_code(deadline)
            if code not in (0, REFUSED):
                self._stop()
                self._start(self._mode)
                for message in self._sent:
                    self._messages.put(message)
                code = self._exit_code(deadline)
            if code:
                problem = self._stdout.read().decode().removeprefix("ready").strip() or "its process ended"
                log.warning("W&B is not complete: %s; `%s` sends the run later", problem, self._sync)
        except subprocess.TimeoutExpired:
            log.warning(
                "W&B was stopped after %g s; `%s` sends what it wrote, the record has every row",
                self._timeout_seconds,
                self._sync,
            )
        self._stop()

    def _send(self, message: dict[str, Any]) -> None:
        self._sent.append(message)
        self._messages.put(message)

    def _exit_code(self, deadline: float) -> int:
        """Tell the other process that no more rows come, and wait for it to end."""
        self._messages.put(None)
        return self._process.wait(max(0.0, deadline - time.monotonic()))

    def _start(self, mode: str) -> None:
        self._mode = mode
        files = "--include-online {}/wandb/run-*" if mode == "online" else "{}/wandb/offline-run-*"
        self._sync = "wandb sync " + files.format(self._opening["dir"])
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

    def _answer(self, deadline: float) -> str:
        """Wait for the answer of the other process: "ready", or an error."""
        if not select.select([self._stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return f"no answer within {self._timeout_seconds:g} s"
        return self._stdout.readline().decode().strip() or "its process ended"

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._messages.put(None)
        self._stdout.close()


def make_sink(mode: str, timeout_seconds: float, opening: Mapping[str, Any]) -> WandbSink | NullSink:
    """Return the sink for a logging mode: offline, online or off. The other arguments are `WandbSink`'s."""
    return NullSink() if mode == "off" else WandbSink(mode, timeout_seconds, opening)


def _feed(messages: "SimpleQueue[dict[str, Any] | None]", pipe: IO[bytes]) -> None:
    """Write messages to a pipe. It may be full or broken, so a thread does this."""
    with suppress(OSError), pipe:
        while (message := messages.get()) is not None:
            pipe.write(json.dumps(message, default=str).encode() + b"\n")
            pipe.flush()


def _open_run(opening: dict[str, Any]) -> Any:
    """Return a W&B run that tells nothing about the machine."""
    import wandb

    seconds = opening.pop("timeout_seconds")
    settings = wandb.Settings(
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
    run = wandb.init(**opening, resume="allow", settings=settings)
    run.define_metric("*", step_metric="train_seconds")
    return run


def _mirror() -> int:
    """Be the other process: read messages from standard input, answer on standard output. Return an exit status."""
    # A scheduler signals every process of a job, but this one stops at the end of its input. wandb's service inherits
    # the mask, but lets SIGINT and SIGTERM through.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2))
    # wandb and its service print to standard output, and the service would keep it open.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run = None
    try:
        run = _open_run(json.loads(sys.stdin.readline()))
        print("ready", file=answer, flush=True)
        ending = {"status": "interrupted", "reason": "the process ended without a word"}
        for line in sys.stdin:
            message = json.loads(line)
            if "row" in message:
                run.log(message["row"], step=message["step"], commit=True)
            else:
                ending = message
        run.summary.update(ending)
        run.finish(exit_code=0 if ending["status"] in ("finished", "skipped") else 1)
    except Exception as error:
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=answer, flush=True)
        if run is None or not (isinstance(error, ConnectionError) or type(error).__name__ == "HandleAbandonedError"):
            return REFUSED
        shutil.rmtree(Path(run.dir).parent, ignore_errors=True)  # the next process sends all of it again
        return LOST
    return 0


if __name__ == "__main__":
    sys.exit(_mirror())
