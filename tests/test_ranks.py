"""One run on several processes: what they draw, learn and record must be what one process would."""

import atexit
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from isbench.build import Parts, build
from isbench.errors import ConfigError
from isbench.recording.record import effective_rows, last_status, read_rows
from isbench.training.ranks import Ranks, check_gpus, join, read_slurm
from isbench.types import Batch
from tests.commands import Command, free_port, record_in, start_two, together
from tests.conftest import SAMPLERS, TickClock, compose_config, final_rows, tiny_overrides, train_once, wait_for_rows
from tests.pretend_gpu import pretend_gpu
from tests.test_run import RUN as LONG_RUN
from tests.test_run import finish

CPU = torch.device("cpu")
SIZE = 2
FEWER = ("budget.limit=120", "evaluation.points=24")
RUN = (*LONG_RUN, *FEWER)
UPDATES = 12
BATCH_NORM = ("model=cnn7", "model.dropout=0", "numerics.channels_last=false")
CASES = {sampler: tiny_overrides(sampler) for sampler in SAMPLERS}
CASES["odd batches and slots"] = [*tiny_overrides("upper_bound"), "batch_size=15", "slots=240", "augmentation=crop"]
for name in ("uniform", "rais"):  # plain and weighted batch norm
    overrides = [word for word in tiny_overrides(name) if "model" not in word]
    CASES[f"batch norm, {name}"] = [*overrides, *BATCH_NORM]
UNSYNCED = [*CASES["batch norm, uniform"], "sync_norm=false"]
UNBIASED = {
    "uniform": ["sampler.replacement=true"],
    "upper_bound": ["sampler.tau_threshold=1"],
    "prioritized": ["sampler.beta=1", "sampler.normalize=false"],
    "rais": ["sampler.outlier_threshold=null"],
}


def few_updates(overrides: list[str], ranks: Ranks, nudge: int = 0) -> dict[str, Any]:
    """Train a little, from weights that a nudge moves by a rounding; return the draws and what becomes of the model."""
    parts = build(compose_config(*overrides), CPU, TickClock(), ranks)
    generator = torch.Generator().manual_seed(nudge)
    for p in parts.model.parameters() if nudge else ():
        p.data *= 1 + 6e-8 * torch.randn(p.shape, generator=generator).sign()
    parts.warm_up()
    draws = [(draw.batch.indices, draw.weights) for draw in (train_once(parts, 0.02) for _ in range(UPDATES))]
    scores = parts.workspace.score_dataset("loss")
    return {
        "indices": torch.cat([indices for indices, _ in draws]),
        "weights": torch.cat([weights for _, weights in draws]),
        "parameters": torch.cat([p.detach().flatten() for p in parts.model.parameters()]),
        "buffers": [buffer.clone() for buffer in parts.model.buffers()],
        "scores": scores,
        "scored": parts.progress.examples_scored,
    }


def standard_errors(overrides: list[str], ranks: Ranks, draws: int = 300) -> Tensor:
    """Return how many standard errors the mean weighted gradient is from the whole set's, along 20 directions."""
    parts = build(compose_config(*overrides), CPU, TickClock(), ranks)
    for _ in range(60):  # so that methods with a memory have one
        parts.take_update()
    whole = torch.cat([gradient.flatten() for gradient in parts.workspace.mean_gradient()])
    directions = torch.randn(20, len(whole), generator=torch.Generator().manual_seed(0))
    projections = torch.stack([directions @ gradient_of_a_draw(parts) for _ in range(draws)])
    return (projections.mean(0) - directions @ whole) / (projections.std(0) / draws**0.5)


def gradient_of_a_draw(parts: Parts) -> Tensor:
    draw = parts.sampler.draw()
    parts.step.compute_gradient(draw)
    return torch.cat([p.grad.flatten() for p in parts.model.parameters() if p.grad is not None])


