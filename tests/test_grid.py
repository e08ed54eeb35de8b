"""Grids: which runs an experiment has, in which order, and what becomes of them whatever happens on the way.

With SLURM they are tried in tests/cluster.
"""

import fcntl
import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from isbench import explain
from isbench.config import config_folder, on_device, recorded, run_folder
from isbench.errors import ConfigError, Interrupted, UserError
from isbench.grid import status
from isbench.grid import sweeper as grid
from isbench.grid.jobs import check_distinct, check_files, compose_grid, words_for
from isbench.grid.jobs import expand as expand_grid
from isbench.grid.kept import collected_runs
from isbench.grid.member import slot
from isbench.recording.record import effective_rows, last_status, read_rows
from isbench.report.collect import collect
from isbench.report.load import read_results
from isbench.training.process import stop_signals
from tests.commands import SERVER, Command, fork
from tests.conftest import TINY, comparable, compose_config, wait_for_rows
from tests.test_cli import call

ARMS = """\
      uniform: [sampler=uniform]
      small_pool: [sampler=upper_bound, sampler.pool_size=32]
      large_pool: [sampler=upper_bound, sampler.pool_size=64, budget.limit=20]
"""
EXPERIMENT = f"""\
# @package _global_
# a grid for tests
group: tiny
hydra:
  sweeper:
    arms:
{ARMS}
    params:
      seed: range(2)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Return the option that adds the experiment `tiny` to the choices."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "tiny.yaml").write_text(EXPERIMENT)
    return f"--config-dir={tmp_path}/own"


@pytest.fixture
def choices(tmp_path: Path, monkeypatch) -> Path:
    """Put the experiment `tiny` among the choices of this process; return its file."""
    folder = tmp_path / "conf"
    shutil.copytree(config_folder(), folder, ignore=shutil.ignore_patterns("impon", "is", "rais", "sgds"))
    path = folder / "experiment" / "tiny.yaml"
    path.write_text(EXPERIMENT)
    monkeypatch.setattr("isbench.grid.jobs.config_folder", lambda: folder)
    monkeypatch.setattr(explain, "config_folder", lambda: folder)
    monkeypatch.setattr(sys, "argv", ["isbench"])
    return path


def expand(arms: dict, params: dict, *arguments: str) -> list[list[str]]:
    parser = OverridesParser.create()
    return [words for _, words in expand_grid(parser, OmegaConf.create(arms), params, arguments)]


def records(folder: Path) -> dict[tuple[str, int], list[dict]]:
    """Return the rows of each run below a folder, by arm and seed."""
    found = {}
    for path in folder.rglob("record.jsonl"):
        rows = read_rows(path)
        found[rows[0]["config"]["arm"], rows[0]["config"]["seed"]] = rows
    return found


def counted(found: dict[tuple[str, int], list[dict]]) -> dict[tuple[str, int], list[dict]]:
    """Return the rows of runs that count, without what depends on the machine."""
    return {key: comparable(effective_rows(rows)) for key, rows in found.items()}


def test_seeds_are_the_outer_loop_and_arms_the_inner_one() -> None:
    arms = {"a": ["sampler=uniform"], "b": ["sampler=rais", "probe=draws"]}
    expected = [
        {f"seed={seed}", f"batch_size={size}", f"slots={slots}", f"arm={arm}", *arms[arm]}
        for seed in (0, 1)
        for size in (8, 16)
        for slots in (5, 6)
        for arm in "ab"
    ]
    jobs = expand(arms, {"batch_size": "8,16", "seed": "range(2)"}, "slots=5,6")
    assert [set(words) for words in jobs] == expected
    assert all(len(words) == len(set(words)) for words in jobs)


def test_the_command_line_wins_over_arms_and_arms_over_params() -> None:
    arms = {"a": ["optimizer.lr=2", "clip_norm=2"], "b": []}
    jobs = expand(arms, {"optimizer.lr": "1,5", "clip_norm": 1}, "optimizer.lr=3")
    assert [set(words) for words in jobs] == [
        {"optimizer.lr=3", "clip_norm=2", "arm=a"},
        {"optimizer.lr=3", "clip_norm=1", "arm=b"},
    ]
    jobs = expand(arms, {"optimizer.lr": "1,5"})
    assert [set(words) for words in jobs] == [
        {"optimizer.lr=2", "clip_norm=2", "arm=a"},
        {"optimizer.lr=1", "arm=b"},
        {"optimizer.lr=5", "arm=b"},
    ]


def test_a_label_names_what_was_asked_for_where_an_arm_fixes_it_otherwise() -> None:
    parser, arms = OverridesParser.create(), OmegaConf.create({"a": ["optimizer.lr=2"], "b": []})
    labels = [label for label, _ in expand_grid(parser, arms, {"seed": "0"}, ["optimizer.lr=3,4"])]
    assert labels == ["a optimizer.lr=3", "b optimizer.lr=3", "a optimizer.lr=4", "b optimizer.lr=4"]
    assert next(iter(expand_grid(parser, arms, {"optimizer.lr": "3,4"}, [])))[0] == "a optimizer.lr=2"


def test_an_experiment_without_arms_is_its_params() -> None:
    assert expand({}, {"seed": "0,1"}, "sampler=uniform,loss") == [
        ["seed=0", "sampler=uniform"],
        ["seed=0", "sampler=loss"],
        ["seed=1", "sampler=uniform"],
        ["seed=1", "sampler=loss"],
    ]
    assert expand({}, {}, "seed=3") == [["seed=3"]]


def test_arms_are_narrowed_in_their_own_order() -> None:
    arms = {name: [f"batch_size={size}"] for size, name in enumerate("abcd", start=1)}
    assert expand(arms, {}, "arm=d,b") == [["batch_size=2", "arm=b"], ["batch_size=4", "arm=d"]]
    assert expand(arms, {}, "arm=c") == [["batch_size=3", "arm=c"]]


@pytest.mark.parametrize(
    ("arms", "arguments", "complaint"),
    [
        ({"rais": []}, ["arm=raiss"], "arm=raiss: no such arm; did you mean rais?"),
        ({"rais": []}, ["arm=rais,uniform"], "arm=uniform: no such arm; valid: rais"),
        ({"a b": []}, [], "hydra.sweeper.arms.a b: needs a name"),
        ({"a": "sampler=loss"}, [], "hydra.sweeper.arms.a: needs a list"),
        ({"a": None}, [], "hydra.sweeper.arms.a: needs a list"),
        ({"a": [{"sampler": "loss"}]}, [], "hydra.sweeper.arms.a: needs a list"),
        ({"a": ["seed=0,1"]}, [], "hydra.sweeper.arms.a: seed needs one value"),
        ({"a": ["sampler=rais"]}, ["sampler=loss"], "sampler=loss: the arms of this grid set sampler"),
        ({}, ["seed=range(0)"], "seed=range(0): no values"),
    ],
)
def test_mistakes_are_one_line(arms: dict, arguments: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        expand(arms, {}, *arguments)
    assert str(error.value).startswith(complaint) and "\n" not in str(error.value)


def test_two_arms_that_are_one_run_are_refused(choices: Path) -> None:
    choices.write_text(EXPERIMENT.replace(ARMS, "      one: [sampler=loss]\n      two: [sampler=loss]\n"))
    _, jobs = compose_grid(["experiment=tiny", *TINY])
    with pytest.raises(ConfigError, match="'one seed=0' and 'two seed=0' are one and the same run"):
        check_distinct(jobs)


def test_a_file_that_a_run_needs_is_looked_for_before_any_run_starts(choices: Path, tmp_path: Path) -> None:
    table = tmp_path / "losses.pt"
    arms = f"      one: [sampler=loss]\n      two: [sampler=rho_loss, sampler.table={table}]\n"
    choices.write_text(EXPERIMENT.replace(ARMS, arms))
    _, jobs = compose_grid(["experiment=tiny", *TINY])
    with pytest.raises(ConfigError, match=f"{table}: no such file; make it with .*irreducible_loss"):
        check_files(jobs)
    table.touch()
    check_files(jobs)


def test_a_seed_composes_as_hydra_would(choices: Path) -> None:
    choices.write_text(EXPERIMENT.replace("group: tiny", "group: tiny/${seed}"))
    _, jobs = compose_grid(["experiment=tiny", *TINY, "optimizer.lr=0.3", "arm=small_pool"])
    assert [(job.config.seed, job.config.group) for job in jobs] == [(0, "tiny/0"), (1, "tiny/1")]
    assert {job.config.sampler["pool_size"] for job in jobs} == {32}
    assert {job.config.optimizer["lr"] for job in jobs} == {0.3}


def test_a_grid_of_arms(own: str, monkeypatch, tmp_path: Path, capsys) -> None:
    command = ["-m", own, "experiment=tiny", *TINY, f"runs_dir={tmp_path}/runs"]
    command.remove("budget.limit=40")  # an arm sets it, and params and command line leave it alone
    assert call(monkeypatch, *command, "arm=uniform,small_pool", "budget.limit=30") is None
    assert "grid: 0 of 4 runs are finished\n" in capsys.readouterr().err
    assert call(monkeypatch, *command, "budget.limit=30") is None
    said = capsys.readouterr().err
    assert "grid: 4 of 6 runs are finished\n" in said and said.count(": already finished") == 4
    assert said.endswith(
        "arm           finished\n----------  ----------\n"
        "uniform              2\nsmall_pool           2\nlarge_pool           2\n"
    )
    found = records(tmp_path)
    assert sorted(found) == sorted((arm, seed) for arm in ("uniform", "small_pool", "large_pool") for seed in (0, 1))
    for (arm, _), rows in found.items():
        config = rows[0]["config"]
        assert config["sampler"].get("pool_size") == {"uniform": None, "small_pool": 32, "large_pool": 64}[arm]
    # The same configurations, asked for without an experiment, are the same runs: an arm is a name and nothing else.
    plain = ["-m", *TINY, f"runs_dir={tmp_path}/runs", "group=tiny", "budget.limit=30", "seed=0,1"]
    assert call(monkeypatch, *plain, "sampler=uniform") is None
    assert "grid: 2 of 2 runs are finished\n" in capsys.readouterr().err
    for words in (["-m", "experiment=tiny", f"runs_dir={tmp_path}/runs"], ["tiny", f"--runs-dir={tmp_path}/runs"]):
        monkeypatch.setattr(sys, "argv", ["status", own, *words, *command[3:-1], "budget.limit=30"])
        status.main()
        assert "runs: 6 finished;" in capsys.readouterr().out


def test_every_end_is_accounted_for(own: str, monkeypatch, tmp_path: Path, capsys) -> None:
    """Several processes, and in them runs that diverge, that cannot be, and that fail: all are told at the end."""
    arms = """\
      uniform: [model=mlp]
      wild: [model=mlp, optimizer.lr=1e30]
      images: [model=lenet]
      wrong: [model=mlp, optimizer.lr=-1]
