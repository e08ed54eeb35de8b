"""The mirror in W&B: the same rows, and never in the way of training. All servers here are on loopback."""

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from isbench.errors import ConfigError
from isbench.recording.record import effective_rows, last_status, read_rows
from isbench.recording.wandb_sink import NullSink, WandbSink, make_sink
from isbench.training.run import run
from tests.conftest import TINY, compose_config

CONFIG = {"seed": 3, "sampler": {"name": "loss", "tau": None}}
TINY_OFFLINE = (*(override for override in TINY if not override.startswith("logging")), "logging=offline")
WANDB = Path(sys.executable).with_name("wandb")
WAIT = 6.0  # long enough for a busy machine to start W&B a second time within it
# Uses a sink as a run does; the last line it prints says what that took and what was logged.
USE = """
import json, logging, sys, time
from pathlib import Path
from isbench.recording.wandb_sink import make_sink
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("isbench").addHandler(handler)
folder, wait, rows = Path(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
moments = [time.monotonic()]
sink = make_sink("online", "isbench", None, None, [], "abcd1234", "name", {}, folder, wait)
moments.append(time.monotonic())
for row in rows:
    sink.log(row)
moments.append(time.monotonic())
sink.finish("finished", "")
moments.append(time.monotonic())
print(json.dumps([[after - before for before, after in zip(moments, moments[1:])], lines]))
"""


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path_factory) -> None:
    """Hide the W&B settings of whoever runs the tests, and point W&B at a port where nobody listens."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}")


def closed_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return listener.getsockname()[1]


def rows(*updates: int, attempt: int = 1) -> list[dict[str, Any]]:
    return [
        {
            "kind": "evaluation",
            "attempt": attempt,
            "updates": n,
            "train_seconds": n / 7,
            "test_error": 1 / (n + 3),
            "gain": math.nan,
        }
        for n in updates
    ]


def open_sink(folder: Path, mode: str = "offline", seconds: float = 20.0) -> Any:
    return make_sink(mode, "project", None, "group", ["tag"], "abcd1234", "name", CONFIG, folder, seconds)


def read_back(folder: Path) -> list[list[dict[str, Any]]]:
    """Read each of a run's files, in the order they were begun, with W&B's own reader."""
    paths = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.parent.stat().st_ctime_ns)
    commands = [[WANDB, "leet", "inspect", "--json", path] for path in paths]
    texts = [subprocess.run(command, capture_output=True, check=True).stdout for command in commands]
    return [[json.loads(line) for line in text.splitlines()] for text in texts]


def history(folder: Path) -> list[list[dict[str, Any]]]:
    """Return the rows in each of a run's files; they must stand at the step of their number of updates."""
    files = []
    for records in read_back(folder):
        items = [record["history"]["item"] for record in records if record["type"] == "history"]
        assert [item["_step"] for item in items] == [item["updates"] for item in items]
        files.append([{key: value for key, value in item.items() if key[0] != "_"} for item in items])
    return files


