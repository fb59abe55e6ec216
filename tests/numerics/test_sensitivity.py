"""Nuclear norm, Omega, and the error of a layer's output by bits."""

import numpy as np
import pytest

from onnxvitq.core.formats import TensorFormat, weight_format
from onnxvitq.numerics.affine import params_from_weight
from onnxvitq.numerics.sensitivity import Rounded, Rounder, nuclear_norm, omega


def spec(bits: int) -> TensorFormat:
    return weight_format(bits)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_nuclear_norm_of_a_diagonal_is_the_sum_of_its_entries() -> None:
    assert nuclear_norm(np.diag([3.0, -2.0, 0.5]).astype(np.float32)) == pytest.approx(5.5)


def test_nuclear_norm_is_that_of_the_block_diagonal_map_and_the_mean_over_images() -> None:
    heads = random(2, 3, 4, 5)
    blocks = [np.zeros((12, 15)) for _ in range(2)]
    for image, block in enumerate(blocks):
        for head in range(3):
            block[4 * head : 4 * head + 4, 5 * head : 5 * head + 5] = heads[image, head]
    expected = np.mean([np.linalg.norm(block, "nuc") for block in blocks])
    assert nuclear_norm(heads) == pytest.approx(expected, rel=1e-6)


def test_nuclear_norm_does_not_change_under_rotations() -> None:
    rotation = np.linalg.qr(random(6, 6, seed=1))[0]
    features = random(2, 4, 6)
    assert nuclear_norm((features @ rotation).astype(np.float32)) == pytest.approx(nuclear_norm(features), rel=1e-5)


def test_omega_is_norm_times_squared_error_of_one_image() -> None:
    features = random(1, 4, 4)
    quantized = features + np.float32(0.25)
    assert omega(features, quantized) == pytest.approx(nuclear_norm(features) * 16 * 0.0625, rel=1e-5)
    twice = np.concatenate([features, features])
    assert omega(twice, twice + np.float32(0.25)) == pytest.approx(omega(features, quantized), rel=1e-5)
    assert omega(features, features) == 0


def alone(rows: np.ndarray, weight: np.ndarray, bits: int, *, feedback: bool = False) -> Rounded:
    return Rounder(rows, rows, feedback=feedback)([(weight, params_from_weight(weight, spec(bits)))])[0]


def test_errors_are_about_four_times_smaller_a_bit() -> None:
    rows, weight = random(128, 24), random(24, 16, seed=2)
    for feedback in (False, True):
        errors = [alone(rows, weight, bits, feedback=feedback).errors.mean() for bits in (4, 6, 8)]
        assert errors[0] / errors[1] == pytest.approx(16, rel=0.5)
        assert errors[1] / errors[2] == pytest.approx(16, rel=0.5)


def test_errors_count_inputs_by_their_power() -> None:
    """Inputs that are always zero hide the error of their weights; twice as large inputs give four times the error."""
    rows, weight = random(64, 24), random(24, 16, seed=2)
    silent = rows * np.float32(1e-6)
    assert alone(2 * rows, weight, 4).errors == pytest.approx(4 * alone(rows, weight, 4).errors)
    assert (alone(silent, weight, 4).errors < 1e-9).all()


def test_the_error_is_that_of_the_values_and_the_shift() -> None:
    rows, held, weight = random(96, 24) + 1, random(32, 24, seed=4) + 1, random(24, 16, seed=2)
    for feedback in (False, True):
        found = Rounder(rows, held, feedback=feedback)([(weight, params_from_weight(weight, spec(4)))])[0]
        expected = ((held @ found.values + found.shift - held @ weight) ** 2).mean(axis=0)
        np.testing.assert_allclose(found.errors, expected, rtol=1e-3)  # float32 products
        assert found.shift.any() == feedback


def test_feedback_gains_where_inputs_are_correlated_and_only_there() -> None:
    weight, mixing = random(24, 16, seed=2), random(4, 24, seed=3)
    for rows, gains in ((random(512, 24), False), (random(512, 4) @ mixing + 0.1 * random(512, 24, seed=5), True)):
        formats = [(weight, params_from_weight(weight, spec(4)))]
        plain, fed = (Rounder(rows[:384], rows[384:], feedback=one)(formats)[0].errors.mean() for one in (False, True))
        assert (fed < 0.5 * plain) == gains
        assert fed < 1.1 * plain
