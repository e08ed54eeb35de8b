"""Output that nobody takes any more: what is printed is lost, and nothing else."""

import os
import subprocess
import sys
import threading
from io import BufferedWriter, TextIOWrapper
from pathlib import Path

import pytest

from isbench.terminal import Expendable


def nowhere(kind: str) -> int:
    """Return a descriptor to which nothing can be written."""
    if kind == "full disk":
        return os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.openpty() if kind == "terminal that is gone" else os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("kind", ["full disk", "terminal that is gone", "reader that is gone"])
def test_what_cannot_be_written_is_lost(kind: str) -> None:
    stream = TextIOWrapper(BufferedWriter(Expendable(nowhere(kind), "w")), line_buffering=True)
    print("x" * 100_000, file=stream)
    stream.close()


def test_a_reader_that_is_slow_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    content = os.urandom(10**6)
    taken: list[bytes] = []
    with open(reader, "rb") as source:
        thread = threading.Thread(target=lambda: taken.append(source.read()))
        threading.Timer(0.05, thread.start).start()
        with BufferedWriter(Expendable(writer, "w")) as stream:
            stream.write(content)
        thread.join()
    assert taken == [content]


def test_closed_streams_are_no_files_of_the_run(tmp_path: Path) -> None:
    """Without standard error, print writes to standard output, and a library's words go to what has its number."""
    code = (
        "import os, sys; from isbench.terminal import outlive_terminal; outlive_terminal()\n"
        "assert open(sys.argv[1], 'w').fileno() > 2\n"
        "print('lost', file=sys.stderr); print('caf\\udce9'); os.write(2, b'lost')"
    )

    def close() -> None:
        for descriptor in (0, 2):
            os.close(descriptor)

    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(command, stdout=subprocess.PIPE, preexec_fn=close, text=True)
    assert (done.returncode, done.stdout) == (0, "caf\\udce9\n")


def test_the_head_of_the_help_is_enough() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "isbench", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, b"")
