"""`Source`: a data set as every reader returns it, bytes in memory or mapped from a disk."""

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from isbench.errors import DataError

Residency = Literal["device", "host", "disk"]  # where the inputs lie during a run


@dataclass(frozen=True)
class Source:
    """A data set on the CPU. Inputs are uint8, images (N, C, H, W) or sequences (N, T, F); targets are (N,) int64."""

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    num_classes: int
    mean: tuple[float, ...]  # per channel, or per feature of a sequence
    std: tuple[float, ...]
    provenance: str  # one line: which files, or how it was made
    files: tuple[Path, ...] = ()  # files without a published checksum; if one changes, the cache is out of date
    known_checksum: str | None = None  # saves reading large inputs at every start
    classes: tuple[str, ...] = ()  # their names, where the data have them
    remarks: tuple[str, ...] = ()  # what else one should know of the data before training, a line each

    def checksum(self) -> str:
        """Return 16 hex digits that differ between data sets, also if only the normalisation differs."""
        if self.known_checksum is not None:
            return self.known_checksum
        digest = hashlib.blake2b(repr((self.mean, self.std)).encode(), digest_size=8)
        for tensor in (self.train_inputs, self.train_targets, self.test_inputs, self.test_targets):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def class_counts(self) -> dict[str, list[int]]:
        """Return for each class, by name or number, how many examples are for training and for testing."""
        names = self.classes or tuple(map(str, range(self.num_classes)))
        counts = (
            part.bincount(minlength=self.num_classes).tolist() for part in (self.train_targets, self.test_targets)
        )
        return {name: list(pair) for name, *pair in zip(names, *counts, strict=True)}

    def description(self, most: int = 10) -> str:
        """Return a line on where the data come from and how much there is, with the first classes by name."""
        counts = self.class_counts()
        untrained = sum(train == 0 for train, _ in counts.values())
        lack = f", {untrained:,} of them without a training example" if untrained else ""
        named = [f"{name} {train:,} + {test:,}" for name, (train, test) in counts.items()] if self.classes else []
        more = f" and {len(named) - most:,} more" if len(named) > most else ""
        return (
            f"{self.provenance}; {len(self.train_targets):,} to train and {len(self.test_targets):,} to test on, "
            f"{self.num_classes:,} classes{lack}{': ' if named else ''}{', '.join(named[:most])}{more}"
        )

    def in_memory(self) -> "Source":
        """Return the data set with its inputs copied into memory."""
        return replace(self, train_inputs=self.train_inputs.clone(), test_inputs=self.test_inputs.clone())


def checked(source: Any, name: str) -> Source:
    """Return what a reader gave, if it can be trained on.

    Raises:
        DataError: what is wrong with it.
    """
    if wrong := _complaint(source):
        raise DataError(f"dataset={name}: {wrong}")
    return source


def _complaint(source: Any) -> str | None:
    if not isinstance(source, Source):
        return f"its reader returns a {type(source).__name__}; it needs to be an isbench.data.source.Source"
    if not (isinstance(source.num_classes, int) and source.num_classes >= 1):
        return f"num_classes={source.num_classes}: needs a whole number from 1"
    shapes = []
    for split in ("train", "test"):
        inputs, targets = getattr(source, f"{split}_inputs"), getattr(source, f"{split}_targets")
        for part, tensor, dtype in (("inputs", inputs, torch.uint8), ("targets", targets, torch.int64)):
            if not isinstance(tensor, Tensor):
                return f"{split}_{part} is a {type(tensor).__name__}; it needs to be a tensor"
            if tensor.dtype != dtype:
                remedy = ", 0..255: multiply values between 0 and 1 by 255 and round" if part == "inputs" else ""
                return f"{split}_{part} are {tensor.dtype}; they need to be {dtype}{remedy}"
        if inputs.dim() < 2 or targets.shape != inputs.shape[:1]:
            return (
                f"{split}_inputs of shape {tuple(inputs.shape)} and {split}_targets of shape {tuple(targets.shape)}: "
                "needs (N, ...) and (N,), a label for each input"
            )
        low, high = map(int, targets.aminmax()) if len(targets) else (0, 0)
        if low < 0 or high >= source.num_classes:
            return (
                f"{split}_targets go from {low} to {high}; num_classes={source.num_classes} needs "
                f"0 to {source.num_classes - 1}"
            )
        shapes.append(tuple(inputs.shape[1:]))
    if shapes[0] != shapes[1]:
        return f"train_inputs are of shape {shapes[0]}, test_inputs of shape {shapes[1]}"
    channels = shapes[0][0 if len(shapes[0]) == 3 else -1]
    for part in ("mean", "std"):
        values = getattr(source, part)
        if len(values) != channels or not all(math.isfinite(value) for value in values):
            return f"{part}={values}: needs {channels} finite numbers, one for each channel or feature"
    if not all(value > 0 for value in source.std):
        return f"std={source.std}: needs numbers above 0"
    if source.classes and len(source.classes) != source.num_classes:
        return f"{len(source.classes)} names in classes; num_classes={source.num_classes}"
    return None
