"""From a promise to the least SQNR that is expected to keep it."""

import numpy as np
import pytest

from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.decisions import Decisions
from onnxvitq.numerics.drop import expected_drop
from onnxvitq.precision.allowed_error import allowed_db, smallest_that_reaches
from onnxvitq.precision.costs import WidthCosts
from onnxvitq.precision.groups import LayerGroup
from onnxvitq.precision.trial import ChoiceTrial

GROUP = LayerGroup(name="a", linears=("a",), weights=("a_W",), size=10)
COSTS = WidthCosts(groups=(GROUP,), widths=(2, 4), sizes=np.array([[20, 40]]), errors=np.array([[1.0, 0.1]]))


class Seeded(ChoiceTrial):
    """A trial that runs nothing: outputs of 200 samples, and errors of a given size."""

    def __init__(self, size: float) -> None:
        rng = np.random.default_rng(0)
        self.outputs = rng.normal(size=(200, 10)).astype(np.float32)
        self.errors = (size * rng.normal(size=(200, 10))).astype(np.float32)

    def references_and_errors(self, bits: object) -> tuple[FloatArray, FloatArray]:
        """Whatever the bits."""
        assert bits == {"a": 2}
        return self.outputs, self.errors


def allowed(trial: Seeded, max_drop: float) -> float:
    decisions = Decisions(feeds=(), scores=trial.outputs, margins=trial.outputs)
    return allowed_db(trial, COSTS, decisions, max_drop)


def test_a_stricter_promise_allows_less_error() -> None:
    trial = Seeded(0.1)
    found = [allowed(trial, limit) for limit in (0.2, 0.05, 0.01)]
    assert found == sorted(found)
    assert found[0] < found[2] - 10


def test_errors_of_that_size_keep_the_promise_and_larger_ones_do_not() -> None:
    trial = Seeded(0.1)
    power = float((trial.outputs.astype(np.float64) ** 2).sum())
    noise = float((trial.errors.astype(np.float64) ** 2).sum())
    factor = np.sqrt(power / noise * 10 ** (-allowed(trial, 0.05) / 10))
    bounds = [
        expected_drop(trial.outputs, (trial.outputs, trial.outputs + np.float32(scale * factor) * trial.errors)).bound
        for scale in (0.99, 1.03)
    ]
    assert bounds[0] <= 0.05 < bounds[1]


def test_the_size_of_the_errors_that_are_scaled_does_not_matter() -> None:
    assert allowed(Seeded(0.01), 0.05) == pytest.approx(allowed(Seeded(0.3), 0.05), abs=0.1)


def test_the_first_choice_that_reaches_it_or_the_last() -> None:
    choices = [(0,), (1,), (2,)]
    assert smallest_that_reaches(choices, lambda choice: 10.0 * choice[0], 9.0) == (1,)
    assert smallest_that_reaches(choices, lambda choice: 10.0 * choice[0], 99.0) == (2,)
