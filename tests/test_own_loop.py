"""docs/own_loop.md and examples/: what they show is run, as they show it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import isbench
from isbench.errors import Incompatible
from tests.conftest import SAMPLERS

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "own_loop.md").read_text()
FRAMEWORKS = {"examples/lightning_callback.py", "examples/hugging_face_trainer.py"}  # the page has them as they are


def run(command: list[str], folder: Path, warnings: str = "error") -> str:
    """Run a command in a folder; return what it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "PYTHONWARNINGS": warnings}
    done = subprocess.run(command, cwd=folder, env=words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_runs_from_top_to_bottom(tmp_path) -> None:
    files = dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
    assert set(files) == {"mine.py", "conf/sampler/last_loss.yaml"} | FRAMEWORKS
    assert all(files[name] == (ROOT / name).read_text() for name in FRAMEWORKS)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    blocks = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if block not in files.values()]
    assert len(blocks) == 6
    (tmp_path / "page.py").write_text("\n".join(blocks))
    run([sys.executable, "page.py"], tmp_path)
    (command,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    assert "runs/mnist5k-lenet/last_loss-s0-" in run(["sh", "-c", command], tmp_path)


def test_the_page_installs_what_there_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(re.findall(r"(?:isbench|\.)\[(\w+)\]", PAGE))
    assert extras == {"trees", "suite"} <= set(project["optional-dependencies"])
    needed = {re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]}
    assert needed == {"torch", "numpy", "pydantic", "pyyaml", "annotated-types"}  # the last is pydantic's own


def test_each_method_needs_what_the_page_says() -> None:
    (table,) = re.findall(r"\| --- \| --- \|\n(.*?)\n\n", PAGE, re.DOTALL)
    rows = [re.findall(r"`(.*?)`", line.split("|")[1]) for line in table.splitlines()]
    needs = [line.split("|")[2].split("`") for line in table.splitlines()]
    assert sorted(sum(rows, [])) == SAMPLERS
    names = {"labels": torch.arange(600) % 3, "score": lambda indices: indices.float(), "model": torch.nn.Linear(4, 3)}
    names["look"] = lambda indices: torch.zeros(len(indices), 4)
    sizes: dict[str, Any] = {"num_examples": 600, "batch_size": 32, "updates": 9}
    small = {"pool_size": 64}
    for methods, (_, *arguments) in zip(rows, needs, strict=True):
        for method in methods:
            fits = small if method in ("loss", "upper_bound", "gradient_norm", "loss_predictor", "rho_loss") else {}
            given = eval(f"dict({''.join(arguments[:1])})", names)
            if given:
                with pytest.raises(Incompatible):
                    isbench.attach(method, **sizes, **fits)
            isbench.attach(method, **sizes, **fits, **given)
    isbench.attach("online_batch_selection", recompute=None, **sizes)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run_and_learn(path: Path, tmp_path) -> None:
    assert len(path.read_text().splitlines()) < 40
    is_ours = f"examples/{path.name}" not in FRAMEWORKS  # other packages warn, and print, of themselves
    text = run([sys.executable, str(path)], tmp_path, "error" if is_ours else "default")
    printed = [float(line) for line in text.splitlines() if re.fullmatch(r"[\d.]+", line)]
    limits = {"plain_loop": 10.0, "lightning_callback": 7.0}  # % of the digits; the variance of the values is 7.3
    assert printed[-1] < limits.get(path.stem, 0.7 * printed[0])
