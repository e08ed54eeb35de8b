"""The shape of the code: which part may import which, and what only one place may do."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "isbench"
# The spine, from its top to its foot: what each part of the package may import of those below it.
FOOT = {"errors", "types", "locks", "files", "progress_bar"}
PARTS = FOOT | {"signals", "models", "data", "training"}
SPINE = {
    "__main__": {"cli", "report", "grid", "nodes"},
    "status": {"grid"},
    "spend": {"grid"},
    "cli": {"openmp", "errors", "files", "config", "nodes", "explain", "grid", "run", "recording"},
    "report": {"errors", "files", "config", "nodes", "explain", "grid", "recording"},
    "grid": {"errors", "locks", "files", "config", "nodes", "explain", "recording", "training", "build", "run"},
    "testing": PARTS | {"config", "nodes", "samplers", "build", "loop"},
    "studies": PARTS | {"openmp", "config", "samplers", "build", "loop", "run", "recording"},
    "run": PARTS | {"config", "samplers", "build", "loop", "recording"},
    "probes": PARTS | {"samplers", "build"},
    "build": PARTS | {"config", "nodes", "samplers", "loop"},
    "loop": PARTS | {"samplers"},
    "explain": {"errors", "config", "nodes"},
    "config": {"errors", "nodes"},
    "recording": {"errors", "files", "progress_bar", "__init__"},
    "__init__": {"guide"},
    "guide": PARTS | {"nodes", "samplers"},
    "nodes": {"errors"},
    "samplers": PARTS,
    "training": PARTS - {"training"},
    "data": FOOT,
    "signals": {"types", "models"},
    "models": {"types", "errors"},
    "locks": {"errors"},
    "openmp": set(),
    "progress_bar": set(),
    "files": set(),
    "types": set(),
    "errors": set(),
}


def imports(path: Path) -> set[str]:
    """Return what a file imports, modules and names in modules, also inside functions and for type checking alone."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules() -> dict[str, set[str]]:
    """Return each module of the package with those of it that it imports."""
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    found = {}
    for name, path in names.items():
        used = {each if each in names else each.rpartition(".")[0] for each in imports(path)}
        found[name] = (used & set(names)) - {name}
    return found


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_no_arrow_points_up() -> None:
    order = list(SPINE)
    for part, below in SPINE.items():
        assert all(order.index(other) > order.index(part) for other in below), part


def test_import_directions() -> None:
    for module, used in modules().items():
        part = part_of(module)
        assert {part_of(other) for other in used} <= SPINE[part] | {part}, module


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(modules()).prepare()


def test_who_may_import_what() -> None:
    def importers(module: str) -> set[str]:
        return {
            path.relative_to(PACKAGE).as_posix()
            for path in PACKAGE.rglob("*.py")
            if any(name.split(".")[0] == module for name in imports(path))
        }

    assert importers("wandb") == {"recording/wandb_sink.py", "report/wandb_runs.py"}
    configuring = {"cli.py", "config.py", "explain.py", "testing.py", "grid/sweeper.py", "grid/slurm.py"}
    configuring.add("grid/jobs.py")
    configuring.add("report/inventory.py")  # what an experiment says about itself stands in its yaml
    assert importers("hydra") | importers("omegaconf") <= configuring
    assert not any(name.startswith("report/") for name in importers("torch"))


def test_only_sampler_files_name_samplers() -> None:
    for part in ("loop", "build", "run"):
        named = {module for module in modules()[f"isbench.{part}"] if module.startswith("isbench.samplers.")}
        assert named <= {"isbench.samplers.base", "isbench.samplers.workspace"}
