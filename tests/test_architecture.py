"""The shape of the code: which part may import which, and what only one place may do."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "isbench"
# What each part of the package may import of the others, besides itself.
MAY_IMPORT = {
    "errors": set(),
    "types": set(),
    "locks": {"errors"},
    "models": {"types", "errors"},
    "signals": {"types", "models"},
    "data": {"types", "errors", "locks"},
    "samplers": {"types", "errors", "signals"},
    "recording": {"errors"},
    "probes": {"types", "errors", "signals", "data", "models", "samplers", "recording", "training"},
    "report": {"errors", "recording"},
    "training": {"types", "errors", "locks", "signals", "data", "models", "samplers"},
    "jobs": {"errors", "locks", "config", "recording"},
    "grid": {"errors", "locks", "config", "recording", "jobs"},
    "status": {"errors", "config", "recording", "jobs", "cli"},
}
# run.py is where a run meets its record and its configuration.
EXCEPTIONS = {"training/run.py": {"build", "config", "recording"}}


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, also inside functions, but not for type checking alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = [f"isbench.{alias.name}" for alias in node.names] if node.module == "isbench" else []
            names.update([node.module, *parts])
    return names


def test_import_directions() -> None:
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        part = relative.parts[0].removesuffix(".py")
        if part not in MAY_IMPORT:
            continue
        allowed = MAY_IMPORT[part] | {part} | EXCEPTIONS.get(relative.as_posix(), set())
        used = {name.split(".")[1] for name in imports(path) if name.startswith("isbench.")}
        assert used <= allowed, f"{relative} imports {used - allowed}"


def test_who_may_import_what() -> None:
    def importers(module: str) -> set[str]:
        return {
            path.relative_to(PACKAGE).as_posix()
            for path in PACKAGE.rglob("*.py")
            if any(name.split(".")[0] == module for name in imports(path))
        }

    assert importers("wandb") == {"recording/wandb_sink.py"}
    assert importers("hydra") <= {"cli.py", "config.py", "grid.py", "jobs.py"}
    assert importers("omegaconf") <= {"cli.py", "config.py", "grid.py", "jobs.py"}
    assert not any(name.startswith("report/") for name in importers("torch"))


def test_only_sampler_files_name_samplers() -> None:
    for path in (PACKAGE / "training").glob("*.py"):
        named = {name for name in imports(path) if name.startswith("isbench.samplers.")}
        assert named <= {"isbench.samplers.base"}, f"{path.name} imports {named}"
