"""How much a method's batches gain over uniform ones, in the gradients that training takes.

Johnson and Guestrin (2018), section 4.4: the gain ratio is E|g_U|^2 / E|g_S|^2 at the same weights, of the gradients of
uniform batches and of the method's. RAIS estimates it while it trains; this is the truth to hold the estimate against.
"""

import copy
from typing import Annotated, Any

import torch
from annotated_types import Ge

from isbench.build import Parts
from isbench.errors import Incompatible
from isbench.probes.base import Probe
from isbench.training.step import TrainStep
from isbench.types import Draw


class Gain(Probe):
    """Measure the gain ratio at the weights as they are, in train mode, penalty included.

    One row: `estimated` (the method's own gain ratio, in use at the next update), `true` (the ratio of the two means),
    `true_error` (its standard error, to first order), `acts` (whether the method has a say by now).

    Args:
        batches: gradients of each kind. Sixty know the ratio to some five to ten per cent.
    """

    def __init__(self, batches: Annotated[int, Ge(2)]):
        super().__init__()
        self.batches = batches

    def allocate(self, parts: Parts) -> None:
        if parts.step.ranks.size > 1:
            raise Incompatible("probe=gain cannot be used by several processes: only the first would train")

        def step(reweight: Any, observes: tuple[str, ...]) -> TrainStep:
            return TrainStep(parts.step.engine, parts.criterion, parts.optimizer, reweight, observes)

        sampler = parts.sampler
        self.sampled = step(sampler.reweight, tuple(dict.fromkeys((*sampler.observes, "gradient_norm"))))
        self.uniform = step(lambda draw, signals: draw.weights, ("gradient_norm",))

    def measure(self, parts: Parts) -> list[dict[str, Any]]:
        sampler, workspace = parts.sampler, parts.workspace
        before = copy.deepcopy(parts.state_dict())
        estimated = sampler.gain()
        ones = torch.ones(workspace.batch_size, device=workspace.device)
        squares = []
        for _ in range(self.batches):
            draw = sampler.draw()
            plain = Draw(workspace.fetch(workspace.uniform(len(ones))), ones)
            norms = (self.uniform.compute_gradient(plain), self.sampled.compute_gradient(draw))
            squares.append(torch.stack([signals["gradient_norm"].double().square() for signals in norms]))
        self.uniform.forget()
        self.sampled.forget()
        parts.load_state_dict(before)
        values = torch.stack(squares)
        uniform, sampled = values.mean(dim=0).tolist()
        errors = (values.std(dim=0) / values.mean(dim=0)).square().sum() / self.batches
        true = uniform / sampled
        return [{"estimated": estimated, "true": true, "true_error": true * float(errors) ** 0.5, "acts": draw.acts}]
