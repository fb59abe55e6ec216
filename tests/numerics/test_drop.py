"""Expected and observed losses of decisions."""

import math

import numpy as np
import pytest

from onnxvitq.numerics.drop import ExpectedDrop, binomial_bound, binomial_interval, expected_drop, paired_interval


def scores(seed: int, count: int, classes: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, classes)).astype(np.float32)


def expected(exact: np.ndarray, errors: np.ndarray, labels: np.ndarray | None = None) -> ExpectedDrop:
    """By errors of other samples."""
    before = scores(99, *errors.shape)
    return expected_drop(exact, (before, before + errors), labels)


@pytest.mark.parametrize("size", [0.02, 0.05, 0.1])
def test_expected_losses_are_those_of_normal_errors(size: float) -> None:
    exact = scores(0, 20_000)
    errors = size * scores(1, 20_000)
    lost = float((exact.argmax(axis=1) != (exact + errors).argmax(axis=1)).mean())
    found = expected(exact, errors[:5000])
    assert found.share == pytest.approx(lost, rel=0.1)
    assert lost < found.bound < 1.25 * found.share


def test_what_all_scores_have_in_common_decides_nothing() -> None:
    exact, errors = scores(0, 100), 0.1 * scores(1, 100)
    shifted = errors + 5 * scores(2, 100)[:, :1]
    found, plain = expected(exact, shifted.astype(np.float32)), expected(exact, errors)
    assert found.share == pytest.approx(plain.share, rel=1e-3)
    assert found.bound == pytest.approx(plain.bound, rel=1e-3)


def test_no_error_loses_nothing_and_noise_nearly_all() -> None:
    exact = scores(0, 100)
    none = expected(exact, np.zeros((4, 5), np.float32))
    assert (none.share, none.bound) == (0, 0)
    assert expected(exact, 1e4 * scores(1, 100)).share > 0.9


def test_many_classes_lose_as_much_as_their_nearest() -> None:
    """Of 1,000 classes 968 are too far away to matter, as their loss by normal errors shows."""
    exact, errors = scores(0, 2000, 1000), 0.02 * scores(1, 2000, 1000)
    lost = float((exact.argmax(axis=1) != (exact + errors).argmax(axis=1)).mean())
    assert expected(exact, errors[:50]).share == pytest.approx(lost, rel=0.3)


def test_the_bound_holds_for_most_draws_of_few_samples() -> None:
    """At least nine in ten; the mean and its standard error alone hold for two in three."""
    population, size, count = scores(0, 20_000), 0.03, 64
    share = expected(population, size * scores(1, 20_000)).share
    draws = [expected(population[count * one : count * (one + 1)], size * scores(one + 2, 16)) for one in range(100)]
    assert np.mean([draw.bound >= share for draw in draws]) >= 0.9
    assert 0.3 < np.mean([draw.share >= share for draw in draws]) < 0.8


def test_the_bound_falls_with_the_error_and_with_more_samples() -> None:
    exact, errors = scores(0, 4096), scores(1, 64)
    few = [expected(exact[:64], size * errors).bound for size in (0.1, 0.01, 0.001)]
    assert few[0] > few[1] > few[2] > 0
    one, many = expected(exact[:64], 0.01 * errors), expected(exact, 0.01 * errors)
    assert many.bound / many.share < one.bound / one.share


def test_of_labelled_samples_top1_is_what_falls() -> None:
    """Labels that a noisy copy of the scores gives: some decisions are wrong, and errors mend some of them."""
    exact, errors = scores(0, 20_000), 0.1 * scores(1, 20_000)
    labels = (exact + 0.5 * scores(2, 20_000)).argmax(axis=1)
    before, after = exact.argmax(axis=1) == labels, (exact + errors).argmax(axis=1) == labels
    found = expected(exact, errors, labels)
    fall = float(before.mean() - after.mean())
    assert found.share == pytest.approx(fall, abs=0.002)
    assert fall < found.bound < expected(exact, errors).share


def test_the_two_largest_count_where_they_are_off_by_more() -> None:
    exact, errors = scores(0, 2000), np.float32(0.05) * scores(1, 200)
    before = scores(3, 200)
    largest = np.argsort(before, axis=1)[:, -1:]
    more = errors.copy()
    np.put_along_axis(more, largest, 3 * np.take_along_axis(errors, largest, axis=1), axis=1)
    plain, worse = (expected_drop(exact, (before, before + one)).share for one in (errors, more))
    # The difference of the two is off by sqrt((9 + 1) / 2) times as much, all scores together by sqrt((9 + 4) / 5) times.
    assert worse / plain == pytest.approx(np.sqrt(5), rel=0.15)


def test_labels_that_are_the_decisions_change_nothing() -> None:
    exact, errors = scores(0, 500), 0.1 * scores(1, 500)
    assert expected(exact, errors, exact.argmax(axis=1)) == expected(exact, errors)


@pytest.mark.parametrize(("hits", "count"), [(0, 16), (3, 64), (40, 40)])
def test_a_bound_is_missed_one_time_in_twenty(hits: int, count: int) -> None:
    bound = binomial_bound(hits, count)
    at_most = sum(math.comb(count, one) * bound**one * (1 - bound) ** (count - one) for one in range(hits + 1))
    assert at_most == pytest.approx(0.05 if hits < count else 1)


@pytest.mark.parametrize(("lost", "gained"), [(0.01, 0.01), (0.03, 0.01), (0.002, 0.0)])
def test_the_paired_interval_holds_as_often_as_it_says(lost: float, gained: float) -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(1000):
        down, up, _ = rng.multinomial(300, [lost, gained, 1 - lost - gained])
        low, high = paired_interval(int(down), int(up), 300)
        inside += low <= lost - gained <= high
    assert inside >= 940


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
