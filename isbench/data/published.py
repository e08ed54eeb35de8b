"""Reads published data files, checks their MD5, and downloads them on request.

torchvision takes more than a second to import, so only a download imports it.
"""

import gzip
import hashlib
import math
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from isbench.errors import DataError

# MD5 of each file: of MNIST's unpacked files, and of Fashion-MNIST's compressed ones.
MNIST_FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
CIFAR10_ARCHIVE, CIFAR100_ARCHIVE = "cifar-10-python.tar.gz", "cifar-100-python.tar.gz"
CIFAR10_FILES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CIFAR100_FILES = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}
SVHN_FILES = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}

DOWNLOAD = "add dataset.download=true, or put the published file there"


def read_checked(path: Path, md5: str | None, remedy: str = DOWNLOAD) -> bytearray:
    """Return the content of a file. `md5` is None if no checksum was published.

    Raises:
        DataError: the file is missing, or is not the published one.
    """
    if not path.is_file():
        known = f" (MD5 {md5})" if md5 else ""
        raise DataError(f"{path.name}{known} is missing from {path.parent}: {remedy}")
    content = bytearray(path.stat().st_size)
    with path.open("rb") as file:
        file.readinto(content)
    if md5:
        check_md5(path, content, md5, remedy)
    return content


def check_md5(path: Path, content: bytearray, md5: str, remedy: str = DOWNLOAD) -> None:
    """Raise DataError unless the content of a file is the published one."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"{path} is damaged: its MD5 is {found}, expected {md5}; delete it, then {remedy}")


def read_archived(folder: Path, checksums: Mapping[str, str], archive: str) -> dict[str, bytearray]:
    """Return the contents of published files, from `folder` or, where it is missing, from the archive beside it.

    Raises:
        DataError: a file is missing, or is not the published one.
    """
    path = folder.parent / archive
    if folder.is_dir() or not path.is_file():
        return {name: read_checked(folder / name, md5) for name, md5 in checksums.items()}
    contents = {}
    try:
        with tarfile.open(path) as file:
            for member in file:
                name = member.name.rpartition("/")[2]
                if name in checksums and (reader := file.extractfile(member)) is not None:
                    contents[name] = bytearray(reader.read())
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); delete it, then {DOWNLOAD}") from None
    for name, md5 in checksums.items():
        check_md5(path / name, contents.get(name, bytearray()), md5)
    return {name: contents[name] for name in checksums}


def _unpacked(path: Path, content: bytearray) -> bytearray:
    try:
        return bytearray(gzip.decompress(content))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); delete it, then {DOWNLOAD}") from None


def read_idx(path: Path, md5: str) -> Tensor:
    """Return the uint8 tensor in an idx file: compressed (.gz) or not, also by the name with a dot of some archives.

    The checksum is of the file in the form that `path` names. Of its other form none was published for Fashion-MNIST's
    unpacked files, so the header must account for every byte.

    Raises:
        DataError: the file is missing or damaged.
    """
    plain = path.name.removesuffix(".gz")
    names = [path.name, plain, f"{plain}.gz", *(f"{plain.replace('-idx', '.idx')}{suffix}" for suffix in ("", ".gz"))]
    found = next((each for each in map(path.with_name, names) if each.is_file()), path)
    is_packed, should_be = found.suffix == ".gz", path.suffix == ".gz"
    content = read_checked(found, md5 if is_packed == should_be else None)
    if is_packed:
        content = _unpacked(found, content)
        if not should_be:
            check_md5(found, content, md5)
    # Header: two zero bytes, the type (8: unsigned byte), the number of dimensions, then each as a big-endian integer.
    num_dimensions = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * num_dimensions
    shape = struct.unpack_from(f">{num_dimensions}I", content, 4) if len(content) > start else ()
    if not shape or len(content) != start + math.prod(shape):
        raise DataError(
            f"{path} is damaged: its idx header does not fit its {len(content)} bytes; delete it, then {DOWNLOAD}"
        )
    return torch.frombuffer(content, dtype=torch.uint8, offset=start).view(shape)


def download_missing(paths: Sequence[Path], data_dir: Path, reader: str, *arguments: str) -> None:
    """Download with torchvision's `reader` to `data_dir`, unless every path exists.

    Raises:
        DataError: the download fails.
    """
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is None:
        return
    from torchvision import datasets

    try:
        getattr(datasets, reader)(data_dir, *arguments, download=True)
    except (OSError, RuntimeError) as error:  # without a network OSError; MNIST's mirrors together RuntimeError
        reason = " ".join(str(error).split())
        raise DataError(
            f"{missing.name} could not be downloaded to {missing.parent}: {reason}; put the published file there"
        ) from None
