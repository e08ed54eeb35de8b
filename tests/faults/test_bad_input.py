"""A thousand wrong command lines, generated: each gets one line in 5 s of a core, exits with an error, writes nothing.

Every generator makes lines that are wrong for certain; a line that trains is therefore a failure too. Most are tried
in a process that is kept, which saves the start of Python; some are tried as a person would.
"""

import math
import resource
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from isbench.config import GROUPS, config_folder
from isbench.data.published import CIFAR10_FILES, CIFAR100_FILES, FASHION_MNIST_FILES, MNIST_FILES, SVHN_FILES
from isbench.data.rotated import NUM_ROWS
from isbench.explain import choices, flat
from tests.conftest import TINY
from tests.faults.conftest import SEED
from tests.faults.worker import Answer, Worker

Words = list[str]
Keys = dict[str, Any]
SMALL = (*TINY, "budget.limit=2", "device=cpu")  # should a line be right after all, it is not for long


def keys_of(*words: str) -> Keys:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return flat(OmegaConf.to_container(compose("config", overrides=list(words))))


KEYS = keys_of(*TINY)
OF_SAMPLERS = {name: flat({"sampler": yaml.safe_load(path.read_text())}) for name, path in choices("sampler").items()}
NUMBERS = [
    (words, key)
    for words, keys in [([], KEYS), *(([f"sampler={name}"], keys) for name, keys in OF_SAMPLERS.items())]
    for key, value in keys.items()
    if isinstance(value, int | float) and not isinstance(value, bool)
]
LETTERS = st.sampled_from(string.ascii_lowercase + "_")


@st.composite
def misspelt(draw: st.DrawFn, word: str) -> str:
    """Change, drop, double or swap a letter of a word, or two."""
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, len(word) - 1))
        head, letter, tail = word[:place], word[place], word[place + 1 :]
        word = draw(
            st.sampled_from([head + tail, head + letter * 2 + tail, head + tail[:1] + letter + tail[1:]])
            | LETTERS.map(lambda new, h=head, t=tail: h + new + t)
        )
        word = word or "x"
    return word


@st.composite
def misspelt_key(draw: st.DrawFn) -> Words:
    sampler = draw(st.sampled_from(sorted(OF_SAMPLERS)))
    keys = {key: value for key, value in KEYS.items() if not key.startswith("sampler.")} | OF_SAMPLERS[sampler]
    key = draw(st.sampled_from(sorted(keys)))
    head, dot, last = key.rpartition(".")
    wrong = head + dot + draw(misspelt(last))
    nodes = {known.rpartition(".")[0] for known in keys}
    ok = wrong not in keys and wrong not in GROUPS and wrong not in nodes and wrong not in ("arm", "group")
    if not ok or wrong.endswith("."):
        wrong = key + "x"
    value = keys[key] if isinstance(keys[key], int | float) else "a"
    return [f"sampler={sampler}", f"{draw(st.sampled_from(['', '', '+', '++']))}{wrong}={value}".lower()]


@st.composite
def misspelt_choice(draw: st.DrawFn) -> Words:
    group = draw(st.sampled_from(GROUPS))
    known = choices(group)
    word = draw(misspelt(draw(st.sampled_from(sorted(known)))))
    if word in known or word in ("null", "none") or word.endswith(("/", ".")):
        word = "nothing"
    return [f"{group}={word}"]


WRONG = st.sampled_from(["abc", "1e", "0x1g", "[1]", "[]", "{a:1}", "true", "1;2", "one", "--", "1.2.3", "~", "'1 2'"])


@st.composite
def wrong_type(draw: st.DrawFn) -> Words:
    words, key = draw(st.sampled_from(NUMBERS))
    value = draw(WRONG | st.floats(0.1, 0.9).map(lambda x: f"x{x:g}"))
    return [*words, f"{key}={value}"]


@st.composite
def not_finite(draw: st.DrawFn) -> Words:
    words, key = draw(st.sampled_from(NUMBERS))
    value = draw(st.sampled_from(["nan", "inf", "-inf", "NaN", ".nan", ".inf", "-.inf", "1e400", "-1e999"]))
    return [*words, f"{key}={value}"]


