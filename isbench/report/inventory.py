"""The published tables and figures that isbench reproduces: what each yaml of conf/experiment says about itself.

The first comment of a yaml says what the experiment shows. `hydra.sweeper.about` has the rest, the fields of Experiment
and of Claim, as a text: Hydra then has nothing to compose, and no run knows of it. What the bases of an experiment say
holds for it too, field by field. Numbers are those that the papers print.
"""

import math
import re
from dataclasses import field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import yaml
from omegaconf import OmegaConf
from pydantic import BeforeValidator, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from isbench.errors import ConfigError
from isbench.explain import summary
from isbench.nodes import config_folder
from isbench.report.claims import STRICT, Claim


class Paper(NamedTuple):
    """Where an experiment is from; `address` is empty where nothing is published."""

    name: str
    citation: str
    address: str = ""


PAPERS = {  # the folders of conf/experiment, in the order of the reports
    "screen": Paper("Screening", "isbench's own method"),
    "sgds": Paper("SGD on Steroids", "Zakka 2018", "https://github.com/kevinzakka/blog-code"),
    "is": Paper(
        "Not All Samples Are Created Equal", "Katharopoulos and Fleuret 2018", "https://arxiv.org/abs/1803.00942"
    ),
    "impon": Paper("IMPON", "Ganapathiraman, Calderon and Joshi 2022", "https://openreview.net/forum?id=-lKquFqr3L"),
    "rais": Paper(
        "RAIS",
        "Johnson and Guestrin 2018",
        "https://proceedings.neurips.cc/paper/2018/hash/967990de5b3eac7b87d49a13c6834978-Abstract.html",
    ),
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Cost:
    """How long all runs of an experiment take, one after the other.

    Attributes:
        minutes: measured, or extrapolated from a few runs, unless `is_estimate`.
        machine: on what.
        is_estimate: the minutes were worked out as docs/gpu.md says, without a run.
    """

    minutes: float
    machine: str
    is_estimate: bool = False


def _named(claims: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"text": name, **claim} for name, claim in claims.items()]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Experiment:
    """A published table or figure.

    Attributes:
        id: of its yaml, of the folder of its runs and of its results.
        paper: one of PAPERS, the folder of its yaml.
        shows: where it is published, and what it shows.
        cost: of all its runs.
        claims: what the paper says; in the yaml by text, or by another name where two have the same `text`.
        figure: the function of isbench.report.drawings that draws it.
        needs: what a run needs beyond two cores and free data; empty if nothing.
        remarks: where our setting differs from the paper's, by topic; one on `size` says that it is smaller.
    """

    id: str
    paper: str
    shows: str
    cost: Cost
    claims: Annotated[tuple[Claim, ...], BeforeValidator(_named)] = ()
    figure: str = "curves"
    needs: str = ""
    remarks: dict[str, str] = field(default_factory=dict)

    @property
    def is_small(self) -> bool:
        """Whether networks, data or budget are smaller than the published ones."""
        return "size" in self.remarks

    @model_validator(mode="after")
    def _has_one_primary_claim_and_one_target(self) -> Self:
        judged = [claim for claim in self.claims if not math.isnan(claim.allows()[0])]
        primary = [claim.text for claim in judged if claim.primary]
        if len(primary) != bool(judged) or any(claim.primary for claim in self.claims if claim not in judged):
            raise ValueError(f"one of the claims that can be judged is primary, not {len(primary)}")
        if len({claim.of["target"] for claim in self.claims if "target" in claim.of}) > 1:
            raise ValueError("an experiment has one target for all its claims")
        return self


@cache
def experiments() -> tuple[Experiment, ...]:
    """Return all experiments: paper by paper, by the number of their figure (those without one last), then by name.

    Raises:
        ConfigError: a field that there is not, that is missing, or of the wrong type.
    """
    folders = [config_folder() / "experiment" / paper for paper in PAPERS]
    return tuple(
        experiment
        for folder in folders
        for experiment in sorted(map(read, sorted(folder.glob("*.yaml"))), key=_number_of_figure)
    )


def _number_of_figure(experiment: Experiment) -> float:
    number = re.search(r"Figures? (\d+)", experiment.shows)
    return int(number[1]) if number else float("inf")


def read(path: Path) -> Experiment:
    """Return what a yaml says about its experiment; see `experiments` for what it raises."""
    said: dict[str, Any] = {}
    try:
        said = about(path)
        return Experiment(id=path.stem, paper=path.parent.name, shows=summary(path), **said)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: about: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        claims = list(said.get("claims", ()))
        keys = (claims[key] if isinstance(key, int) else key for key in first["loc"])
        raise ConfigError(f"{path.name}: {'.'.join(['about', *keys])}: {first['msg'].lower()}") from None


def about(path: Path) -> dict[str, Any]:
    """Return `hydra.sweeper.about` of a yaml, merged over those of its bases, in the order of its defaults."""
    content = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    bases = [base for base in content.get("defaults", ()) if isinstance(base, str)]
    own = content.get("hydra", {}).get("sweeper", {}).get("about", "")
    inherited = [about(Path(f"{config_folder()}{base}.yaml")) for base in bases]
    merged = OmegaConf.merge(*inherited, yaml.load(own, yaml.CSafeLoader) or {})
    return {str(key): value for key, value in OmegaConf.to_container(merged).items()}  # type: ignore[union-attr]


def target_of(grid: str) -> float | None:
    """Return the test error to which a grid that is no published figure is compared, where its yaml says one."""
    path = config_folder() / "experiment" / f"{grid}.yaml"
    return about(path).get("target") if path.is_file() else None
