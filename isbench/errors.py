"""The errors that a user can cause. Each carries one line; the command line prints it without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can put right: a value, a file, a device. The message is one line."""


class ConfigError(UserError):
    """A key or value of the configuration that cannot be used."""


class Incompatible(UserError):
    """Choices that are each valid but do not go together. The run is recorded as skipped, and a grid goes on."""


class DataError(UserError):
    """A data file that is missing or damaged. The message names the file, the expected checksum and the remedy."""


class Diverged(Exception):
    """Training met a value that is not finite. The run is closed as diverged; the records stay."""


class GridFailed(Exception):
    """Runs of a grid failed or diverged. `args` has one line for each reason."""


class Interrupted(BaseException):  # not an Exception: nothing but the entry point may swallow it
    """A signal asked the run to stop. Its checkpoint is written; the same command continues it."""


class OutOfMemory(UserError):
    """A run that needs more memory than its device, or the machine, has."""


# What the messages of torch's allocators, of CUDA's libraries and of C++ have in common.
MEMORY_SIGNS = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "bad_alloc", "Unable to allocate")


@contextmanager
def memory_named(device: str) -> Iterator[None]:
    """Turn a lack of memory, which libraries report in many ways, into one line that says what to reduce."""
    try:
        yield
    except (MemoryError, RuntimeError, ConfigError) as error:
        if not (isinstance(error, MemoryError) or any(sign in str(error) for sign in MEMORY_SIGNS)):
            raise
        raise OutOfMemory(
            f"out of memory on {device}: reduce batch_size, sampler.pool_size or the model, "
            "or keep the data off the device with dataset.residency"
        ) from error
