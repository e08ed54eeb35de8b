"""Checkpoints: whole or not at all, and damage is noticed."""

import os

import pytest
import torch

from isbench.errors import UserError
from isbench.training import checkpoint
from isbench.training.streams import Streams

STATE = {"a": torch.arange(5), "b": {"c": 1.5, "d": None}}


def test_round_trip(tmp_path) -> None:
    assert checkpoint.load(tmp_path) is None
    checkpoint.save(tmp_path, STATE)
    loaded = checkpoint.load(tmp_path)
    assert torch.equal(loaded["a"], STATE["a"]) and loaded["b"] == STATE["b"]
    checkpoint.remove(tmp_path)
    assert checkpoint.load(tmp_path) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage: str, caplog) -> None:
    checkpoint.save(tmp_path, {"update": 1})
    checkpoint.save(tmp_path, {"update": 2})
    path = tmp_path / "checkpoint.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"truncate": bytes(data[:100]), "flip": bytes(data), "empty": b""}[damage])
    assert checkpoint.load(tmp_path) == {"update": 1}
    assert "damaged (wrong checksum): going back to checkpoint.previous.pt" in caplog.text
    (tmp_path / "checkpoint.previous.pt").write_bytes(b"")
    assert checkpoint.load(tmp_path) is None
    assert "checkpoint.pt and checkpoint.previous.pt damaged (wrong checksum): the run starts again" in caplog.text


def test_an_unfinished_file_is_not_a_checkpoint(tmp_path) -> None:
    checkpoint.save(tmp_path, {"update": 1})
    (tmp_path / "checkpoint.pt.123.unfinished").write_bytes(b"half")
    assert checkpoint.load(tmp_path) == {"update": 1}
    os.replace(tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt")  # killed between the two renames
    assert checkpoint.load(tmp_path) == {"update": 1}
    checkpoint.remove(tmp_path)
    assert not list(tmp_path.iterdir()), "nor does it outlive the run"


def test_a_folder_that_is_gone_is_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        checkpoint.save(tmp_path / "gone", STATE)


def test_a_checkpoint_cannot_run_code(tmp_path) -> None:
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    checkpoint.save(tmp_path, {"evil": Payload()})
    with pytest.raises(UserError, match="is not a checkpoint of isbench and was not loaded"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_streams_are_independent_and_resume() -> None:
    device = torch.device("cpu")
    streams = Streams(3, device)
    first = torch.rand(4, generator=streams.order)
    torch.rand(100, generator=streams.sampler)
    state = streams.state_dict()
    expected = [torch.rand(4, generator=streams.order), torch.rand(4, generator=streams.sampler), torch.rand(4)]

    fresh = Streams(3, device)
    assert torch.equal(torch.rand(4, generator=fresh.order), first)
    other = Streams(4, device)
    assert not torch.equal(torch.rand(4, generator=other.order), first)
    other.load_state_dict(state)
    resumed = [torch.rand(4, generator=other.order), torch.rand(4, generator=other.sampler), torch.rand(4)]
    assert all(torch.equal(a, b) for a, b in zip(expected, resumed, strict=True))
