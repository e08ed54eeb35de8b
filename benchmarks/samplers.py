"""What importance sampling adds to a step: every sampler with LeNet, b=128, on 60,000 images of a digit's shape.

Presampling, with its gate held open, is compared with the least it must do: one forward pass of B=640 in evaluation
mode, and a bare step. Other samplers are compared with `uniform`. After a warm-up, a window of updates holds at least
one whole period of a sampler's rarer work (passes, fits, sorts, refreshes), so that every update bears its share.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch

from benchmarks.measure import Row, Work, race, ratios
from benchmarks.runs import bare_loop, experiment_numerics, isbench_loop, make_parts
from isbench.build import Parts
from isbench.config import config_folder
from isbench.samplers.presample import GatedPresample

GOAL = 1.05
NUM_EXAMPLES, QUICK_EXAMPLES = 60_000, 6_000
BATCH = 128
BLOCK = 20  # updates between turns
ROUNDS = 3  # windows
PASS = 1.0


@dataclass(frozen=True)
class Case:
    """How one sampler is measured. A pass is N / b updates."""

    warm_up: float = 0.1  # passes before the first window
    window: float = 0.1  # passes that hold a whole period
    choices: Sequence[str] = ()  # named in the row
    thirds: Sequence[str] = ()  # choices whose value is a third of the number of examples
    over_forward: bool = False  # compare with a forward pass and a step instead of uniform
    why: str = ""  # why it has no goal


LEFT_OUT = ("uniform", "oracle")  # the reference, and a sampler that scores the whole set in every update
FORWARD = "pays for forward passes"
CASES: dict[str, tuple[Case, ...]] = {  # samplers without an entry have one plain case
    "c_sgd": (Case(0.3, 0.3),),
    "gradient_norm": (Case(0.01, 0.01, why="pays for a gradient per scored example"),),
    "infobatch": (Case(PASS, PASS),),
    "loss": (Case(over_forward=True),),
    "loss_predictor": (Case(why="pays for passes of its own network over 2,048 histories"),),
    "online_batch_selection": (
        Case(PASS, 2 * PASS, why="pays for a forward pass of the set every two passes"),
        Case(PASS, PASS, ("sampler.recompute=null",)),
    ),
    "p_sgd": (Case(0.3, 0.3),),
    "presample_constant_time": (Case(why=FORWARD),),
    "presample_constant_variance": (Case(why=FORWARD),),
    "prioritized": (Case(0.2, 0.2),),
    "rais": (Case(1.7 * PASS, PASS / 3, thirds=("sampler.fit_examples",)),),
    "rho_loss": (Case(0.01, 0.05, why=FORWARD),),
    "selective_backprop": (
        Case(PASS, 0.3, why=FORWARD),
        Case(PASS, PASS, ("sampler.staleness=4",), why=FORWARD),
    ),
    "sgd_s": (Case(2 * PASS, PASS),),
    "upper_bound": (Case(over_forward=True),),
}


def rows(device: torch.device, quick: bool) -> Iterator[Row]:
    num_examples = QUICK_EXAMPLES if quick else NUM_EXAMPLES
    uniform = parts_of("uniform", device, num_examples)
    names = sorted(path.stem for path in (config_folder() / "sampler").glob("*.yaml"))
    for sampler in (name for name in names if name not in LEFT_OUT):
        for case in CASES.get(sampler, (Case(),)):
            sizes = (f"{choice}={num_examples // 3}" for choice in case.thirds)
            parts = parts_of(sampler, device, num_examples, *case.choices, *sizes)
            if isinstance(parts.sampler, GatedPresample):
                hold_open(parts.sampler)
            against, reference = "uniform", isbench_loop(uniform)
            if case.over_forward:
                against, reference = "forward of B=640 and bare step", forward_and_step(parts)
            loop = isbench_loop(parts)
            loop(ceil(case.warm_up * num_examples / BATCH))
            updates = ceil(case.window * num_examples / BATCH / BLOCK) * BLOCK
            name = " ".join([sampler, *(choice.removeprefix("sampler.") for choice in case.choices)])
            yield Row(
                name,
                against,
                [window_ratio(loop, reference, updates) for _ in range(1 if quick else ROUNDS)],
                at_most=None if case.why else GOAL,
                note=f"{case.why}; {updates} updates a window".removeprefix("; "),
            )


def parts_of(sampler: str, device: torch.device, num_examples: int, *choices: str) -> Parts:
    data = (f"dataset.num_examples={num_examples}", "dataset.num_test=10")
    return make_parts(device, *data, "model=lenet", f"sampler={sampler}", *choices, *experiment_numerics(device))


def hold_open(sampler: GatedPresample) -> None:
    """Let every update score a pool."""
    sampler.tau_threshold = 0.0
    sampler.tau.fill_(2.0)


def forward_and_step(parts: Parts) -> Work:
    """Return the least work of presampling: a forward pass of B in evaluation mode, and a step of b."""
    step = bare_loop(parts)
    inputs, _ = parts.dataset.plain(torch.arange(640, device=parts.workspace.device))

    def steps(count: int) -> None:
        for _ in range(count):
            parts.model.eval()
            with torch.no_grad():
                parts.model(inputs)
            parts.model.train()
            step(1)

    return steps


def window_ratio(ours: Work, theirs: Work, updates: int) -> float:
    """Return the ratio of the seconds that both need for `updates` updates, taken in turns of `BLOCK`."""
    times = race([ours, theirs], rounds=updates // BLOCK, steps=BLOCK)
    (ratio,) = ratios(*([sum(blocks)] for blocks in times))
    return ratio
