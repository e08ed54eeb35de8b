"""The data set on the device, against the same arithmetic written out by hand."""

from dataclasses import replace

import pytest
import torch

from isbench.data.augment import Augmentation, Rotation, Shift
from isbench.data.readers import synthetic
from isbench.data.resident import ResidentDataset
from isbench.errors import Incompatible

AUGMENTATIONS = [Augmentation(), Shift(4, "zeros", flip=True), Rotation()]


def name(augmentation):
    return type(augmentation).__name__


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    source = synthetic(tmp_path_factory.getbasetemp(), num_examples=60, num_test=30, shape=(3, 8, 8))
    return replace(source, mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.4))


def normalize(source, inputs):
    result = torch.empty(inputs.shape)
    for channel in range(3):
        result[:, channel] = (inputs[:, channel].float() / 255 - source.mean[channel]) / source.std[channel]
    return result


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=name)
def test_fetch_gathers_augments_and_normalises(source, augmentation):
    dataset = ResidentDataset(source, augmentation, "cpu")
    assert (dataset.num_examples, dataset.num_classes, dataset.input_shape) == (60, 10, (3, 8, 8))
    indices = torch.tensor([5, 59, 0, 5])
    views = dataset.draw_views(4, generator())
    assert torch.equal(views, augmentation.draw_views(4, generator(), "cpu"))
    batch = dataset.fetch(indices, views)
    expected = normalize(source, augmentation.apply(source.train_inputs[indices], views))
    assert torch.allclose(batch.inputs, expected, atol=1e-5) and batch.inputs.dtype == torch.float32
    assert torch.equal(batch.targets, source.train_targets[indices])
    assert torch.equal(batch.indices, indices) and torch.equal(batch.views, views)
    again = dataset.fetch(indices, views)
    assert torch.equal(batch.inputs, again.inputs)  # nothing stored was overwritten


def test_sequences_are_normalised_per_feature(tmp_path):
    source = replace(synthetic(tmp_path, shape=(20, 2)), mean=(0.25, 0.5), std=(0.5, 2.0))
    dataset = ResidentDataset(source, Augmentation(), "cpu")
    inputs, targets = dataset.plain(torch.arange(7))
    scaled = source.train_inputs[:7].float() / 255
    expected = torch.stack([(scaled[..., 0] - 0.25) / 0.5, (scaled[..., 1] - 0.5) / 2.0], dim=2)
    assert torch.allclose(inputs, expected, atol=1e-6)
    assert torch.equal(targets, source.train_targets[:7])
    with pytest.raises(Incompatible):
        ResidentDataset(source, Shift(4, "zeros", flip=True), "cpu")


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=name)
def test_plain_is_not_augmented(source, augmentation):
    dataset = ResidentDataset(source, augmentation, "cpu")
    inputs, targets = dataset.plain(torch.tensor([3, 1]))
    assert torch.allclose(inputs, normalize(source, source.train_inputs[[3, 1]]), atol=1e-5)
    assert torch.equal(targets, source.train_targets[[3, 1]])


def test_test_set_comes_whole_or_in_chunks(source):
    dataset = ResidentDataset(source, Rotation(), "cpu")
    expected = normalize(source, source.test_inputs)
    assert dataset.num_test == 30
    assert torch.allclose(dataset.test_chunk(0, dataset.num_test)[0], expected, atol=1e-5)
    inputs, targets = dataset.test_chunk(20, 40)
    assert torch.allclose(inputs, expected[20:], atol=1e-5)
    assert torch.equal(targets, source.test_targets[20:])
    assert torch.allclose(dataset.test_chunk(0, dataset.num_test)[0], expected, atol=1e-5)  # nothing was overwritten


def test_the_source_is_left_alone(source):
    before = source.checksum()
    for augmentation in AUGMENTATIONS:
        dataset = ResidentDataset(source, augmentation, "cpu")
        dataset.fetch(torch.arange(60), dataset.draw_views(60, generator())).inputs.zero_()
        dataset.plain(torch.arange(60))[0].zero_()
    assert source.checksum() == before


def test_views_must_be_given(source):
    with pytest.raises(ValueError, match="views"):
        ResidentDataset(source, Rotation(), "cpu").fetch(torch.arange(3), None)


@pytest.mark.parametrize("slots", [200, 60, 45])
def test_slots_are_spread_evenly(source, slots):
    marked = replace(source, train_targets=torch.arange(60))  # the target tells the image
    dataset = ResidentDataset(marked, Shift(2, "zeros", flip=True), "cpu", slots=slots)
    counts = dataset.targets.bincount(minlength=60)
    assert dataset.num_examples == slots == counts.sum()
    assert counts.max() - counts.min() <= 1
    assert not torch.equal(dataset.targets, dataset.targets.sort().values)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=name)
def test_a_slot_is_an_image_and_its_view_for_ever(source, augmentation):
    marked = replace(source, train_targets=torch.arange(60))
    first, same, other = (ResidentDataset(marked, augmentation, "cpu", slots=200, slot_seed=seed) for seed in (1, 1, 2))
    indices = torch.tensor([199, 0, 77, 199])
    batch = first.fetch(indices, None)
    assert torch.equal(batch.inputs, same.fetch(indices, same.draw_views(4, generator())).inputs)
    assert not torch.equal(first.targets, other.targets)
    images = source.train_inputs[first.targets[indices]]
    assert torch.equal(batch.views, first.stored_views[indices])
    assert torch.allclose(batch.inputs, normalize(source, augmentation.apply(images, batch.views)), atol=1e-5)
    assert torch.equal(batch.targets, first.targets[indices])
    assert torch.allclose(first.plain(indices)[0], normalize(source, images), atol=1e-5)
    if augmentation.num_parameters:
        assert not torch.equal(first.stored_views, other.stored_views)
        assert len(first.stored_views.unique(dim=0)) > 50


def test_view_offset_comes_from_the_augmentation(source):
    dataset = ResidentDataset(source, Shift(4, "zeros", flip=True), "cpu", slots=100)
    expected = [(down**2 + right**2) ** 0.5 for down, right, _ in dataset.stored_views.tolist()]
    assert dataset.view_offset(dataset.stored_views).tolist() == pytest.approx(expected)
    assert ResidentDataset(source, Augmentation(), "cpu").view_offset(torch.empty(3, 0)) is None
