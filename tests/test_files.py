"""Files appear whole or not at all; progress is said now and then."""

import errno
import os

import pytest

from isbench import progress_bar
from isbench.files import write_whole
from isbench.progress_bar import ProgressBar


def test_a_file_takes_the_place_of_the_one_before(tmp_path) -> None:
    path, previous = tmp_path / "file", tmp_path / "previous"
    (tmp_path / "file.1.unfinished").write_bytes(b"of a process that was killed")
    for content in (b"one", b"two", b"three"):
        write_whole(path, content, b"!", previous=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"three!", b"two!")
    assert set(tmp_path.iterdir()) == {path, previous}


def test_a_failure_leaves_the_file_as_it_was(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"before")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"after", previous=tmp_path / "previous")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys) -> None:
    seconds = 0.0
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: seconds)
    bar = ProgressBar("reading", 200)
    for done in range(1, 201):
        seconds += 0.15
        bar.count(done)
    bar.update(200, "done", is_due=True)
    bar.close()
    expected = ["reading:  34%  67 of 200", "reading:  67%  134 of 200", "reading: 100%  done"]
    assert capsys.readouterr().err.splitlines() == expected