Range = tuple[float | None, float | None]  # what is allowed lies between; None is no bound
ABOVE_0, UP_TO_1, FROM_1 = (1e-300, None), (0, 1), (1, None)
RANGES: dict[str, Range] = {
    "seed": (0, None),
    "batch_size": (1, 160),
    "label_smoothing": (0, 0.999),
    "clip_norm": ABOVE_0,
    "slots": FROM_1,
    "budget.limit": ABOVE_0,
    "evaluation.points": FROM_1,
    "evaluation.train_examples": FROM_1,
    "checkpoint.seconds": (0, None),
    "numerics.threads": (1, 100_000),
    "logging.timeout_seconds": (1e-300, 3600),
    "optimizer.lr": (0, None),
    "optimizer.momentum": (0, None),
    "optimizer.weight_decay": (0, None),
    "dataset.num_examples": (16, None),
    "dataset.num_test": FROM_1,
    "dataset.num_classes": FROM_1,
    "sampler=c_sgd sampler.share": (1e-300, 1),
    "sampler=c_sgd sampler.smoothing": (0, None),
    "sampler=p_sgd sampler.warmup_passes": (0, None),
    "sampler=impon sampler.bank_size": (16, 160),
    "sampler=impon sampler.regressor_lr": ABOVE_0,
    "sampler=infobatch sampler.prune": (0, 0.999),
    "sampler=infobatch sampler.stop": UP_TO_1,
    "sampler=loss sampler.pool_size": (16, 160),
    "sampler=loss sampler.tau_momentum": (0, 0.999),
    "sampler=loss_predictor sampler.pool_size": (16, 160),
    "sampler=loss_predictor sampler.exponent": (None, 1),
    "sampler=loss_predictor sampler.predictor_lr": ABOVE_0,
    "sampler=online_batch_selection sampler.s_start": FROM_1,
    "sampler=online_batch_selection sampler.recompute": ABOVE_0,
    "sampler=online_batch_selection sampler.sort_every": FROM_1,
    "sampler=oracle sampler.refresh_every": FROM_1,
    "sampler=presample_constant_time sampler.tau_threshold": FROM_1,
    "sampler=presample_constant_variance sampler.extra_fraction": (0, 0.666),
    "sampler=prioritized sampler.alpha": (0, None),
    "sampler=prioritized sampler.beta": UP_TO_1,
    "sampler=prioritized sampler.eps": ABOVE_0,
    "sampler=rais sampler.fit_examples": FROM_1,
    "sampler=rais sampler.smoothing": (1e-300, 1),
    "sampler=rais sampler.max_gain": FROM_1,
    "sampler=rais sampler.calibrate_every": FROM_1,
    "sampler=rais sampler.outlier_threshold": ABOVE_0,
    "sampler=rho_loss sampler.pool_size": (16, 160),
    "sampler=selective_backprop sampler.beta": (0, None),
    "sampler=selective_backprop sampler.history_size": FROM_1,
    "sampler=selective_backprop sampler.pool_size": (1, 160),
    "sampler=selective_backprop sampler.priming_passes": (0, None),
    "sampler=selective_backprop sampler.staleness": FROM_1,
    "sampler=sgd_s sampler.transient_passes": FROM_1,
    "sampler=sgd_s sampler.drop": (0, 0.999),
    "sampler=sgd_s sampler.restore": UP_TO_1,
}


@st.composite
def out_of_range(draw: st.DrawFn) -> Words:
    words, (low, high) = draw(st.sampled_from(sorted(RANGES.items())))
    beyond = draw(st.integers(1, 10) | st.integers(11, 10**12))
    below = draw(st.booleans()) if low is not None and high is not None else low is not None
    value = math.floor(low or 0) - beyond if below else math.floor(high or 0) + beyond
    return f"{words}={value}".split()


FOREIGN = st.text(
    st.characters(exclude_categories=("Cs", "Nd", "Zs"), exclude_characters="\0", min_codepoint=0xA1),
    min_size=1,
    max_size=8,
)


@st.composite
def unicode_words(draw: st.DrawFn) -> Words:
    text = draw(FOREIGN)
    key = draw(st.sampled_from(["seed", "batch_size", "budget.limit", "optimizer.lr", *GROUPS]))
    return draw(st.sampled_from([[f"{key}={text}"], [f"{text}=1"], [f"{key}{text}=1"], [text], [f"+{text}={text}"]]))


