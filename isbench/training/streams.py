"""Random numbers: one seed becomes independent streams, each with a name.

Another sampler leaves the streams of the initial weights and of the data order as they are. More evaluations change no
stream.
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
    """Return a 63-bit seed that depends only on the run's seed and the stream's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: str, device: torch.device) -> torch.Generator:
    """Return the generator of this name, at its start."""
    return torch.Generator(device).manual_seed(derive_seed(seed, name))


class Streams:
    """The generators of a run, and torch's global one, which dropout uses.

    All ranks share every stream but the global one: each rank drops activations of its own examples.

    Attributes:
        order, augmentation, sampler: generators on the run's device.
    """

    def __init__(self, seed: int, device: torch.device, rank: int = 0):
        self.device = device
        self.generators = {name: stream(seed, name, device) for name in NAMES}
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
