import numpy as np
import pytest

from onnxvitq.numerics.magnitude import comfortable


@pytest.mark.parametrize("size", [1e-40, 1e-31, 1e-13, 1e13, 1e30, 3e38])
def test_squares_of_what_comes_out_are_normal_numbers(size: float) -> None:
    values = np.array([[1.0, -0.4, 0.01]], np.float32) * np.float32(size)
    scaled = values * comfortable(values)
    assert 1e-12 < np.abs(scaled).max() < 4
    assert (np.square(scaled) > np.finfo(np.float32).tiny).all()
    assert np.allclose(scaled / np.abs(scaled).max(), [[1.0, -0.4, 0.01]], atol=1e-4)  # 1e-40 has four digits itself


def test_usual_values_and_zeros_are_left_as_they_are() -> None:
    for value in (0.0, 1e-10, 1.0, -1e10):
        assert comfortable(np.array([value], np.float32)) == 1


def test_each_column_has_its_own_power_of_two() -> None:
    weight = np.array([[1e-31, 0.5, 0.0], [3e-31, 2.0, 0.0]], np.float32)
    factors = comfortable(weight, axis=0)
    assert factors[1:].tolist() == [1.0, 1.0]
    mantissa, _ = np.frexp(factors)
    assert (mantissa == 0.5).all()
    assert 0.5 <= (weight * factors)[:, 0].max() < 1
