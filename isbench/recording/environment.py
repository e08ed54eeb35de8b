"""Facts about the machine and software of a run, without which its seconds mean nothing.

An unknown fact is None: nothing here raises or waits for long. Records may be published, so they contain no names of
hosts or users, and no paths.
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
    """Describe the software and hardware of a run on `device` ("cpu", "cuda", "cuda:1").

    Keys: isbench, git_commit, git_dirty (None outside a source checkout), python, torch, cuda, cudnn, os, cpu,
    logical_cores, torch_threads, load_average (1, 5, 15 minutes), gpu, driver, gpu_sm_mhz, gpu_max_sm_mhz,
    gpu_memory_mhz, gpu_processes, shared_gpu (without a GPU the last seven are None).
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
    """Return the commit of the checkout at `root`, if it has its own .git: others' repositories do not count."""
    unknown: dict[str, str | bool | None] = {"git_commit": None, "git_dirty": None}
    if not (root / ".git").exists():
        return unknown
    # Optional locks would make runs that start together disturb each other.
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
    # nvidia-smi ignores CUDA_VISIBLE_DEVICES and numbers devices differently; the identifier is the same.
    query = ["nvidia-smi", f"--id=GPU-{getattr(properties, 'uuid', None)}", "--format=csv,noheader,nounits"]
    state = _output([*query, "--query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem"])
    if state is not None:
        facts.update(_parse_gpu_state(state))
    # nvidia-smi lists this process only if it has a context.
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
    """Count the processes. Ours is among them, but a container gives it another number, so it cannot be left out."""
    count = len({line.strip() for line in text.splitlines() if line.strip().isdigit()})
    return {"gpu_processes": count, "shared_gpu": count > 1} if count else {}


def _output(command: list[str]) -> str | None:
    """Return what a command prints, None if it fails or is slow."""
    # A git hook sets variables that would point git at another repository.
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
        # subprocess.run would wait for the process to end, but one that is stuck in a driver never ends.
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        if process.stdout is not None:
            process.stdout.close()
        return None
    return text if process.returncode == 0 else None


def _attempt(ask: Callable[[], Any]) -> Any:
    """Return ask(), or None if it raises: a missing fact must not end a run."""
    try:
        return ask()
    except Exception:
        return None
