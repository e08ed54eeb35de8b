"""Weights & Biases as a mirror of the record: the same evaluation rows, under the same run id.

W&B may wait for a server far longer than any timeout it is given, also when Python exits. It therefore runs in a
process of its own, which this module starts and, when its time is up, ends; the training process never imports wandb.
The two talk in JSON lines. A scheduler that sends a job away signals all its processes, and W&B's service then ends
without writing what it had: a second process sends everything again. What is sent also lies in the run's folder
(`wandb/offline-run-*` or `wandb/run-*`), for `wandb sync`. Rows carry their own step: a resumed run leaves one folder
per attempt, which `wandb sync` joins. The host's name, users, paths and installed packages are left out.
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
REFUSED, LOST = 1, 2  # exit codes of the process that has W&B: it said no, or its service is gone


class NullSink:
    """The sink of `logging=off`."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, status: str, reason: str) -> None:
        """Do nothing."""


class WandbSink:
    """Send evaluation rows to a W&B run, to a server (`online`) or to the disk (`offline`).

    Building one waits until W&B has started (about a second; `timeout_seconds` at most, and as long again for the
    fall-back), so that none of it falls into timed training. Online falls back to offline, with one logged line, if
    there is no account or no server answers by then. Nothing here raises on W&B's account: a run is never lost to its
    dashboard.

    Args:
        opening: what `wandb.init` is to be given, in types that JSON has; `dir` must be there.
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
            self._answer(time.monotonic() + timeout_seconds)  # a wait of its own: nothing may start inside the clock

    def log(self, row: Mapping[str, Any]) -> None:
        """Send the numbers of an evaluation row as step `row["updates"]`. Returns at once."""
        numbers = {
            key: value for key, value in row.items() if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._send({"step": row["updates"], "row": numbers})

    def finish(self, status: str, reason: str) -> None:
        """Close the W&B run. Waits `timeout_seconds` at most, then gives up with one logged line."""
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
        """Say that there is no more to come, and wait for the other process to end."""
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
        """Wait for a line from the other process: "ready", or what went wrong."""
        if not select.select([self._stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return f"no answer within {self._timeout_seconds:g} s"
        return self._stdout.readline().decode().strip() or "its process ended"

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._messages.put(None)
        self._stdout.close()


def make_sink(mode: str, timeout_seconds: float, opening: Mapping[str, Any]) -> WandbSink | NullSink:
    """Return the sink for a logging mode: offline, online or off. For the rest, see `WandbSink`."""
    return NullSink() if mode == "off" else WandbSink(mode, timeout_seconds, opening)


def _feed(messages: "SimpleQueue[dict[str, Any] | None]", pipe: IO[bytes]) -> None:
    """Write messages to a pipe, which may be full or broken, on a thread that may wait."""
    with suppress(OSError), pipe:
        while (message := messages.get()) is not None:
            pipe.write(json.dumps(message, default=str).encode() + b"\n")
            pipe.flush()


def _mirror() -> int:
    """Be the other process: messages on standard input, the answer on standard output. Returns an exit status."""
    # A scheduler signals every process of a job; the end of the input says when to stop. The service that wandb starts
    # inherits the mask, but lets SIGINT and SIGTERM through.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2))
    # wandb and the service that it starts print to standard output, and the service would keep it open.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run = None
    try:
        opening = json.loads(sys.stdin.readline())
        seconds = opening.pop("timeout_seconds")
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=True,
            # Shorter than the patience of the other side: W&B says why, and completes its files, which it writes late.
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
        shutil.rmtree(Path(run.dir).parent, ignore_errors=True)  # all of it comes again
        return LOST
    return 0


if __name__ == "__main__":
    sys.exit(_mirror())
