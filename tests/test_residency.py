"""Data sets in host memory or on a disk: the same bits and the same runs, and a cache that is whole or missing."""

import json
import mmap
import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from isbench.build import _source, load_source
from isbench.config import run_id
from isbench.data import cache, readers, rotated
from isbench.data.augment import Augmentation, Rotation, Shift
from isbench.data.resident import ResidentDataset
from isbench.errors import ConfigError, DataError
from isbench.training.process import keep_freed_memory
from tests.commands import SERVER, fork
from tests.conftest import build_parts, compose_config, same_state, tiny_overrides, train_parts
from tests.test_readers import assert_one_line, write_amat, write_mit67, write_mnist

ARRAYS = ("train_inputs", "train_targets", "test_inputs", "test_targets")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of all caches; every test reads its data set anew."""
    monkeypatch.setenv("ISBENCH_CACHE", str(tmp_path / "cache"))
    _source.cache_clear()
    return tmp_path / "cache"


def node(**options):
    return {"name": "synthetic", "_target_": "isbench.data.readers.synthetic", "residency": "disk", **options}


def kept(folder):
    """Return the one data set that is kept."""
    [found] = [path for path in folder.iterdir() if path.is_dir()]
    return found


def count_reads(monkeypatch):
    """Count how often the synthetic data set is made."""
    calls, read = [], readers.synthetic

    def counted(data_dir: Path, num_examples: int = 512) -> readers.Source:
        calls.append(num_examples)
        return read(data_dir, num_examples)

    monkeypatch.setattr(readers, "synthetic", counted)
    return calls


def mapped_from(tensor):
    """Return the name of the file that holds the bytes of a tensor, None where that is no file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split()
        first, last = (int(address, 16) for address in span.split("-"))
        if first <= tensor.data_ptr() < last:
            return Path(name).name if name.startswith("/") else None
    return None


@pytest.mark.parametrize(
    ("sampler", "choices"),
    [
        ("uniform", ("model=mlp",)),
        ("upper_bound", ("model=lenet", "augmentation=flip_crop")),
        ("rais", ("model=mlp", "augmentation=rotation", "slots=300")),
        ("loss", ("model=lstm", "model.hidden=8", "dataset.shape=[49,2]")),
    ],
)
def test_a_run_has_the_same_bits_wherever_its_data_is(sampler, choices):
    overrides = [choice for choice in tiny_overrides(sampler) if not choice.startswith("model")]
    runs, fetched = {}, {}
    for residency in ("device", "host", "disk"):
        parts = build_parts(*overrides, *choices, f"dataset.residency={residency}")
        train_parts(parts)
        dataset = parts.dataset
        fetched[residency] = (*dataset.test_chunk(3, 9), *dataset.plain(torch.tensor([5, 0, 5])))
        runs[residency] = parts
    for residency in ("host", "disk"):
        assert same_state(runs["device"], runs[residency])
        assert all(torch.equal(a, b) for a, b in zip(fetched["device"], fetched[residency], strict=True))
    assert len({parts.source.checksum() for parts in runs.values()}) == 1
    held = {residency: mapped_from(parts.dataset._images) for residency, parts in runs.items()}
    assert held == {"device": None, "host": None, "disk": "train_inputs.npy"}


