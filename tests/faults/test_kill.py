"""kill -9 at a hundred moments over all samplers: the same command again leaves the rows of an undisturbed run."""

import signal
import time
from pathlib import Path

import pytest

from tests.commands import CALLS, Command, finish, record_in
from tests.conftest import SAMPLERS
from tests.faults.conftest import run_words, share

KILLS = 100
AFRESH = 6  # of them by starting Python


def moment(number: int) -> str:
    """Return where the number-th kill strikes: one of CALLS, or anywhere, in turn."""
    return CALLS[number // 2 % len(CALLS)] if number % 2 else "anywhere"


def inside(call: str) -> str:
    """Return the kind of a kill inside one of CALLS."""
    return "kill -9 inside a record append" if call.startswith("record") else "kill -9 inside a checkpoint write"


@pytest.mark.parametrize("number", share(range(KILLS), few=6))
def test_the_same_command_after_a_kill_leaves_the_same_rows(
    number: int, undisturbed, chance, struck, same_as, tmp_path: Path
) -> None:
    sampler, where = SAMPLERS[number % len(SAMPLERS)], moment(number)
    expected = undisturbed(sampler)
    words = run_words(sampler, tmp_path)
    if where == "anywhere":
        afresh = number >= KILLS - 2 * AFRESH
        longest = 8 * expected.seconds if afresh else expected.seconds  # importing torch takes its time
        before = kill_anywhere(words, tmp_path, longest * chance.random(), afresh)
        struck("kill -9 at a random moment")
    else:
        command = Command(words, tmp_path / "log", stops=[(where, chance.randint(1, expected.calls[where]))])
        command.wait_until_halted()
        before = record_in(tmp_path).read_bytes()
        assert command.kill() == -signal.SIGKILL
        struck(inside(where))
    finish(words, tmp_path / "log")
    record = record_in(tmp_path)
    assert record.read_bytes().startswith(before), "what was written stays as it was"
    same_as(record, expected)
    assert {path.name for path in record.parent.iterdir()} - {"checkpoint.pt", "checkpoint.previous.pt"} == {
        "record.jsonl",
        "lock",
    }


def kill_anywhere(words: list[str], folder: Path, seconds: float, afresh: bool) -> bytes:
    """Kill a run after some seconds, earlier where it has ended by then; return its record."""
    while True:
        command = Command(words, folder / "log", afresh=afresh)
        time.sleep(seconds)
        code = command.kill()
        records = list(folder.rglob("record.jsonl"))
        if code == -signal.SIGKILL:
            return records[0].read_bytes() if records else b""
        assert code == 0, command.output
        records[0].unlink()
        seconds /= 2


@pytest.mark.faults
def test_killed_again_and_again_a_run_still_ends(undisturbed, chance, sampler, struck, same_as, tmp_path: Path) -> None:
    """Each attempt dies in the middle of its second checkpoint, or of its third row."""
    expected, words = undisturbed(sampler), run_words(sampler, tmp_path)
    kills = {"checkpoint write": 3, "record write": 4}
    for _ in range(5):
        where = chance.choice(list(kills))
        command = Command(words, tmp_path / "log", stops=[(where, kills[where])])
        command.wait_until_halted()
        command.kill()
        struck(inside(where))
    finish(words, tmp_path / "log")
    same_as(record_in(tmp_path), expected)
