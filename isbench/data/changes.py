"""What can be done to any data set once it is read: examples held out, wrong labels. The seeds are fixed.

Both draw from NumPy's RandomState, whose stream is promised never to change.
"""

from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt

from isbench.data.cache import digest
from isbench.data.source import Source
from isbench.errors import ConfigError


def changed(
    source: Source,
    validation: Annotated[float, Gt(0)] | None = None,
    label_noise: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> Source:
    """Return the data set with both changes; labels that are held out stay right.

    Args:
        validation: see `hold_out`.
        label_noise: see `mislabel`.
    """
    if validation is not None:
        source = hold_out(source, validation)
    return mislabel(source, label_noise) if label_noise else source


def hold_out(source: Source, validation: float) -> Source:
    """Return the data set with part of its training examples in the place of the test set, which is left out.

    Args:
        validation: how many: a share if below 1, else a number of them.

    Raises:
        ConfigError: that is no whole number, or nothing would be left on either side.
    """
    n = len(source.train_targets)
    count = round(validation * n) if validation < 1 else int(validation)
    if validation >= 1 and count != validation:
        raise ConfigError(f"dataset.validation={validation}: must be a share below 1, or a whole number")
    if not 0 < count < n:
        raise ConfigError(f"dataset.validation={validation}: holds out {count} of {n} training examples")
    order = np.random.RandomState(0).permutation(n)
    held, kept = (torch.from_numpy(np.sort(part)) for part in (order[:count], order[count:]))
    return replace(
        source,
        train_inputs=source.train_inputs[kept],
        train_targets=source.train_targets[kept],
        test_inputs=source.train_inputs[held],
        test_targets=source.train_targets[held],
        provenance=f"{source.provenance}; {count} training examples held out, in the place of the test set",
        known_checksum=_checksum(source, "held out", count),
    )


def mislabel(source: Source, label_noise: float) -> Source:
    """Return the data set with a share of the training labels replaced by another class, each as likely as any other.

    Raises:
        ConfigError: there is only one class.
    """
    if source.num_classes < 2:
        raise ConfigError(f"dataset.label_noise={label_noise}: needs two classes at least")
    targets = source.train_targets.clone()
    count = round(label_noise * len(targets))
    random = np.random.RandomState(1)
    wrong = torch.from_numpy(random.permutation(len(targets))[:count])
    steps = torch.from_numpy(random.randint(1, source.num_classes, size=count))
    targets[wrong] = (targets[wrong] + steps) % source.num_classes
    return replace(
        source,
        train_targets=targets,
        provenance=f"{source.provenance}; {count} training labels wrong",
        known_checksum=_checksum(source, "wrong labels", count),
    )


def _checksum(source: Source, *change: object) -> str | None:
    return source.known_checksum and digest(source.known_checksum, *change)
