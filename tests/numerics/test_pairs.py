from itertools import product

import numpy as np
import pytest

from onnxvitq.core.formats import INT8, TensorFormat, weight_format
from onnxvitq.numerics.affine import fake_quantize, params_from_weight, quantize
from onnxvitq.numerics.pairs import CEILING, FLOOR, LARGEST_PAIR, largest_pair, limit_pairs, partner, room_beside
from onnxvitq.numerics.rounding import round_with_feedback
from onnxvitq.numerics.saturation import estimate_saturation

FULL = weight_format(8)
FREE = weight_format(8, saturation_free=True)
SEVEN = weight_format(7)
SHAPES = pytest.mark.parametrize("shape", [(1, 3), (2, 1), (7, 5), (96, 40)])


def weight_of(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Heavy tails, neighbours alike: many pairs of one sign, some of them large."""
    rng = np.random.default_rng(seed)
    return (rng.standard_t(4, shape) + np.repeat(rng.normal(size=shape), 2, axis=0)[: shape[0]]).astype(np.float32)


def worst(codes: np.ndarray) -> tuple[int, int]:
    """(lowest, highest) sum of two products of a pair over all uint8 inputs: it is at a corner."""
    padded = np.concatenate([codes.astype(int), np.zeros((len(codes) % 2, codes.shape[1]), int)])
    sums = [a * padded[::2] + b * padded[1::2] for a, b in product((0, 255), repeat=2)]
    return int(np.min(sums)), int(np.max(sums))


def test_the_limit_is_the_largest_that_fits() -> None:
    assert 255 * LARGEST_PAIR <= CEILING < 255 * (LARGEST_PAIR + 1)
    assert FLOOR <= -255 * LARGEST_PAIR
    assert [partner(index) for index in range(4)] == [1, 0, 3, 2]


@SHAPES
@pytest.mark.parametrize("multiplier", [0.5, 0.8, 1.0, 1.2])
def test_no_input_saturates(shape: tuple[int, int], multiplier: float) -> None:
    weight = weight_of(shape)
    params = params_from_weight(weight, FREE, multiplier)
    codes = quantize(weight, params)
    low, high = worst(codes)
    assert low >= FLOOR
    assert high <= CEILING
    assert np.array_equal(fake_quantize(weight, params), codes * params.scale)
    assert np.array_equal(quantize(fake_quantize(weight, params), params), codes)


def test_weights_of_the_full_range_saturate() -> None:
    weight = weight_of((96, 40))
    low, high = worst(quantize(weight, params_from_weight(weight, FULL)))
    assert low < FLOOR
    assert high > CEILING


def test_pairs_are_limited_to_the_nearest_that_fit() -> None:
    """Against all pairs of codes that fit."""
    values = np.arange(-LARGEST_PAIR + 1, LARGEST_PAIR)
    first, second = (one.ravel() for one in np.meshgrid(values, values, indexing="ij"))
    fits = (first * second <= 0) | (np.abs(first + second) <= LARGEST_PAIR)
    for pair in ((127, 127), (127, 2), (-127, -100), (65, 64), (127, 1), (127, -127), (0, 127), (-64, -64)):
        codes = np.array(pair, np.float32)[:, None]
        limit_pairs(codes)
        nearest = ((first - pair[0]) ** 2 + (second - pair[1]) ** 2)[fits].min()
        assert ((codes[:, 0] - pair) ** 2).sum() == nearest


def test_the_step_is_as_wide_as_the_largest_pair_needs() -> None:
    weight = np.array([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, 0.5]], np.float32)
    assert largest_pair(weight).tolist() == [2.0, 0.0, 0.0]
    assert params_from_weight(weight, FREE).scale == pytest.approx([2 / 127, 1 / 127, 1 / 127])


def test_tiny_weights_are_limited_as_others_are() -> None:
    """The product of two values near 1e-31 is zero: it does not tell whether they have one sign."""
    weight = weight_of((96, 40))
    scaled = weight * np.float32(2.0**-100)
    assert np.array_equal(largest_pair(scaled), largest_pair(weight) * np.float32(2.0**-100))
    plain, tiny = (quantize(w, params_from_weight(w, FREE)) for w in (weight, scaled))
    assert np.array_equal(plain, tiny)


def test_one_step_for_the_tensor_is_that_of_its_largest_pair() -> None:
    spec = TensorFormat(INT8, saturation_free=True)
    weight = weight_of((7, 5))
    params = params_from_weight(weight, spec)
    assert float(params.scale) == pytest.approx(max(np.abs(weight).max(), largest_pair(weight).max()) / 127)
    assert max(map(abs, worst(quantize(weight, params)))) <= CEILING


def test_it_costs_less_than_a_bit() -> None:
    for seed, inputs in product(range(3), (96, 384)):
        weight = np.random.default_rng(seed).normal(size=(inputs, 64)).astype(np.float32)
        errors = [
            ((weight - fake_quantize(weight, params_from_weight(weight, spec))) ** 2).mean()
            for spec in (FULL, FREE, SEVEN)
        ]
        assert errors[0] < errors[1] < 0.5 * errors[2]


def test_what_may_stand_beside_a_code() -> None:
    low, high = room_beside(np.array([-100.0, 0.0, 100.0]))
    assert low.tolist() == [-28, -128, -128]
    assert high.tolist() == [128, 128, 28]


@pytest.mark.parametrize("inputs", [24, 25])
def test_feedback_makes_up_for_the_limit(inputs: int) -> None:
    rng = np.random.default_rng(inputs)
    weight = weight_of((inputs, 30), inputs)
    rows = rng.normal(size=(200, 8)) @ rng.normal(size=(8, inputs)) + 0.3 * rng.normal(size=(200, inputs))
    gram = rows.T @ rows
    params = params_from_weight(weight, FREE, 0.8)  # so fine that pairs are limited
    rounded, plain = round_with_feedback(weight, params, gram), fake_quantize(weight, params)
    low, high = worst(quantize(rounded, params))
    assert low >= FLOOR
    assert high <= CEILING
    assert np.array_equal(fake_quantize(rounded, params), rounded)
    errors = [np.einsum("io,ij,jo->o", weight - one, gram, weight - one) for one in (rounded, plain)]
    assert (errors[0] <= errors[1] * (1 + 1e-6)).all()
    assert errors[0].sum() < 0.7 * errors[1].sum()


def test_the_estimate_counts_what_is_cut() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (50, 7)).astype(np.uint8)
    codes = rng.integers(-127, 128, (7, 11)).astype(np.int8)
    sums = np.stack([inputs[:, k : k + 2].astype(int) @ codes[k : k + 2].astype(int) for k in (0, 2, 4)])
    outside = (sums > CEILING) | (sums < FLOOR)
    found = estimate_saturation(inputs, codes)
    assert found.cut == pytest.approx(outside.mean())
    assert found.largest == pytest.approx(np.abs(sums).max() / CEILING)
    assert found.at_risk
    reach = np.stack([np.abs(codes[k : k + 2].astype(int).sum(axis=0)) * 255 for k in (0, 2, 4)])
    same = np.stack([codes[k].astype(int) * codes[k + 1] > 0 for k in (0, 2, 4)])
    assert found.pairs == pytest.approx(((reach > CEILING) & same).mean())


def test_nothing_is_at_risk_where_nothing_can_saturate() -> None:
    weight = weight_of((96, 40))
    codes = quantize(weight, params_from_weight(weight, FREE))
    found = estimate_saturation(np.full((4, 96), 255, np.uint8), codes)
    assert (found.pairs, found.largest, found.cut, found.at_risk) == (0, 0, 0, False)
