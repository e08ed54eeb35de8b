"""The mirror in W&B: the same rows, and never in the way of training. All servers here are on loopback."""

import itertools
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from isbench.config import config_folder, tags
from isbench.errors import ConfigError
from isbench.recording.record import effective_rows, read_rows
from isbench.recording.wandb_sink import NullSink, WandbSink, flat, make_sink
from tests.conftest import TINY, compose_config
from tests.wandb_server import WandbServer

CONFIG = {"seed": 3, "sampler": {"name": "loss", "_target_": "module.Loss", "tau": None}, "data": {"checksum": "c0"}}
FACTS = ("num_parameters", "data", "environment")
SHOWN = {"seed": 3, "sampler": "loss", "sampler/tau": None, "data/checksum": "c0"}
RECORD_LINE = '{"kind": "start", "value": 0.1234567890123456789, "wide": [[1, null], []]}'
TINY_OFFLINE = (*(override for override in TINY if not override.startswith("logging")), "logging=offline")
WANDB = Path(sys.executable).with_name("wandb")
WAIT = 4.0  # enough for a busy machine to start W&B once more
# Uses a sink as a run does, then says how long each part took and what was logged.
USE = """
import json, logging, os, sys, time
from pathlib import Path
from isbench.recording.wandb_sink import make_sink
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("isbench").addHandler(handler)
mode, folder, wait, rows = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), json.loads(sys.argv[4])
moments = [time.monotonic()]
settings = {"project": "project", "run_id": "abcd1234", "root_dir": str(folder)}
sink = make_sink(mode, wait, folder / "record.jsonl", {}, settings)
moments.append(time.monotonic())
for row in rows:
    sink.log(row)
moments.append(time.monotonic())
if mode == "offline":
    time.sleep(0.5)
    os.kill(os.getpid(), 9)
sink.finish("finished", "")
moments.append(time.monotonic())
print(json.dumps([[after - before for before, after in zip(moments, moments[1:])], lines]))
"""
pytestmark = pytest.mark.usefixtures("no_account")
SWEEP = Path(__file__).resolve().parent.parent / "scripts" / "sweep.yaml"
# W&B's agent with a sweep file and the values that a server would choose, as JSON; it expands and starts the command.
AGENT = """
import json, sys, yaml
from wandb.wandb_agent import Agent
agent = Agent(None, None)
agent._sweep_command = yaml.safe_load(open(sys.argv[1]))["command"]
agent._command_run({"run_id": "chosen01", "program": "", "args": json.loads(sys.argv[2])})
sys.exit(agent._run_processes["chosen01"].wait())
"""


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


def open_sink(folder: Path, mode: str = "offline", seconds: float = 60.0, next_step: int = 0) -> Any:
    """Open the sink of a run whose record has one line."""
    (folder / "record.jsonl").write_text(f"{RECORD_LINE}\n")
    settings = {"project": "project", "run_group": "group", "run_tags": ["tag"], "run_job_type": "arm"}
    settings |= {"run_id": "abcd1234", "run_name": "name", "root_dir": str(folder)}
    return make_sink(mode, seconds, folder / "record.jsonl", CONFIG, settings, next_step)


