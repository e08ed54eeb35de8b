"""Where a run took place: versions, commit, processor and accelerator, and whether others were using them.

Seconds mean something only together with these facts. What cannot be found out is None; nothing here raises or waits
for long. The host's name, user names and paths are deliberately left out, so that records can be published.
"""

import contextlib
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import isbench

_COMMAND_SECONDS = 5.0


def environment(device: str) -> dict[str, Any]:
    """Describe software and hardware of a run on `device` ("cpu", "cuda", "cuda:1").

    Keys: isbench, git_commit, git_dirty (None unless run from a source checkout), python, torch, cuda, cudnn, os, cpu,
    logical_cores, torch_threads, load_average (1, 5, 15 minutes), gpu, driver, gpu_sm_mhz, gpu_max_sm_mhz,
    gpu_memory_mhz, gpu_processes, shared_gpu (None where unknown or without a GPU).
    """
    facts: dict[str, Any] = {
        "isbench": isbench.__version__,
        **_checkout(Path(isbench.__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": _attempt(torch.backends.cudnn.version),
        "os": _attempt(platform.platform),
        "cpu": _attempt(_cpu_name),
        "logical_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": _attempt(lambda: [round(load, 2) for load in os.getloadavg()]),
    }
    return facts | _gpu(device)


def _checkout(root: Path) -> dict[str, str | bool | None]:
    """Return the commit of the checkout at `root`. An installed package may lie inside somebody else's repository."""
    unknown: dict[str, str | bool | None] = {"git_commit": None, "git_dirty": None}
    if not (root / ".git").exists():
        return unknown
    # Without optional locks, many runs starting at once do not get in each other's way.
    status = _output(["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain=v2", "--branch"])
    if status is None:
        return unknown
    lines = status.splitlines()
    commits = [line.split()[-1] for line in lines if line.startswith("# branch.oid ") and "(initial)" not in line]
    return {
        "git_commit": commits[0] if commits else None,
        "git_dirty": any(not line.startswith("#") for line in lines),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu(device: str) -> dict[str, Any]:
    facts: dict[str, Any] = dict.fromkeys(
        ("gpu", "driver", "gpu_sm_mhz", "gpu_max_sm_mhz", "gpu_memory_mhz", "gpu_processes", "shared_gpu")
    )
    if not device.startswith("cuda"):
        return facts
    properties = _attempt(lambda: torch.cuda.get_device_properties(device))
    if properties is None:
        return facts
    facts["gpu"] = properties.name
    # nvidia-smi counts devices in its own order, CUDA_VISIBLE_DEVICES aside: the identifier is the same for both.
    query = ["nvidia-smi", f"--id=GPU-{getattr(properties, 'uuid', None)}", "--format=csv,noheader,nounits"]
    state = _output([*query, "--query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem"])
    if state is not None:
        facts.update(_parse_gpu_state(state))
    # Our own context makes this process one of those listed.
    _attempt(lambda: torch.cuda.synchronize(device))
    listed = _output([*query, "--query-compute-apps=pid"])
    if listed is not None:
        facts.update(_parse_gpu_processes(listed))
    return facts


def _parse_gpu_state(text: str) -> dict[str, Any]:
    values = [value.strip() for value in text.split(",")]
    if len(values) != 4:
        return {}
    clocks = [int(value) if value.isdigit() else None for value in values[1:]]
    return {"driver": values[0], **dict(zip(("gpu_sm_mhz", "gpu_max_sm_mhz", "gpu_memory_mhz"), clocks, strict=True))}


def _parse_gpu_processes(text: str) -> dict[str, Any]:
    """Count the processes. A container numbers its own, so that ours is among them but cannot be told apart."""
    count = len({line.strip() for line in text.splitlines() if line.strip().isdigit()})
    return {"gpu_processes": count, "shared_gpu": count > 1} if count else {}


def _output(command: list[str]) -> str | None:
    """Return what a command prints, None if it fails or is slow."""
    # Inside a git hook these variables would point git at another repository.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=variables,
            text=True,
        )
    except OSError:
        return None
    try:
        text, _ = process.communicate(timeout=_COMMAND_SECONDS)
    except (subprocess.TimeoutExpired, ValueError):
        # subprocess.run would wait for the end, which a process stuck inside a driver never reaches.
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        if process.stdout is not None:
            process.stdout.close()
        return None
    return text if process.returncode == 0 else None


def _attempt(ask: Callable[[], Any]) -> Any:
    """Return ask(), None if it raises: a fact that is missing must not end a run."""
    try:
        return ask()
    except Exception:
        return None
