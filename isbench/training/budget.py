"""The budget of a run, and the boundaries at which its clock stops for an evaluation.

Both are functions of `Progress`, so there is nothing to save. Evaluations come at equal parts of the budget, so that
every method is evaluated equally often.
"""

from isbench.training.ranks import ALONE, LateMaximum, Ranks
from isbench.types import Progress


class Budget:
    """A limit on updates, epochs (examples trained / N), examples trained, or training seconds.

    Args:
        unit: updates, epochs, examples or seconds.
        limit: number of units.
        effective: count an update as many times as its gain says (Johnson and Guestrin 2018: "epochs equivalent").
            Not for seconds.
    """

    def __init__(self, unit: str, limit: float, effective: bool = False):
        self.unit = unit
        self.limit = limit
        self.effective = effective

    def fraction(self, progress: Progress) -> float:
        """Return the share of the budget that is spent; 0 at the start, 1 or a little more at the end."""
        return self.schedule_fraction(progress) if self.effective else self._spent(progress) / self.limit

    def schedule_fraction(self, progress: Progress) -> float:
        """Return where the learning-rate schedule stands. Gains advance it, unless the budget is in seconds.

        It can pass 1 where gains exceed 1 and the budget does not count them. In seconds the schedule follows the time,
        for all methods alike: gains then raise the rate only.
        """
        spent = self._spent(progress)
        if self.unit != "seconds" and progress.updates:
            spent *= progress.effective_updates / progress.updates
        return spent / self.limit

    def is_spent(self, progress: Progress) -> bool:
        return self.fraction(progress) >= 1

    def _spent(self, progress: Progress) -> float:
        match self.unit:
            case "updates":
                return progress.updates
            case "epochs":
                return progress.epoch
            case "examples":
                return progress.examples_trained
            case _:
                return progress.seconds


class Boundaries:
    """The updates after which the clock pauses: at the ends of `points` equal parts of the budget, or to stop.

    Any rank may set `stop_requested` at any time; `is_stopping` follows on all ranks at the same update.
    """

    def __init__(self, budget: Budget, points: int, progress: Progress, ranks: Ranks = ALONE):
        self.budget = budget
        self.points = points
        self.stop_requested = self.is_stopping = False
        self._agree = bool if ranks.size == 1 else LateMaximum(0.0).push
        self.passed = self._whole_parts(progress)

    def _whole_parts(self, progress: Progress) -> int:
        fraction = self.budget.fraction(progress)
        part = int(fraction * self.points) + 1  # the product may round either way; the comparison below is exact
        while part > 0 and fraction < part / self.points:
            part -= 1
        return part

    def reached(self, progress: Progress) -> bool:
        """Say whether the run is at a boundary."""
        self.is_stopping = bool(self._agree(self.stop_requested))
        return self.is_stopping or self.budget.fraction(progress) >= (self.passed + 1) / self.points

    def take_evaluation(self, progress: Progress) -> bool:
        """Say whether an evaluation is due here, and count it as taken. At a mere request to stop none is due."""
        before, self.passed = self.passed, self._whole_parts(progress)
        return self.passed > before
