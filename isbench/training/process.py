"""Settings of the whole process that trains: arithmetic, memory, signals and the garbage collector."""

import ctypes
import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from isbench.training.budget import Boundaries

DEFAULT_THREADS = torch.get_num_threads()  # all cores, or this process's share of them in a parallel grid


def apply_numerics(deterministic: bool, precision: str, threads: int | None) -> None:
    """Set determinism, precision and threads of this process; `threads` None is all cores."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic products; CUDA reads it once
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # a search for bugs
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
    torch.set_num_threads(threads or DEFAULT_THREADS)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let the C library (glibc only) keep large freed blocks instead of asking the system for new ones at every pass.

    Without this a forward pass over 4,096 digits on a CPU takes about twice as long, since new blocks come cleared.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block outside the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back


@contextmanager
def stop_signals(boundaries: Boundaries) -> Iterator[None]:
    """Turn SIGTERM, SIGUSR1, SIGUSR2 and the first SIGINT into a request to stop at the next step."""

    def request(number: int, frame: Any) -> None:
        boundaries.stop_requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
    before = {number: signal.signal(number, request) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def quiet_garbage_collector() -> Iterator[None]:
    """Switch the garbage collector off in timed code; runs collect at their boundaries."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