def use_sink(mode: str, folder: Path, expected: list[dict[str, Any]]) -> subprocess.Popen:
    command = [sys.executable, "-c", USE, mode, str(folder), str(WAIT), json.dumps(expected)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def processes_of(sink: WandbSink) -> list[int]:
    """Return the process that mirrors, and the service that W&B starts in it."""
    mirror = sink._process.pid
    children = [Path(task, "children").read_text().split() for task in Path(f"/proc/{mirror}/task").iterdir()]
    return [mirror, *map(int, itertools.chain.from_iterable(children))]


def read_back(folder: Path) -> list[list[dict[str, Any]]]:
    """Read each of a run's files, in the order they were begun, with W&B's own reader."""
    files = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        command = [str(WANDB), "leet", "inspect", "--json", str(path)]
        lines = subprocess.run(command, capture_output=True, check=True).stdout.splitlines()
        files.append([json.loads(line) for line in lines])
    return files


def history(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows in a file; they must stand at the step of their number of updates."""
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [item["_step"] for item in items] == [item["updates"] for item in items]
    return [{key: value for key, value in item.items() if key[0] != "_"} for item in items]


def mirrored(expected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return evaluation rows as W&B is to show them: their numbers, all of them, unchanged."""
    return [
        {key: "NaN" if value != value else value for key, value in row.items() if key != "kind"} for row in expected
    ]


def ending(records: list[dict[str, Any]]) -> tuple[str, int]:
    """Return the status in the summary of a file that W&B has completed, and its exit code."""
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    return summary["status"], records[-1]["exit"].get("exit_code", 0)


def test_rows_come_back_and_a_resumed_run_goes_on(tmp_path: Path, caplog) -> None:
    attempts = [rows(0, 10, 20), rows(0, 10, 20, 25, attempt=2)]
    endings = [("interrupted", 1), ("finished", 0)]
    for attempt, (status, _) in zip(attempts, endings, strict=True):
        sink = open_sink(tmp_path, next_step=21 if attempt is attempts[1] else 0)
        assert os.getpgid(sink._process.pid) != os.getpgid(0), "Ctrl-C is for the training process alone"
        processes = processes_of(sink)
        assert len(processes) == 2
        for row in attempt:
            sink.log(row)
            # A scheduler may signal every process of a job, W&B's own ones too. SIGTERM ends those.
            for number in (signal.SIGUSR1, signal.SIGUSR2, *([signal.SIGTERM] if row is attempt[-1] else [])):
                for process in processes:
                    os.kill(process, number)
        sink.finish(status, "why")
    files = read_back(tmp_path)
    assert [history(records) for records in files] == [mirrored(attempts[0]), mirrored(attempts[1][3:])]
    assert [ending(records) for records in files] == endings
    for records in files:
        (opening,) = [record["run"] for record in records if record["type"] == "run"]
        assert (opening["project"], opening["run_group"], opening["tags"]) == ("project", "group", ["tag"])
        assert (opening["run_id"], opening["display_name"], opening["job_type"]) == ("abcd1234", "name", "arm")
        assert opening["resume"] is True
        assert {key: value for key, value in opening["config"]["update"].items() if key[0] != "_"} == SHOWN
        assert "host" not in opening
        assert "environment" not in [record["type"] for record in records], "it would name paths"
        metrics = {record["metric"].get("name"): record["metric"] for record in records if "metric" in record}
        assert {metric["step_metric"] for metric in metrics.values()} == {"train_seconds"}
        assert metrics["updates"]["options"]["hidden"] and "test_error" not in metrics
    saved = [path for path in tmp_path.glob("wandb/offline-run-*/files/**/*") if path.is_file()]
    assert [path.name for path in saved] == ["isbench.jsonl"] * 2, "no list of packages, no description of the machine"
    assert {path.read_text() for path in saved} == {f"{RECORD_LINE}\n"}
    assert not caplog.records


def test_a_run_stopped_by_a_signal_is_mirrored(tmp_path: Path) -> None:
    """The signal goes to the whole process group, as from a terminal."""
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
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    (path,) = tmp_path.rglob("record.jsonl")
    expected = effective_rows(read_rows(path))
    (records,) = read_back(tmp_path)
    assert len(expected) > 1 and history(records) == mirrored(expected)
    assert ending(records) == ("interrupted", 1)


def test_the_mirror_of_a_killed_run_is_completed(tmp_path: Path) -> None:
    expected = rows(0, 10, 20)
    process = use_sink("offline", tmp_path, expected)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while (records := read_back(tmp_path)[0])[-1]["type"] != "exit":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert history(records) == mirrored(expected) and ending(records) == ("interrupted", 1)


def test_a_real_run_is_mirrored_and_imports_no_wandb(tmp_path: Path) -> None:
    tiny = [*TINY, "group=is_cifar10"]
    runs = [[*tiny, f"runs_dir={tmp_path}/{mode}", f"logging={mode}"] for mode in ("off", "offline")]
    code = (
        "import sys\nfrom isbench.cli import main\n"
        f"for overrides in {runs!r}:\n    sys.argv[1:] = overrides\n    main()\n"
        "sys.exit('wandb' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    off, offline = (path.parent for mode in ("off", "offline") for path in (tmp_path / mode).rglob("record.jsonl"))
    assert {path.name for path in off.iterdir()} == {"lock", "record.jsonl"}
    expected = effective_rows(read_rows(offline / "record.jsonl"))
    (records,) = read_back(tmp_path / "offline" / "is_cifar10")
    assert len(expected) > 2 and history(records) == mirrored(expected)
    assert ending(records) == ("finished", 0)
    (opening,) = [record["run"] for record in records if record["type"] == "run"]
    assert (opening["run_group"], opening["tags"]) == ("is_cifar10", ["is", "uniform"]), "the paper and the method"
    shown = {key: value for key, value in opening["config"]["update"].items() if key[0] != "_"}
    start = read_rows(offline / "record.jsonl")[0]
    assert shown == {"run_id": start["run_id"]} | flat({**start["config"], **{key: start[key] for key in FACTS}})


def test_tags_are_the_paper_the_sampler_and_those_asked_for() -> None:
    config = compose_config(*TINY, "sampler=loss", "logging.tags=[mine]")
    assert tags(config) == ["loss", "mine"], "no experiment, no paper"
    assert tags(replace(config, group="demo")) == ["loss", "mine"]
    paths = list((config_folder() / "experiment").glob("*/*.yaml"))
    assert {path.parent.name for path in paths} >= {"sgds", "is", "impon", "rais"}
    for path in paths:
        assert tags(replace(config, group=path.stem)) == [path.parent.name, "loss", "mine"]


def test_the_sweep_file_trains_what_the_agent_asks_for(tmp_path: Path, monkeypatch) -> None:
    sweep = yaml.safe_load(SWEEP.read_text())
    assert sweep["method"] == "grid" and sweep["metric"]["name"] == "test_error"
    chosen = {key: parameter["values"][-1] for key, parameter in sweep["parameters"].items()}
    small = {"budget.limit": 0.1, "evaluation.points": 2, "numerics.threads": 1, "runs_dir": str(tmp_path)}
    arguments = {key: {"value": value} for key, value in {**chosen, **small}.items()}
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep001")
    command = [sys.executable, "-c", AGENT, str(SWEEP), json.dumps(arguments)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = tmp_path.rglob("record.jsonl")
    config = read_rows(path)[0]["config"]
    assert (config["seed"], config["optimizer"]["lr"], config["sampler"]["name"]) == tuple(chosen.values())
    (records,) = read_back(tmp_path / "sweep")
    assert history(records) == mirrored(effective_rows(read_rows(path))) and ending(records) == ("finished", 0)
    (opening,) = [record["run"] for record in records if record["type"] == "run"]
    assert opening["config"]["update"]["optimizer/lr"] == chosen["optimizer.lr"]
    assert (opening["run_id"], opening["sweep_id"], opening["run_group"]) == ("chosen01", "sweep001", "sweep")


def test_off_is_without_a_mirror(tmp_path: Path) -> None:
    assert isinstance(open_sink(tmp_path, "off"), NullSink)


def test_online_without_an_answer_waits_no_longer_than_stated(tmp_path: Path, monkeypatch) -> None:
    expected = rows(0, 10, 20)
    processes = {"no account": use_sink("online", tmp_path / "no account", expected)}
    monkeypatch.setenv("WANDB_API_KEY", "local" + "0" * 40)
    processes["nobody"] = use_sink("online", tmp_path / "nobody", expected)
    # Connections are accepted by the system, and nobody ever reads them.
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        processes["silent"] = use_sink("online", tmp_path / "silent", expected)
        # Three waits, and what Python needs to start and to end.
        outputs = {case: process.communicate(timeout=3 * WAIT + 3)[0] for case, process in processes.items()}
    for case, output in outputs.items():
        (opened, logged, finished), (line,) = json.loads(output)
        assert opened < 2 * WAIT + 0.5 and logged < 0.1 and finished < WAIT + 0.5, case
        command = shlex.split(line.split("`")[-2])  # the last; W&B's own advice may come before
        assert "continues offline" in line and command[:2] == ["wandb", "sync"] and "\n" not in line
        assert Path(command[2]).parent == tmp_path / case / "wandb"
        assert ("API key" in line) == (case == "no account")
        (records,) = read_back(tmp_path / case)
        assert history(records) == mirrored(expected) and ending(records) == ("finished", 0), case


def test_a_mirror_that_hangs_is_left_behind(tmp_path: Path, caplog) -> None:
    sink = open_sink(tmp_path, seconds=1.0)
    os.kill(sink._process.pid, signal.SIGSTOP)
    started = time.monotonic()
    for row in rows(*range(3000)):  # more than a pipe holds
        sink.log(row)
    assert time.monotonic() - started < 0.5
    sink.finish("finished", "")
    assert time.monotonic() - started < 1.0 + 1.0
    (line,) = caplog.messages
    assert "stopped after 1 s" in line
    assert sink._process.poll() is not None


def test_a_mirror_that_dies_is_begun_again(tmp_path: Path, caplog) -> None:
    expected = rows(0, 10)
    sink = open_sink(tmp_path)
    sink.log(expected[0])
    sink._process.kill()
    sink._process.wait()
    sink.log(expected[1])
    sink.finish("finished", "")
    assert mirrored(expected) in [history(records) for records in read_back(tmp_path)] and not caplog.messages


def test_what_wandb_refuses_is_said_at_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "nonsense")
    with pytest.raises(ConfigError, match="W&B refuses base_url: .*valid URL.*; see your variables WANDB_"):
        open_sink(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tags", ["a" * 64]),
        ("tags", ["fine", "a" * 65]),
        ("tags", [""]),
        ("tags", []),
        ("project", "a b"),
        ("project", "a/b"),
        ("project", "50%"),
        ("project", "a" * 128),
        ("project", "a" * 129),
    ],
)
def test_the_schema_refuses_what_wandb_refuses(key: str, value: Any) -> None:
    import wandb

    words = json.dumps(value)
    try:
        wandb.Settings(**{{"tags": "run_tags"}.get(key, key): value})
    except (ValueError, wandb.Error):
        with pytest.raises(ConfigError, match=rf"^logging\.{key}=.*: must have "):
            compose_config(*TINY, f"logging.{key}={words}")
    else:
        assert getattr(compose_config(*TINY, f"logging.{key}={words}").logging, key) == value


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("logging.entity=a/b", "logging.entity=a/b: must have none of"),
        ("logging.entity=''", "logging.entity=: must have at least 1 character, or null"),
        (f"group={'a' * 129}", "must have at most 128 characters, or null"),
        (f"sampler.name={'a' * 65}", "needs a name of at most 64 letters"),
    ],
)
def test_names_that_a_server_would_refuse(word: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        compose_config(*TINY, word)


def send(folder: Path, mode: str, rows: list[dict[str, Any]], ending: str, **changes: Any) -> None:
    sink = open_sink(folder, mode, **changes)
    for row in rows:
        sink.log(row)
    sink.finish(ending, "")


def sync(folder: Path, *words: str) -> None:
    """Call `wandb sync`, which leaves its logs in the folder where it is called."""
    subprocess.run([WANDB, "sync", *words], cwd=folder, check=True, capture_output=True)


def test_a_server_that_fails_half_way_gets_each_row_once(wandb_server: WandbServer, tmp_path: Path, caplog) -> None:
    expected = rows(0, 10, 20, 30)
    wandb_server.breaks_after = 2
    send(tmp_path, "online", expected, "finished")
    (line,) = caplog.messages
    assert line.startswith("W&B's server lacks a part: ")
    wandb_server.breaks_after = None
    (part,) = wandb_server.runs.values()
    lines = list(part.lines)
    assert len(lines) == 2
    for _ in range(2):  # the second time W&B finds nothing to send
        sync(tmp_path, *shlex.split(line.split("`")[1])[2:])
        (_, whole) = wandb_server.runs.values()
        assert part.lines == lines and whole.history == mirrored(expected)
        assert whole.files["isbench.jsonl"] == f"{RECORD_LINE}\n".encode()
        assert (whole.summary["status"], whole.exit_code) == ("finished", 0)


@pytest.mark.parametrize("modes", [("online", "online"), ("offline", "offline"), ("offline", "online")])
def test_a_server_has_each_row_of_a_resumed_run_once(
    modes: tuple[str, str], wandb_server: WandbServer, tmp_path: Path
) -> None:
    """The second attempt begins at update 10 of 20."""
    send(tmp_path, modes[0], rows(0, 10, 20), "interrupted")
    send(tmp_path, modes[1], rows(0, 10, 20, 30, attempt=2), "finished", next_step=21)
    sync(tmp_path, "wandb")
    (run,) = wandb_server.runs.values()
    assert [row["updates"] for row in run.history] == [0, 10, 20, 30]
    assert [row["attempt"] for row in run.history] == ([1, 1, 1, 2] if modes[0] == modes[1] else [2, 2, 2, 2])
    assert (run.summary["status"], run.exit_code, run.summary["updates"]) == ("finished", 0, 30)
    assert (run.about["groupName"], run.about["jobType"], run.config) == ("group", "arm", SHOWN)
