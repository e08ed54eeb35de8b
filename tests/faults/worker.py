"""A process that is kept, and that tries one command line after another in an empty folder."""

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.commands import SERVER, fork

PATIENCE = 60.0  # seconds of the wall clock: an answer is due in five of a core, which may be busy


@dataclass(frozen=True)
class Answer:
    """What became of a command line: the exit code, all that it printed, the seconds of a core, the files it left."""

    code: int | None
    text: str
    seconds: float
    files: tuple[str, ...]

    def complaint(self) -> str:
        """Return the one line that a mistake must get; fail if it got anything else."""
        lines = self.text.splitlines()
        assert self.code not in (0, None), f"it was taken for a good one: {self.text}"
        assert len(lines) == 1, f"not one line: {self.text}"
        assert lines[0].startswith("isbench: ") and len(lines[0]) > 15, f"not a complaint of isbench: {lines[0]}"
        assert not self.files, f"it wrote {self.files}"
        assert self.seconds < 5, f"it took {self.seconds:.1f} s"
        return lines[0].removeprefix("isbench: ")


class Worker:
    """Ask it, and it answers; where it hangs or dies, it says so and starts anew."""

    def __init__(self, folder: Path):
        self.folder = folder  # `work` in it is where commands are run
        (folder / "work").mkdir(parents=True)
        self._start()

    def ask(self, words: Sequence[str], files: Mapping[str, bytes] = {}) -> Answer:
        """Run `python -m isbench WORDS` with these files beside the folder it works in."""
        for name, content in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(content)
        self._connection.send(list(words))
        answer: tuple[int | None, str, float] = (None, "no answer", PATIENCE)
        try:
            if self._connection.poll(PATIENCE):
                answer = self._connection.recv()
        except EOFError:
            answer = (None, "the process died", 0.0)
        code, text, seconds = answer
        if code is None:
            self.close()
            self._start()
        for name in files:
            (self.folder / name).unlink()
        work = self.folder / "work"
        left = tuple(sorted(path.relative_to(work).as_posix() for path in work.rglob("*")))
        for path in work.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return Answer(code, text, seconds, left)

    def close(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        self._connection, theirs = SERVER.Pipe()
        self._process = fork(_serve, theirs, self.folder)
        theirs.close()
        self._connection.recv()  # that it is there


def _serve(connection: Connection, folder: Path) -> None:
    os.chdir(folder / "work")
    log = os.open(folder / "output", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    connection.send(None)
    while True:
        try:
            words = connection.recv()
        except EOFError:
            return
        os.ftruncate(log, 0)
        os.lseek(log, 0, os.SEEK_SET)
        sys.stdout, sys.stderr = (open(stream, "w", errors="backslashreplace", closefd=False) for stream in (1, 2))
        started = time.process_time()
        code = _call(words)
        seconds = time.process_time() - started
        sys.stdout.flush(), sys.stderr.flush()
        connection.send((code, os.pread(log, 2**20, 0).decode(errors="replace"), seconds))


def _call(words: list[str]) -> Any:
    """Do what `python -m isbench` does with these words; return its exit code."""
    import traceback

    from isbench.cli import main

    sys.argv = ["isbench", *words]
    try:
        main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
