"""What the docstring of a sampler, data set or network says, in parts. The code is read, not imported."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FACTS = ("Estimator", "Memory", "Cost", "GPU-CPU syncs")  # the last lines of a sampler's docstring


class Documented(NamedTuple):
    """A docstring in parts: paragraphs of the object and of its module, arguments, the facts of a sampler."""

    file: str
    prose: list[str]
    arguments: dict[str, str]
    facts: dict[str, str]
    raises: str

    @classmethod
    @cache
    def of(cls, target: str) -> "Documented":
        """Read what is said in the code of `package.module.Name`, without importing it."""
        module, _, name = target.rpartition(".")
        path = ROOT / f"{module.replace('.', '/')}.py"
        tree = ast.parse(path.read_text())
        (node,) = [each for each in tree.body if getattr(each, "name", "") == name]
        assert isinstance(node, ast.ClassDef | ast.FunctionDef)
        text, about = ast.get_docstring(node) or "", ast.get_docstring(tree) or ""
        blocks = text.split("\n\n")
        prose = [block for block in blocks if not re.match(r"(Args|Raises):|Estimator:", block)]
        if isinstance(node, ast.ClassDef):
            prose += about.split("\n\n")
        arguments = section(blocks, "Args")
        for key, said in list(arguments.items()):  # "signal, tau_momentum": "as in `Presample`."
            if other := re.fullmatch(r"as in `(\w+)`\.", said):
                arguments[key] = cls.of(f"{module}.{other[1]}").arguments[key]
        facts = {fact: " ".join(found[1].split()) for fact in FACTS if (found := fact_of(fact, text))}
        raises = " ".join(said for said in section(blocks, "Raises").values())
        return cls(path.relative_to(ROOT).as_posix(), prose, arguments, facts, raises)


def fact_of(fact: str, text: str) -> re.Match[str] | None:
    return re.search(rf"^{fact}: ((?:.|\n(?!\w[\w -]*:|\n))*)", text, re.MULTILINE)


def section(blocks: list[str], title: str) -> dict[str, str]:
    """Return the entries of a section of a docstring, each name with what is said of it."""
    text = next((block for block in blocks if block.startswith(f"{title}:")), "")
    entries = re.findall(r"^    (\w[\w, ]*): ((?:.|\n {5,})*)", text, re.MULTILINE)
    return {name: " ".join(said.split()) for names, said in entries for name in names.split(", ")}
