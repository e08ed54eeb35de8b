"""The samplers in a training loop of one's own: the same draws and losses as a run, and what the loop is promised."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

import isbench
from isbench.build import Parts
from isbench.errors import ConfigError, Incompatible
from isbench.guide import Guide
from isbench.loop import take_update
from isbench.samplers.uniform import Uniform
from tests.commands import together
from tests.conftest import SAMPLERS, build_parts, tensors

UPDATES = 50  # a pass of 4,000 examples in batches of 128 takes 32, so that every history acts
RUN = ("dataset=mnist5k", "model=mlp", f"budget.limit={UPDATES}", "budget.unit=updates", "logging=off")
# The methods that score nothing before they choose, some with these options; `attach` must refuse all others.
ALONE: dict[str, dict[str, Any]] = {
    "c_sgd": {},
    "impon": {},
    "impon_low": {},
    "infobatch": {},
    "loss_predictor": {},
    "online_batch_selection": {"recompute": None},
    "order_dp": {},
    "p_sgd": {},
    "prioritized": {},
    "rais": {"gain": False, "weighted_norm": False, "fit_examples": 1000},
    "screen": {},
    "sgd_s": {},
    "uniform": {},
}
REFUSED = [name for name in SAMPLERS if name not in ALONE]
SMALL = dict.fromkeys(("impon", "impon_low"), {"bank_size": 32})  # for few examples
SMALL.update(loss_predictor={"pool_size": 32}, rais={"fit_examples": 16})


def run_parts(sampler: str, options: dict[str, Any]) -> Parts:
    overrides = (f"sampler.{key}={json.dumps(value)}" for key, value in options.items())
    return build_parts(*RUN, f"sampler={sampler}", *overrides)


def of_a_run(parts: Parts) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the indices, weights and loss of each update of a run."""
    rows = []
    for update in range(UPDATES):
        draw, _ = take_update(parts.sampler, parts.step, parts.rate(update / UPDATES), parts.progress)
        rows.append((draw.batch.indices, draw.weights, parts.step._losses[-1]))
    return rows


