"""Locks on files, which the system gives back with the process, however that ends."""

import fcntl
from pathlib import Path
from typing import IO

from isbench.errors import UserError

_kept: list[IO] = []


def take(file: IO, wait: bool = False) -> bool:
    """Lock an open file and say whether that was done; another process may hold it. It is held until it is closed.

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
    """Lock a file for as long as this process lives; say whether that was done."""
    file = open(path, "wb")
    if take(file):
        _kept.append(file)
        return True
    file.close()
    return False


def is_taken(path: Path) -> bool:
    """Say whether a process holds the lock on a file."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
