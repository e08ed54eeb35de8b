"""isbench: does importance sampling make deep nets train faster? Timed, fair, resumable comparisons."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isbench.guide import attach as attach
    from isbench.guide import indexed as indexed

__version__ = "0.1.0"

# How long a thread of GNU's OpenMP, which is torch's on Linux, spins before it sleeps. Its 300,000 rounds keep the core
# from the thread that it waits for: beside a busy process, an update of LeNet on two threads of two cores took 2 to 20
# times as long as with 1,000, which OpenMP takes itself where it knows of more threads than cores. Alone it takes as
# long. OpenMP reads this once, as torch is imported, so it is set before anything of isbench does that.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> Any:
    """Import what needs torch once it is asked for."""
    if name in ("attach", "indexed"):
        from isbench import guide

        return getattr(guide, name)
    raise AttributeError(f"module 'isbench' has no attribute {name!r}")
