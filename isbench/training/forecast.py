"""How long a run will take on a CPU, so that it can be said before it starts."""

import time
from datetime import timedelta

from isbench.data.resident import ResidentDataset
from isbench.models.heads import Classifier
from isbench.signals import CrossEntropy
from isbench.training.budget import Budget
from isbench.training.evaluate import evaluate
from isbench.types import Progress

LONG_EVALUATION, LONG_RUN = 10.0, 600.0  # seconds from which on it is worth a line
LONGEST = 1e11  # seconds that are told apart: a budget may have any number of zeros
FEW = 16  # examples whose evaluation is timed


def seconds_of_evaluation(model: Classifier, criterion: CrossEntropy, dataset: ResidentDataset, count: float) -> float:
    """Return about how many seconds it takes to evaluate `count` examples."""
    few, seconds = min(FEW, dataset.num_test), 0.0
    for _ in range(2):  # the first call has costs of its own
        started = time.perf_counter()
        evaluate(model, criterion, [dataset.test_chunk(0, few)])
        seconds = time.perf_counter() - started
    return seconds * count / few


def seconds_of_training(budget: Budget, progress: Progress, batch_size: int, seconds_per_update: float) -> float:
    """Return about how many seconds the rest of a budget takes; at most that where gains count."""
    updates = {
        "updates": budget.limit,
        "epochs": budget.limit * progress.num_examples / batch_size,
        "examples": budget.limit / batch_size,
    }
    whole = budget.limit if budget.unit == "seconds" else updates[budget.unit] * seconds_per_update
    return max(0.0, 1 - budget.fraction(progress)) * whole


def forecast(training: float, evaluation: float, points: int) -> str | None:
    """Return a line on the seconds that training and each of `points` evaluations take, None if that is not long."""
    if evaluation < LONG_EVALUATION and training + points * evaluation < LONG_RUN:
        return None
    whole, trained, each = (
        timedelta(seconds=round(min(seconds, LONGEST)))
        for seconds in (training + points * evaluation, training, evaluation)
    )
    return (
        f"this takes about {whole} on this CPU: {trained} of training, and {points} evaluations of {each} each; "
        "budget.limit and evaluation.points set how much of them there is"
    )
