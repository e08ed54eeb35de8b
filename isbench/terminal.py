"""What a program prints is for whoever reads it: a terminal that goes away, or a log on a full disk, ends nothing."""

import io
import os
import select
import signal
import sys
import threading
from typing import Any


class Expendable(io.FileIO):
    """A file to which writing never fails: what it cannot take is lost. One that is merely full now is waited for."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # another program has made it non-blocking
                select.select([], [self], [])
            return written
        except OSError:
            return len(data)


def outlive_terminal() -> None:
    """Let this program, and those that it starts, go on when its terminal or the reader of its output goes away.

    A standard stream that is closed leads nowhere from now on: a file of the run could take its number, and would then
    get what libraries print. Streams that a program has put in the place of the standard ones stay.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):
            file = io.BufferedWriter(Expendable(descriptor, "w", closefd=False))
            encoding = stream.encoding if stream else "utf-8"
            setattr(sys, name, io.TextIOWrapper(file, encoding, "backslashreplace", line_buffering=True))
