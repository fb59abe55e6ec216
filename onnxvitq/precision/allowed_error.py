"""Without a budget: the smallest choice of widths whose predicted error loses no more decisions than were promised."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnxvitq.evaluation.decisions import Decisions
from onnxvitq.numerics.decibels import sqnr_of_error
from onnxvitq.precision.costs import WidthCosts
from onnxvitq.precision.trial import ChoiceTrial

FACTORS = (2.0**-20, 2.0**20)  # of an error's size, between which that is looked for which keeps a promise
PRECISION = 1.01  # of that factor

Predict = Callable[[Sequence[int]], float]  # a choice -> output SQNR in dB


def allowed_db(trial: ChoiceTrial, costs: WidthCosts, decisions: Decisions, max_drop: float) -> float:
    """The least output SQNR in dB that is expected to keep a promise: of errors like those with the smallest width for all,
    but smaller or larger.

    Args:
        trial: evaluates a choice.
        costs: of all widths.
        decisions: of the float model.
        max_drop: share of the decisions that may be lost, 0 to 1.
    """
    references, errors = trial.references_and_errors(costs.bits(costs.same(0)))
    low, high = FACTORS
    while high > PRECISION * low:
        factor = math.sqrt(low * high)
        kept = decisions.expected_drop(references, references + factor * errors).bound <= max_drop
        low, high = (factor, high) if kept else (low, factor)
    signal, noise = (float((values.astype(np.float64) ** 2).sum()) for values in (references, errors))
    return sqnr_of_error(low**2 * noise, signal, smallest=0) if noise > 0 < signal else -math.inf


def smallest_that_reaches(choices: Sequence[tuple[int, ...]], predict: Predict, db: float) -> tuple[int, ...]:
    """The first of some choices, smallest first, that is predicted to reach so many dB; the last where none does."""
    return next((choice for choice in choices if predict(choice) >= db), choices[-1])
