"""What a machine and its user do to a run: full disks, lost folders, damaged files, odd clocks, too little memory.

Each time the run ends in one line, nothing that was recorded is lost, and the same command then leaves the rows of an
undisturbed run.
"""

import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import pytest
import torch

from isbench.errors import ConfigError, OutOfMemory, memory_named
from isbench.recording.record import effective_rows, last_status, read_rows
from isbench.report.load import load_runs
from tests.commands import CALLS, Command, finish, record_in
from tests.conftest import SAMPLERS, final_rows
from tests.faults.conftest import run_words, share

NOBODY = 65534
# The last of them are long past, so that what is done to the run is done while it trains.
EARLY = {"record write": (2, 14), "checkpoint write": (2, 10), "checkpoint sync": (2, 6), "checkpoint rename": (2, 8)}


def complaint(output: str) -> str:
    """Return the last line of what a command said; it must be isbench's, and no traceback among the others."""
    assert "Traceback" not in output, output
    line = output.splitlines()[-1]
    assert line.startswith("isbench: "), output
    return line


def halted(words: list[str], folder: Path, chance, prepare: Callable[[], None] | None = None) -> Command:
    """Return a run that has come to a halt at one of its early calls."""
    call = chance.choice(list(EARLY))
    command = Command(words, folder / "log", [(call, chance.randint(*EARLY[call]))], prepare)
    command.wait_until_halted()
    return command


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return what mounts a file system of so many bytes; of more, when it is called again."""
    folder = tmp_path / "disk"

    def mount(size: int) -> Path:
        options = f"size={size}" if not folder.exists() else f"remount,size={size}"
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no right to mount a file system here")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("number", share(range(6), few=1))
def test_a_full_disk(number: int, undisturbed, chance, sampler, struck, same_as, small_disk, tmp_path: Path) -> None:
    disk = small_disk(4096 * chance.randint(2, 24))
    words = run_words(sampler, disk / "runs")
    command = Command(words, tmp_path / "log")
    assert command.wait() == 1
    assert "No space left on device" in complaint(command.output)
    struck("disk full")
    expected, records = undisturbed(sampler), list(disk.rglob("record.jsonl"))
    assert not records or all(row in expected.rows for row in final_rows(records[0]))
    small_disk(2**26)
    finish(words, tmp_path / "log")
    same_as(record_in(disk), expected)


@pytest.mark.parametrize("number", share(range(6), few=0))
def test_a_file_that_may_not_grow(number: int, undisturbed, chance, sampler, struck, same_as, tmp_path: Path) -> None:
    words, size = run_words(sampler, tmp_path), chance.randint(1, 40_000)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    command = Command(words, tmp_path / "log", prepare=limit)
    assert command.wait() == 1
    assert "File too large" in complaint(command.output)
    struck("disk full")
    finish(words, tmp_path / "log")
    same_as(record_in(tmp_path), undisturbed(sampler))


def test_a_disk_that_is_read_only(undisturbed, sampler, struck, same_as, small_disk, tmp_path: Path) -> None:
    disk = small_disk(2**26)
    words = run_words(sampler, disk / "runs")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    command = Command(words, tmp_path / "log")
    assert command.wait() == 1
    assert "cannot write" in complaint(command.output) and "Read-only file system" in command.output
    assert not list(disk.iterdir())
    struck("folder that cannot be written")
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    finish(words, tmp_path / "log")
    same_as(record_in(disk), undisturbed(sampler))


@pytest.mark.parametrize("number", share(range(4), few=1))
def test_a_folder_that_is_protected_while_training(number: int, undisturbed, chance, sampler, struck, same_as) -> None:
    with TemporaryDirectory() as name:  # pytest's own are for the owner alone
        folder = Path(name)
        user = NOBODY if os.geteuid() == 0 else os.geteuid()  # for root, no file is protected
        os.chown(folder, user, -1)
        words = run_words(sampler, folder)
        command = halted(words, folder, chance, partial(os.setuid, user))
        record_in(folder).parent.chmod(0o555)
        command.go_on()
        assert command.wait() == 1
        assert "cannot write the checkpoint" in complaint(command.output) and "Permission denied" in command.output
        struck("folder that cannot be written")
        record_in(folder).parent.chmod(0o755)
        finish(words, folder / "log")
        same_as(record_in(folder), undisturbed(sampler))


@pytest.mark.parametrize("number", share(range(6), few=1))
def test_a_folder_that_is_deleted_while_training(
    number: int, undisturbed, chance, sampler, struck, same_as, tmp_path: Path
) -> None:
    """Half of the times another process has begun the run again before the first one notices."""
    words = run_words(sampler, tmp_path / "runs")
    command = halted(words, tmp_path, chance)
    shutil.rmtree(tmp_path / "runs")
    struck("folder deleted while training")
    other = Command(words, tmp_path / "other", [("record write", 5)]) if number % 2 else None
    if other:
        other.wait_until_halted()
    command.go_on()
    assert command.wait() == 1
    assert "was deleted" in complaint(command.output) or "cannot write the checkpoint" in complaint(command.output)
    if other:
        other.go_on()
        assert other.wait() == 0, other.output
        assert sum(row["kind"] == "start" for row in read_rows(record_in(tmp_path))) == 1
    else:
        assert not list(tmp_path.rglob("record.jsonl")), "a deleted folder stays deleted"
        finish(words, tmp_path / "log")
    same_as(record_in(tmp_path), undisturbed(sampler))


@pytest.mark.parametrize("number", share(range(4), few=1))
def test_several_processes_on_one_run(
    number: int, undisturbed, chance, sampler, struck, same_as, tmp_path: Path
) -> None:
    words = run_words(sampler, tmp_path)
    late = Command(words, tmp_path / "late", [("lock", 1)])  # it has seen that the run has not ended
    late.wait_until_halted()
    first = halted(words, tmp_path, chance)
    others = [Command(words, tmp_path / f"other{i}") for i in range(2)]
    for other in others:
        assert other.wait() == 1 and "in use by another process" in complaint(other.output)
    first.go_on()
    assert first.wait() == 0, first.output
    late.go_on()
    assert late.wait() == 0 and "already finished" in late.output, late.output
    struck("several processes on one run", 4)
    record = record_in(tmp_path)
    assert sum(row["kind"] == "start" for row in read_rows(record)) == 1
    same_as(record, undisturbed(sampler))


def damage(path: Path, chance) -> None:
    """Shorten a file, or turn some of its bits."""
    content = bytearray(path.read_bytes())
    if chance.random() < 0.5:
        del content[chance.randrange(len(content)) :]
    else:
        for _ in range(chance.choice([1, 1, 2, 100])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("number", share(range(20), few=1))
def test_a_damaged_checkpoint(number: int, undisturbed, chance, struck, same_as, tmp_path: Path) -> None:
    sampler = SAMPLERS[number % len(SAMPLERS)]
    words = run_words(sampler, tmp_path)
    command = Command(words, tmp_path / "log", [("record write", chance.randint(8, 18))])
    command.wait_until_halted()
    command.kill()
    damage(record_in(tmp_path).with_name("checkpoint.pt"), chance)
    struck("checkpoint truncated or bits flipped")
    said = finish(words, tmp_path / "log")
    assert "checkpoint.pt is damaged (wrong checksum): going back to checkpoint.previous.pt" in said
    assert "continues after update" in said
    same_as(record_in(tmp_path), undisturbed(sampler))


@pytest.mark.parametrize("number", share(range(5), few=1))
def test_both_checkpoints_damaged(number: int, undisturbed, chance, sampler, struck, same_as, tmp_path: Path) -> None:
    words = run_words(sampler, tmp_path)
    command = Command(words, tmp_path / "log", [("record write", chance.randint(8, 18))])
    command.wait_until_halted()
    command.kill()
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        damage(record_in(tmp_path).with_name(name), chance)
    struck("both checkpoints damaged")
    said = finish(words, tmp_path / "log")
    assert "checkpoint.pt and checkpoint.previous.pt damaged (wrong checksum): the run starts again" in said
    assert "continues after update" not in said
    same_as(record_in(tmp_path), undisturbed(sampler))


@pytest.mark.parametrize("number", share(range(6), few=1))
def test_interrupted_twice(number: int, undisturbed, chance, sampler, struck, same_as, tmp_path: Path) -> None:
    """The second Ctrl-C comes in the middle of the checkpoint that the first one asked for."""
    words = [*run_words(sampler, tmp_path), "checkpoint.seconds=1000"]
    call = chance.choice([call for call in CALLS if call in EARLY and "checkpoint" in call])
    first, number_of_save = ("record write", chance.randint(3, 12)), {"checkpoint write": 2}.get(call, 1)
    command = Command(words, tmp_path / "log", [first, (call, number_of_save)])
    for _ in range(2):
        command.wait_until_halted()
        command.signal(signal.SIGINT)
        command.go_on()
    assert command.wait() == 1
    assert "stopped at once" in complaint(command.output)
    struck("SIGINT twice")
    assert last_status(read_rows(record_in(tmp_path))) == ("interrupted", "")
    finish(words, tmp_path / "log")
    same_as(record_in(tmp_path), undisturbed(sampler))


def let_clocks_run_backwards() -> None:
    """Make every look at the time of day an hour earlier than the one before."""
    from isbench import run

    looks = itertools.count()
    now = datetime.now().astimezone()

    class Backwards(datetime):
        @classmethod
        def now(cls, tz=None):
            return (now - timedelta(hours=next(looks))).astimezone(tz)

    run.datetime = Backwards  # type: ignore[misc]
    time.time = lambda: Backwards.now().timestamp()


@pytest.mark.parametrize("number", share(range(3), few=1))
def test_a_clock_that_runs_backwards(
    number: int, undisturbed, chance, sampler, struck, same_as, tmp_path: Path
) -> None:
    words = run_words(sampler, tmp_path)
    halted(words, tmp_path, chance, let_clocks_run_backwards).kill()
    struck("clock running backwards")
    command = Command(words, tmp_path / "log", prepare=let_clocks_run_backwards)
    assert command.wait() == 0, command.output
    record = record_in(tmp_path)
    same_as(record, undisturbed(sampler))
    seconds = [row["train_seconds"] for row in read_rows(record) if row["kind"] == "evaluation"]
    assert all(0 <= value < 60 for value in seconds) and seconds[-1] == max(seconds)


@pytest.mark.parametrize("sampler", share(SAMPLERS, few=1))
def test_a_loss_that_is_not_finite(sampler: str, struck, tmp_path: Path) -> None:
    command = Command([*run_words(sampler, tmp_path), "optimizer.lr=1e30"], tmp_path / "log")
    assert command.wait() == 1
    assert "diverged: " in complaint(command.output)
    struck("loss not finite")
    status, reason = last_status(read_rows(record_in(tmp_path))) or ("", "")
    assert status == "diverged" and sampler in reason


def test_a_grid_goes_on_after_a_loss_that_is_not_finite(struck, tmp_path: Path) -> None:
    words = ["-m", *run_words("uniform", tmp_path), "optimizer.lr=1e30,0.02", "seed=0,1"]
    command = Command(words, tmp_path / "log")
    assert command.wait() == 1
    assert "diverged: " in complaint(command.output)
    struck("loss not finite", 2)
    statuses = [last_status(read_rows(path)) for path in tmp_path.rglob("record.jsonl")]
    assert sorted(status[0] for status in statuses if status) == ["diverged", "diverged", "finished", "finished"]


def limit_memory(extra: int) -> None:
    """Let this process take so many bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not say who waits for a core")
