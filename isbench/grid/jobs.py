"""The jobs of a grid: which runs there are, what each is told, and how it stands.

An experiment names its arms in `hydra.sweeper.arms`: the lines of a table or the curves of a figure, each a list of
overrides. The grid is arms x the cross product of `hydra.sweeper.params` and of what the command line sweeps; the
command line wins over arms, and arms over params. Seeds are the outer loop and arms the inner one, so that a grid
stopped half-way compares the same seeds. `arm=a,b` on the command line narrows the grid to these arms.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from isbench.config import GROUPS, NAME, NAMES, RunConfig, on_device, run_folder, run_id, validate
from isbench.errors import ConfigError
from isbench.explain import as_meant, flat
from isbench.files import LOCK, RECORD
from isbench.grid.kept import KeptRun, collected_runs
from isbench.grid.queue import SlurmJob
from isbench.locks import is_taken
from isbench.nodes import config_folder, locate, nearest
from isbench.recording.record import ENDED, last_status, read_rows

Axes = dict[str, list[str]]  # key -> key=value, once for each value
Ending = tuple[str, str]  # status and reason
NO_PART_OF_A_RUN = ("logging", "checkpoint", "launcher", "experiment", "arm", "data_dir", "runs_dir")  # keys
ELSEWHERE: Ending = ("running", "another process is at work on it")


@dataclass(frozen=True)
class Job:
    """One run of a grid: what Hydra is told, and what tells it from the others."""

    overrides: list[str]
    label: str
    compose: Callable[[Sequence[str]], RunConfig]

    @cached_property
    def config(self) -> RunConfig:
        """The configuration, checked. It takes Hydra a while, so that it waits until it is asked for."""
        return self.compose(self.overrides)

    @property
    def arm(self) -> str:
        """The arm, or the sampler where there are no arms."""
        return self.config.arm or self.config.sampler["name"]

    @property
    def folder(self) -> Path:
        """The run's folder. Where the device is left open, a GPU's comes first, if there is a record."""
        return next((folder for folder in self._folders if (folder / RECORD).exists()), self._folders[-1])

    @cached_property
    def ids(self) -> list[str]:
        """The run's id, and those that it takes where the device is left open."""
        return [run_id(config) for config in (self.config, *self._candidates)]

    @property
    def attempts(self) -> int:
        """How many processes have begun to work on the run."""
        return max((row["attempt"] for row in read_rows(self.folder / RECORD)), default=0)

    @property
    def kept(self) -> KeptRun | None:
        """The run as results/ has it, None if it is not there or there is a record here."""
        kept = {} if (self.folder / RECORD).exists() else collected_runs(self.config.group)
        return next((kept[key] for key in self.ids if key in kept), None)

    def status(self, queue: Mapping[str, SlurmJob]) -> Ending:
        """Return how the run stands, and why; where there is no record here, as results/ has it.

        Args:
            queue: the jobs that SLURM has, by the id of their run.
        """
        rows = read_rows(self.folder / RECORD)
        if (kept := self.kept) is not None:
            return kept.status, kept.reason
        last = last_status(rows)
        if last is not None and last[0] in ENDED:
            return last
        for slurm_job in (queue[key] for key in self.ids if key in queue):
            return ("running", "") if slurm_job.state == "RUNNING" else ("queued", slurm_job.reason)
        if last is not None:
            return last
        return ("running" if is_taken(self.folder / LOCK) else "interrupted" if rows else "missing", "")

    @cached_property
    def _folders(self) -> list[Path]:
        return [run_folder(config) for config in self._candidates]

    @cached_property
    def _candidates(self) -> list[RunConfig]:
        devices = ("cuda", "cpu") if self.config.device == "auto" else (self.config.device,)
        return [on_device(self.config, device) for device in devices]


def compose_grid(words: Sequence[str]) -> tuple[DictConfig, list[Job]]:
    """Return what `python -m isbench -m WORDS` starts from, not checked yet, and its jobs, without running them."""
    words = as_meant(words)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    config = loader.load_configuration("config", list(words), RunMode.MULTIRUN)
    arguments = [word for word in words if not re.match(r"[+~]*hydra[./]", word)]  # those that a sweeper is given
    jobs = make_jobs(loader, config, config.hydra.sweeper.arms, config.hydra.sweeper.params, arguments)
    return config, jobs


def words_for(config: Mapping[str, Any]) -> list[str]:
    """Return the words after `python -m isbench` that train a recorded configuration again.

    Raises:
        UserError or HydraException: it has a choice that there is not, or no longer.
    """
    groups = [name for name in GROUPS if config.get(name) and name not in NO_PART_OF_A_RUN]
    words = [f"{name}={config[name]['name']}" for name in groups]
    if config.get("rates_of"):
        words.append(f"sampler@rates_of={config['rates_of']['name']}")
    usual = flat(asdict(compose_grid(words)[1][0].config))
    for key, value in flat({key: node for key, node in config.items() if key not in NO_PART_OF_A_RUN}).items():
        if key not in usual or value != usual[key]:
            words.append(f"{'' if key in usual else '+'}{key}={written(value)}")
    return words


