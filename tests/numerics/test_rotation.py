"""Rotations: orthogonal, the vector of ones left where it is, and outliers spread."""

import numpy as np
import pytest

from onnxvitq.core.formats import activation_format
from onnxvitq.numerics.affine import fake_quantize, params_from_range
from onnxvitq.numerics.rotation import hadamard, rotation, turn

ROUNDING = 1e-12  # of float64, at a hundred channels


def normalised(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 12, 36, 64, 96, 100])
def test_a_rotation_is_orthogonal_and_keeps_the_vector_of_ones(width: int) -> None:
    matrix = rotation(width, 0)
    assert np.abs(matrix.T @ matrix - np.eye(width)).max() < ROUNDING
    assert np.abs(matrix @ np.ones(width) - 1).max() < ROUNDING


@pytest.mark.parametrize("width", [36, 96])
def test_layer_norm_commutes_with_it(width: int) -> None:
    rows = np.random.default_rng(0).normal(size=(7, width)) * np.linspace(0.1, 9, width) + 3
    matrix = rotation(width, 1)
    assert np.abs(normalised(rows @ matrix) - normalised(rows) @ matrix).max() < ROUNDING * 10


def test_one_that_moves_the_ones_does_not_commute() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 8)) + 3
    matrix = np.asarray(hadamard(8)) / np.sqrt(8)
    assert np.abs(normalised(rows @ matrix) - normalised(rows) @ matrix).max() > 0.1


def test_the_seed_decides() -> None:
    assert np.array_equal(rotation(48, 3), rotation(48, 3))
    assert np.abs(rotation(48, 3) - rotation(48, 4)).max() > 0.1


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 44, 96, 384, 448])
def test_hadamard_matrices_have_orthogonal_rows_of_signs(order: int) -> None:
    matrix = hadamard(order)
    assert matrix is not None
    assert np.array_equal(np.abs(matrix), np.ones((order, order)))
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize("order", [3, 5, 6, 10, 36, 100])
def test_orders_without_a_construction(order: int) -> None:
    assert hadamard(order) is None


def test_every_channel_of_a_rotation_takes_part() -> None:
    """No entry is far from C ** -0.5: that is what spreads one channel over all."""
    assert np.abs(rotation(384, 0)).max() < 4 / np.sqrt(384)


def test_outlier_channels_cost_less_in_eight_bits() -> None:
    """The objective: one scale for the tensor, three channels forty times the others."""
    rows = np.random.default_rng(0).normal(size=(200, 96))
    rows[:, [3, 40, 77]] *= 40
    rows = normalised(rows)
    turned = rows @ rotation(96, 0)
    noise = []
    for values in (rows.astype(np.float32), turned.astype(np.float32)):
        spec = activation_format(8)
        quantized = fake_quantize(values, params_from_range(float(values.min()), float(values.max()), spec))
        noise.append(float(((quantized - values) ** 2).mean()))
    assert noise[1] < noise[0] / 3


@pytest.mark.parametrize("axis", [0, 1, -1, -4])
def test_turning_multiplies_the_vectors_along_an_axis(axis: int) -> None:
    matrix = rotation(5, 0)
    values = np.random.default_rng(0).normal(size=(5, 5, 3, 5)).astype(np.float32)
    turned = turn(values, axis, matrix)
    expected = np.stack([vector @ matrix for vector in np.moveaxis(values, axis, -1).reshape(-1, 5)])
    assert np.moveaxis(turned, axis, -1).reshape(-1, 5) == pytest.approx(expected, abs=1e-6)
    assert (turned.dtype, turned.shape, turned.flags.c_contiguous) == (np.dtype(np.float32), values.shape, True)


def test_a_writer_and_a_reader_take_each_other_back() -> None:
    rng = np.random.default_rng(0)
    writer, reader, matrix = rng.normal(size=(4, 12)), rng.normal(size=(12, 6)), rotation(12, 0)
    assert turn(writer, -1, matrix) @ turn(reader, -2, matrix) == pytest.approx(writer @ reader, abs=1e-12)
    assert np.abs(turn(writer, -1, matrix) @ reader - writer @ reader).max() > 0.1


def test_the_wrong_axis_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected 4 channels on axis 0, got shape \(3, 4\)"):
        turn(np.zeros((3, 4)), 0, rotation(4, 0))
