"""The command line as a person meets it: help, one-line complaints, grids, the wheel."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isbench import cli, explain
from isbench.__main__ import COMMANDS
from isbench.__main__ import main as console
from isbench.config import CHOSEN, DEFAULTS, GROUPS, config_folder
from isbench.explain import flat
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parent.parent


def call(monkeypatch, *arguments: str) -> str | None:
    """Run the command line in this process; return its complaint, or None where it succeeds."""
    monkeypatch.setattr(sys, "argv", ["isbench", *arguments])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    try:
        cli.main()
    except SystemExit as stop:
        return str(stop.code)
    finally:
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return None


def test_help_is_quick_complete_and_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['isbench', '--help']; from isbench.cli import main; main();"
        "assert not {'torch', 'pandas', 'wandb'} & set(sys.modules)"
    )
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 1.5
    for group in GROUPS:
        assert f"\n{group}:\n" in result.stdout
        for path in (config_folder() / group).glob("*.yaml"):
            (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"  {path.stem} ")][:1]
            assert len(line.split(maxsplit=1)[1]) > 8
    assert result.stdout.partition("Examples:")[2].count("  isbench ") == 3
    assert all(f"\n  isbench {command} " in result.stdout for command in COMMANDS)
    for key in flat(DEFAULTS):
        if key.split(".")[0] not in CHOSEN and not key.endswith(".name"):
            assert f"\n  {key} " in result.stdout, key


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["sampler=upperbound"], "sampler=upperbound: no such choice; did you mean upper_bound?"),
        (["dataset=cifar11"], "did you mean cifar10"),
        (["experiment=nothing"], "experiment=nothing: no such choice"),
        (["seedd=1"], "unknown key seedd: did you mean seed?"),
        (["lr=1"], "unknown key lr: did you mean optimizer.lr?"),
        (["-m", "experiment=rais_rot"], "no such choice; did you mean rais/rais_rot_mnist"),
        (["sampler=loss", "sampler.pool_sizes=3"], "unknown key sampler.pool_sizes: did you mean sampler.pool_size"),
        (["budget.units=epochs"], "did you mean budget.unit"),
        (["seed=abc"], "seed=abc: must be a valid integer"),
        (["batch_size=1.5"], "batch_size=1.5: must be a valid integer"),
        (["sampler=loss", "sampler.pool_size=abc"], "sampler.pool_size=abc"),
        (["sampler=loss", "sampler.pool_size=16"], "sampler.pool_size=16 is smaller than batch_size=128"),
        (["batch_size=100000"], "larger than the training set (4000 examples)"),
        (["seed=true"], "seed=True: must not be true or false"),
        (["clip_norm=0"], "clip_norm=0: must be greater than 0, or null"),
        (["numerics.engine=eagre"], "numerics.engine=eagre: valid: "),
        (["evaluation=5"], "evaluation=5: must be a valid dictionary"),
        (["sampler=uniform,loss"], "sampler=uniform,loss: several values make a grid; give -m, too"),
        (["optimzer.lr=1"], "unknown key optimzer.lr: did you mean optimizer.lr"),
        (["seed=${nothing}"], "seed: Interpolation key 'nothing' not found"),
        (["-m", "launcher=joblib", "hydra.launcher.n_job=3"], "did you mean hydra.launcher.n_jobs"),
        (["-m", "launcher=joblib", "hydra.launcher.n_jobs=x"], "hydra.launcher.n_jobs: Value 'x' of type 'str'"),
        (["+nope=1"], "unknown key nope"),
        (["+sampler.wrong=3"], "unknown key sampler.wrong"),
        (["optimizer.lr=-1"], "optimizer.lr=-1: must be greater than or equal to 0"),
        (["device=cuda"], "device=cuda: no GPU"),
        (["dataset=cifar10", "data_dir=nowhere"], "cifar-10-batches-py"),
        (["dataset=mnist", "data_dir=nowhere"], "6bbc9ace898e44ae57da46a324031adb"),
        (["dataset=pixel_mnist", "model=lenet", "data_dir=nowhere"], "nowhere"),
        (["dataset=synthetic", "dataset.shape=[20,1]", "model=lenet"], "lenet needs"),
        (["sampler=null"], "Config group override must be a string"),
        (["budget=5"], "Config group override must be a string"),
        (["runs_dir=null"], "runs_dir"),
        (["-m", "foo=1,2"], "unknown key foo"),
        (["-m", "seed=range(0)"], "seed=range(0): no values, so that the grid has no runs"),
        (["-m", "seed=0,-1"], "seed=-1: must be greater than or equal to 0"),
        (["-m", "logging=off,offline"], "'logging=off' and 'logging=offline' are one and the same run"),
        (["-m", "budget.limit=interval(1,2)"], "budget.limit=interval(1,2): name the values"),
        (["-m", "arm=rais"], "arm=rais: no such arm; this grid has no arms"),
        (["-m", "experiment=demo,other"], "run one experiment at a time"),
        (["arm=rais"], "arm=rais: only grids have arms; add -m"),
        (
            ["arm=rais", "dataset.validation=9"],
            "dataset.validation: several values, or an arm, make a grid; give -m, too",
        ),
        (["-m", "launcher=joblib", "budget.unit=seconds", "seed=0"], "n_jobs=2 with budget.unit=seconds"),
        (["seed 3"], "seed"),
        (["seed="], "seed"),
        (["sampler=[loss"], "[loss"),
    ],
)
def test_misuse_is_one_line_and_writes_nothing(arguments, complaint, monkeypatch, tmp_path, capsys) -> None:
    if arguments == ["device=cuda"]:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    said = call(monkeypatch, "logging=off", *arguments)
    assert said is not None and complaint in said, said
    assert said.startswith("isbench: ") and "\n" not in said
    assert "-m" in arguments or capsys.readouterr() == ("", "")  # Hydra names the job of a grid
    assert not list(tmp_path.iterdir())


def test_other_commands_begin_with_a_word(monkeypatch, capsys) -> None:
    for command in COMMANDS:
        monkeypatch.setattr(sys, "argv", ["isbench", command, "--help"])
        with pytest.raises(SystemExit, match="0"):
            console()
        assert capsys.readouterr().out.startswith(f"usage: isbench {command} ")
    monkeypatch.setattr(sys, "argv", ["isbench", "report", "nowhere"])
    with pytest.raises(SystemExit, match="1"):
        console()
    assert capsys.readouterr().err == "isbench: nowhere is not a folder: give the folder that holds the runs\n"
    monkeypatch.setattr(sys, "argv", ["isbench", "reports"])
    with pytest.raises(SystemExit, match=r"isbench: reports: neither key=value nor a command; did you mean report\?"):
        console()


def test_a_folder_that_cannot_be_written_is_one_line(monkeypatch, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    said = call(monkeypatch, *TINY, f"runs_dir={tmp_path}/file")
    assert said is not None and "cannot write" in said and "\n" not in said


def test_full_error_still_shows_the_traceback() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "isbench", "seed=abc"],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "ISBENCH_FULL_ERROR"}
        | {"HYDRA_FULL_ERROR": "1"},
    )
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_one_run_then_again(monkeypatch, tmp_path, capsys) -> None:
    overrides = [*TINY, "sampler=uniform", f"runs_dir={tmp_path}"]
    assert call(monkeypatch, *overrides) is None
    (record,) = tmp_path.rglob("record.jsonl")
    assert capsys.readouterr().out == f"record: {record}\n"
    before = record.read_bytes()
    assert call(monkeypatch, *overrides) is None
    assert record.read_bytes() == before
    assert {path.name for path in record.parent.iterdir()} == {"record.jsonl", "lock"}


def test_a_grid_accounts_for_every_run(monkeypatch, tmp_path) -> None:
    """Runs that train, that cannot (skipped), and that are wrongly sized (failures at the end): the grid goes on."""
    from isbench.recording.record import last_status, read_rows

    overrides = [o for o in TINY if not o.startswith("model")]
    said = call(
        monkeypatch,
        "-m",
        *overrides,
        "dataset.shape=[20,1]",
        f"runs_dir={tmp_path}",
        "model=lenet,mlp",
        "batch_size=16,1000",
    )
    statuses = [last_status(read_rows(path)) for path in tmp_path.rglob("record.jsonl")]
    assert sorted(status for status, _ in statuses) == ["finished", "skipped"]
    assert said is not None and said.count("larger than the training set") == 1
    assert "batch_size=1000 model=lenet, batch_size=1000 model=mlp: " in said


def test_a_run_that_diverges_is_said_and_closed(monkeypatch, tmp_path) -> None:
    from isbench.recording.record import last_status, read_rows

    said = call(monkeypatch, *TINY, "optimizer.lr=1e30", f"runs_dir={tmp_path}")
    assert said is not None and "diverged: the training loss was not finite at update" in said and "uniform" in said
    (record,) = tmp_path.rglob("record.jsonl")
    status, reason = last_status(read_rows(record))
    assert status == "diverged" and "update" in reason


def test_weights_broken_by_the_last_update_are_noticed(monkeypatch, tmp_path) -> None:
    overrides = [*TINY, "optimizer=sgd", "optimizer.lr=1e38", "budget.limit=1", f"runs_dir={tmp_path}"]
    said = call(monkeypatch, *overrides)
    assert said is not None and "diverged" in said and "after update 1" in said


def test_choices_of_the_users_own(monkeypatch, tmp_path) -> None:
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "mine.yaml").write_text(
        "# my own\nname: mine\n_target_: isbench.samplers.uniform.Uniform\nreplacement: true\n"
    )
    monkeypatch.chdir(tmp_path)
    own = f"--config-dir={tmp_path}"
    assert call(monkeypatch, own, *TINY, "sampler=mine", "runs_dir=out") is None
    assert list(tmp_path.glob("out/synthetic-mlp/mine-s0-*/record.jsonl"))
    assert "did you mean mine?" in str(call(monkeypatch, own, "sampler=minee"))
    assert "did you mean optimizer.lr" in str(call(monkeypatch, own, "sampler=mine", "optimizer.lrr=1"))


def test_help_says_which_yaml_cannot_be_read(monkeypatch, tmp_path, capsys) -> None:
    (tmp_path / "sampler" / "folder.yaml").mkdir(parents=True)
    (tmp_path / "sampler" / "gone.yaml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "sampler" / "bytes.yaml").write_bytes(b"# caf\xe9")
    assert call(monkeypatch, f"--config-dir={tmp_path}", "--help") is None
    said = capsys.readouterr().out
    for name, reason in (("folder", "Is a directory"), ("gone", "No such file"), ("bytes", "'utf-8' codec")):
        assert f"\n  {name:<28} cannot be read: {reason}" in said


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"RANK": "", "WORLD_SIZE": ""}, None),
        ({"RANK": "1"}, "isbench: RANK=1: must be a whole number from 0 to 0"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "isbench: WORLD_SIZE=two: must be a whole number"),
    ],
)
def test_odd_variables_of_launchers(variables: dict[str, str], complaint: str | None, monkeypatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "_exit", lambda code: None)
    said = call(monkeypatch, "--help")
    assert said is complaint is None or (complaint and said and said.startswith(complaint) and "\n" not in said)


def test_words_are_taken_as_they_are_meant() -> None:
    words = ["-m", "experiment=rais_rot_mnist", "+experiment=demo", "experiment=nothing", "arm=rais", "a=experiment=b"]
    assert explain.as_meant(words) == ["-m", "experiment=rais/rais_rot_mnist", *words[2:]]
    texts = [
        "group=2026_11_26",
        "group=7",
        "group=-1",
        "logging.project=1e3",
        "runs_dir=1.50",
        "group=v1.5",
        "seed=1_0",
    ]
    meant = ["group='2026_11_26'", "group=7", "group='-1'", "logging.project='1e3'", "runs_dir='1.50'", *texts[5:]]
    assert explain.as_meant(texts) == meant
    arms = ["arm=rais", "seed=1", "sampler.eps=0", "sampler.eps=0,1", "+sampler.new=1"]
    assert explain.as_meant(arms) == [*arms[:2], "sampler.eps=choice(0)", *arms[3:]]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_yaml_with_a_byte_order_mark_is_named(encoding: str, monkeypatch, tmp_path) -> None:
    path = tmp_path / "experiment" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("# @package _global_\ngroup: mine\n", encoding=encoding)
    said = call(monkeypatch, f"--config-dir={tmp_path}", "experiment=mine")
    assert said == f"isbench: {path}: begins with a byte order mark; save it as UTF-8 without one"


def test_completion_completes() -> None:
    line = "isbench model=res"
    result = subprocess.run(
        [sys.executable, "-m", "isbench", "-sc", "query=bash"],
        capture_output=True,
        text=True,
        env={**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))},
    )
    assert set(result.stdout.split()) == {"model=resnet18", "model=resnet50"}


def test_hydra_programs_of_others_are_left_alone(tmp_path) -> None:
    """Every Hydra program imports the plugins of its environment; isbench's cost it nothing."""
    (tmp_path / "config.yaml").write_text("x: 1\n")
    (tmp_path / "program.py").write_text(
        "import sys, hydra\n"
        "from hydra.core.plugins import Plugins\n"
        "@hydra.main(version_base=None, config_path='.', config_name='config')\n"
        "def main(cfg):\n"
        "    assert 'hydra_plugins.isbench.ArmSweeper' in Plugins.instance().class_name_to_class\n"
        "    print(cfg.x, [name for name in sys.modules if name.split('.')[0] in ('isbench', 'torch', 'pydantic')])\n"
        "main()\n"
    )
    for words, said in (["x=2"], "2 []\n"), (["-m", "x=3,4"], "3 []\n"):
        command = [sys.executable, "-W", "error", "program.py", *words]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0 and said in result.stdout and not result.stderr, result
    code = "import sys, hydra_plugins.isbench; print([name for name in sys.modules if 'submitit' in name])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n", "it imports where Hydra's own launcher for SLURM is missing"


def test_a_wheel_works_from_any_folder(tmp_path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(site)], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r});"
        f"import isbench; assert isbench.__file__.startswith({str(site)!r});"
        f"sys.argv[1:] = {TINY!r}; from isbench.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs").is_dir() and "record: runs/synthetic-mlp/uniform-s0-" in result.stdout
    carried = {path.relative_to(site) for path in site.rglob("*")}
    for folder, inside in {"isbench": "isbench", "conf": "isbench/conf", "hydra_plugins": "hydra_plugins"}.items():
        paths = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*")}
        assert {Path(inside, path) for path in paths if "__pycache__" not in path.parts} <= carried
    assert Path("isbench/py.typed") in carried and Path("hydra_plugins/__init__.py") not in carried
