"""The package's errors. A `UserError` carries one line, which the command line prints without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """The user can put it right: a value, a file, a device. The message is one line."""


class ConfigError(UserError):
    """The configuration has a key or value that cannot be used."""


class Incompatible(UserError):
    """Choices are valid but do not go together. A grid records the run as skipped, and goes on."""


class DataError(UserError):
    """A data file is missing or damaged. The message names the file, the expected checksum and the remedy."""


class Diverged(Exception):
    """Training met a value that is not finite. The run ends as diverged, and its record stays."""


class Interrupted(BaseException):  # not an Exception: nothing but the entry point may swallow it
    """A signal asked the run to stop. Its checkpoint is written; the same command continues it."""


class OutOfMemory(UserError):
    """The run needs more memory than its device, or the machine, has."""


# Parts of the messages of torch's allocators, CUDA's libraries and C++.
MEMORY_SIGNS = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "bad_alloc", "Unable to allocate")


@contextmanager
def memory_named(device: str) -> Iterator[None]:
    """Raise OutOfMemory, with one line on what to reduce, for every way in which libraries report a lack of memory."""
    try:
        yield
    except (MemoryError, RuntimeError, ConfigError) as error:
        if not (isinstance(error, MemoryError) or any(sign in str(error) for sign in MEMORY_SIGNS)):
            raise
        raise OutOfMemory(
            f"out of memory on {device}: reduce batch_size, sampler.pool_size or the model, "
            "or keep the data off the device with dataset.residency"
        ) from error
