"""A console that goes away in the middle of a run, in every way: the run goes on, and its rows are the same."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Timer

import pytest

from tests.commands import Command, record_in
from tests.faults.conftest import run_words, share

Lose = Callable[[float, float], None]  # is given a share of the output, and seconds, after which the console goes


def lead_to(descriptor: int) -> None:
    """Let both standard streams of this process lead to an open file."""
    for stream in (1, 2):
        os.dup2(descriptor, stream)


def end_the_reader(portion: float, seconds: float) -> None:
    """As `| head`, or a `| tee` that is killed."""
    reader = subprocess.Popen(
        ["head", "-c", str(round(1000 * portion))], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert reader.stdin is not None
    lead_to(reader.stdin.fileno())


def close_the_terminal(portion: float, seconds: float) -> None:
    """As an ssh that is cut: the terminal is gone, and SIGHUP says so."""
    master, slave = pty.openpty()
    lead_to(slave)

    def cut() -> None:
        os.close(master)
        os.kill(os.getpid(), signal.SIGHUP)

    timer = Timer(seconds, cut)
    timer.daemon = True
    timer.start()


def fill_the_disk(portion: float, seconds: float) -> None:
    lead_to(os.open("/dev/full", os.O_WRONLY))


def close_the_streams(portion: float, seconds: float) -> None:
    """As `>&- 2>&-`: Python then has none."""
    for stream in (0, 1, 2):
        os.close(stream)
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None  # type: ignore[assignment,misc]


def make_it_non_blocking(portion: float, seconds: float) -> None:
    """As other programs leave a terminal that they share, with a reader that stops."""
    end_the_reader(portion, seconds)
    os.set_blocking(1, False)


WAYS: list[Lose] = [end_the_reader, close_the_terminal, fill_the_disk, close_the_streams, make_it_non_blocking]


@pytest.mark.parametrize("number", share(range(40), few=5))
def test_a_console_that_goes_away(number: int, undisturbed, chance, sampler, struck, same_as, tmp_path: Path) -> None:
    expected = undisturbed(sampler)
    lose = partial(WAYS[number % len(WAYS)], chance.random(), expected.seconds * chance.random())
    words = run_words(sampler, tmp_path)
    if number % 3 == 0:  # a grid, whose table goes the same way
        words = ["-m", *words]
    command = Command(words, tmp_path / "log", prepare=lose)
    assert command.wait() == 0, command.output
    struck("console lost")
    same_as(record_in(tmp_path), expected)
