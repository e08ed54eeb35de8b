"""`Source`: a data set as every reader returns it, bytes in memory or mapped from a disk."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

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

    def checksum(self) -> str:
        """Return 16 hex digits that differ between data sets, also if only the normalisation differs."""
        if self.known_checksum is not None:
            return self.known_checksum
        digest = hashlib.blake2b(repr((self.mean, self.std)).encode(), digest_size=8)
        for tensor in (self.train_inputs, self.train_targets, self.test_inputs, self.test_targets):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def in_memory(self) -> "Source":
        """Return the data set with its inputs copied into memory."""
        return replace(self, train_inputs=self.train_inputs.clone(), test_inputs=self.test_inputs.clone())