def in_one_of_two(rank: int, port: int, folder: str) -> None:
    """Be one of two processes; leave what came out in a file."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(SIZE), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)  # a GPU must not matter, nor that LOCAL_RANK is missing
        ranks = join(CPU)
    assert (ranks.rank, ranks.size) == (rank, SIZE)
    found = {
        "trained": {name: few_updates(overrides, ranks) for name, overrides in CASES.items()},
        "unsynced": few_updates(UNSYNCED, ranks),
        "errors": {
            name: standard_errors([*tiny_overrides(name), *choices], ranks) for name, choices in UNBIASED.items()
        },
        "parts": [ranks.part(torch.arange(7)), ranks.part(torch.arange(1))],
        "gathered": ranks.gather({"a": ranks.part(torch.arange(7)), "b": ranks.part(torch.ones(7, 2, 3))}, 7),
        "largest": ranks.largest(float(rank)),
        "failed": failure(ranks),
    }
    torch.save(found, Path(folder, f"{rank}.pt"))
    os._exit(0)  # as the command line leaves


def failure(ranks: Ranks) -> str:
    """Return what all ranks hear if the last one fails."""

    def fail_on_the_last() -> int:
        if not ranks.is_first:
            raise ValueError("no such thing")
        return 1

    try:
        return str(ranks.attempt(fail_on_the_last))
    except ValueError as error:
        return f"error: {error}"


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    """Return what each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    together(in_one_of_two, free_port(), str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(SIZE)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does(name: str, two) -> None:
    first, second = (found["trained"][name] for found in two)
    # Sums in another order move an activation across a ReLU's kink now and then, and batch norm carries that to all
    # weights: then it is compared with one run alone whose weights begin one rounding away, on that side of the kink.
    for nudge in range(8):
        alone = few_updates(CASES[name], Ranks(), nudge)
        assert torch.equal(first["indices"], alone["indices"]) and first["scored"] == alone["scored"]
        is_close = torch.isclose(first["parameters"], alone["parameters"], rtol=2e-4, atol=2e-5)
        if is_close.float().mean() > 0.9:
            break
    assert is_close.float().mean() > 0.9
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=2e-4, atol=2e-5)
    for key in ("parameters", "scores"):
        torch.testing.assert_close(first[key], alone[key], rtol=2e-3, atol=2e-3)
    for shared, own in zip(first["buffers"], alone["buffers"], strict=True):
        torch.testing.assert_close(shared, own, rtol=2e-3, atol=2e-3)
    for key in ("indices", "weights", "parameters", "scores"):
        assert torch.equal(first[key], second[key])


