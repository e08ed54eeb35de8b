"""What a GPU waits for and keeps: reads of the host, memory, the data set's place."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isbench.build import build, load_source
from isbench.data.augment import Shift
from isbench.data.resident import ResidentDataset
from isbench.errors import OutOfMemory
from isbench.recording.environment import environment
from isbench.run import run
from tests.conftest import SAMPLERS, TINY, compose_config, tiny_overrides, train_once
from tests.gpu.conftest import GPU, Waits, needs_a_real_one, on_a_gpu
from tests.test_resident import AUGMENTATIONS, name, source
from tests.test_sampler_conformance import check_host_reads

pytestmark = on_a_gpu

__all__ = ["source"]  # a fixture
SLOTS = [None, 100]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_host_waits_as_often_as_documented(sampler: str) -> None:
    parts = build(compose_config(*tiny_overrides(sampler), "augmentation=crop", "numerics.engine=graphed"), GPU)
    parts.warm_up()
    check_host_reads(parts, Waits())


def test_the_debug_mode_notices_a_read() -> None:
    waits = Waits()
    with waits:
        float(torch.ones((), device=GPU))
    assert waits.count == 1


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=name)
@pytest.mark.parametrize("slots", SLOTS)
def test_the_device_holds_the_same_examples_and_gathers_them_without_the_host(slots, augmentation, source) -> None:
    here, there = (ResidentDataset(source, augmentation, device, slots=slots) for device in ("cpu", GPU))
    indices = torch.arange(here.num_examples)
    views = here.draw_views(len(indices), torch.Generator().manual_seed(0))
    indices_there, views_there = indices.to(GPU), views.to(GPU)
    waits = Waits()
    with waits:
        found = there.fetch(indices_there, views_there)
    expected = here.fetch(indices, views)
    assert waits.count == 0
    assert torch.equal(found.targets.cpu(), expected.targets) and torch.equal(found.views.cpu(), expected.views)
    assert torch.allclose(found.inputs.cpu(), expected.inputs, atol=1e-3)


@pytest.mark.parametrize("residency", ["host", "disk"])
@pytest.mark.parametrize("slots", SLOTS)
def test_what_lies_elsewhere_comes_with_the_same_bits(slots, residency, tmp_path: Path) -> None:
    """Many batches are under way at once: none may be gathered into memory that a copy still reads."""
    shift = Shift(4, "zeros", flip=True)

    def dataset(residency: str) -> ResidentDataset:
        node = compose_config("dataset=synthetic", "dataset.shape=[3,64,64]", f"dataset.residency={residency}").dataset
        return ResidentDataset(load_source(node, str(tmp_path)), shift, GPU, slots, residency=residency)

    held, fed = dataset("device"), dataset(residency)
    generator = torch.Generator(GPU).manual_seed(0)
    draws = [torch.randint(held.num_examples, (128,), device=GPU, generator=generator) for _ in range(50)]
    views = [held.draw_views(128, generator) for _ in draws]
    busy = torch.randn(4096, 4096, device=GPU)
    found = []
    for indices, view in zip(draws, views, strict=True):
        busy = busy @ busy  # the device lags behind
        found.append(fed.fetch(indices, view).inputs)
    for indices, view, inputs in zip(draws, views, found, strict=True):
        assert torch.equal(inputs, held.fetch(indices, view).inputs)
    assert all(torch.equal(a, b) for a, b in zip(fed.test_chunk(5, 99), held.test_chunk(5, 99), strict=True))
    assert torch.equal(fed.plain(draws[0])[0], held.plain(draws[0])[0])


@needs_a_real_one
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_updates_leave_nothing_behind(sampler: str) -> None:
    parts = build(compose_config(*tiny_overrides(sampler), "numerics.engine=graphed"), GPU)
    parts.warm_up()

    def bytes_after(updates: int) -> int:
        for _ in range(updates):
            train_once(parts, 0.01)
        parts.step.forget()
        return torch.cuda.memory_allocated()

    assert bytes_after(60) <= 1.01 * bytes_after(30)


@needs_a_real_one
def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    words = (*TINY, "model=wrn_28_2", "dataset.shape=[3,32,32]", "dataset.num_examples=4000", "batch_size=4000")
    config = compose_config(*(word for word in words if "hidden" not in word), f"runs_dir={tmp_path}")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**29) / total)
    try:
        with pytest.raises(OutOfMemory, match="^out of memory on cuda: reduce batch_size"):
            run(replace(config, device="cuda"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not list(tmp_path.iterdir())


@needs_a_real_one
def test_the_record_names_it() -> None:
    facts = environment("cuda")
    assert facts["gpu"] == torch.cuda.get_device_name() and facts["driver"] and facts["gpu_max_sm_mhz"] > 0
