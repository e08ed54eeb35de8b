"""One seed becomes named, independent streams of random numbers.

Changing the sampler leaves initial weights and data order streams unchanged; evaluating more often changes nothing.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

NAMES = ("order", "augmentation", "sampler")


def fixed_subset(num_examples: int, count: int | None) -> Tensor:
    """Return `count` random indices (all if None), the same in every run, in random order, on the CPU."""
    return torch.randperm(num_examples, generator=torch.Generator().manual_seed(0))[:count]


def derive_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed that depends on the run's seed and the stream's name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


class Streams:
    """The generators of a run, and the global one that dropout uses.

    All ranks of a run have the same streams but the global one, since they drop out different examples' activations.

    Attributes:
        order, augmentation, sampler: generators on the run's device.
    """

    def __init__(self, seed: int, device: torch.device, rank: int = 0):
        self.device = device
        self.generators = {name: torch.Generator(device).manual_seed(derive_seed(seed, name)) for name in NAMES}
        self.order, self.augmentation, self.sampler = (self.generators[name] for name in NAMES)
        torch.manual_seed(derive_seed(seed, f"dropout/{rank}" if rank else "dropout"))

    def state_dict(self) -> dict[str, Tensor]:
        return {name: generator.get_state() for name, generator in self.generators.items()} | self.own_state()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, generator in self.generators.items():
            generator.set_state(state[name])
        self.load_own_state(state)

    def own_state(self) -> dict[str, Tensor]:
        """Return the state of the stream that differs from rank to rank."""
        state = {"global": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["global_cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(state["global"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["global_cuda"], self.device)
