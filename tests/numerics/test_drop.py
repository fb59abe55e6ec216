"""Expected and observed losses of decisions."""

import math

import numpy as np
import pytest

from onnxvitq.numerics.drop import binomial_interval, expected_drop


def scores(seed: int, count: int, classes: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, classes)).astype(np.float32)


@pytest.mark.parametrize("size", [0.02, 0.05, 0.1])
def test_expected_losses_are_those_of_normal_errors(size: float) -> None:
    exact = scores(0, 20_000)
    errors = size * scores(1, 20_000)
    lost = float((exact.argmax(axis=1) != (exact + errors).argmax(axis=1)).mean())
    expected, error = expected_drop(exact, errors[:500])
    assert expected == pytest.approx(lost, rel=0.1)
    assert 0 < error < 0.1 * expected


def test_what_all_scores_have_in_common_decides_nothing() -> None:
    exact, errors = scores(0, 100), 0.1 * scores(1, 100)
    shifted = errors + 5 * scores(2, 100)[:, :1]
    found, expected = expected_drop(exact, shifted.astype(np.float32)), expected_drop(exact, errors)
    assert found == pytest.approx(expected, rel=1e-3)


def test_no_error_loses_nothing_and_noise_nearly_all() -> None:
    exact = scores(0, 100)
    assert expected_drop(exact, np.zeros((4, 5), np.float32)) == (0, 0)
    assert expected_drop(exact, 1e4 * scores(1, 100))[0] > 0.9


@pytest.mark.parametrize(
    ("hits", "count", "expected"),
    [(0, 16, (0.0, 0.2059)), (1, 16, (0.0016, 0.3023)), (5, 10, (0.1871, 0.8129)), (10, 10, (0.6915, 1.0))],
)
def test_intervals_are_the_tables(hits: int, count: int, expected: tuple[float, float]) -> None:
    assert binomial_interval(hits, count) == pytest.approx(expected, abs=1e-4)


def test_the_interval_holds_as_often_as_it_says() -> None:
    """At least 95 % of the samples, whatever the share: it is exact, not approximate."""
    count, share = 40, 0.06
    inside = 0.0
    for hits in range(count + 1):
        low, high = binomial_interval(hits, count)
        inside += (low <= share <= high) * math.comb(count, hits) * share**hits * (1 - share) ** (count - hits)
    assert 0.95 <= inside < 1


def test_many_samples_are_no_trouble() -> None:
    low, high = binomial_interval(100, 10_000)
    assert 0.008 < low < 0.01 < high < 0.0122
