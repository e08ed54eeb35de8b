"""The probe contract: what a figure needs besides loss and error, looked up while the clock is paused."""

from pathlib import Path
from typing import Any

from isbench.build import Parts


class Probe:
    """What is measured wherever a run is evaluated, the first time before any update. This one measures nothing.

    The arguments of a probe's yaml are those of its constructor. A look leaves no trace: parameters, buffers, modes and
    the sampler are as before, no random stream of the run is used and nothing is counted, so that a run with a probe
    has the same evaluations as one without.
    """

    def allocate(self, parts: Parts) -> None:
        """Prepare for a run, before its first update.

        Raises:
            ConfigError: a value of the probe's yaml does not fit the data set.
            Incompatible: this model or sampler cannot be looked at so.
        """

    def look(self, parts: Parts, folder: Path) -> list[dict[str, Any]]:
        """Return rows for the record: numbers, strings, or lists of numbers. Files may be kept in the run's folder.

        An interrupted run looks again at what it had not saved; the rows must then be the same. Of several processes
        the first looks, alone.
        """
        return []
