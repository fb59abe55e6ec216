"""The knapsack against the enumeration of everything, and on problems that nobody can enumerate."""

import itertools
import math

import numpy as np
import pytest

from onnxvitq.numerics import allocate
from onnxvitq.numerics.allocate import Errors, Sizes, least_error, pareto_front

BITS = np.array([2, 3, 4, 5, 6, 8])


def tiny(seed: int, units: int = 5) -> tuple[Sizes, Errors]:
    """Sizes without a common step, errors that do not always fall with the size."""
    rng = np.random.default_rng(seed)
    options = [int(rng.integers(1, 5)) for _ in range(units)]
    sizes = [rng.integers(1, 40, count).astype(np.int64) for count in options]
    return sizes, [rng.random(count) * 10.0 ** rng.integers(-6, 1) for count in options]


def layered(seed: int, units: int = 74) -> tuple[Sizes, Errors]:
    """A Vision Transformer's layers: errors about four times smaller a bit."""
    rng = np.random.default_rng(seed)
    weights = rng.choice([147_456, 589_824], units)
    sizes = [weight * BITS for weight in weights]
    noise = [rng.uniform(0.7, 1.4, len(BITS)) for _ in range(units)]
    return sizes, [10 ** rng.uniform(-4, 0) * 4.0**-BITS * factor for factor in noise]


def everything(sizes: Sizes, errors: Errors) -> list[tuple[int, float]]:
    choices = itertools.product(*(range(len(one)) for one in sizes))
    return [
        (
            sum(int(s[i]) for s, i in zip(sizes, choice, strict=True)),
            sum(e[i] for e, i in zip(errors, choice, strict=True)),
        )
        for choice in choices
    ]


def sums(sizes: Sizes, errors: Errors, choice: tuple[int, ...]) -> tuple[int, float]:
    size = sum(int(one[index]) for one, index in zip(sizes, choice, strict=True))
    return size, float(sum(one[index] for one, index in zip(errors, choice, strict=True)))


@pytest.mark.parametrize("seed", range(30))
def test_least_error_is_that_of_the_enumeration(seed: int) -> None:
    sizes, errors = tiny(seed)
    points = everything(sizes, errors)
    smallest, largest = min(point[0] for point in points), max(point[0] for point in points)
    for budget in np.linspace(smallest, largest, 7).astype(int):
        size, error = sums(sizes, errors, least_error(sizes, errors, int(budget)))
        assert size <= budget
        assert error == pytest.approx(min(point[1] for point in points if point[0] <= budget), rel=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_the_front_is_that_of_the_enumeration(seed: int) -> None:
    sizes, errors = tiny(seed)
    points = everything(sizes, errors)
    best = {size: min(error for other, error in points if other <= size) for size, _ in points}
    expected = [(size, error) for size, error in sorted(best.items()) if all(best[s] > error for s in best if s < size)]
    front = pareto_front(sizes, errors)
    assert front.sizes.tolist() == [size for size, _ in expected]
    assert front.errors == pytest.approx([error for _, error in expected], rel=1e-12)
    for size, error, choice in zip(front.sizes, front.errors, front.choices, strict=True):
        assert sums(sizes, errors, tuple(choice)) == pytest.approx((size, error), rel=1e-12)


def test_the_best_within_a_budget_is_on_the_front_of_a_real_size() -> None:
    sizes, errors = layered(0)
    front = pareto_front(sizes, errors)
    assert len(front.sizes) > 200
    assert (np.diff(front.sizes) > 0).all()
    assert (np.diff(front.errors) < 0).all()
    for budget in (front.sizes[0], int(np.mean(front.sizes)), front.sizes[-1] + 1):
        best = sums(sizes, errors, least_error(sizes, errors, int(budget)))[1]
        assert best == pytest.approx(front.errors[front.sizes <= budget][-1], rel=1e-12)


def test_it_beats_the_relaxations_own_rounding() -> None:
    """Gains per size, taken as long as they fit, leave room that another choice uses."""
    sizes = [np.array([0, 6]), np.array([0, 5]), np.array([0, 5])]
    errors = [np.array([10.0, 0.0]), np.array([8.0, 0.0]), np.array([8.0, 0.0])]
    assert least_error(sizes, errors, 10) == (0, 1, 1)


def test_sizes_without_a_common_step_are_solved_exactly() -> None:
    rng = np.random.default_rng(3)
    sizes = [int(weight) * BITS for weight in rng.integers(10_000, 1_000_000, 40)]
    errors = [10 ** rng.uniform(-3, 0) * 4.0**-BITS for _ in sizes]
    budget = int(sum(one[3] for one in sizes))
    size, error = sums(sizes, errors, least_error(sizes, errors, budget))
    assert size <= budget
    assert error < sum(one[3] for one in errors)


def test_a_front_of_too_many_points_keeps_true_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    sizes = [int(weight) * BITS for weight in rng.integers(1_000, 100_000, 8)]
    errors = [10 ** rng.uniform(-3, 0) * 4.0**-BITS for _ in sizes]
    exact = pareto_front(sizes, errors)
    monkeypatch.setattr(allocate, "MOST_POINTS", 100)
    coarse = pareto_front(sizes, errors)
    assert 10 < len(coarse.sizes) < len(exact.sizes)
    for size, error, choice in zip(coarse.sizes, coarse.errors, coarse.choices, strict=True):
        assert sums(sizes, errors, tuple(choice)) == pytest.approx((size, error), rel=1e-12)
        assert error >= exact.errors[exact.sizes <= size][-1] * (1 - 1e-12)


def test_an_option_of_no_error_is_taken_where_it_fits() -> None:
    sizes, errors = [np.array([4, 32]), np.array([4, 32])], [np.array([0.5, 0.0]), np.array([0.25, 0.0])]
    assert least_error(sizes, errors, 64) == (1, 1)
    assert least_error(sizes, errors, math.inf) == (1, 1)


def test_what_cannot_be_met_is_said() -> None:
    sizes, errors = [np.array([4, 8])], [np.array([2.0, 1.0])]
    with pytest.raises(ValueError, match="at least 4, got 3"):
        least_error(sizes, errors, 3)
