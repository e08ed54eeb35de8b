"""A cache of decoded data sets on disk. Processes map its files, so a data set may be larger than the memory.

Each data set has a folder in `$ISBENCH_CACHE`, by default in `cache` in the data folder: four .npy files and
manifest.json. One process writes the folder, under another name until it is whole, while others wait. At each start the
manifest must match the files that the data comes from, and the sizes and times of the .npy files. If only a time
differs, as after a copy, the bytes must have the recorded checksum. Otherwise everything is written again.
"""

import ctypes
import hashlib
import inspect
import json
import logging
import math
import mmap
import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from isbench import locks
from isbench.data.source import Source
from isbench.errors import DataError
from isbench.files import write_whole

log = logging.getLogger(__name__)
ARRAYS = ("train_inputs", "train_targets", "test_inputs", "test_targets")
MANIFEST = "manifest.json"
FACTS = ("name", "num_classes", "mean", "std", "provenance", "classes", "remarks")
_libc = ctypes.CDLL(None)
_madvise = _libc.madvise
_madvise.argtypes = ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int  # address, length, advice
ELSEWHERE = "free some, or name another folder in the variable ISBENCH_CACHE"


def cache_dir(data_dir: Path) -> Path:
    """Return the folder of the cache."""
    return Path(os.environ.get("ISBENCH_CACHE") or data_dir / "cache").expanduser()


def digest(*parts: object) -> str:
    """Return 16 hex digits that depend on all of `parts`."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def on_disk(
    read: Callable[[], Source], reader: Callable[..., Source], options: Mapping[str, Any], data_dir: Path
) -> Source:
    """Return the data set of `read` from the cache. Call `read` and write the cache if it is missing or out of date.

    It is out of date when the code of the `reader`, or of the files beside it, has changed since.
    """
    kept = sorted((key, value) for key, value in options.items() if key != "download")
    folder = cache_dir(data_dir) / f"{reader.__name__}-{digest(reader.__module__, kept)[:8]}"
    code = [path.read_bytes() for path in sorted(Path(inspect.getfile(reader)).parent.glob("*.py"))]

    def write(part: Path) -> Source:
        source = read()
        for name in ARRAYS:
            array = getattr(source, name).contiguous().numpy()
            path = part / f"{name}.npy"
            path.unlink(missing_ok=True)  # a killed process may have written other data
            with growing(path, array.shape, array.dtype) as (file, _):
                file.write(array.data)
        return source

    source = mapped(folder, digest(code), write)
    with suppress(AttributeError):  # only glibc keeps freed memory, and can give it back
        _libc.malloc_trim(0)
    return source


def mapped(folder: Path, fingerprint: str, write: Callable[[Path], Source]) -> Source:
    """Return the data set in `folder` with its inputs mapped. Write it first if it is missing or out of date.

    Args:
        fingerprint: 16 hex digits that change when the data would.
        write: writes the four arrays to a given folder and returns the source. The folder may hold part of them, if a
            killed process has begun to write the same fingerprint.

    Raises:
        DataError: the folder cannot be written.
    """
    found = _open(folder, fingerprint)
    if isinstance(found, Source):
        return found
    with _alone(folder):
        found = _open(folder, fingerprint)  # another process may have written it meanwhile
        if isinstance(found, Source):
            return found
        log.info("building the cache of the data in %s: %s", folder, found)
        part = folder.with_name(f"{folder.name}.{fingerprint}.part")
        for stale in {folder, *folder.parent.glob(f"{folder.name}.*.part")} - {part}:  # to make room
            shutil.rmtree(stale, ignore_errors=True)
        _seal(part, write(part), fingerprint)
        part.rename(folder)
        found = _open(folder, fingerprint)
    if isinstance(found, Source):
        return found
    raise DataError(f"{folder}: {found}, while it was written; start again")


@contextmanager
def growing(path: Path, shape: tuple[int, ...], dtype: Any) -> Iterator[tuple[BinaryIO, int]]:
    """Open a .npy file of this shape, ready to append rows; yield the file and the number of whole rows it has.

    Raises:
        DataError: the file cannot be written, or the disk has too little room for it.
    """
    header = BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    start, row = len(header.getvalue()), np.dtype(dtype).itemsize * math.prod(shape[1:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "r+b" if path.exists() else "wb") as file:
            rows = max(0, path.stat().st_size - start) // row
            missing, free = row * (shape[0] - rows), shutil.disk_usage(path.parent).free
            if missing > free:
                raise DataError(
                    f"{path} needs {missing / 1e9:,.1f} GB and {free / 1e9:,.1f} GB are free there: {ELSEWHERE}"
                )
            file.write(header.getvalue())
            file.seek(start + rows * row)
            file.truncate()
            yield file, rows
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): {ELSEWHERE}") from None


def map_array(path: Path) -> Tensor:
    """Return the array of a .npy file as a read-only tensor, mapped from the file.

    Raises:
        OSError, ValueError, EOFError: the file is missing or too short.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.load(path, mmap_mode="r"))


