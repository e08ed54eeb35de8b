"""Where Hydra finds isbench's sweeper and launcher.

Every Hydra program in the same environment imports this file, so that it imports nothing of isbench, and nothing that
may be missing. Each class stands in for the one that it makes, which is imported only then.
"""

from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper


class ArmSweeper(Sweeper):
    setup = sweep = NotImplemented  # Hydra takes no abstract class for a plugin

    def __new__(cls, **options: Any) -> Any:
        from isbench.grid.sweeper import ArmSweeper

        return ArmSweeper(**options)


class SlurmLauncher(Launcher):
    setup = launch = NotImplemented

    def __new__(cls, **options: Any) -> Any:
        from isbench.grid.slurm import SlurmLauncher

        return SlurmLauncher(**options)
