"""The command line as a process that a test can hold in the middle of a write, and what it leaves behind.

`stops` names calls of a process, as (call, number): there it halts itself by SIGSTOP, half of its bytes written. The
test then kills it, or does something to its files, and lets it go on: so a fault strikes inside a write for certain.
Processes are forked from one that has imported torch, which takes a tenth of the time of starting Python; a few are
started as a person starts them.
"""

import fcntl
import gc
import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

CALLS = (
    "record write",
    "record sync",
    "checkpoint write",
    "checkpoint sync",
    "checkpoint rename",
    "checkpoint removal",
)
Stop = tuple[str, int]  # one of CALLS, or "lock"; the how many-th time
ROOT = Path(__file__).resolve().parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["isbench.cli", "isbench.run", "tests.commands"]
    + ["torch._inductor"]  # torch itself imports it once algorithms are to be deterministic
    + [f"isbench.samplers.{path.stem}" for path in (ROOT / "isbench" / "samplers").glob("[a-z]*.py")]
)


def fork(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Call a function in a process of its own, which has the variables of this one; return that process."""
    process = SERVER.Process(target=_call, args=(dict(os.environ), function, *arguments))
    process.start()
    return process


def _call(variables: dict[str, str], function: Callable[..., Any], *arguments: Any) -> None:
    os.environ.clear()  # those of the server
    os.environ.update({"ISBENCH_FULL_ERROR": "0"} | variables)  # which isbench.cli sets as it is imported
    gc.freeze()  # a collector that looks at all that the server imported would copy it
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server that forked it ignores it
    function(*arguments)


class Command:
    """`python -m isbench ARGUMENTS` at work.

    Args:
        log: the file that takes its output.
        stops: where it halts.
        prepare: what the process calls first.
        afresh: start Python, rather than fork; there are no stops then.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        stops: Collection[Stop] = (),
        prepare: Callable[[], Any] | None = None,
        afresh: bool = False,
    ):
        self.log = log
        if afresh:
            assert not stops and prepare is None
            with open(log, "ab") as file:
                command = [sys.executable, "-m", "isbench", *arguments]
                self.process: Any = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        else:
            self.process = fork(_run, list(arguments), log, set(stops), prepare)

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, seconds: float = 200) -> int:
        """Return the exit code, negative where a signal ended it."""
        if isinstance(self.process, subprocess.Popen):
            return self.process.wait(seconds)
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still at work after {seconds} s:\n{self.output}"
        return self.process.exitcode

    def wait_until_halted(self) -> None:
        """Wait until it halts itself."""
        deadline = time.monotonic() + 200
        while _state(self.process.pid) != "T":
            assert time.monotonic() < deadline and _state(self.process.pid) not in "ZX", f"no halt:\n{self.output}"
            time.sleep(0.001)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> int:
        """Send SIGKILL, and return how the process ended."""
        self.process.kill()
        return self.wait()


def finish(arguments: Sequence[str], log: Path) -> str:
    """Run a command to its end, which must be a good one; return what it said."""
    command = Command(arguments, log)
    assert command.wait() == 0, command.output
    return command.output


def start_two(
    arguments: Sequence[str], folder: Path, stops: Collection[Stop] = (), prepare: Callable[[], Any] | None = None
) -> list[Command]:
    """Start a run on two processes, as torchrun would, with a log for each; the first halts at `stops`."""
    port = free_port()
    return [
        Command(arguments, folder / f"log{rank}", () if rank else stops, partial(_take_place, rank, port, prepare))
        for rank in range(2)
    ]


def together(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in two processes, which are told their number, and wait for both."""
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method="forkserver")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _take_place(rank: int, port: int, prepare: Callable[[], Any] | None) -> None:
    """Tell this process what torchrun would."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if prepare is not None:
        prepare()


def record_in(folder: Path) -> Path:
    (record,) = folder.rglob("record.jsonl")
    return record


def count_calls(arguments: Sequence[str], log: Path) -> dict[str, int]:
    """Run a command undisturbed; return how often it made each of CALLS."""
    out = log.with_suffix(".calls")
    process = fork(_run, list(arguments), log, set(), None, out)
    process.join(120)
    assert process.exitcode == 0, log.read_text()
    return json.loads(out.read_text())


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _run(
    arguments: list[str], log: Path, stops: set[Stop], prepare: Callable[[], Any] | None, out: Path | None = None
) -> None:
    """Be the process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc] # as where Python starts
    counts = _install(stops)
    if prepare is not None:
        prepare()
    sys.argv = ["isbench", *arguments]
    from isbench.cli import main

    main()
    if out is not None:
        out.write_text(json.dumps(counts))


def _install(stops: set[Stop]) -> Counter[str]:
    """Make this process halt where it was told to; return the count of its calls, which goes on."""
    from isbench import files

    counts: Counter[str] = Counter()
    write, fsync, replace, unlink, flock = os.write, os.fsync, os.replace, os.unlink, fcntl.flock

    def is_due(call: str) -> bool:
        counts[call] += 1
        return (call, counts[call]) in stops

    def halt() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def halting_write(descriptor: int, data: bytes) -> int:
        if _name(descriptor) == "record.jsonl" and is_due("record write"):
            written = write(descriptor, data[: len(data) // 2])
            halt()
            return written
        return write(descriptor, data)

    def halting_fsync(descriptor: int) -> None:
        if is_due("record sync" if _name(descriptor) == "record.jsonl" else "checkpoint sync"):
            halt()
        fsync(descriptor)

    def halting_replace(source: Path, target: Path) -> None:
        if is_due("checkpoint rename"):
            halt()
        replace(source, target)

    def halting_unlink(path: Any, **options: Any) -> None:
        if os.path.basename(path).startswith("checkpoint") and is_due("checkpoint removal"):
            halt()
        unlink(path, **options)

    def halting_flock(file: Any, operation: int) -> None:
        if str(getattr(file, "name", "")).endswith("/lock") and is_due("lock"):
            halt()
        flock(file, operation)

    class HaltingFile(io.FileIO):
        def write(self, data: Any) -> int:
            if is_due("checkpoint write"):
                written = super().write(data[: len(data) // 2])
                halt()
                return written
            return super().write(data)

    os.write, os.fsync, os.replace, os.unlink, fcntl.flock = (  # type: ignore[assignment]
        halting_write,
        halting_fsync,
        halting_replace,
        halting_unlink,
        halting_flock,
    )
    files.open = lambda path, mode: io.BufferedWriter(HaltingFile(path, mode))  # type: ignore[attr-defined]
    return counts


def _name(descriptor: int) -> str:
    return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
