"""Every figure by hand on small arrays, and that a difference moves it."""

import math

import numpy as np
import pytest

from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.numerics.decibels import CAP_DB

REFERENCE = np.array([[3.0, 0.0, 4.0], [0.0, 12.0, 5.0]], np.float32)  # norms 5 and 13, largest entries 2 and 1


def measured(reference: np.ndarray, output: np.ndarray) -> OutputDifference:
    difference = OutputDifference()
    difference.update(reference, output)
    return difference


def test_equal_outputs_are_perfect() -> None:
    difference = measured(REFERENCE, REFERENCE.copy())
    assert (difference.sqnr_db, difference.relative) == (CAP_DB, 0.0)
    assert difference.cosine == pytest.approx(1.0, abs=1e-15)
    assert difference.agreement == 1.0


def test_figures_worked_by_hand() -> None:
    output = REFERENCE + np.array([[0, 0, -1.94], [0, 0, 0]], np.float32)  # error power 1.94 ** 2 of 25 + 169
    difference = measured(REFERENCE, output)
    # The error is rounded to float32 before it is squared: some 1e-7 of it.
    assert difference.sqnr_db == pytest.approx(10 * math.log10(194 / 1.94**2), abs=1e-5)
    assert difference.relative == pytest.approx(1.94 / math.sqrt(194), rel=1e-6)
    dot, power = 9 + 4 * 2.06 + 169, 9 + 2.06**2 + 169
    assert difference.cosine == pytest.approx(dot / math.sqrt(194 * power), rel=1e-6)
    assert difference.agreement == 0.5  # the first row's largest entry is now the 3


@pytest.mark.parametrize("figure", ["sqnr_db", "cosine", "agreement"])
def test_a_perturbed_output_lowers_every_figure(figure: str) -> None:
    perturbed = REFERENCE.copy()
    perturbed[0, 0] += 1.5  # 4.5, now larger than the 4
    assert getattr(measured(REFERENCE, perturbed), figure) < getattr(measured(REFERENCE, REFERENCE), figure)


def test_a_perturbed_output_raises_the_relative_difference_in_proportion() -> None:
    small, large = REFERENCE.copy(), REFERENCE.copy()
    small[1, 0], large[1, 0] = 0.125, 0.25  # exact in float32
    assert 0 < measured(REFERENCE, small).relative == measured(REFERENCE, large).relative / 2


def test_a_permutation_of_rows_is_seen() -> None:
    difference = measured(REFERENCE, REFERENCE[::-1])
    assert difference.agreement == 0.0
    assert difference.sqnr_db < 3
    assert difference.cosine < 0.5


def test_gain_is_seen_by_sqnr_and_not_by_cosine() -> None:
    difference = measured(REFERENCE, 2 * REFERENCE)
    assert difference.sqnr_db == pytest.approx(0.0, abs=1e-12)
    assert difference.cosine == pytest.approx(1.0, abs=1e-15)
    assert difference.relative == 1.0


def test_batches_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(7, 5)).astype(np.float32)
    output = reference + rng.normal(0, 0.5, size=(7, 5)).astype(np.float32)
    parts = OutputDifference()
    for rows in (slice(0, 1), slice(1, 5), slice(5, 7)):
        parts.update(reference[rows], output[rows])
    whole = measured(reference, output)
    assert parts.agreement == whole.agreement
    # Sums of doubles in another order.
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db, rel=1e-12)
    assert parts.cosine == pytest.approx(whole.cosine, rel=1e-12)
    assert parts.relative == pytest.approx(whole.relative, rel=1e-12)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (5, 1)])
def test_agreement_is_none_without_classes(shape: tuple[int, ...]) -> None:
    assert measured(np.ones(shape, np.float32), np.ones(shape, np.float32)).agreement is None


def test_nothing_measured_has_no_agreement() -> None:
    assert OutputDifference().agreement is None


def test_zero_reference() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert measured(zeros, zeros).sqnr_db == CAP_DB
    assert measured(zeros, zeros).cosine == 1.0
    assert measured(zeros, zeros).relative == 0.0
    other = measured(zeros, zeros + 1)
    assert (other.sqnr_db, other.cosine, other.relative) == (-CAP_DB, 0.0, 1.0)


def test_sqnr_stays_within_its_cap() -> None:
    tiny = REFERENCE * np.float32(1e-20)
    assert measured(REFERENCE, REFERENCE + tiny).sqnr_db == CAP_DB
    assert measured(tiny, REFERENCE).sqnr_db == -CAP_DB


def test_large_values_do_not_overflow() -> None:
    large = np.full((1, 4), 3e38, np.float32)  # their squares do not fit float32
    difference = measured(large, large / 2)
    assert difference.sqnr_db == pytest.approx(10 * math.log10(4), abs=1e-9)


def test_arguments_are_left_alone() -> None:
    reference, output = REFERENCE.copy(), REFERENCE + 1
    reference.setflags(write=False)
    output.setflags(write=False)
    measured(reference, output)
    assert np.array_equal(output - reference, np.ones_like(REFERENCE))


def test_of_probabilities_the_logarithms_count() -> None:
    logits = np.array([[4.0, 0.0, -1.0], [20.0, 1.0, 0.0]])  # by the second row no probability moves by more than 1e-8
    moved = logits + np.array([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    rows, others = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (logits, moved))
    difference = OutputDifference(probabilities=True)
    difference.update(rows, others)
    centred = [x - x.mean(axis=1, keepdims=True) for x in (logits, moved)]
    expected = 10 * math.log10((centred[0] ** 2).sum() / ((centred[0] - centred[1]) ** 2).sum())
    assert difference.sqnr_db == pytest.approx(expected, abs=1e-9)
    assert measured(rows, others).sqnr_db > expected + 90  # hidden
    assert difference.agreement == 1.0


def test_what_is_no_probability_at_all_stays_finite() -> None:
    difference = OutputDifference(probabilities=True)
    difference.update(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]))
    assert -CAP_DB < difference.sqnr_db < CAP_DB
