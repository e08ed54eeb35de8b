"""What the tests on a GPU share. `make test-gpu` runs them where there is one.

With ISBENCH_PRETEND_GPU=1 their bodies run on `tests.pretend_gpu`, as far as that goes: it shows mistakes in the tests,
and in how devices are used, but nothing about a GPU.
"""

import os
import warnings
from collections.abc import Iterator

import pytest
import torch

from tests.pretend_gpu import pretend_gpu

IS_PRETENDED = os.environ.get("ISBENCH_PRETEND_GPU") == "1"
GPU = torch.device("cuda")

IS_THERE = IS_PRETENDED or torch.cuda.is_available()
# Torch warns of choices that are ours (float32 where there is TF32) only where there is a GPU.
on_a_gpu = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]
needs_a_real_one = pytest.mark.skipif(IS_PRETENDED, reason="a pretended GPU has no driver, memory or other processes")


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a GPU, or skip."""
    if IS_PRETENDED:
        with pretend_gpu(monkeypatch):
            yield
    elif IS_THERE:
        yield
    else:
        pytest.skip("no GPU")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not IS_THERE and config.option.markexpr == "gpu":
        terminalreporter.write_line("no GPU is available to torch here: the tests that need one were skipped")


class Waits:
    """Counts the operations inside it for which the host waits, by what CUDA's debug mode says of them."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self._catching = warnings.catch_warnings(record=True)
        self._said = self._catching.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

    def __exit__(self, *error: object) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self._catching.__exit__(*error)
        assert self._said is not None
        self.count += sum("called a synchronizing" in str(warning.message) for warning in self._said)
