"""The errors that a user can cause. Each carries one line; the command line prints it without a traceback."""


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


class Interrupted(BaseException):  # not an Exception: nothing but the entry point may swallow it
    """A signal asked the run to stop. Its checkpoint is written; the same command continues it."""