def test_batch_norm_over_each_process_part_is_another_network_but_the_same_on_both(two) -> None:
    first, second = (found["unsynced"] for found in two)
    synced = two[0]["trained"]["batch norm, uniform"]
    assert torch.equal(first["parameters"], second["parameters"]) and torch.equal(first["scores"], second["scores"])
    assert torch.equal(first["indices"], synced["indices"])
    assert not torch.allclose(first["parameters"], synced["parameters"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_weighted_gradient_is_the_whole_sets(name: str, two) -> None:
    for found in two:
        assert found["errors"][name].abs().max() < 4


def test_parts_are_put_together_in_order(two) -> None:
    assert [found["parts"][0].tolist() for found in two] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [found["parts"][1].tolist() for found in two] == [[0], []]
    for found in two:
        assert found["gathered"]["a"].tolist() == list(range(7)) and found["gathered"]["b"].shape == (7, 2, 3)
        assert found["largest"] == 1


def test_what_fails_on_one_fails_on_all(two) -> None:
    assert [found["failed"] for found in two] == ["error: no such thing"] * 2


def test_slurm_says_where_the_others_are() -> None:
    variables = {"SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "MASTER_ADDR": "10.0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_PROCID", "3")
        patch.setenv("SLURM_LOCALID", "1")
        read_slurm(variables)
    assert variables["MASTER_ADDR"] == "10.0.0.1"  # what the user says stays
    assert (variables["RANK"], variables["LOCAL_RANK"], variables["WORLD_SIZE"]) == ("3", "1", "4")


# Whole runs


def start(folder: Path, *overrides: str, prepare: Callable[[], None] | None = None) -> list[Command]:
    return start_two([*RUN, f"runs_dir={folder}/runs", *overrides], folder, prepare=prepare)


def finish_both(folder: Path, *overrides: str) -> Path:
    first, second = start(folder, *overrides)
    assert codes([first, second]) == [0, 0], (first.output, second.output)
    assert not second.output  # the first process speaks for both
    return record_in(folder)


def codes(commands: list[Command]) -> list[int]:
    """Wait for the end of processes and return their exit codes."""
    return [command.wait() for command in commands]


def close_to(rows: list[dict], others: list[dict]) -> bool:
    return len(rows) == len(others) and all(
        row[key] == pytest.approx(other[key], rel=0.02, abs=0.01)
        for row, other in zip(rows, others, strict=True)
        for key in ("updates", "examples_trained", "examples_scored", "train_loss", "test_error")
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Iterator[Path]:
    yield finish_both(tmp_path_factory.mktemp("undisturbed"))


def test_an_interrupted_run_continues_bit_for_bit_also_after_a_kill(undisturbed: Path, tmp_path: Path) -> None:
    processes = start(tmp_path)
    path = wait_for_rows(tmp_path, 3)
    processes[1].signal(signal.SIGTERM)  # one is told, both stop at the same update
    assert codes(processes) == [1, 1]
    assert last_status(read_rows(path))[0] == "interrupted"  # type: ignore[index]
    rows = len(final_rows(path))
    processes = start(tmp_path)
    wait_for_rows(tmp_path, rows + 3)
    for process in processes:
        process.signal(signal.SIGKILL)
    assert codes(processes) == [-signal.SIGKILL] * SIZE
    assert final_rows(finish_both(tmp_path)) == final_rows(undisturbed)


def test_another_number_of_processes_continues_a_run(undisturbed: Path, tmp_path: Path) -> None:
    processes = start(tmp_path)
    wait_for_rows(tmp_path, 10)
    processes[0].signal(signal.SIGTERM)
    assert codes(processes) == [1, 1]
    record = finish(tmp_path / "runs", *FEWER)
    assert [row["environment"]["ranks"] for row in read_rows(record) if row["kind"] == "start"] == [2, 1]
    assert close_to(final_rows(record), final_rows(undisturbed))


def test_a_probe_that_watches_training_finds_what_it_finds_on_one(tmp_path: Path) -> None:
    words = ["probe=loss_patterns", "budget.unit=epochs", "budget.limit=5", "evaluation.points=5"]
    shared, alone = finish_both(tmp_path, *words), finish(tmp_path / "one", *FEWER, *words)
    found, expected = ([row for row in read_rows(path) if row["kind"] == "probe"] for path in (shared, alone))
    assert len(found) == len(expected) == 10 * (1 + 2 + 3 + 4)
    for row, other in zip(found, expected, strict=True):
        assert row["share"] == pytest.approx(other["share"], abs=0.1)
        assert {**row, "share": 0} == {**other, "share": 0}


def test_torchrun_and_a_budget_in_seconds(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={SIZE}",
        "-m",
        "isbench",
    ]
    words = [*RUN, f"runs_dir={tmp_path}", "budget.unit=seconds", "budget.limit=2", "evaluation.points=4"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "FutureWarning" not in done.stderr, done.stderr
    (record,) = tmp_path.rglob("record.jsonl")
    seconds = [row["train_seconds"] for row in effective_rows(read_rows(record))]
    assert len(seconds) == 5 and 2 <= seconds[-1] < 4


def discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def have_one_gpu() -> None:
    gpu = pretend_gpu(pytest.MonkeyPatch())
    gpu.__enter__()
    atexit.register(gpu.__exit__, None, None, None)  # it stays until then


def test_mistakes_are_said_once(tmp_path: Path) -> None:
    """In a line on standard error."""
    processes = start(tmp_path, "batch_size=1", prepare=discard_output)
    assert codes(processes) == [1, 1]
    said = ["isbench: batch_size=1 is smaller than the number of processes (2)\n", ""]
    assert [process.output for process in processes] == said
    assert not (tmp_path / "runs").exists()


def test_two_processes_and_one_gpu_is_one_line(tmp_path: Path) -> None:
    processes = start(tmp_path, prepare=have_one_gpu)
    assert codes(processes) == [1, 1]
    assert [process.output for process in processes] == [
        "isbench: device=cuda: 2 processes share 1 GPU, and each needs its own; "
        "start fewer (torchrun --nproc_per_node), or use device=cpu\n",
        "",
    ]
    assert not (tmp_path / "runs").exists()


def test_processes_that_cannot_meet_say_what_helps(monkeypatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE=2: .* MASTER_ADDR .*; between machines, GLOO_SOCKET_IFNAME"):
        join(CPU)


def test_each_process_needs_a_gpu_of_its_own() -> None:
    check_gpus(["gpu-a", "gpu-b"])  # also where each process sees but one, as SLURM can have it
    with pytest.raises(ConfigError, match="3 processes share 2 GPUs"):
        check_gpus(["gpu-a", "gpu-b", "gpu-a"])


def test_a_shared_batch_is_one_batch() -> None:
    parts = build(compose_config(*tiny_overrides("uniform"), "augmentation=crop"), CPU, TickClock())
    workspace = parts.workspace
    ranks = workspace._ranks = Ranks(1, 2)
    indices = torch.arange(9)
    shared = workspace.fetch(indices)
    whole = parts.dataset.fetch(indices, shared.views)
    assert torch.equal(shared.inputs, whole.inputs)
    some = torch.tensor([8, 0, 0, 5])
    assert torch.equal(shared.take(some).inputs, whole.take(some).inputs)
    assert torch.equal(shared.take(some).join(shared).inputs, whole.take(some).join(whole).inputs)
    mine = ranks.part(shared)
    assert isinstance(mine, Batch)
    assert torch.equal(mine.inputs, whole.inputs[5:]) and mine.indices.tolist() == [5, 6, 7, 8]