@st.composite
def broken_syntax(draw: st.DrawFn) -> Words:
    key = draw(st.sampled_from(["seed", "model.hidden", "dataset.shape", "batch_size", "sampler"]))
    opening = draw(
        st.sampled_from(["[", "{", "(", "'", '"', "[[", "{a:", "[1,", "${", "$", "choice(", "range(", "]", "}"])
    )
    rest = draw(st.sampled_from(["1", "1,2", "", "a", "1 2", "16"]))
    return draw(
        st.sampled_from(
            [
                [f"{key}={opening}{rest}"],
                [f"{key}={rest}{opening}"],
                [f"{opening}{key}={rest}"],
                [f"={key}"],
                [f"{key}"],
                [f"{key}:1"],
                [f"--{key.partition('.')[0]}", "3"],
                [f"-{key[0]}{rest}x"],
                [f".{key}=1"],
                [f"{key}.=1"],
                [f"{key}==1,"],
                [f"~{key}={rest}x"],
            ]
        )
    )


EMPTY = st.sampled_from(
    [
        key
        for key, value in KEYS.items()
        if value is not None and not key.endswith((".name", "tags", "entity", "project"))
    ]
    + ["sampler", "dataset", "model", "budget", "optimizer", "numerics"]
).map(lambda key: [f"{key}="])

TOGETHER = st.sampled_from(
    [
        ["batch_size=1000"],
        ["dataset=synthetic", "dataset.shape=[20,1]", "model=lenet"],
        ["dataset=synthetic", "dataset.shape=[1,28,28]", "model=lstm"],
        ["budget.unit=seconds", "budget.effective=true"],
        ["sampler=loss", "sampler.pool_size=8"],
        ["sampler=loss", "sampler.pool_size=8000"],
        ["sampler=rho_loss", "sampler.pool_size=8"],
        ["sampler=rho_loss", "sampler.pool_size=8000"],
        ["sampler=rho_loss", "sampler.table=nowhere.pt"],
        ["sampler=rho_loss", "sampler.table=."],
        ["sampler=impon", "sampler.bank_size=3"],
        ["sampler=upper_bound", "sampler.gate=measured", "sampler.tau_threshold=2"],
        ["sampler=upper_bound", "sampler.signal=nothing"],
        ["augmentation=rotation", "dataset=synthetic", "dataset.shape=[20,1]"],
        ["augmentation=crop", "dataset=synthetic", "dataset.shape=[20,1]"],
        ["model=resnet50", "model.weights=nowhere.pt"],
        ["model=resnet50", "model.weights=."],
        ["arm=rais"],
        ["arm=uniform", "experiment=demo"],
        ["-m", "arm=nothing", "experiment=demo"],
        ["-m", "experiment=demo,rais/rais_svhn"],
        ["-m", "experiment=rais/rais_cifar10", "arm=unifrom"],
        ["-m", "seed=range(0)"],
        ["-m", "seed=-1"],
        ["-m", "seed=1,1", "batch_size=16,16", "seed=0,-3"],
        ["-m", "seed=interval(0,1)"],
        ["-m", "logging=off,offline"],
        ["-m", "sampler=uniform,unifrom"],
        ["group=.."],
        ["group=/abs"],
        ["group=a/../../b"],
        ["device=gpu"],
        ["device=cuda:99"],
        ["data_dir=nowhere", "dataset=mnist"],
        ["data_dir=nowhere", "dataset=cifar10"],
        ["data_dir=nowhere", "dataset=cifar100"],
        ["data_dir=nowhere", "dataset=svhn"],
        ["data_dir=nowhere", "dataset=mit67"],
        ["data_dir=nowhere", "dataset=rot_mnist"],
        ["data_dir=nowhere", "dataset=rot_mnist", "dataset.sample=published"],
        ["dataset=rot_mnist", "dataset.sample=other"],
        ["--config-dir=nowhere"],
        ["--config-name=nothing"],
        ["--config-path=nowhere"],
        ["--cfg=nothing"],
        ["--cfg", "job", "sampler=nothing"],
        ["--cfg", "job", "seedd=3"],
        ["--resolve"],
        ["--nonsense"],
        ["--seed", "3"],
        ["-x"],
        ["--info=nothing"],
        ["--experimental-rerun=nowhere"],
        ["schedule=step", "schedule.milestones=[0.8,0.4]"],
        ["schedule=step", "schedule.milestones=[2]"],
        ["schedule=exponential", "schedule.factor=-1", "schedule.drops=3"],
        ["schedule=inverse_square_root", "schedule.span=-10"],
        ["model=mlp", "model.hidden=[-4]"],
        ["model=wrn_28_2", "model.depth=27"],
        ["model=cnn7", "model.norm=nothing"],
        ["model=cnn7", "model.dropout=2"],
        ["dataset.shape=[]"],
        ["dataset.shape=[0,0,0]"],
        ["dataset.shape=[-1,3,3]"],
        ["optimizer=adam", "optimizer.betas=[2,3]"],
        ["optimizer=adam", "optimizer.betas=[]"],
        ["optimizer=sgd", "optimizer.nesterov=true"],
        ["optimizer.decayed=some"],
        ["+sampler.pool_size=3"],
        ["+seed=3"],
        ["~optimizer.lr"],
        ["~nothing"],
        ["sampler=uniform", "sampler=[]"],
        ["sampler=null"],
        ["budget=null"],
        ["sampler@other=loss"],
        ["seed=${nothing}"],
        ["seed=${seed}"],
        ["optimizer.lr=${oc.env:NOT_THERE}"],
        ["optimizer.lr=${nothing:1}"],
        ["runs_dir=null"],
        ["runs_dir=/dev/null/x"],
        ["runs_dir=/proc/nowhere"],
        ["sampler._target_=nothing.at.all"],
        ["sampler._target_=isbench.samplers"],
        ["model._target_=nothing"],
        ["probe=gradient_variance", "probe.pool_size=100000"],
        ["probe=gradient_variance", "probe.signals=[nothing]"],
        ["probe=loss_patterns", "probe.bins=0"],
        ["probe=draws", "probe.count=0"],
        ["hydra.launcher.n_jobs=x", "launcher=joblib", "-m"],
        ["hydra/launcher=nothing"],
        ["hydra.nothing=1"],
    ]
)