def of_a_loop(
    parts: Parts, guide: Guide, batches: Iterator[tuple[Tensor, Any]]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Train the model of `parts` as a user would."""
    for update, (indices, (inputs, targets)) in enumerate(batches):
        logits = parts.model(inputs)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        loss = guide.loss(indices, losses, logits)
        parts.optimizer.zero_grad()
        loss.backward()
        for group in parts.optimizer.param_groups:
            group["lr"] = parts.rate(update / UPDATES) * guide.gain
        parts.optimizer.step()
        yield indices, guide.weights, loss.detach()


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.mark.parametrize("sampler", ALONE)
def test_a_loop_trains_as_a_run_does(sampler: str) -> None:
    options = ALONE[sampler]
    theirs, ours = run_parts(sampler, options), run_parts(sampler, options)
    data, before = ours.dataset, torch.get_rng_state()
    guide = isbench.attach(
        sampler,
        num_examples=4000,
        batch_size=128,
        updates=UPDATES,
        targets=data.targets,
        plain_inputs=lambda indices: data.plain(indices)[0],
        parameters=ours.model.parameters(),
        **options,
    )
    batches = ((indices, data.plain(indices)) for indices in map(torch.tensor, guide))
    loop = list(of_a_loop(ours, guide, batches))
    assert torch.equal(torch.get_rng_state(), before), "the global stream is the user's"
    assert same(loop, of_a_run(theirs))
    assert same(guide.sampler.state_dict(), theirs.sampler.state_dict())
    assert same(ours.model.state_dict(), theirs.model.state_dict())


@pytest.mark.parametrize("sampler", REFUSED)
def test_what_a_loop_cannot_give_is_refused_at_once(sampler: str) -> None:
    """docs/own_loop.md says what helps, and its test tries that."""
    with pytest.raises(Incompatible) as complaint:
        isbench.attach(sampler, num_examples=4000, batch_size=128, updates=10)
    assert re.fullmatch(f"sampler={sampler} needs [a-z_, ]+: (give attach .*=.*|only .*)", str(complaint.value))


# What a presampling method reads from `score`, as a user writes it for a classifier in evaluation mode.
SCORED = {
    "loss": ("loss", {"tau_threshold": 1.0, "tau_momentum": 0.0}),
    "upper_bound": ("logit_gradient_norm", {"tau_threshold": 1.0, "tau_momentum": 0.0}),
    "presample_constant_time": ("logit_gradient_norm", {"tau_threshold": 1.0, "tau_momentum": 0.0}),
    "rho_loss": ("loss", {}),
    "selective_backprop": ("loss", {}),
    "online_batch_selection": ("loss", {"recompute": 1.0}),
}


@pytest.mark.parametrize("sampler", SCORED)
def test_presampling_through_a_function_of_the_user(sampler: str) -> None:
    signal, options = SCORED[sampler]
    theirs, ours = run_parts(sampler, options), run_parts(sampler, options)
    loads: list[int] = []

    def load(indices: Tensor) -> tuple[Tensor, Tensor]:
        loads.append(len(indices))
        return ours.dataset.plain(indices)

    def score(examples: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = examples
        ours.model.eval()
        logits = ours.model(inputs)
        ours.model.train()
        if signal == "loss":
            return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        return torch.linalg.vector_norm(ours.criterion.logit_gradient(logits, targets), dim=1)

    guide = isbench.attach(
        sampler,
        num_examples=4000,
        batch_size=128,
        updates=UPDATES,
        targets=ours.dataset.targets,
        scorer=score,
        load=load,
        **options,
    )
    loop = list(of_a_loop(ours, guide, (guide.choose() for _ in range(UPDATES))))
    assert same(loop, of_a_run(theirs))
    assert guide.surroundings.progress.examples_scored == theirs.progress.examples_scored > 0
    if sampler in ("loss", "upper_bound"):
        assert 640 in loads and len(loads) == UPDATES, "an example is loaded once, to be scored and to be trained on"


def test_what_the_user_gives_is_checked() -> None:
    sizes: dict[str, Any] = {"num_examples": 100, "batch_size": 10, "updates": 5}

    def complaint(name: Any = "uniform", **changes: Any) -> str:
        with pytest.raises(ConfigError) as error:
            isbench.attach(name, **{**sizes, **changes})
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "did you mean uniform?" in complaint("unifrom")
    assert "sampler.replacements: did you mean replacement?" in complaint(replacements=True)
    assert "sampler.prune=2.0: must be less than 1" in complaint("infobatch", prune=2.0)
    assert "between 1 and num_examples=100" in complaint(batch_size=101)
    assert "either updates=... or epochs=..." in complaint(epochs=2)
    assert "must be positive" in complaint(updates=0)
    assert "100 labels" in complaint(targets=torch.zeros(7))
    assert "sampler.pool_size=640" in complaint("loss", scorer=lambda indices: indices.float())
    assert "plain_inputs: must give 1 inputs" in complaint(plain_inputs=lambda indices: indices)
    assert "parameters: none" in complaint(parameters=[torch.ones(3)])
    with pytest.raises(Incompatible, match=r"give attach gain=False, targets=\.\.\., weighted_norm=False$"):
        isbench.attach("rais", **sizes)
    with pytest.raises(Incompatible, match="needs last_layer_gradient_norm: only a run of isbench has that"):
        isbench.attach("prioritized", signal="last_layer_gradient_norm", **sizes)
    assert "needs load" in (str(pytest.raises(ConfigError, isbench.attach("uniform", **sizes).choose).value))
    guide = isbench.attach("p_sgd", targets=torch.zeros(100, dtype=torch.int64), **sizes)
    indices = torch.tensor(next(iter(guide)))
    with pytest.raises(ValueError, match="true_class_probability"):
        guide.loss(indices, torch.ones(10))
    guide = isbench.attach("uniform", **sizes)
    indices = torch.tensor(next(iter(guide)))
    with pytest.raises(ValueError, match=r"the shape is \(\)"):
        guide.loss(indices, torch.ones(()))
    with pytest.raises(ValueError, match="no batch"):
        guide.loss(indices + 1, torch.ones(10))
    guide.loss(indices, torch.ones(10))
    with pytest.raises(ValueError, match="no batch"):
        guide.loss(indices, torch.ones(10))
    guide = isbench.attach("rho_loss", pool_size=20, scorer=lambda indices: indices[1:].float(), **sizes)
    with pytest.raises(ValueError, match="20 scores"):
        next(iter(guide))


class Numbered(Dataset):
    """Items of several shapes, of 96 numbers."""

    def __init__(self, shape: Callable[[int], Any] = lambda index: (float(index), -index)):
        self.shape = shape

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> Any:
        return self.shape(index)


def test_items_carry_their_indices() -> None:
    assert isbench.indexed(Numbered())[3] == (3, 3.0, -3)
    assert isbench.indexed(Numbered(lambda index: {"text": str(index)}))[3] == {"indices": 3, "text": "3"}
    assert isbench.indexed(Numbered(lambda index: f"word {index}"))[3] == (3, "word 3")
    assert isbench.indexed(Subset(Numbered(), range(90, 96))).__getitems__([2, 0]) == [(2, 92.0, -92), (0, 90.0, -90)]
    guide = isbench.attach("infobatch", num_examples=96, batch_size=8, epochs=1)
    texts = isbench.indexed(Numbered(lambda index: {"text": str(index)}))
    for batch in DataLoader(texts, batch_sampler=guide):
        assert batch["text"] == [str(index) for index in batch["indices"].tolist()]


HISTORY = {"prioritized": {"alpha": 1.0}, "infobatch": {}, "online_batch_selection": {"recompute": None}}
TABLE = torch.rand(96, generator=torch.Generator().manual_seed(5))


def guided(sampler: str, updates: int = 40, **options: Any) -> Guide:
    return isbench.attach(sampler, num_examples=96, batch_size=8, updates=updates, **{**HISTORY[sampler], **options})


def taught(guide: Guide, loader: Any, stop: int = 1000) -> list[list[int]]:
    """Take batches up to the update `stop`; losses depend on the example and the time. Return the batches' indices."""
    given = []
    for indices, *_ in loader:
        given.append(indices.tolist())
        guide.loss(indices, TABLE[indices] / (1 + guide.surroundings.progress.updates))
        if guide.surroundings.progress.updates == stop:
            break
    return given


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sampler", HISTORY)
def test_a_resumed_loop_goes_on_bit_for_bit(sampler: str, workers: int, tmp_path) -> None:
    def loader(guide: Guide) -> DataLoader:
        return DataLoader(isbench.indexed(Numbered()), batch_sampler=guide, num_workers=workers)

    whole, first, second = guided(sampler), guided(sampler), guided(sampler, seed=9)
    expected = taught(whole, loader(whole))
    assert len(expected) == 40
    given = taught(first, loader(first), stop=17)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    assert len(first._in_flight) == 2 * workers  # torch's workers prefetch two batches each
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    given += taught(second, loader(second))
    assert given == expected and same(second.state_dict(), whole.state_dict())
    blind = guided(sampler)
    others = guided(sampler, seed=9).state_dict()["streams"]
    blind.load_state_dict({**torch.load(tmp_path / "state.pt", weights_only=True), "streams": others})
    assert taught(blind, loader(blind)) != expected[17:], "the random numbers are part of the state"


def test_workers_draw_ahead_by_what_is_stated() -> None:
    ahead, guide = [], guided("prioritized")
    original = guide.sampler.draw

    def draw():
        ahead.append(len(guide._in_flight))
        return original()

    guide.sampler.draw = draw  # type: ignore[method-assign]
    loader = DataLoader(isbench.indexed(Numbered()), batch_sampler=guide, num_workers=2, prefetch_factor=3)
    taught(guide, loader)
    assert max(ahead) == 6 and ahead[6:] == [6] * 34
    seen: list[float] = []
    guide = guided("prioritized")
    guide.sampler.current_beta = lambda: seen.append(guide.surroundings.fraction()) or 1.0  # type: ignore
    taught(guide, DataLoader(isbench.indexed(Numbered()), batch_sampler=guide, num_workers=2))
    assert seen == pytest.approx([update / 40 for update in range(40)]), "a draw ahead knows when it will be trained on"


def test_epochs_lengths_and_batches_that_are_left_out() -> None:
    guide = isbench.attach("uniform", num_examples=96, batch_size=9, epochs=2)
    loader = DataLoader(isbench.indexed(Numbered()), batch_sampler=guide)
    assert len(guide) == len(loader) == 11
    guide.set_epoch(0)
    assert len(taught(guide, loader)) == 11
    first = taught(guide, loader, stop=15)
    assert len(first) == 4 and len(taught(guide, loader)) == 7, "an iteration left early is taken up again"
    assert list(guide) == [], "the training is over"

    guide = isbench.attach("uniform", num_examples=96, batch_size=9, epochs=2)
    for number, indices in enumerate(map(torch.tensor, guide)):
        if number not in (3, 10):
            guide.loss(indices, torch.ones(9))
    assert guide.surroundings.progress.updates == 9 and len(list(guide)) == 11, "a batch left out is not given again"


def test_half_precision_leaves_weights_and_history_in_float32() -> None:
    guide = guided("prioritized")
    indices = torch.tensor(next(iter(guide)))
    model = torch.nn.Linear(1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(indices[:, None].float()).squeeze(1).square()
        assert losses.dtype == torch.float32 or losses.dtype == torch.bfloat16
    loss = guide.loss(indices, losses.to(torch.bfloat16))
    assert loss.dtype == guide.weights.dtype == torch.float32
    loss.backward()
    assert torch.equal(loss, torch.dot(guide.weights / 8, losses.to(torch.bfloat16).float()))


def test_microbatches_add_up_to_the_gradient_of_their_mean() -> None:
    """Gradient accumulation: each batch is weighted by itself, and the caller divides by their number."""
    guide, parameter, expected = guided("infobatch"), torch.zeros(96, requires_grad=True), torch.zeros(96)
    batches = iter(guide)
    for _ in range(3):
        indices = torch.tensor(next(batches))
        (guide.loss(indices, parameter[indices] + TABLE[indices]) / 3).backward()
        expected.index_add_(0, indices, guide.weights / 8 / 3)
    assert torch.allclose(parameter.grad, expected)


def test_a_class_of_ones_own() -> None:
    class Mine(Uniform):
        def gain(self) -> float:
            return 2.0

    guide = isbench.attach(Mine, num_examples=96, batch_size=8, updates=4, replacement=True)
    taught(guide, DataLoader(isbench.indexed(Numbered()), batch_sampler=guide))
    assert guide.gain == 2.0 and guide.surroundings.progress.effective_updates == 8
    assert guide.probabilities().tolist() == [1 / 96] * 96


def share(rank: int, size: int, folder: str) -> None:
    """Be one of `size` processes that train one parameter for each example; leave the shares and the gradients."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size)
    found = {}
    for sampler, options in SHARED.items():
        parameter = torch.zeros(96, requires_grad=True)
        guide = isbench.attach(sampler, num_examples=96, batch_size=8, updates=30, **options)
        shares = []
        for indices in map(torch.tensor, guide):
            losses = parameter[indices] + TABLE[indices] / (1 + guide.surroundings.progress.updates)
            guide.loss(indices, losses).backward()
            shares.append(indices)
        found[sampler] = shares, parameter.grad, guide.sampler.state_dict()
    torch.save(found, f"{folder}/{size}-{rank}.pt")


SHARED: dict[str, dict[str, Any]] = {"prioritized": {}, "infobatch": {}}
SHARED["loss"] = {"scorer": lambda indices: TABLE[indices], "pool_size": 31, "tau_threshold": 1.0}


def test_ranks_train_on_shares_of_the_same_batches(tmp_path) -> None:
    """Torch's DistributedDataParallel averages the gradients of the ranks."""
    together(share, 2, str(tmp_path))
    share(0, 1, str(tmp_path))
    whole, one, two = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for sampler in SHARED:
        batches, gradient, state = whole[sampler]
        (first, one_gradient, one_state), (second, two_gradient, two_state) = one[sampler], two[sampler]
        assert same([torch.cat(pair) for pair in zip(first, second, strict=True)], batches)
        assert torch.allclose((one_gradient + two_gradient) / 2, gradient, rtol=1e-5, atol=1e-6)
        assert same(one_state, state) and same(two_state, state)


BLOCKED = """
import sys, time

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
before = dict(__import__("os").environ)
started = time.process_time()
import isbench
assert time.process_time() - started < 0.1 and "torch" not in sys.modules
import torch
started = time.process_time()
isbench.attach
assert time.process_time() - started < 1, time.process_time() - started
assert dict(__import__("os").environ) == before
"""


def absent(*extras: str) -> set[str]:
    """Return the modules of this environment that `pip install isbench[extras]` would not bring."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(name for extra in extras for name in project["optional-dependencies"][extra])]
    brought: set[str] = {"isbench"}
    while wanted:
        name = re.split(r"[^\w.-]", wanted.pop().lower())[0].replace("_", "-")
        if name not in brought:
            brought.add(name)
            with suppress(PackageNotFoundError):  # of another platform
                wanted += [needed for needed in requires(name) or () if "extra ==" not in needed]
    return {
        module
        for module, owners in packages_distributions().items()
        if not {owner.lower().replace("_", "-") for owner in owners} & brought
    }


def test_the_library_needs_little() -> None:
    options = {sampler: {**given, **SMALL.get(sampler, {})} for sampler, given in ALONE.items()}
    code = BLOCKED.format(absent=absent("trees")) + (
        f"for name, options in {options}.items():\n"
        "    guide = isbench.attach(name, num_examples=96, batch_size=8, updates=3, targets=torch.arange(96) % 5,\n"
        "        plain_inputs=torch.rand(96, 4).__getitem__, parameters=[torch.ones(3).requires_grad_()], **options)\n"
        "    for indices in map(torch.tensor, guide):\n"
        "        guide.loss(indices, torch.rand(8), torch.rand(8, 5))\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_method_whose_packages_are_missing_says_so() -> None:
    assert {"numba", "scipy", "hydra", "wandb", "pandas", "submitit", "torchvision"} <= absent()
    code = BLOCKED.format(absent=absent()) + (
        "try: isbench.attach('prioritized', num_examples=96, batch_size=8, updates=3)\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "needs the package numba: pip install 'isbench[suite]'" in done.stdout
    code = BLOCKED.format(absent=absent()) + "from isbench.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("isbench: the command line needs the package hydra: pip")