@pytest.mark.parametrize("number", share(range(3), few=1))
def test_a_core_that_another_program_takes(number: int, sampler, struck, tmp_path: Path) -> None:
    """The record says for how long the run has waited, its output says it once, and a report leaves its seconds out."""
    core = max(os.sched_getaffinity(0))
    busy = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
    words = [*run_words(sampler, tmp_path), "budget.unit=seconds", "budget.limit=1.5", "evaluation.points=4"]
    with subprocess.Popen([sys.executable, "-c", busy]) as neighbour:
        try:
            said = Command(words, tmp_path / "log", prepare=partial(os.sched_setaffinity, 0, [core]))
            assert said.wait() == 0
        finally:
            neighbour.kill()
    struck("cores taken by others")
    assert said.output.count("other programs take its cores") == 1
    assert 0.2 < final_waits(record_in(tmp_path))[-1] <= 1
    assert not load_runs(tmp_path).runs["alone"].any()


def final_waits(record: Path) -> list[float]:
    return [row["cpu_wait"] for row in effective_rows(read_rows(record))]


WIDE = ("dataset.shape=[1,4,4]", "model.hidden=[20000]")  # small data and few weights, but 80 kB for an example


@pytest.mark.parametrize(
    "greedy",
    share(
        [
            ("model.hidden=[100000]",),  # no room for the weights
            ("dataset.num_examples=1000000",),  # nor for the data
            ("dataset.num_examples=4096", "batch_size=4096", *WIDE),  # nor to take a step
            ("dataset.num_test=4096", *WIDE),  # enough to train, not to evaluate
        ],
        few=1,
    ),
)
def test_too_little_memory(greedy: tuple[str, ...], struck, tmp_path: Path) -> None:
    words = [*run_words("uniform", tmp_path), "budget.limit=4", *greedy]
    command = Command(words, tmp_path / "log", prepare=partial(limit_memory, 200 * 2**20))
    assert command.wait() == 1
    line = complaint(command.output)
    assert "out of memory on cpu" in line
    assert all(word in line for word in ("batch_size", "sampler.pool_size", "dataset.residency"))
    struck("out of memory")
    if "num_test" in greedy[0]:
        status, reason = last_status(read_rows(record_in(tmp_path))) or ("", "")
        assert status == "failed" and reason.startswith("OutOfMemory: ") and "\n" not in reason
        finish(words, tmp_path / "log")
        assert len(final_rows(record_in(tmp_path))) == 5


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ConfigError("model=mlp: DefaultCPUAllocator: can't allocate memory: you tried to allocate 313600000 bytes."),
    ],
)
def test_every_lack_of_memory_is_the_same_line(error: Exception) -> None:
    with pytest.raises(OutOfMemory, match="out of memory on cuda: reduce batch_size"), memory_named("cuda"):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), memory_named("cuda"):
        raise RuntimeError("shapes do not fit")


