import numpy as np
import pytest
from fitted_cases import moments_of

from onnxvitq.core.formats import activation_format
from onnxvitq.numerics.affine import fake_quantize, params_from_range
from onnxvitq.numerics.moments import Moments, output_error
from onnxvitq.numerics.ridge import Ridge, best_bias

INPUTS, OUTPUTS = 6, 4
STRENGTHS = (0.0, 1e-6, 1e-3, 0.1, 1.0, 30.0, np.inf)
SEEDS = pytest.mark.parametrize("seed", range(5))


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    x.setflags(write=False)
    return x


def rows(seed: int = 0, count: int = 200) -> tuple[np.ndarray, ...]:
    """Quantized inputs (N, I), targets (N, O) of the float layer, row weights, and its weight and bias."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((count, INPUTS)) @ rng.standard_normal((INPUTS, INPUTS)) + 1).astype(np.float32)
    weight, bias = read_only(rng.standard_normal((INPUTS, OUTPUTS))), read_only(rng.standard_normal(OUTPUTS))
    spec = activation_format(3)
    a = fake_quantize(x, params_from_range(0.6 * float(x.min()), 0.5 * float(x.max()), spec))
    return read_only(a), read_only(x @ weight + bias), read_only(rng.choice([1.0, 32.0], count)), weight, bias


def objective(moments: Moments, strength: float, start: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> float:
    penalty = strength * moments.gram.diagonal().mean()
    return float(output_error(moments, weight, bias).sum() + penalty * ((weight.astype(np.float64) - start) ** 2).sum())


def test_ridge_worked() -> None:
    # One input reads -1 and 1, the target is 5 + 3 a, W0 = 1. The centred gram is 2, so lambda = strength * 2:
    # W = 1 + (6 - 2) / (2 + 2 strength). Strength 1: W = 2; the bias is the mean, 5, at every strength.
    a = np.array([[-1.0], [1.0]], np.float32)
    moments = moments_of(a, 5 + 3 * a, np.ones(2, np.float32))
    weight, bias = Ridge(moments, np.ones((1, 1), np.float32))(1.0)
    assert (weight.item(), bias.item()) == pytest.approx((2, 5))


@SEEDS
def test_infinite_strength_is_bias_correction(seed: int) -> None:
    # Ridge subsumes Paper A's Eq. 16, b - E[O^ - O], which needs the old bias: here it falls out without it.
    a, t, w, weight, bias = rows(seed)
    error = a.astype(np.float64) @ weight + bias - t
    corrected = bias - (w[:, None] * error).sum(axis=0) / w.sum()
    moments = moments_of(a, t, w)
    for strength in (1e12, np.inf):
        new, new_bias = Ridge(moments, weight)(strength)
        np.testing.assert_allclose(new, weight, rtol=1e-6)  # a float32's last digit
        np.testing.assert_allclose(new_bias, corrected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(best_bias(moments, weight), Ridge(moments, weight)(np.inf)[1])


@SEEDS
def test_ridge_beats_bias_correction_which_beats_nothing(seed: int) -> None:
    a, t, w, weight, bias = rows(seed)
    moments = moments_of(a, t, w)
    plain = output_error(moments, weight, bias).sum()
    corrected = output_error(moments, weight, best_bias(moments, weight)).sum()
    errors = [output_error(moments, *Ridge(moments, weight)(strength)).sum() for strength in STRENGTHS]
    assert errors == sorted(errors)
    assert errors[0] < errors[3] < errors[-1] == corrected < plain


@SEEDS
def test_no_strength_is_least_squares(seed: int) -> None:
    a, t, w, weight, _ = rows(seed)
    root = np.sqrt(w.astype(np.float64))[:, None]
    oracle, *_ = np.linalg.lstsq(root * np.hstack([a, np.ones((len(a), 1))]), root * t, rcond=None)
    new, bias = Ridge(moments_of(a, t, w), weight)(0.0)
    np.testing.assert_allclose(new, oracle[:-1], rtol=0, atol=1e-5)  # float32 results of order 1
    np.testing.assert_allclose(bias, oracle[-1], rtol=0, atol=1e-5)


@SEEDS
@pytest.mark.parametrize("strength", [1e-3, 0.1, 3.0])
def test_ridge_oracle(seed: int, strength: float) -> None:
    # The penalty as I more rows of least squares, whose bias column is zero.
    a, t, w, weight, _ = rows(seed)
    moments = moments_of(a, t, w)
    root = np.sqrt(w.astype(np.float64))[:, None]
    penalty = np.sqrt(strength * moments.gram.diagonal().mean())
    left = np.vstack([root * np.hstack([a, np.ones((len(a), 1))]), penalty * np.eye(INPUTS, INPUTS + 1)])
    oracle, *_ = np.linalg.lstsq(left, np.vstack([root * t, penalty * weight]), rcond=None)
    new, bias = Ridge(moments, weight)(strength)
    np.testing.assert_allclose(new, oracle[:-1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(bias, oracle[-1], rtol=0, atol=1e-5)


@SEEDS
@pytest.mark.parametrize("strength", [1e-6, 1e-2, 1.0, 100.0])
def test_ridge_beats_baseline(seed: int, strength: float) -> None:
    a, t, w, weight, _ = rows(seed)
    moments = moments_of(a, t, w)
    found = objective(moments, strength, weight, *Ridge(moments, weight)(strength))
    assert found < objective(moments, strength, weight, weight, best_bias(moments, weight))
    rng = np.random.default_rng(seed)
    new, new_bias = Ridge(moments, weight)(strength)
    for _ in range(20):  # a minimum: no step off it is lower
        near = objective(moments, strength, weight, new + rng.normal(0, 1e-2, new.shape), new_bias)
        assert found < near


@pytest.mark.parametrize("strength", [0.0, 0.01, np.inf])
def test_rank_deficient_inputs(strength: float) -> None:
    # Fewer rows than inputs, one input twice, one dead, one constant.
    a, t, w, weight, _ = rows(count=5)
    extra = [a[:, :1], np.zeros((5, 1)), np.full((5, 1), 7.3)]
    a = np.concatenate([a, *extra], axis=1).astype(np.float32)
    start = np.concatenate([weight, np.ones((3, OUTPUTS), np.float32)])
    moments = moments_of(a, t, w)
    new, bias = Ridge(moments, start)(strength)
    assert np.isfinite(new).all()
    assert np.abs(new - start).max() < 100
    np.testing.assert_array_equal(new[-2:], start[-2:])  # nothing to learn of them
    assert output_error(moments, new, bias).sum() <= output_error(moments, start, best_bias(moments, start)).sum()
    if strength == 0:
        assert output_error(moments, new, bias).sum() < 1e-6 * moments.t2.sum()  # five rows can be met exactly


def test_inputs_that_never_vary_change_the_bias_only() -> None:
    _, t, w, weight, _ = rows()
    moments = moments_of(np.full((200, INPUTS), 1e3, np.float32), t, w)
    for strength in STRENGTHS:
        new, bias = Ridge(moments, weight)(strength)
        np.testing.assert_array_equal(new, weight)
        np.testing.assert_array_equal(bias, best_bias(moments, weight))


def test_exact_inputs_need_no_correction() -> None:
    a, _, w, weight, bias = rows()
    t = read_only(a.astype(np.float64) @ weight + bias)
    for strength in STRENGTHS:
        new, new_bias = Ridge(moments_of(a, t, w), weight)(strength)
        np.testing.assert_allclose(new, weight, rtol=0, atol=1e-6)  # targets are rounded to float32
        np.testing.assert_allclose(new_bias, bias, rtol=0, atol=1e-5)


def test_strength_has_no_unit() -> None:
    a, t, w, weight, _ = rows()
    new, bias = Ridge(moments_of(a, t, w), weight)(0.1)
    again, again_bias = Ridge(moments_of(4 * a, 4 * t, 8 * w), weight)(0.1)
    np.testing.assert_allclose(again, new, rtol=0, atol=1e-6)
    np.testing.assert_allclose(again_bias, 4 * bias, rtol=0, atol=1e-5)


def test_bad_arguments_are_refused() -> None:
    a, t, w, weight, _ = rows()
    moments = moments_of(a, t, w)
    for strength in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            Ridge(moments, weight)(strength)
    with pytest.raises(ValueError, match="expected a weight"):
        Ridge(moments, weight.T)(0.1)