def written(value: Any) -> str:
    """Write a value of a configuration as Hydra reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, str) and not re.fullmatch(r"(?!(?i:null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return value if isinstance(value, str) else json.dumps(value)


def make_jobs(
    loader: ConfigLoader,
    config: DictConfig,
    arms: Mapping[str, Sequence[str]],
    params: Mapping[str, Any],
    arguments: Sequence[str],
) -> list[Job]:
    """Return the jobs of a grid in order.

    Raises:
        ConfigError: no such arm, or an empty grid.
    """
    composed: dict[tuple[str, ...], DictConfig] = {}  # without the seed, for all seeds

    def compose(words: Sequence[str]) -> RunConfig:
        seeds = [word for word in words if re.fullmatch(r"seed=\d+", word)]
        others = tuple(word for word in words if word not in seeds)
        if others not in composed:
            cfg = loader.load_sweep_config(config, list(others))
            composed[others] = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        for word in seeds:
            composed[others].seed = int(word.removeprefix("seed="))
        return validate(composed[others])

    parser = OverridesParser.create(config_loader=loader)
    return [Job(words, label, compose) for label, words in expand(parser, arms, params, arguments)]


def check_distinct(jobs: Sequence[Job]) -> None:
    """Compose all jobs.

    Raises:
        ConfigError: a value out of range, or two jobs that are one run.
    """
    seen: dict[Path, Job] = {}
    for job in jobs:
        twin = seen.setdefault(run_folder(job.config), job)
        if twin is not job:
            raise ConfigError(f"'{twin.label}' and '{job.label}' are one and the same run; leave one of them out")


def check_files(jobs: Sequence[Job]) -> None:
    """Look for the files that samplers need besides the data.

    Raises:
        ConfigError: one is not there.
    """
    for sampler in (job.config.sampler for job in jobs):
        for key, command in getattr(locate(sampler["_target_"]), "made_by", {}).items():
            if sampler.get(key) and not Path(sampler[key]).exists():
                raise ConfigError(f"sampler.{key}={sampler[key]}: no such file; make it with {command}")


def expand(
    parser: OverridesParser, arms: Mapping[str, Sequence[str]], params: Mapping[str, Any], arguments: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield the label and the overrides of each job of a grid, in order."""
    given = read_axes(parser, arguments)
    if len(given.get("experiment", ())) > 1:
        raise ConfigError(f"{', '.join(given['experiment'])}: run one experiment at a time")
    chosen = read_arms(parser, arms, given.pop("arm", None))
    for key in sorted({key for own in chosen.values() for key in own} & set(given)):
        if "." not in key:
            raise ConfigError(f"{given[key][0]}: the arms of this grid set {key}; narrow them with arm=a,b instead")
    swept = {**read_axes(parser, [f"{key}={value}" for key, value in params.items()]), **given}
    swept = dict(sorted(swept.items(), key=lambda item: item[0] != "seed"))
    seen = set()
    for place in itertools.product(*swept.values()):
        point = dict(zip(swept, place, strict=True))
        for arm, own in chosen.items():
            values = {**point, **own, **{key: point[key] for key in given}}
            words = list(values.values())
            if tuple(words) not in seen:  # an arm may fix what params sweep
                seen.add(tuple(words))
                varied = [values[key] for key in swept if len(swept[key]) > 1]
                yield " ".join([arm, *varied]).strip() or " ".join(arguments), words


def read_axes(parser: OverridesParser, words: Sequence[str]) -> Axes:
    """Return the values that each key is to take; the last mention of a key counts."""
    axes: Axes = {}
    for override in parser.parse_overrides(list(words)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            axes[key] = [str(override.input_line)]
        elif override.is_discrete_sweep():
            axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ConfigError(f"{override.input_line}: name the values, key=1,2 or key=range(3)")
        if not axes[key]:
            raise ConfigError(f"{override.input_line}: no values, so that the grid has no runs")
    return axes


def read_arms(
    parser: OverridesParser, arms: Mapping[str, Sequence[str]], narrowed: list[str] | None
) -> dict[str, dict[str, str]]:
    """Return key -> override for each arm, of those in `narrowed` (arm=name each) if it is given.

    An experiment without arms has one, without a name.
    """
    for name, overrides in arms.items():
        if not re.fullmatch(f"(?=[A-Za-z]){NAME}", str(name)):
            raise ConfigError(f"hydra.sweeper.arms.{name}: {NAMES}")
        if not OmegaConf.is_list(overrides) or not all(isinstance(word, str) for word in overrides):
            raise ConfigError(f"hydra.sweeper.arms.{name}: needs a list of overrides, [key=value, ...]")
    names = [word.removeprefix("arm=") for word in narrowed or []]
    for name in names:
        if name not in arms:
            hint = nearest(name, arms) if arms else "this grid has no arms"
            raise ConfigError(f"arm={name}: no such arm; {hint}")
    chosen = {}
    for name in [name for name in arms if name in names or narrowed is None]:
        axes = read_axes(parser, [*arms[name], f"arm={name}"])
        for key, values in axes.items():
            if len(values) > 1:
                raise ConfigError(f"hydra.sweeper.arms.{name}: {key} needs one value; several make several arms")
        chosen[name] = {key: value for key, (value,) in axes.items()}
    return chosen or {"": {}}
