"""``numerics.decibels`` against values by hand, and at every cap."""

import math

import pytest

from onnxvitq.numerics.decibels import CAP_DB, decibels, error_power, gain_db, sqnr, sqnr_of_error


def test_a_tenth_is_ten_decibels() -> None:
    assert [decibels(ratio) for ratio in (0.0, 0.1, 1.0, 100.0)] == [-math.inf, -10.0, 0.0, 20.0]
    assert math.isnan(decibels(math.nan))
    assert decibels(4.0) == 20 * math.log10(2)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (1.0, 0.001, 30.0),
        (0.001, 1.0, -30.0),
        (0.0, 0.0, CAP_DB),  # two outputs of zeros are equal
        (0.0, 1.0, -CAP_DB),
        (1.0, 1e-13, CAP_DB),
        (1e-13, 1.0, -CAP_DB),
        (1.0, math.nan, -CAP_DB),
        (math.nan, 1.0, -CAP_DB),
    ],
)
def test_sqnr_is_capped_on_both_sides(signal: float, noise: float, expected: float) -> None:
    assert sqnr(signal, noise) == pytest.approx(expected, abs=1e-12)


def test_sqnr_of_an_error() -> None:
    assert sqnr_of_error(0.01) == 20.0
    assert sqnr_of_error(0.02, 2.0) == 20.0
    assert sqnr_of_error(0.0) == sqnr_of_error(1e-13) == CAP_DB
    assert sqnr_of_error(1e-13, smallest=0) == pytest.approx(130.0)
    assert sqnr_of_error(0.0, smallest=0) == math.inf
    assert sqnr_of_error(1.0, 0.0) == pytest.approx(-300.0)  # any error of no signal
    assert sqnr_of_error(1e-64, 1e-62) == pytest.approx(20.0)  # powers of values near 1e-31
    assert math.isnan(sqnr_of_error(math.nan))  # not mistaken for a perfect result


def test_a_gain_is_positive_where_the_error_fell() -> None:
    assert gain_db(0.1, 0.01) == 10.0
    assert gain_db(0.01, 0.1) == -10.0
    assert gain_db(0.0, 1e-40) == 0.0
    assert gain_db(1e-63, 1e-64, 1e-60) == pytest.approx(10.0)  # beside a signal near 1e-30


def test_error_power_is_the_inverse() -> None:
    assert error_power(30.0) == pytest.approx(1e-3)
    assert sqnr_of_error(error_power(41.5)) == pytest.approx(41.5, abs=1e-12)
