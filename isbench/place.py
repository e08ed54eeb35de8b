"""Which of the processes that torchrun or srun started together this one is, as their variables say. Without torch."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from isbench.errors import ConfigError


class Place(NamedTuple):
    """This process's number among `size` that train together; one that was started alone is number 0 of 1."""

    rank: int
    size: int


def place(variables: Mapping[str, str] = os.environ) -> Place:
    """Return the place of this process. What torchrun says, also inside a task of srun, comes first.

    Raises:
        ConfigError: a variable holds no such number, or is missing.
    """
    tasks = slurm_tasks(variables)
    size = whole(variables, "WORLD_SIZE", tasks, 1)
    source = "SLURM_PROCID" if tasks > 1 and not variables.get("RANK") else "RANK"
    return Place(whole(variables, source, 0 if size == 1 else None, 0, size - 1), size)


def slurm_tasks(variables: Mapping[str, str] = os.environ) -> int:
    """Return how many processes srun started together, 1 without srun. Raises ConfigError if that is no number."""
    return whole(variables, "SLURM_STEP_NUM_TASKS", 1, 1)


def whole(variables: Mapping[str, str], name: str, default: int | None, least: int, most: int | None = None) -> int:
    """Return the whole number that a variable holds; the default where it is empty or missing.

    Raises:
        ConfigError: it holds something else, or there is no default.
    """
    text = variables.get(name, "").strip()
    if not text and default is not None:
        return default
    if text.isdecimal() and text.isascii() and least <= int(text) <= (int(text) if most is None else most):
        return int(text)
    allowed = f"a whole number, at least {least}" if most is None else f"a whole number from {least} to {most}"
    raise ConfigError(
        f"{name}={text}: must be {allowed}: torchrun and srun set it; for a run in one process, unset it and WORLD_SIZE"
    )
