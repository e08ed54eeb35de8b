"""RHO-LOSS: the choice from a pool, its table, and the study that writes one."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from isbench.build import Parts
from isbench.errors import ConfigError, Incompatible
from isbench.recording.record import Record
from isbench.studies.irreducible_loss import Subset, held_out_losses, irreducible_loss, main
from isbench.types import Batch
from tests.conftest import TINY, build_parts, compose_config, train_parts

N = 160
RHO = (*TINY, "sampler=rho_loss", "sampler.pool_size=64")


def watch_pools(parts: Parts, score: Callable[[Batch, str], Tensor] | None = None) -> list[tuple[Batch, Tensor]]:
    """Return the growing list of pools and their losses, by `score` instead of the model if it is given."""
    pools: list[tuple[Batch, Tensor]] = []
    score = score or parts.workspace.score

    def watched(batch: Batch, signal: str) -> Tensor:
        pools.append((batch, score(batch, signal)))
        return pools[-1][1]

    parts.workspace.score = watched  # type: ignore[method-assign]
    return pools


def test_the_batch_is_the_top_of_the_pool(tmp_path) -> None:
    table = torch.randn(N, generator=torch.Generator().manual_seed(0)).abs()
    torch.save(table, tmp_path / "table.pt")
    parts: Any = build_parts(*RHO, f"sampler.table={tmp_path / 'table.pt'}", "augmentation=crop")
    pools = watch_pools(parts)
    differs = False
    for _ in range(5):
        draw = parts.sampler.draw()
        pool, losses = pools[-1]
        assert len(pool) == 64 and (draw.weights == 1).all()
        reducible = [float(loss) - float(table[i]) for i, loss in zip(pool.indices, losses, strict=True)]
        best = sorted(range(64), key=lambda position: -reducible[position])[:16]
        assert torch.equal(draw.batch.indices, pool.indices[best])
        assert torch.equal(draw.batch.inputs, pool.inputs[best])  # the views that were scored
        differs |= set(best) != set(losses.topk(16).indices.tolist())
    assert differs  # the table matters


def test_without_a_table_the_highest_losses_are_taken() -> None:
    parts: Any = build_parts(*RHO)
    pools = watch_pools(parts)
    draw = parts.sampler.draw()
    pool, losses = pools[0]
    best = losses.argsort(descending=True)[:16]
    assert torch.equal(draw.batch.indices, pool.indices[best])
    assert losses[best].mean() > 1.05 * losses.mean()  # biased, as documented
    assert parts.sampler.diagnostics() == {"irreducible_loss": 0.0}


def test_default_pool_is_ten_batches() -> None:
    parts: Any = build_parts(*TINY, "sampler=rho_loss")
    parts.sampler.draw()
    assert parts.progress.examples_scored == 10 * 16


def test_nan_reaches_the_batch() -> None:
    parts: Any = build_parts(*RHO)
    pools = watch_pools(parts, lambda batch, signal: torch.where(torch.arange(64) == 7, torch.nan, 1.0))
    draw = parts.sampler.draw()
    assert pools[0][0].indices[7] in draw.batch.indices


def test_the_table_is_part_of_a_checkpoint(tmp_path) -> None:
    path = tmp_path / "table.pt"
    torch.save(torch.arange(float(N)), path)
    first = build_parts(*RHO, f"sampler.table={path}")
    torch.save(torch.zeros(N), path)
    second: Any = build_parts(*RHO, f"sampler.table={path}")
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.sampler.irreducible, torch.arange(float(N)))


def test_bad_tables(tmp_path) -> None:
    path = tmp_path / "table.pt"
    with pytest.raises(ConfigError, match="no such file"):
        build_parts(*RHO, f"sampler.table={path}")
    path.write_bytes(b"not a tensor")
    with pytest.raises(ConfigError, match="torch.load"):
        build_parts(*RHO, f"sampler.table={path}")
    for content, complaint in (
        (torch.zeros(N - 1), "shape \\(159,\\)"),
        ({"a": 1}, "a dict"),
        (torch.full((N,), torch.nan), "finite"),
    ):
        torch.save(content, path)
        with pytest.raises(ConfigError, match=complaint):
            build_parts(*RHO, f"sampler.table={path}")


def test_a_table_knows_its_data(tmp_path, caplog) -> None:
    path = tmp_path / "table.pt"
    checksum = build_parts(*TINY).source.checksum()
    torch.save({"irreducible_loss": torch.arange(float(N)), "data_checksum": checksum}, path)
    parts: Any = build_parts(*RHO, f"sampler.table={path}")
    assert torch.equal(parts.sampler.irreducible, torch.arange(float(N))) and not caplog.records
    for change in ("dataset.label_noise=0.5", "dataset.validation=16"):
        words = [f"dataset.num_examples={N + 16}"] if "validation" in change else []
        with pytest.raises(ConfigError, match=f"made of another data set \\(checksum {checksum}"):
            build_parts(*RHO, f"sampler.table={path}", change, *words)
    torch.save(torch.zeros(N), path)
    build_parts(*RHO, f"sampler.table={path}")
    assert "does not say which data set it is of" in caplog.text


@pytest.mark.parametrize("pool_size", [15, 161, 0])
def test_bad_pool_sizes(pool_size: int) -> None:
    with pytest.raises(ConfigError, match=f"sampler.pool_size={pool_size}"):
        build_parts(*TINY, "sampler=rho_loss", f"sampler.pool_size={pool_size}")


def test_held_out_losses_come_from_a_model_that_saw_only_its_half() -> None:
    members, others = torch.randperm(N, generator=torch.Generator().manual_seed(0)).tensor_split(2)
    parts: Any = build_parts(*TINY)
    before = parts.workspace.score_dataset("loss")
    sampler = Subset(members)
    sampler.bind(parts.workspace)
    seen = torch.cat([sampler.draw().batch.indices for _ in range(10)])
    assert torch.equal(seen.sort().values, members.repeat(2).sort().values)
    losses = held_out_losses(compose_config(*TINY, "device=cpu", "evaluation.points=8"), members)
    assert losses[members].mean() < losses[others].mean() < before[others].mean()


def test_the_best_boundary_is_kept() -> None:
    """With a rate that ruins the model later on, the losses must still be those of the best moment."""
    members = torch.arange(0, N, 3)
    config = compose_config(*TINY, "device=cpu", "evaluation.points=40", "optimizer.lr=0.5", "schedule=constant")
    others = torch.ones(N, dtype=torch.bool)
    others[members] = False
    kept = float(held_out_losses(config, members)[others].mean())
    config.evaluation.points = 1
    assert kept < 0.8 * float(held_out_losses(config, members)[others].mean())


def test_the_table_covers_every_example_and_trains_rho_loss(tmp_path) -> None:
    config = compose_config(*TINY, "device=cpu", "evaluation.points=4")
    table = irreducible_loss(config)
    assert table.shape == (N,) and table.isfinite().all() and (table >= 0).all()
    assert torch.equal(table, irreducible_loss(config))
    torch.save(table, tmp_path / "table.pt")
    train_parts(build_parts(*RHO, f"sampler.table={tmp_path / 'table.pt'}"))


def test_slots_are_refused() -> None:
    with pytest.raises(Incompatible, match="slots=320"):
        irreducible_loss(compose_config(*TINY, "slots=320", "augmentation=crop"))


def test_the_command(tmp_path, capsys) -> None:
    record, table = tmp_path / "record.jsonl", tmp_path / "table.pt"
    with pytest.raises(SystemExit, match="no run is recorded there"):
        main([str(record), str(table)])
    with pytest.raises(SystemExit, match="usage"):
        main([])
    config = compose_config(*TINY, "device=cpu", "evaluation.points=2")
    Record(record).append("start", config=asdict(config))
    main([str(record), str(table)])
    assert "160 irreducible losses" in capsys.readouterr().out
    parts: Any = build_parts(*RHO, f"sampler.table={table}")
    assert torch.equal(parts.sampler.irreducible, irreducible_loss(config))
    assert [path.name for path in tmp_path.iterdir() if path != record] == ["table.pt"]


def test_where_no_table_can_be_written_nothing_is_trained(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("isbench.studies.irreducible_loss.irreducible_loss", None)
    record = tmp_path / "record.jsonl"
    Record(record).append("start", config=asdict(compose_config(*TINY, "device=cpu")))
    before = record.read_bytes()
    for name, complaint in (
        ("", "is a folder"),
        ("record.jsonl", "is there already"),
        ("nowhere/table.pt", "cannot be written: No such file"),
        ("record.jsonl/table.pt", "cannot be written: Not a directory"),
        ("x" * 300, "cannot be written: File name too long"),
    ):
        with pytest.raises(SystemExit, match=complaint):
            main([str(record), str(tmp_path / name)])
    assert record.read_bytes() == before and list(tmp_path.iterdir()) == [record]
