"""Probes measure what a figure needs besides loss and error. This is their base class."""

from typing import Any

from torch import nn

from isbench.build import Parts
from isbench.samplers.base import Signals
from isbench.types import Draw


class Probe(nn.Module):
    """Measures at every evaluation of a run, while the clock is paused. This one measures nothing.

    A probe leaves no trace: parameters, other buffers than its own, modes and the sampler stay as they are, no random
    stream of the run is used and nothing is counted. A run with a probe therefore has the same evaluations as one
    without. What a probe has seen of the training and must still know after a resume is a buffer.
    """

    observes: tuple[str, ...] = ()  # the signals that `observe` is given, besides those of the sampler

    def allocate(self, parts: Parts) -> None:
        """Prepare for a run, before its first update; register buffers.

        Raises:
            ConfigError: a value of the probe's yaml does not fit the data set.
            Incompatible: the probe cannot measure this model or sampler.
        """

    def observe(self, draw: Draw, signals: Signals) -> None:
        """See a training step between gradient and update. On the clock. All processes that train a run call it."""

    def measure(self, parts: Parts) -> list[dict[str, Any]]:
        """Return rows for the record: numbers, strings, or lists of numbers.

        A resumed run measures again from its checkpoint on, and must then return the same rows. Where several
        processes train a run, only the first measures.
        """
        return []