def read_ahead(array: Tensor, rows: Tensor) -> None:
    """Have the system read these rows (k,) of a mapped array at once, instead of page after page as they are used.

    To sort the rows gains nothing: `python -m benchmarks residency` compares both ways.
    """
    size = array[0].nbytes
    starts = (array.data_ptr() + rows * size) // mmap.PAGESIZE * mmap.PAGESIZE
    deque(map(_madvise, starts.tolist(), repeat(size + mmap.PAGESIZE - 1), repeat(mmap.MADV_WILLNEED)), maxlen=0)


def _stamps(paths: Iterable[Path]) -> dict[str, list[int] | None]:
    """Return size and time of change of each path, None if it is missing."""
    stamps: dict[str, list[int] | None] = {}
    for path in paths:
        stamps[str(path)] = None
        with suppress(FileNotFoundError):
            status = path.stat()
            stamps[str(path)] = [status.st_size, status.st_mtime_ns]
    return stamps


def _seal(part: Path, source: Source, fingerprint: str) -> None:
    """Write the manifest of the finished arrays in `part`."""
    manifest = {
        "fingerprint": fingerprint,
        "source": {name: getattr(source, name) for name in FACTS},
        "files": _stamps(source.files),
        "checksum": source.checksum(),
        "arrays": _array_stamps(part),
    }
    _write_manifest(part, manifest)


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")


def _array_stamps(folder: Path) -> dict[str, list[int] | None]:
    return {Path(path).name: stamp for path, stamp in _stamps(folder / f"{name}.npy" for name in ARRAYS).items()}


def _open(folder: Path, fingerprint: str) -> Source | str:
    """Return the data set in `folder`, mapped, or the reason why it must be written."""
    if not folder.exists():
        return "its first use"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["fingerprint"] != fingerprint or manifest["files"] != _stamps(map(Path, manifest["files"])):
            return "the data, or what reads it, has changed"
        values: dict[str, Any] = {name: map_array(folder / f"{name}.npy") for name in ARRAYS}
        values |= {name: values[name].clone() for name in ARRAYS if name.endswith("targets")}  # small and often used
        values |= {name: tuple(v) if isinstance(v, list) else v for name, v in manifest["source"].items()}
        source = Source(**values, files=tuple(map(Path, manifest["files"])))
        if (stamps := _array_stamps(folder)) != manifest["arrays"]:
            log.info("reading all of %s, whose files were copied or changed", folder)
            if source.checksum() != manifest["checksum"]:
                return "it is damaged: its checksum is not the recorded one"
            with suppress(OSError):  # a read-only folder is checked again next time
                _write_manifest(folder, manifest | {"arrays": stamps})
    except (OSError, ValueError, LookupError, TypeError, EOFError) as error:
        return f"it is damaged: {error}"
    return replace(source, known_checksum=manifest["checksum"])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only process that writes `folder`. The system releases the lock when the process ends."""
    path = folder.with_name(f"{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "w")
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): {ELSEWHERE}") from None
    with lock:
        if not locks.take(lock):
            log.info("waiting for another process, which writes %s", folder)
            locks.take(lock, wait=True)
        yield