"""
    (tmp_path / "own" / "experiment" / "tiny.yaml").write_text(EXPERIMENT.replace(ARMS, arms))
    sizes = [word for word in TINY if not word.startswith("model")]
    command = ["-m", own, "experiment=tiny", *sizes, "dataset.shape=[20,1]", "launcher=joblib"]
    said = call(monkeypatch, *command, f"runs_dir={tmp_path}/runs")
    assert said is not None
    diverged, failed = sorted(said.splitlines())
    assert diverged.startswith("isbench: diverged: wild seed=0, wild seed=1: the training loss was not finite")
    assert failed.startswith("isbench: failed: wrong seed=0, wrong seed=1: optimizer")
    *_, names, _, uniform, wild, images, wrong, skipped = capsys.readouterr().err.splitlines()
    assert names.split() == ["arm", "finished", "diverged", "skipped", "failed"]
    assert uniform.split() == ["uniform", "2", "0", "0", "0"]
    assert wild.split() == ["wild", "0", "2", "0", "0"]
    assert images.split() == ["images", "0", "0", "2", "0"]
    assert wrong.split() == ["wrong", "0", "0", "0", "2"]
    assert skipped.startswith("skipped: images seed=0, images seed=1: lenet needs")
    assert len(records(tmp_path)) == 6, "all but those that failed before they began"


def test_a_run_that_another_process_trains_is_not_failed(monkeypatch, tmp_path: Path, capsys) -> None:
    command = ["-m", *TINY, "device=cpu", f"runs_dir={tmp_path}", "seed=0,1"]
    _, jobs = compose_grid(command[1:])
    jobs[0].folder.mkdir(parents=True)
    with open(jobs[0].folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = call(monkeypatch, *command)
    assert said == "isbench: running: seed=0: another process is at work on it"
    *_, names, _, counts = capsys.readouterr().err.splitlines()
    assert dict(zip(names.split(), counts.split(), strict=True)) == {
        "sampler": "uniform",
        "finished": "1",
        "running": "1",
    }


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-m", "seed=0,1"], "no SLURM here: squeue is not installed; launcher=local runs in turn"),
        (
            ["-m", "hydra.launcher.timeout_min=2"],
            "hydra.launcher.timeout_min=2: no more than hydra.launcher.signal_del",
        ),
        (["seed=0"], "launcher=slurm: launchers are for grids; add -m"),
        (["-m", "hydra.launcher.partion=x"], "unknown key hydra.launcher.partion"),
    ],
)
def test_mistakes_with_slurm_are_one_line(words: list[str], complaint: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = call(monkeypatch, *words, *TINY, "launcher=slurm", f"runs_dir={tmp_path}/runs")
    assert said is not None and said.startswith(f"isbench: {complaint}") and "\n" not in said


def test_a_node_that_cannot_ask_slurm_leaves_the_run_to_the_same_command(monkeypatch) -> None:
    from isbench.grid import slurm

    def refuse(*options: str) -> list:
        raise UserError("no SLURM here")

    def stop(*arguments: object) -> None:
        raise Interrupted("stopped after update 7")

    monkeypatch.setattr(slurm, "squeue", refuse)
    monkeypatch.setattr(slurm.submitit_launcher.SlurmLauncher, "__call__", stop)
    monkeypatch.setattr("submitit.JobEnvironment", lambda: SimpleNamespace(job_id="3"))
    with pytest.raises(SystemExit, match=r"stopped after update 7.*\(no SLURM here\); the same command continues it"):
        object.__new__(slurm.SlurmLauncher)([], 0, {})


def test_signals_during_training_ask_it_to_stop_and_go_back_to_their_owner() -> None:
    taken = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: taken.append(number))
    boundaries = SimpleNamespace(stop_requested=False)
    try:
        with stop_signals(boundaries):
            signal.raise_signal(signal.SIGUSR2)
            assert boundaries.stop_requested and not taken
        signal.raise_signal(signal.SIGUSR2)
        assert taken == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def say_number(says: Connection) -> None:
    says.send((slot(), slot()))
    time.sleep(100)


def test_processes_side_by_side_have_different_numbers() -> None:
    def begin(count: int) -> dict[int, BaseProcess]:
        pipes = [SERVER.Pipe(duplex=False) for _ in range(count)]
        begun = [fork(say_number, theirs) for _, theirs in pipes]
        said = [ours.recv() for ours, _ in pipes]
        assert all(number == again for number, again in said)
        return {number: process for (number, _), process in zip(said, begun, strict=True)}

    processes = begin(3)
    try:
        assert len(processes) == 3
        lowest = min(processes)
        ended = processes.pop(lowest)
        ended.kill()
        ended.join()
        late = begin(1)
        assert set(late) == {lowest}, "the number of one that ended is free again"
        processes |= late
    finally:
        for process in processes.values():
            process.kill()
            process.join()


def test_a_killed_process_of_a_grid_is_one_line(monkeypatch, capsys) -> None:
    def launch(job_overrides, initial_job_idx):
        raise BrokenProcessPool("a worker died")

    _, jobs = compose_grid([*TINY, "seed=0,1", "runs_dir=nowhere"])
    monkeypatch.setattr(grid, "make_jobs", lambda *arguments: jobs)
    sweeper = grid.ArmSweeper({}, {})
    sweeper.loader, sweeper.config, sweeper.launcher = None, OmegaConf.create(), SimpleNamespace(launch=launch)
    with pytest.raises(UserError, match="was killed; the same command continues it"):
        sweeper.sweep([])
    assert capsys.readouterr().err.splitlines()[-1].split() == ["uniform", "0", "2"], "both are missing"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["sampler=loss", "sampler.pool_size=32", "optimizer=adam", "optimizer.lr=0.1,", "seed=3"],
        ["dataset.validation=8", "dataset.shape=[4,4]", "clip_norm=1e-3", "budget.unit=epochs", "numerics=fast"],
        ["sampler=rho_loss", "sampler.table='it''s a, [table].pt'", "group=mine"],
        ["rates_of", "model.hidden=[]", "probe=draws", "label_smoothing=0.1", "slots=500", "augmentation=crop"],
    ],
)
def test_a_recorded_run_has_words_that_train_it_again(words: list[str]) -> None:
    given = [word.rstrip(",").replace("''", "\\'") if word != "rates_of" else "sampler@rates_of=rais" for word in words]
    config = on_device(compose_config(*TINY, *given), "cpu")
    again = words_for(json.loads(json.dumps(recorded(config))))
    (job,) = compose_grid(again)[1]
    assert run_folder(job.config) == run_folder(replace(config, runs_dir="runs")), again


@pytest.mark.parametrize("number", range(5))
def test_a_foreign_table_of_results_is_named(number: int, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("results", "mine", "runs.parquet")
    path.parent.mkdir(parents=True)
    columns = {"run_id": ["a"], "status": ["finished"], "reason": [""], "seconds": [1.0]}
    foreign = [
        {"price": [3]},
        columns | {"seconds": ["soon"]},
        columns | {"status": [[1]]},
        columns | {"run_id": [None]},
    ]
    if number < len(foreign):
        pandas.DataFrame(foreign[number]).to_parquet(path)
    else:
        path.write_bytes(b"PAR1, and then nothing")
    collected_runs.cache_clear()
    said = call(monkeypatch, "-m", *TINY, "group=mine", "seed=0")
    if "None" in str(foreign[number : number + 1]):
        assert said is None, "a run without an id is nobody's"
    else:
        assert said is not None and said.startswith(f"isbench: {path} is not what isbench.report.collect writes (")
        assert "\n" not in said and not Path("runs").exists()


def run_grid(own: str, folder: Path, log: str, *words: str, afresh: bool = False) -> Command:
    always = ["-m", own, "experiment=tiny", *TINY, "budget.limit=200", f"runs_dir={folder}/runs"]
    always += ["evaluation.points=20", "checkpoint.seconds=0", "model.hidden=[300]"]
    return Command([*always, *words], folder / log, afresh=afresh)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "own" / "experiment").mkdir(parents=True)
    (folder / "own" / "experiment" / "tiny.yaml").write_text(EXPERIMENT)
    command = run_grid(f"--config-dir={folder}/own", folder, "log")
    assert command.wait() == 0, command.output
    return counted(records(folder))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_grid_continues(number: signal.Signals, own: str, undisturbed: dict, tmp_path: Path) -> None:
    command = run_grid(own, tmp_path, "before")
    wait_for_rows(tmp_path, 30)  # in the second run
    command.signal(number)
    code, said = command.wait(60), command.output
    if number != signal.SIGKILL:
        assert code == 1 and "Traceback" not in said
        assert said.splitlines()[-1].endswith("; the same command continues it")
        assert "interrupted    missing\n" in said
    assert 1 <= len(records(tmp_path)) < 6
    again = run_grid(own, tmp_path, "after")
    code, said = again.wait(), again.output
    assert code == 0 and "grid: 0 of 6" not in said and " of 6 runs are finished\n" in said, said
    found = records(tmp_path)
    assert all(last_status(rows)[0] == "finished" for rows in found.values())
    assert counted(found) == undisturbed


def holder(lock: Path) -> int:
    """Return the process that holds a lock."""
    inode = lock.stat().st_ino
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines() if " FLOCK " in line]
    return next(int(words[-4]) for words in locks if words[-3].endswith(f":{inode}"))


def test_a_killed_process_takes_no_more_than_those_beside_it(own: str, undisturbed: dict, tmp_path: Path) -> None:
    arms = "arm=uniform,small_pool"
    command = run_grid(own, tmp_path, "before", arms, "launcher=joblib", afresh=True)
    wait_for_rows(tmp_path, 3)
    os.kill(holder(next(tmp_path.rglob("lock"))), signal.SIGKILL)
    code, said = command.wait(), command.output
    assert code == 1 and "Traceback" not in said, said
    last = said.splitlines()[-1]
    assert last.startswith("isbench: interrupted: ") and last.endswith(": a process of the grid was killed")
    left = last.count("seed=")
    statuses = [last_status(rows) for rows in records(tmp_path).values()]
    assert 1 <= left <= 2 and statuses.count(None) == left and statuses.count(("finished", "")) == 4 - left
    again = run_grid(own, tmp_path, "after", arms)
    code, said = again.wait(), again.output
    assert code == 0 and f"grid: {4 - left} of 4 runs are finished" in said, said
    found = records(tmp_path)
    assert len(found) == 4 and counted(found).items() <= undisturbed.items()


def test_runs_kept_in_results_are_not_run_again(own: str, undisturbed: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["arm=uniform", "budget.limit=40"]
    command = run_grid(own, Path(), "before", *words, "seed=0")
    assert command.wait() == 0, command.output
    collect(Path("runs/tiny"), Path("results/tiny"))
    shutil.rmtree("runs")
    command = run_grid(own, Path(), "after", *words)
    line = "grid: 1 of 2 runs are finished, 1 of them in results/tiny: group=NAME trains them anew\n"
    assert command.wait() == 0 and line in command.output, command.output
    assert set(records(tmp_path)) == {("uniform", 1)}
    collect(Path("runs/tiny"), Path("results/tiny"))
    assert read_results(Path("results/tiny")).runs["seed"].tolist() == [0, 1]