@pytest.mark.parametrize("augmentation", [Augmentation(), Shift(2, "zeros", flip=True), Rotation()])
@pytest.mark.parametrize("slots", [None, 200])
def test_batches_are_the_same(augmentation, slots, tmp_path):
    datasets = [
        ResidentDataset(
            load_source(node(residency=residency), str(tmp_path)), augmentation, "cpu", slots, residency=residency
        )
        for residency in ("device", "host", "disk")
    ]
    indices = torch.tensor([7, 0, 511 if slots is None else 199, 7])
    views = datasets[0].draw_views(4, torch.Generator().manual_seed(0))
    expected, *others = (dataset.fetch(indices, views).tensors() for dataset in datasets)
    for tensors in others:
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_rows_are_read_ahead_whole(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(cache, "_madvise", lambda start, length, advice: calls.append((start, length, advice)))
    source = load_source(node(), str(tmp_path))
    dataset = ResidentDataset(source, Augmentation(), "cpu", residency="disk")
    indices = torch.tensor([511, 3, 3])
    dataset.plain(indices)
    assert len(calls) == 3 and {advice for *_, advice in calls} == {mmap.MADV_WILLNEED}
    size = 28 * 28
    for index, (start, length, _) in zip(indices.tolist(), calls, strict=True):
        first = source.train_inputs.data_ptr() + index * size
        assert start % mmap.PAGESIZE == 0 and first - mmap.PAGESIZE < start <= first
        assert start + length >= first + size
    in_memory = readers.synthetic(tmp_path)
    ResidentDataset(in_memory, Augmentation(), "cpu", residency="host").plain(indices)
    ResidentDataset(in_memory, Augmentation(), "cpu").plain(indices)
    assert len(calls) == 3


def test_residency_is_not_part_of_what_a_run_is():
    base = ["dataset=mnist", "seed=3"]
    ids = {run_id(compose_config(*base, f"dataset.residency={name}")) for name in ("device", "host", "disk")}
    assert ids == {run_id(compose_config(*base))}
    bare = compose_config(*base)
    del bare.dataset["residency"]  # as in a configuration of before there was a choice
    assert ids == {run_id(bare)}


def test_what_is_on_disk_is_not_read_again(folder, tmp_path, monkeypatch):
    calls = count_reads(monkeypatch)
    first = load_source(node(), str(tmp_path))
    _source.cache_clear()
    second = load_source(node(), str(tmp_path))
    assert calls == [512]
    in_memory = readers.synthetic(tmp_path)
    for name in ARRAYS:
        assert torch.equal(getattr(first, name), getattr(in_memory, name))
        assert torch.equal(getattr(second, name), getattr(in_memory, name))
    assert second.checksum() == in_memory.checksum()
    assert (second.mean, second.std, second.provenance) == (in_memory.mean, in_memory.std, in_memory.provenance)
    load_source(node(num_examples=100), str(tmp_path))
    assert calls == [512, 512, 100]
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 2


def test_other_code_makes_another_data_set(tmp_path, monkeypatch):
    calls = count_reads(monkeypatch)
    load_source(node(), str(tmp_path))
    _source.cache_clear()
    monkeypatch.setattr("isbench.data.cache.Path.read_bytes", lambda path: b"edited")
    load_source(node(), str(tmp_path))
    assert calls == [512, 512]


def test_a_copy_is_verified_and_kept(folder, tmp_path, monkeypatch, caplog):
    calls = count_reads(monkeypatch)
    checksum = load_source(node(), str(tmp_path)).checksum()
    os.utime(kept(folder) / "train_inputs.npy")
    caplog.set_level("INFO")
    for is_read in (True, False):
        _source.cache_clear()
        caplog.clear()
        assert load_source(node(), str(tmp_path)).checksum() == checksum
        assert ("reading all" in caplog.text) == is_read
    assert calls == [512]


def flip_a_byte(path):
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: os.truncate(found / "train_inputs.npy", 1000),
        lambda found: os.truncate(found / "test_targets.npy", 0),
        lambda found: flip_a_byte(found / "train_inputs.npy"),
        lambda found: (found / "test_inputs.npy").unlink(),
        lambda found: (found / "manifest.json").write_text('{"fingerprint": "'),
        lambda found: (found / "manifest.json").write_text("[]"),
        lambda found: (found / "manifest.json").unlink(),
    ],
    ids=["short", "empty", "flipped", "gone", "half a manifest", "no manifest", "manifest gone"],
)
def test_what_is_damaged_is_written_again(damage, folder, tmp_path, caplog):
    load_source(node(), str(tmp_path))
    caplog.set_level("INFO")
    damage(kept(folder))
    _source.cache_clear()
    source = load_source(node(), str(tmp_path))
    assert "damaged" in caplog.text
    expected = readers.synthetic(tmp_path)
    assert all(torch.equal(getattr(source, name), getattr(expected, name)) for name in ARRAYS)
    caplog.clear()
    _source.cache_clear()
    load_source(node(), str(tmp_path))
    assert "damaged" not in caplog.text


def test_files_without_a_published_checksum_are_watched(folder, tmp_path):
    colours = {"pool": (0, 0, 250), "attic": (250, 0, 0)}
    write_mit67(tmp_path / "mit67", colours)
    mit67 = {"_target_": "isbench.data.readers.mit67", "side": 16, "residency": "disk"}
    first = load_source(mit67, str(tmp_path)).train_inputs.clone()
    write_mit67(tmp_path / "mit67", {**colours, "attic": (0, 250, 0)})
    _source.cache_clear()
    second = load_source(mit67, str(tmp_path))
    assert not torch.equal(first, second.train_inputs)
    assert second.checksum() == readers.mit67(tmp_path, side=16).checksum()


