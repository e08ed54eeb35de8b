"""kill -9 of a run that two processes share: whoever is left ends, and the same command leaves the undisturbed rows."""

import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.commands import CALLS, record_in, start_two
from tests.conftest import SAMPLERS, final_rows
from tests.faults.conftest import Undisturbed, run_words, share
from tests.faults.test_machine import complaint

KILLS = 100
FEW = ("budget.limit=12", "evaluation.points=6")
WHERE = (*CALLS[:-1], "anywhere")


@pytest.fixture(scope="session")
def undisturbed_two(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Undisturbed]:
    @cache
    def run(sampler: str) -> Undisturbed:
        folder = tmp_path_factory.mktemp("undisturbed")
        started = time.monotonic()
        finish_two([*run_words(sampler, folder), *FEW], folder)
        return Undisturbed(final_rows(record_in(folder)), {}, time.monotonic() - started)

    return run


def finish_two(words: list[str], folder: Path) -> None:
    processes = start_two(words, folder)
    assert [process.wait() for process in processes] == [0, 0], [process.output for process in processes]


@pytest.mark.parametrize("number", share(range(KILLS), few=3))
def test_a_kill_of_one_or_both(number: int, undisturbed_two, chance, struck, same_as, tmp_path: Path) -> None:
    sampler, where = SAMPLERS[number % len(SAMPLERS)], WHERE[number % len(WHERE)]
    # A process that has not found the other yet would wait for one that comes late.
    victims = [0, 1] if where == "anywhere" else chance.choice([[0, 1], [0], [1]])
    expected = undisturbed_two(sampler)
    words = [*run_words(sampler, tmp_path), *FEW]
    if where == "anywhere":
        processes = start_two(words, tmp_path)
        time.sleep(expected.seconds * chance.random())
    else:
        processes = start_two(words, tmp_path, [(where, chance.randint(1, 6))])
        processes[0].wait_until_halted()
    for victim in victims:
        processes[victim].process.kill()
    if where != "anywhere" and 0 not in victims:
        processes[0].go_on()
    codes = [process.wait() for process in processes]
    struck("kill -9 of a run of two processes")
    for rank in {0, 1} - set(victims):  # it notices, unless the run was over
        assert codes[rank] in (0, 1)
        if codes[rank] == 1:
            assert "another process of this run has ended" in complaint(processes[rank].output)
    assert all(codes[victim] in (-signal.SIGKILL, 0) for victim in victims)
    finish_two(words, tmp_path)
    same_as(record_in(tmp_path), expected)
