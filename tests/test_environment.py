"""The facts that a run records about its machine: documented, quick, never fatal, nothing private."""

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from isbench.recording import environment as module
from isbench.recording.environment import environment

GPU_FACTS = ("gpu", "driver", "gpu_sm_mhz", "gpu_max_sm_mhz", "gpu_memory_mhz", "gpu_processes", "shared_gpu")


def command(folder: Path, name: str, code: str) -> Path:
    """Put a command of that name, written in Python, into a folder."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -c {shlex.quote(code)} "$@"\n')
    path.chmod(0o755)
    return path


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "commit.gpgsign=false"]
    process = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return process.stdout.strip()


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:99"])
def test_the_keys_are_those_documented(device: str) -> None:
    assert environment.__doc__ is not None
    listed = re.search(r"Keys: (.*)\.", environment.__doc__, re.DOTALL)
    assert listed is not None
    documented = re.sub(r"\(.*?\)", "", listed[1], flags=re.DOTALL)
    assert list(environment(device)) == re.findall(r"\w+", documented)


def test_facts_without_a_gpu() -> None:
    facts = environment("cpu")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["torch"] == torch.__version__ and facts["torch_threads"] == torch.get_num_threads()
    assert facts["cpu"] and facts["logical_cores"] >= 1 and len(facts["load_average"]) == 3
    assert all(facts[name] is None for name in GPU_FACTS)


def test_facts_are_quick() -> None:
    def seconds() -> float:
        started = time.perf_counter()
        environment("cpu")
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < 0.5


def test_facts_are_not_private() -> None:
    private = [re.escape(name) for name in (socket.gethostname(), Path.home().name) if name]
    for name, value in environment("cuda").items():
        assert not re.search(rf"\b({'|'.join(private)})\b", str(value)), f"{name} names the host or the user"
        assert not re.search(r"(^|\s)[/~]", str(value)), f"{name} holds a path"


def test_nothing_raises_without_commands(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert module._output(["git", "--version"]) is None
    facts = environment("cuda")
    assert facts["git_commit"] is None and facts["git_dirty"] is None and facts["torch"] == torch.__version__


def test_the_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch) -> None:
    unknown = {"git_commit": None, "git_dirty": None}
    assert module._checkout(tmp_path) == unknown
    git(tmp_path, "init", "--quiet")
    assert module._checkout(tmp_path) == {"git_commit": None, "git_dirty": False}
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "--message=first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert module._checkout(tmp_path) == {"git_commit": commit, "git_dirty": False}
    monkeypatch.setenv("GIT_DIR", "elsewhere")
    assert module._checkout(tmp_path)["git_commit"] == commit, "as inside a hook of another repository"
    (tmp_path / "file").write_text("2")
    assert module._checkout(tmp_path) == {"git_commit": commit, "git_dirty": True}
    (tmp_path / "site-packages").mkdir()
    assert module._checkout(tmp_path / "site-packages") == unknown, "installed inside somebody else's repository"


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        "print('1'); raise SystemExit(1)",
        "import os; os.write(1, bytes([255]))",
    ],
)
def test_a_command_that_hangs_fails_or_babbles_is_no_answer(code: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_COMMAND_SECONDS", 0.5)
    started = time.perf_counter()
    assert module._output([str(command(tmp_path, "asked", code))]) is None
    assert time.perf_counter() - started < 1.5


def test_what_nvidia_smi_says() -> None:
    facts = {"driver": "580.1", "gpu_sm_mhz": 345, "gpu_max_sm_mhz": 1980, "gpu_memory_mhz": 3201}
    assert module._parse_gpu_state("580.1, 345, 1980, 3201\n") == facts
    assert module._parse_gpu_state("580.1, [N/A], 1980, [Not Supported]\n") == {
        **facts,
        "gpu_sm_mhz": None,
        "gpu_memory_mhz": None,
    }
    for text in ("", "nonsense", "No devices were found\n", "580.1, 345, 1980, 3201\n580.1, 345, 1980, 3201\n"):
        assert module._parse_gpu_state(text) == {}
    assert module._parse_gpu_processes("12\n") == {"gpu_processes": 1, "shared_gpu": False}
    assert module._parse_gpu_processes("12\n 13 \n12\n") == {"gpu_processes": 2, "shared_gpu": True}
    for text in ("", "\n", "[N/A]\n"):
        assert module._parse_gpu_processes(text) == {}


def test_the_gpu_asked_about_is_that_of_the_run(tmp_path: Path, monkeypatch) -> None:
    """nvidia-smi answers here only if it is asked for the one GPU by its identifier."""
    code = (
        "import sys; assert '--id=GPU-0a1b' in sys.argv;"
        "print('580.1, 345, 1980, 3201' if '--query-compute-apps=pid' not in sys.argv else '12\\n13')"
    )
    command(tmp_path, "nvidia-smi", code)
    monkeypatch.setenv("PATH", str(tmp_path))
    properties = SimpleNamespace(name="NVIDIA H200", uuid="0a1b")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    facts = environment("cuda:1")
    values = ("NVIDIA H200", "580.1", 345, 1980, 3201, 2, True)
    assert {name: facts[name] for name in GPU_FACTS} == dict(zip(GPU_FACTS, values, strict=True))
