"""What a run may spend, how far it has come, and where it stops to look.

Everything is a function of `Progress`, so there is nothing to save. Evaluations are placed at equal parts of the
budget, the same for every method, so no method is looked at more often than another.
"""

from isbench.training.ranks import ALONE, LateMaximum, Ranks
from isbench.types import Progress


class Budget:
    """A limit on updates, epochs (examples trained / N), examples trained, or training seconds.

    Args:
        unit: updates, epochs, examples or seconds.
        limit: how many of them.
        effective: count an update as often as its gain says (Johnson and Guestrin 2018: "epochs equivalent").
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
        """Return where the learning-rate schedule stands: effective updates where the unit counts work.

        It can pass 1 when gains exceed 1 and the budget does not count them. In seconds it is the time that counts, for
        all methods alike: gains then raise the rate and leave the schedule where it is.
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
    """The moments at which the clock is paused to look: `points` equal parts of the budget, or a request to stop.

    `stop_requested` is set on any rank, at any time; `is_stopping` follows on all of them at the same update.
    """

    def __init__(self, budget: Budget, points: int, progress: Progress, ranks: Ranks = ALONE):
        self.budget = budget
        self.points = points
        self.stop_requested = self.is_stopping = False
        self._agree = bool if ranks.size == 1 else LateMaximum(0.0).push
        self.passed = self._whole_parts(progress)

    def _whole_parts(self, progress: Progress) -> int:
        fraction = self.budget.fraction(progress)
        part = int(fraction * self.points) + 1  # the product may round either way; settle it by the exact comparison
        while part > 0 and fraction < part / self.points:
            part -= 1
        return part

    def reached(self, progress: Progress) -> bool:
        """Say whether to look now."""
        self.is_stopping = bool(self._agree(self.stop_requested))
        return self.is_stopping or self.budget.fraction(progress) >= (self.passed + 1) / self.points

    def take_evaluation(self, progress: Progress) -> bool:
        """Say whether an evaluation is due here (and not just a request to stop), and count it as taken."""
        before, self.passed = self.passed, self._whole_parts(progress)
        return self.passed > before
