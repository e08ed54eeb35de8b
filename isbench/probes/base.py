"""Probes measure what a figure needs besides loss and error. This is their base class."""

from pathlib import Path
from typing import Any

from isbench.build import Parts


class Probe:
    """Measures at every evaluation of a run, while the clock is paused. This one measures nothing.

    A measurement leaves no trace: parameters, buffers, modes and the sampler stay as they are, no random stream of the
    run is used and nothing is counted. A run with a probe therefore has the same evaluations as one without.
    """

    def allocate(self, parts: Parts) -> None:
        """Prepare for a run, before its first update.

        Raises:
            ConfigError: a value of the probe's yaml does not fit the data set.
            Incompatible: the probe cannot measure this model or sampler.
        """

    def measure(self, parts: Parts, folder: Path) -> list[dict[str, Any]]:
        """Return rows for the record: numbers, strings, or lists of numbers. The probe may keep files in `folder`.

        A resumed run measures again from its checkpoint on, and must then return the same rows. Where several
        processes train a run, only the first measures.
        """
        return []