class Refusing(BaseHTTPRequestHandler):
    """Answers everything with an error of the server."""

    def answer(self) -> None:
        self.send_error(500)

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing."""


class Silent(Refusing):
    """Takes every question and never answers."""

    def answer(self) -> None:
        time.sleep(60)

    do_GET = do_POST = do_PUT = do_HEAD = answer


class Talking(Refusing):
    """Answers everything with a page of something else."""

    def answer(self) -> None:
        page = b"<html><body>Welcome to the hotel's network</body></html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    do_GET = do_POST = do_PUT = do_HEAD = answer


@pytest.mark.parametrize("handler", share([Refusing, Silent, Talking, None], few=0))
def test_a_wandb_server_that_does_not_serve(
    handler: type[BaseHTTPRequestHandler] | None, undisturbed, sampler, struck, same_as, monkeypatch, tmp_path: Path
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler or Refusing)
    server.daemon_threads = True
    if handler:
        Thread(target=server.serve_forever, daemon=True).start()
    else:
        server.server_close()  # nobody listens
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "local" + "0" * 40)
    words = [*run_words(sampler, tmp_path), "logging=online", "logging.timeout_seconds=4"]
    words.remove("logging=off")
    command = Command(words, tmp_path / "log", afresh=True)
    try:
        assert command.wait() == 0, command.output
    finally:
        if handler:
            server.shutdown()
            server.server_close()
    struck("W&B server refuses, fails or hangs")
    assert "Traceback" not in command.output and command.output.count("W&B") <= 2
    same_as(record_in(tmp_path), undisturbed(sampler))