def test_the_published_sample_takes_the_place_of_the_generated_one(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    write_mnist(tmp_path, random, monkeypatch)
    monkeypatch.setitem(rotated.NUM_ROWS, rotated.TRAIN, 12)
    monkeypatch.setitem(rotated.NUM_ROWS, rotated.TEST, 15)
    rot_mnist = {"_target_": "isbench.data.readers.rot_mnist", "sample": "auto", "residency": "disk"}
    assert "not the published sample" in load_source(rot_mnist, str(tmp_path)).provenance
    write_amat(tmp_path / "rot_mnist", random, monkeypatch)
    _source.cache_clear()
    assert "the published sample" in load_source(rot_mnist, str(tmp_path)).provenance


def test_who_writes_does_not_keep_the_memory(tmp_path):
    def in_use():
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    keep_freed_memory()  # as before every run
    before = in_use()
    source = load_source(node(num_examples=1500, shape=[1, 128, 128]), str(tmp_path))
    assert in_use() - before < source.train_inputs.nbytes


def test_leave_to_download_does_not_matter(tmp_path, monkeypatch):
    write_mnist(tmp_path, np.random.default_rng(0), monkeypatch)
    pixels = {"_target_": "isbench.data.readers.pixel_mnist", "residency": "disk"}
    expected = readers.pixel_mnist(tmp_path)
    source = load_source({**pixels, "download": True}, str(tmp_path))
    assert source.train_inputs.shape == (20, 784, 1) and source.checksum() == expected.checksum()
    for path in (tmp_path / "MNIST" / "raw").iterdir():
        path.unlink()  # what is on disk needs them no more
    _source.cache_clear()
    assert torch.equal(load_source({**pixels, "download": False}, str(tmp_path)).test_inputs, expected.test_inputs)


def write_slowly(data_dir, seconds, says):
    def slow(*arguments):
        says.send("reads")
        time.sleep(seconds)
        return make(*arguments)

    make, readers.Source = readers.Source, slow
    load_source(node(), str(data_dir))


def start_writer(data_dir, seconds):
    """Start a process that writes; return it while it reads, which takes so many seconds, with what it says else."""
    says, theirs = SERVER.Pipe(duplex=False)
    process = fork(write_slowly, data_dir, seconds, theirs)
    theirs.close()
    assert says.recv() == "reads"
    return process, says


def test_one_process_writes_and_others_wait(tmp_path, folder, caplog, monkeypatch):
    caplog.set_level("INFO")
    expected = readers.synthetic(tmp_path).checksum()
    writer, says = start_writer(tmp_path, 1)
    monkeypatch.setattr(readers, "Source", None)  # not to be made here
    assert load_source(node(), str(tmp_path)).checksum() == expected
    assert "waiting for another process" in caplog.text
    writer.join(60)
    assert writer.exitcode == 0
    with pytest.raises(EOFError):
        says.recv()  # it has read once
    assert {path.suffix for path in folder.iterdir()} == {"", ".lock"}


def test_a_killed_process_leaves_nothing_that_looks_whole(tmp_path, folder, caplog):
    caplog.set_level("INFO")
    writer, _ = start_writer(tmp_path, 60)
    writer.kill()
    writer.join()
    assert load_source(node(), str(tmp_path)).checksum() == readers.synthetic(tmp_path).checksum()
    assert "waiting" not in caplog.text


def test_half_a_file_is_written_anew(tmp_path, folder, monkeypatch):
    """What a killed process left may be of another reading of files that have changed since."""
    load_source(node(), str(tmp_path))
    whole = kept(folder)
    fingerprint = json.loads((whole / "manifest.json").read_text())["fingerprint"]
    part = whole.with_name(f"{whole.name}.{fingerprint}.part")
    whole.rename(part)
    path = part / "train_inputs.npy"
    content = path.read_bytes()
    path.write_bytes(content[:128] + bytes(len(content) // 2))
    _source.cache_clear()
    assert torch.equal(load_source(node(), str(tmp_path)).train_inputs, readers.synthetic(tmp_path).train_inputs)
    assert not part.exists()


def test_a_file_that_cannot_grow_is_named(tmp_path, folder):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError) as error:
            load_source(node(), str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_one_line(error, "train_inputs.npy cannot be written", "File too large", "ISBENCH_CACHE")
    assert load_source(node(), str(tmp_path)).checksum() == readers.synthetic(tmp_path).checksum()


def test_too_little_room_is_said_before_anything_is_written(tmp_path, folder, monkeypatch):
    usage = cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr("isbench.data.cache.shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError) as error:
        load_source(node(), str(tmp_path))
    assert_one_line(error, "train_inputs.npy", "GB", "ISBENCH_CACHE")


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError) as error:
        load_source(node(), str(tmp_path))
    assert_one_line(error, tmp_path / "file", "ISBENCH_CACHE")


def test_without_the_variable_it_is_kept_beside_the_data(tmp_path, monkeypatch):
    monkeypatch.delenv("ISBENCH_CACHE")
    load_source(node(), str(tmp_path))
    assert kept(tmp_path / "cache").name.startswith("synthetic-")


def test_mistakes_are_one_line(tmp_path, folder):
    for override, part in (("residency=disc", "disk"), ("num_exmples=3", "num_examples")):
        key, _, value = override.partition("=")
        with pytest.raises(ConfigError) as error:
            load_source(node(**{key: value}), str(tmp_path))
        assert_one_line(error, f"dataset.{key}", part)
    with pytest.raises(DataError) as error:
        load_source({"_target_": "isbench.data.readers.mnist", "residency": "disk"}, str(tmp_path))
    assert_one_line(error, "train-images-idx3-ubyte", "dataset.download=true")
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_what_does_not_fit_on_the_device_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    source = readers.synthetic(tmp_path)
    monkeypatch.setattr(source.train_inputs, "to", full, raising=False)
    with pytest.raises(ConfigError) as error:
        ResidentDataset(source, Augmentation(), "cpu")
    assert_one_line(error, "dataset.residency=host")
    ResidentDataset(source, Augmentation(), "cpu", residency="host")
