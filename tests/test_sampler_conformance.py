"""What every sampler owes: one suite over all of conf/sampler and the example of CONTRIBUTING.md."""

import ast
import inspect
import re
import shutil
import statistics
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import isbench.samplers
import isbench.testing
from isbench.build import Parts
from isbench.config import config_folder
from isbench.errors import ConfigError
from isbench.samplers.basis import Basis
from isbench.samplers.uniform import Uniform
from isbench.testing import CHECKS, Build, check_sampler
from isbench.types import Draw
from tests import conftest
from tests.conftest import SAMPLERS, build_parts, tiny_overrides, train_once

EXAMPLE = "my_method"


@pytest.fixture(params=[*SAMPLERS, EXAMPLE])
def sampler(request, tmp_path: Path, monkeypatch) -> str:
    """Return a choice of conf/sampler; the example of docs/add_a_sampler.md is put in place as printed."""
    if request.param == EXAMPLE:
        text = Path(__file__).parents[1].joinpath("docs", "add_a_sampler.md").read_text()
        code, choice = (
            textwrap.dedent(re.search(rf" *```{kind}\n(.*?) *```", text, re.DOTALL)[1]) for kind in ("python", "yaml")
        )
        (tmp_path / f"{EXAMPLE}.py").write_text(code)
        monkeypatch.setattr(isbench.samplers, "__path__", [*isbench.samplers.__path__, str(tmp_path)])
        shutil.copytree(config_folder(), tmp_path / "conf")
        (tmp_path / "conf" / "sampler" / f"{EXAMPLE}.yaml").write_text(choice)
        for module in (conftest, isbench.testing):
            monkeypatch.setattr(module, "config_folder", lambda: tmp_path / "conf")
    return request.param


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_every_sampler_owes(sampler: str, check: Callable[[Build], None]) -> None:
    overrides = tiny_overrides(sampler)
    check(lambda *others: build_parts(*overrides, *others))


class Forgetful(Uniform):
    """Uniform draws, every 20th of the first example alone: it counts, and does not say so."""

    count = 0

    def draw(self) -> Draw:
        self.count += 1
        draw = super().draw()
        return draw if self.count % 20 else Draw(draw.batch.take(torch.zeros(16, dtype=torch.int64)), draw.weights)


class Remembering(Forgetful):
    remembers = ("count",)


def test_a_sampler_of_ones_own_is_checked() -> None:
    check_sampler(Remembering, replacement=True)
    with pytest.raises(AssertionError, match="what a resume needs"):
        check_sampler(Forgetful)
    with pytest.raises(ConfigError, match="replacements"):
        check_sampler(Uniform, replacements=True)


class HostReads(TorchDispatchMode):
    """Count what would make the host wait for a GPU: scalars read, tensors copied out, shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in arguments[1]
        )
        if masks or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2"):
            self.count += 1
        return function(*arguments, **(keywords or {}))


def check_host_reads(parts: Parts, counter: Any) -> None:
    """Train a little; compare what `counter.count` counts inside `with counter` with the docstring of the sampler."""
    documented = re.search(r"GPU-CPU syncs: (\d+)(?: per (\w+))?", inspect.getdoc(type(parts.sampler)) or "")
    assert documented, "the docstring has no line 'GPU-CPU syncs: ...'"
    per_update, per_pool = [], []
    for _ in range(30):
        before, scored = counter.count, parts.progress.examples_scored
        with counter:
            train_once(parts, 0.01)
        per_update.append(counter.count - before)
        per_pool.append((parts.progress.examples_scored - scored) / parts.workspace.batch_size)
    allowed = int(documented[1])
    if documented[2] == "pool":
        assert sum(per_update) <= allowed * sum(per_pool)
    else:
        assert statistics.median(per_update) <= allowed


def test_host_reads_are_as_documented(sampler: str, monkeypatch) -> None:
    counter = HostReads()
    original = Tensor.tolist

    def tolist(tensor: Tensor) -> list:
        counter.count += 1  # one copy; on a CPU it is invisible to the dispatcher
        return original(tensor)

    monkeypatch.setattr(Tensor, "tolist", tolist)
    check_host_reads(build_parts(*tiny_overrides(sampler), "augmentation=crop"), counter)


def test_the_docstring_says_what_the_method_costs(sampler: str) -> None:
    documentation = inspect.getdoc(type(build_parts(*tiny_overrides(sampler)).sampler)) or ""
    for fact in ("Estimator", "Memory", "Cost", "GPU-CPU syncs"):
        assert re.search(rf"^{fact}: \w", documentation, re.MULTILINE), fact


def offered() -> set[str]:
    """Return the names that a sampler may take from the workspace: its documented attributes and methods."""
    attributes = re.findall(r"^    (\w+): ", inspect.getdoc(Basis) or "", re.MULTILINE)
    methods = [name for name, method in inspect.getmembers(Basis, inspect.isfunction) if method.__doc__]
    return {name for name in (*attributes, *methods) if not name.startswith("_")}


def trespasses(source: str) -> list[str]:
    """Return what code takes from a workspace without being offered it, and what it takes that belongs to others."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        is_private = node.attr.startswith("_") and not node.attr.startswith("__") and owner not in ("self", "torch")
        if is_private or (owner.split(".")[-1] == "workspace" and node.attr not in offered()):
            found.append(ast.unparse(node))
    return found


def test_samplers_take_from_the_workspace_what_it_offers() -> None:
    assert trespasses("self.workspace.model") and trespasses("workspace.state_dict()") and trespasses("w._streams")
    assert not trespasses("self.workspace.fetch(workspace.uniform(self._size))")
    for path in Path(isbench.samplers.__file__).parent.glob("*.py"):
        if path.stem not in ("basis", "workspace"):
            assert not trespasses(path.read_text()), path.name


def test_samplers_say_what_they_ask_of_a_model() -> None:
    """By name: a loop of one's own can then refuse a method before it trains."""
    for path in Path(isbench.samplers.__file__).parent.glob("*.py"):
        if path.stem not in ("base", "basis", "workspace"):
            source = path.read_text()
            asked = re.findall(
                r"workspace\.(score|score_dataset|mean_gradient|gradient_product|parameters|seconds)\(", source
            )
            assert all(f'"{name}"' in source for name in asked), path.name