KINDS = {
    "misspelt key": (misspelt_key(), 170),
    "misspelt choice": (misspelt_choice(), 150),
    "wrong type": (wrong_type(), 180),
    "not finite": (not_finite(), 110),
    "out of range": (out_of_range(), 150),
    "unicode": (unicode_words(), 120),
    "broken syntax": (broken_syntax(), 150),
    "empty value": (EMPTY, 30),
    "not together": (TOGETHER, 200),
}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("bad input") / "worker")
    yield worker
    worker.close()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.03, pytest.param(1, marks=pytest.mark.faults)])
def test_a_bad_command_line_is_one_line(kind: str, share: float, worker: Worker, struck) -> None:
    lines, count = KINDS[kind]
    tried: set[tuple[str, ...]] = set()

    @seed(SEED)
    @settings(
        max_examples=max(2, round(share * count)), deadline=None, database=None, suppress_health_check=HealthCheck
    )
    @given(lines)
    def check(words: Words) -> None:
        tried.add(tuple(words))
        worker.ask([*SMALL, *words]).complaint()

    try:
        check()
    finally:
        struck("bad command line", len(tried))


def core_seconds() -> float:
    """Return the processor time of all processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_bad_command_lines_as_a_person_types_them(chance, struck, tmp_path: Path) -> None:
    lines = [["seedd=1"], ["--seed", "3"], ["sampler=[loss"], ["-m", "seed=0,-1"], ["data_dir=x", "dataset=cifar10"]]
    for words in chance.sample(lines, 3):
        command = [sys.executable, "-m", "isbench", *SMALL, *words]
        before = core_seconds()
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        seconds, left = core_seconds() - before, tuple(map(str, tmp_path.iterdir()))
        Answer(done.returncode, done.stdout + done.stderr, seconds, left).complaint()
        struck("bad command line")


MINE = "# mine\nname: mine\n_target_: isbench.samplers.uniform.Uniform\nreplacement: true\n"
BROKEN = [
    "",
    "# nothing but a comment\n",
    "name: mine\n",
    "_target_: isbench.samplers.uniform.Uniform\n",
    "- a\n- list\n",
    "just words\n",
    "3\n",
    "null\n",
    MINE + "\tx: 1\n",
    MINE + "x: [1, 2\n",
    MINE + "x: *nowhere\n",
    MINE + "x: &x [*x]\n",
    MINE + "name: mine\n",
    MINE + "x: ${nothing}\n",
    MINE + "x: ${oc.env:NOT_THERE}\n",
    MINE + "x: ${\n",
    MINE + "x: !!python/object/apply:os.mkdir [ran]\n",
    MINE + "{\n",
    MINE + "defaults:\n  - nothing\n",
    "defaults:\n  - nothing\n" + MINE,
    "defaults: 3\n" + MINE,
    "defaults:\n  - /sampler: nothing\n" + MINE,
    "# @package nothing\n" + MINE,
    MINE.replace("mine", "../mine"),
    MINE.replace("name: mine", "name: [mine]"),
    MINE.replace("name: mine", "name: ''"),
    MINE.replace("name: mine", "name: '<script>'"),
    MINE.replace("true", "maybe"),
    MINE.replace("true", "[true]"),
    MINE.replace("true", "{a: true}"),
    MINE.replace("true", "1e400"),
    MINE.replace("Uniform", "Unifrom"),
    MINE.replace("isbench.samplers.uniform.Uniform", "isbench.samplers.uniform"),
    MINE.replace("isbench.samplers.uniform.Uniform", "Uniform"),
    MINE.replace("isbench.samplers.uniform.Uniform", "..."),
    MINE.replace("isbench.samplers.uniform.Uniform", "3"),
    MINE.replace("isbench.samplers.uniform.Uniform", "isbench.models.mlp.MLP"),
    MINE.replace("isbench.samplers.uniform.Uniform", "isbench.samplers.base.Sampler"),
    MINE.replace("isbench.samplers.uniform.Uniform", "isbench.__version__"),
    MINE.replace("isbench.samplers.uniform.Uniform", "math.pi"),
    MINE.replace("isbench.samplers.uniform.Uniform", "builtins.print"),
    MINE.replace("replacement", "replacment"),
    MINE.replace("replacement: true", "? [a, b]\n: 3"),
    MINE.replace("replacement: true", "1: 2"),
    MINE.replace("replacement: true", "'': 2"),
    MINE.replace("replacement: true", "a" * 10_000 + ": 2"),
    MINE + "".join(f"{' ' * i}x:\n" for i in range(300)),
]
DAMAGED = (
    st.sampled_from(BROKEN).map(str.encode)
    | st.binary(min_size=1, max_size=40)
    | st.binary(min_size=1, max_size=4).map(lambda noise: MINE.encode() + b"x\xff" + noise)
)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [5, pytest.param(150, marks=pytest.mark.faults)])
def test_a_bad_yaml_is_one_line(count: int, worker: Worker, struck) -> None:
    tried: set[bytes] = set()

    @seed(SEED)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=HealthCheck)
    @given(DAMAGED)
    def check(content: bytes) -> None:
        tried.add(content)
        words = ["--config-dir=../own", *SMALL, "sampler=mine"]
        worker.ask(words, {"own/sampler/mine.yaml": content}).complaint()

    try:
        check()
    finally:
        struck("bad yaml in --config-dir", len(tried))


def test_the_yaml_that_is_damaged_is_a_good_one(worker: Worker) -> None:
    answer = worker.ask(
        ["--config-dir=../own", *SMALL, "sampler=mine", "runs_dir=../runs"], {"own/sampler/mine.yaml": MINE.encode()}
    )
    assert answer.code == 0, answer.text


DATA = {  # data set -> the files it reads; all are damaged, since the first is complained of
    "mnist": [f"MNIST/raw/{name}" for name in MNIST_FILES],
    "pixel_mnist": [f"MNIST/raw/{name}" for name in MNIST_FILES],
    "fashion_mnist": [f"FashionMNIST/raw/{name.removesuffix('.gz')}" for name in FASHION_MNIST_FILES],
    "cifar10": [f"cifar-10-batches-py/{name}" for name in CIFAR10_FILES],
    "cifar100": [f"cifar-100-python/{name}" for name in CIFAR100_FILES],
    "svhn": list(SVHN_FILES),
    "rot_mnist": [f"rot_mnist/{name}" for name in NUM_ROWS],
    "mit67": ["mit67/TrainImages.txt", "mit67/TestImages.txt", "mit67/Images/a/b.jpg"],
}
CONTENTS = (
    st.just(b"")
    | st.binary(max_size=60)
    | st.sampled_from(
        [b"a/b.jpg\n", b"../../../etc/passwd\n", b"\0\0\x08\x01\0\0\0\x02\x01", b"1 2 3\n", b"\x80\x04N."]
    )
)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [4, pytest.param(60, marks=pytest.mark.faults)])
def test_a_damaged_data_file_is_one_line(count: int, worker: Worker, struck) -> None:
    tried: set[tuple[str, bytes]] = set()

    @seed(SEED)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=HealthCheck)
    @given(st.sampled_from(sorted(DATA)), CONTENTS)
    def check(dataset: str, content: bytes) -> None:
        tried.add((dataset, content))
        words = [word for word in SMALL if not word.startswith("dataset")]
        answer = worker.ask(
            [*words, f"dataset={dataset}", "data_dir=../data"], {f"data/{name}": content for name in DATA[dataset]}
        )
        answer.complaint()

    try:
        check()
    finally:
        struck("data file missing or damaged", len(tried))
