"""Shared pieces: small configurations, composed as the command line does it, and one thread per process."""

import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import Tensor

from isbench.build import Parts
from isbench.config import config_folder
from isbench.loop import take_update
from isbench.recording.record import effective_rows, read_rows
from isbench.testing import TINY, TickClock, build_parts, compose_config, same_state, tensors, train_parts  # noqa: F401
from isbench.types import Draw
from tests.wandb_server import WandbServer

torch.set_num_threads(1)

SAMPLERS = sorted(path.stem for path in (config_folder() / "sampler").glob("*.yaml"))
TINY_POOLS = {"pool_size": "32", "fit_examples": "64", "bank_size": "25"}
LENET = (*(override for override in TINY if not override.startswith("model")), "model=lenet")
MACHINE = ("attempt", "train_seconds", "concurrent_runs", "cpu_wait")  # what two equal runs need not share


def tiny_overrides(sampler: str) -> list[str]:
    """Return the overrides that make a sampler's own sizes fit the tiny run."""
    text = (config_folder() / "sampler" / f"{sampler}.yaml").read_text()
    sizes = [f"sampler.{key}={value}" for key, value in TINY_POOLS.items() if f"\n{key}:" in text]
    return [*TINY, f"sampler={sampler}", *sizes]


def train_once(parts: Parts, rate: float) -> Draw:
    """Take one update as the loop does, its gain counted; return its draw."""
    return take_update(parts.sampler, parts.step, rate, parts.progress)[0]


def example_gradients(parts: Parts) -> Tensor:
    """Return the gradient of each training example, (N, P), one backward pass each."""
    inputs, targets = parts.dataset.plain(torch.arange(parts.dataset.num_examples))
    parameters = list(parts.model.parameters())
    rows = []
    for example, target in zip(inputs, targets, strict=True):
        gradients = torch.autograd.grad(parts.criterion(parts.model(example[None]), target[None])[0], parameters)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def comparable(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows without what depends on the machine."""
    return [{key: value for key, value in row.items() if key not in MACHINE} for row in rows]


def final_rows(record: Path) -> list[dict[str, Any]]:
    """Return the rows of a record that count, without what depends on the machine."""
    return comparable(effective_rows(read_rows(record)))


def wait_for_rows(folder: Path, count: int) -> Path:
    """Wait until the runs below a folder have made so many evaluations together; return one of their records."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        paths = list(folder.rglob("record.jsonl"))
        if sum(row["kind"] == "evaluation" for path in paths for row in read_rows(path)) >= count:
            return paths[0]
        time.sleep(0.02)  # the runs need the cores
    raise AssertionError(f"no {count} rows were written")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those in tests/gpu, and let Ctrl-C reach the processes that tests start.

    Those are about the CPU, whose bits, clock and name must be the same on every machine. A script or nohup lets what
    it starts in the background ignore SIGINT, and that would be inherited.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture
def no_account(monkeypatch, tmp_path_factory) -> None:
    """Hide the W&B settings of whoever runs the tests, and point W&B at a port where nobody listens."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")


@pytest.fixture
def wandb_server(no_account, monkeypatch) -> Iterator[WandbServer]:
    """Be W&B's server, on loopback, for a client with an account."""
    with WandbServer() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "local" + "0" * 40)
        yield server
        server.shutdown()
    assert not server.not_understood


@pytest.fixture
def data_dir() -> Path:
    """Return the folder of real data sets, or skip the test."""
    folder = os.environ.get("ISBENCH_DATA")
    if not folder:
        pytest.skip("ISBENCH_DATA names no folder of data sets")
    return Path(folder)
