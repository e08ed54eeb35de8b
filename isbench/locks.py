"""Locks on files. The system releases them when the process ends, however it ends."""

import fcntl
from pathlib import Path
from typing import IO

from isbench.errors import UserError

_kept: list[IO] = []


def take(file: IO, wait: bool = False) -> bool:
    """Lock an open file until it is closed. Return False if another process holds the lock, unless `wait`.

    Raises:
        UserError: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(f"{file.name} cannot be locked ({error.strerror}): use another file system") from None
    return True


def keep(path: Path) -> bool:
    """Lock a file until this process ends. Return False if another process holds the lock."""
    file = open(path, "wb")
    if take(file):
        _kept.append(file)
        return True
    file.close()
    return False


def is_taken(path: Path) -> bool:
    """Say whether a process holds the lock of a file."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
