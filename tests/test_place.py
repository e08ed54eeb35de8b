"""What torchrun and srun say of the processes that they start, and what others leave in the same variables."""

import pytest

from isbench.errors import ConfigError
from isbench.place import place

SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"RANK": " 1", "WORLD_SIZE": "2\n"}, (1, 2)),
        ({"RANK": "", "WORLD_SIZE": ""}, (0, 1)),
        ({"RANK": "0"}, (0, 1)),
        ({"WORLD_SIZE": "1"}, (0, 1)),
        (SRUN, (3, 4)),
        (SRUN | {"RANK": "", "WORLD_SIZE": ""}, (3, 4)),
        (SRUN | {"RANK": "0", "WORLD_SIZE": "2"}, (0, 2)),  # torchrun inside a task
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (0, 1)),
        ({"SLURM_STEP_NUM_TASKS": "", "SLURM_PROCID": ""}, (0, 1)),
        ({"SLURM_PROCID": "7", "SLURM_NTASKS": "8"}, (0, 1)),  # a batch script of a job with many tasks
    ],
)
def test_the_place_of_a_process(variables: dict[str, str], expected: tuple[int, int]) -> None:
    assert place(variables) == expected


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"RANK": "1"}, "RANK=1: must be a whole number from 0 to 0"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2: must be a whole number from 0 to 1"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1: must"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x: must"),
        ({"RANK": "1.0", "WORLD_SIZE": "2"}, "RANK=1.0: must"),
        ({"RANK": "١", "WORLD_SIZE": "2"}, "RANK=١: must"),
        ({"WORLD_SIZE": "2"}, "RANK=: must"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be a whole number, at least 1"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE=two: must"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID=: must be a whole number from 0 to 3"),
        (SRUN | {"SLURM_PROCID": "4"}, "SLURM_PROCID=4: must"),
        ({"SLURM_STEP_NUM_TASKS": "4(x2)"}, r"SLURM_STEP_NUM_TASKS=4\(x2\): must"),
    ],
)
def test_what_is_no_place_is_one_line(variables: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        place(variables)