def mirrored(expected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return evaluation rows as W&B is to show them: their numbers, all of them, unchanged."""
    return [
        {key: "NaN" if value != value else value for key, value in row.items() if key != "kind"} for row in expected
    ]


def test_offline_rows_come_back_and_a_resumed_run_goes_on(tmp_path: Path, caplog) -> None:
    first, second = rows(0, 10, 20), rows(15, 25, attempt=2)
    for status, attempt in (("interrupted", first), ("finished", second)):
        sink = open_sink(tmp_path)
        for row in attempt:
            sink.log(row)
        sink.finish(status, "why")
    assert history(tmp_path) == [mirrored(first), mirrored(second)]
    for (status, code), records in zip((("interrupted", 1), ("finished", 0)), read_back(tmp_path), strict=True):
        (opening,) = [record["run"] for record in records if record["type"] == "run"]
        assert (opening["project"], opening["run_group"], opening["tags"]) == ("project", "group", ["tag"])
        assert (opening["run_id"], opening["display_name"], opening["resume"]) == ("abcd1234", "name", True)
        assert {key: value for key, value in opening["config"]["update"].items() if key[0] != "_"} == CONFIG
        assert "host" not in opening
        summaries = [record["summary"]["update"] for record in records if record["type"] == "summary"]
        assert {"status": status, "reason": "why"} in summaries
        assert records[-1]["exit"].get("exit_code", 0) == code
    saved = [path for path in tmp_path.glob("wandb/offline-run-*/files/**/*") if path.is_file()]
    assert not saved, "no list of packages, no description of the host"
    assert not caplog.records


def test_a_real_run_is_mirrored(tmp_path: Path) -> None:
    outcome = run(compose_config(*TINY_OFFLINE, f"runs_dir={tmp_path}"))
    expected = effective_rows(read_rows(outcome.folder / "record.jsonl"))
    assert len(expected) > 2 and history(outcome.folder) == [mirrored(expected)]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_real_run_that_is_ended_is_mirrored(ending: signal.Signals, tmp_path: Path) -> None:
    """The signal goes to the whole process group, as from a scheduler or a terminal."""
    overrides = [*TINY_OFFLINE, "budget.limit=1000000", "evaluation.points=10000", f"runs_dir={tmp_path}"]
    with subprocess.Popen(
        [sys.executable, "-m", "isbench", *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not any(read_rows(path)[3:] for path in tmp_path.rglob("record.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, ending)
        process.wait(30)
    (record,) = tmp_path.rglob("record.jsonl")
    expected = mirrored(effective_rows(read_rows(record)))
    if ending == signal.SIGTERM:
        status = last_status(read_rows(record))
        assert status is not None and status[0] == "interrupted"
    else:  # the mirror notices that it is alone, and completes its file; the last row may not have reached it
        while not any(item["type"] == "exit" for records in read_back(record.parent) for item in records):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        expected = expected[: max(len(expected) - 1, len(history(record.parent)[0]))]
    assert len(expected) > 1 and history(record.parent) == [expected]


def test_a_signal_to_every_process_of_the_job_loses_nothing(tmp_path: Path, caplog) -> None:
    sink = open_sink(tmp_path)
    expected = rows(0, 10)
    sink.log(expected[0])
    assert os.getpgid(sink._process.pid) != os.getpgid(0), "Ctrl-C is for the training process alone"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(sink._process.pid, number)
    sink.log(expected[1])
    sink.finish("finished", "")
    assert history(tmp_path) == [mirrored(expected)] and not caplog.records


def test_off_imports_nothing(tmp_path: Path) -> None:
    assert isinstance(open_sink(tmp_path, "off"), NullSink)
    overrides = ["dataset=synthetic", "model=mlp", "budget.limit=10", "logging=off", "numerics.threads=1"]
    code = (
        f"import sys; sys.argv[1:] = {[*overrides, f'runs_dir={tmp_path}']!r}; from isbench.cli import main; main();"
        "sys.exit('wandb' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    (record,) = tmp_path.rglob("record.jsonl")
    assert {path.name for path in record.parent.iterdir()} == {"lock", "record.jsonl"}


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="offline, online or off, not 'sometimes'"):
        open_sink(tmp_path, "sometimes")


def test_servers_that_do_not_answer_cost_a_bounded_wait(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "local" + "0" * 40)
    expected = rows(0, 10, 20)
    processes = {}
    # Connections to the silent server are accepted by the system, and nobody ever reads them.
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        for server, port in (("nobody", closed_port()), ("silent", silent.getsockname()[1])):
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
            command = [sys.executable, "-c", USE, str(tmp_path / server), str(WAIT), json.dumps(expected)]
            processes[server] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        outputs = {server: process.communicate(timeout=30)[0] for server, process in processes.items()}
        ended = time.monotonic()
    for server, output in outputs.items():
        (opened, logged, finished), lines = json.loads(output)
        assert opened < WAIT + 0.5 and logged < 0.1 and finished < WAIT + 0.5, server
        (line,) = lines
        assert "goes on offline" in line and f"wandb sync {tmp_path / server}/wandb/" in line and "\n" not in line
        assert history(tmp_path / server) == [mirrored(expected)], server


def test_without_an_account_it_goes_on_offline(tmp_path: Path, caplog) -> None:
    expected = rows(0, 10, 20)
    started = time.monotonic()
    with caplog.at_level(logging.INFO, "isbench"):
        sink = open_sink(tmp_path, "online")
        for row in expected:
            sink.log(row)
        sink.finish("finished", "")
    assert time.monotonic() - started < 10, "nothing is waited for"
    (line,) = caplog.messages
    assert "goes on offline" in line and "API key" in line and "\n" not in line
    assert history(tmp_path) == [mirrored(expected)]


def test_a_mirror_that_hangs_is_left_behind(tmp_path: Path, caplog) -> None:
    sink = open_sink(tmp_path, seconds=1.5)
    os.kill(sink._process.pid, signal.SIGSTOP)
    started = time.monotonic()
    for row in rows(*range(3000)):  # more than a pipe holds
        sink.log(row)
    assert time.monotonic() - started < 0.5
    sink.finish("finished", "")
    assert time.monotonic() - started < 1.5 + 1.0
    (line,) = caplog.messages
    assert "stopped after 1.5 s" in line
    assert sink._process.poll() is not None


def test_a_mirror_that_dies_is_no_error(tmp_path: Path, caplog) -> None:
    sink = open_sink(tmp_path)
    sink._process.kill()
    sink._process.wait()
    for row in rows(0, 10):
        sink.log(row)
    sink.finish("finished", "")
    (line,) = caplog.messages
    assert "not complete: its process ended" in line
