import numpy as np
import pytest

from onnxvitq.numerics.transform import (
    HIGHEST,
    LOWEST,
    balance_query_key,
    channel_shift,
    fold_into_linear,
    fold_into_norm,
    fold_into_outputs,
    query_to_key,
    smoothing_scale,
    value_to_proj,
)

H, D, T, C = 3, 4, 7, 12  # heads, width, tokens, channels = H * D
SEEDS = pytest.mark.parametrize("seed", range(3))
# float32's bound: the outputs are of order 1, the folded weights round once more in their last digit.
PRECISION = pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-10), (np.float32, 1e-5)], ids=["f64", "f32"])

Linear = tuple[np.ndarray, np.ndarray]


def read_only(x: np.ndarray) -> np.ndarray:
    x.setflags(write=False)
    return x


def linear(rng: np.random.Generator, inputs: int, outputs: int, dtype: type) -> Linear:
    weight = rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)
    return read_only(weight.astype(dtype)), read_only(rng.standard_normal(outputs).astype(dtype))


def reparametrisation(rng: np.random.Generator, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """A shift and a scale (C,): what is exact must be exact for any."""
    return read_only(rng.standard_normal(C).astype(dtype)), read_only(np.exp(rng.normal(0, 0.7, C)).astype(dtype))


def apply(x: np.ndarray, layer: Linear) -> np.ndarray:
    return x @ layer[0] + layer[1]


def attention(x: np.ndarray, query: Linear, key: Linear, value: Linear, proj: Linear) -> np.ndarray:
    """softmax(q k^T / sqrt(D)) v, heads side by side, then the projection: (T, C) -> (T, O)."""
    q, k, v = (apply(x, layer).reshape(T, H, D).transpose(1, 0, 2) for layer in (query, key, value))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(D).astype(x.dtype)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return apply((weights @ v).transpose(1, 0, 2).reshape(T, C), proj)


def block(seed: int, dtype: type[np.floating]) -> tuple[np.ndarray, Linear, Linear, Linear, Linear]:
    rng = np.random.default_rng(seed)
    x: np.ndarray = rng.standard_normal((T, C)).astype(dtype)
    query, key, value, proj = (linear(rng, C, C, dtype) for _ in range(4))
    return x, query, key, value, proj


def test_shift_worked() -> None:
    shift = channel_shift(np.array([-1, 2, 3], np.float32), np.array([5, 4, 3], np.float32))
    assert shift.tolist() == [2, 3, 3]
    assert shift.dtype == np.float32
    with pytest.raises(ValueError, match="finite ranges"):
        channel_shift(np.array([1.0]), np.array([0.0]))
    with pytest.raises(ValueError, match="finite ranges"):
        channel_shift(np.array([-np.inf]), np.array([0.0]))


def test_smoothing_worked() -> None:
    # Spreads 1, 4, 16: their geometric mean is 4. Strength 1 is their ratio to it, one half its root.
    spread, weight = np.array([1, 4, 16], np.float32), np.array([1, 2, 4], np.float32)
    assert smoothing_scale(spread, weight, 1.0).tolist() == pytest.approx([0.25, 1, 4])
    assert smoothing_scale(spread, weight, 0.5).tolist() == pytest.approx([0.5, 1, 2])
    assert smoothing_scale(spread, weight, 1.0, 1.0).tolist() == pytest.approx([0.5, 1, 2])
    assert smoothing_scale(spread, weight, 1.0).dtype == np.float32


@SEEDS
def test_smoothing_family(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spread, weight = np.exp(rng.normal(0, 1, (2, C)))
    for exponent in (0.0, 0.5, 1.0):
        np.testing.assert_array_equal(smoothing_scale(spread, weight, 0.0, exponent), np.ones(C))
    for strength in (0.25, 0.5, 0.8):
        scale = smoothing_scale(spread, weight, strength, (1 - strength) / strength)
        smoothquant = spread**strength / weight ** (1 - strength)
        np.testing.assert_allclose(scale / scale[0], smoothquant / smoothquant[0], rtol=1e-12)
        assert np.exp(np.log(scale).mean()) == pytest.approx(1)
    level = spread / smoothing_scale(spread, weight, 1.0)
    np.testing.assert_allclose(level, level[0], rtol=1e-12)  # strength 1: all channels alike
    halfway = smoothing_scale(spread, weight, 0.5, 1.0)
    ratio = (spread / halfway) / (weight * halfway)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)  # activation and weight alike


def test_smoothing_has_no_unit() -> None:
    spread, weight = np.array([0.1, 2.0, 3.0]), np.array([1.0, 5.0, 2.0])
    scale = smoothing_scale(spread, weight, 0.6, 0.5)
    np.testing.assert_allclose(smoothing_scale(1e6 * spread, 1e-6 * weight, 0.6, 0.5), scale, rtol=1e-12)


def test_degenerate_spreads() -> None:
    dead = smoothing_scale(np.array([0.0, 1, 4]), np.array([1.0, 1, 1]), 1.0)
    assert dead.tolist() == pytest.approx([1, 0.5, 2])
    unread = smoothing_scale(np.array([9.0, 1, 4]), np.array([0.0, 1, 1]), 1.0, 1.0)
    assert unread.tolist() == pytest.approx([1, 0.5, 2])
    assert smoothing_scale(np.array([9.0, 1, 4]), np.zeros(3), 1.0).tolist() != [1, 1, 1]  # exponent 0: not looked at
    assert smoothing_scale(np.zeros(3), np.zeros(3), 1.0, 1.0).tolist() == [1, 1, 1]
    assert smoothing_scale(np.array([7.0]), np.array([3.0]), 0.5).tolist() == [1]
    far = smoothing_scale(np.array([1e-30, 1, 1e30]), np.ones(3), 1.0)
    assert far.tolist() == pytest.approx([LOWEST, 1, HIGHEST])
    for bad in (np.array([-1.0, 1]), np.array([np.nan, 1]), np.ones(3)):
        with pytest.raises(ValueError, match="finite spreads"):
            smoothing_scale(bad, np.ones(2), 0.5)


def test_balance_worked() -> None:
    # Head 0: the root of the ratios 16 and 1 is 4 and 1, whose geometric mean is 2. Head 1: nothing to balance.
    scale = balance_query_key(np.array([[16, 1], [5, 5]], np.float32), np.array([[1, 1], [2, 2]], np.float32))
    assert scale.ravel().tolist() == pytest.approx([2, 0.5, 1, 1])
    assert scale.dtype == np.float32


@SEEDS
def test_balance_makes_both_spread_alike(seed: int) -> None:
    q, k = np.exp(np.random.default_rng(seed).normal(0, 1, (2, H, D)))
    scale = balance_query_key(q, k)
    np.testing.assert_allclose(np.exp(np.log(scale).mean(axis=-1)), 1, rtol=1e-12)
    ratio = (q / scale) / (k * scale)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], (H, D)), rtol=1e-12)


def test_balance_leaves_dead_channels() -> None:
    assert balance_query_key(np.array([[0.0, 4, 1]]), np.array([[1.0, 1, 1]])).tolist() == [
        pytest.approx([1, 2**0.5, 2**-0.5])
    ]
    assert balance_query_key(np.zeros((2, 1)), np.ones((2, 1))).tolist() == [[1], [1]]
    with pytest.raises(ValueError, match="finite spreads"):
        balance_query_key(np.ones((2, 2)), -np.ones((2, 2)))


@SEEDS
@PRECISION
def test_norm_into_linear_is_exact(seed: int, dtype: type, bound: float) -> None:
    rng = np.random.default_rng(seed)
    x: np.ndarray = rng.standard_normal((T, C)).astype(dtype)  # normalised rows
    gamma, beta = read_only(rng.uniform(0.2, 5, C).astype(dtype)), read_only(rng.standard_normal(C).astype(dtype))
    layer = linear(rng, C, 5, dtype)
    shift, scale = reparametrisation(rng, dtype)
    new_gamma, new_beta = fold_into_norm(gamma, beta, shift, scale)
    folded = fold_into_linear(*layer, shift, scale)
    u = x * gamma + beta
    np.testing.assert_allclose(x * new_gamma + new_beta, (u - shift) / scale, rtol=bound, atol=bound)
    np.testing.assert_allclose(apply(x * new_gamma + new_beta, folded), apply(u, layer), rtol=bound, atol=bound)
    assert {new_gamma.dtype, new_beta.dtype, folded[0].dtype, folded[1].dtype} == {np.dtype(dtype)}


@SEEDS
@PRECISION
def test_linear_outputs_are_shifted_and_scaled(seed: int, dtype: type, bound: float) -> None:
    rng = np.random.default_rng(seed)
    x: np.ndarray = rng.standard_normal((T, 5)).astype(dtype)
    layer = linear(rng, 5, C, dtype)
    shift, scale = reparametrisation(rng, dtype)
    found = apply(x, fold_into_outputs(*layer, shift, scale))
    np.testing.assert_allclose(found, (apply(x, layer) - shift) / scale, rtol=bound, atol=bound)


@SEEDS
@PRECISION
def test_query_to_key_is_exact(seed: int, dtype: type, bound: float) -> None:
    x, query, key, value, proj = block(seed, dtype)
    shift, scale = reparametrisation(np.random.default_rng(seed), dtype)
    new_query, new_key = query_to_key(query, key, shift, scale)
    expected = attention(x, query, key, value, proj)
    np.testing.assert_allclose(attention(x, new_query, new_key, value, proj), expected, rtol=bound, atol=bound)
    np.testing.assert_allclose(apply(x, new_key), (apply(x, key) - shift) * scale, rtol=bound, atol=bound)
    np.testing.assert_allclose(apply(x, new_query), apply(x, query) / scale, rtol=bound, atol=bound)
    assert {new_query[0].dtype, new_key[1].dtype} == {np.dtype(dtype)}


@SEEDS
@PRECISION
def test_value_to_proj_is_exact(seed: int, dtype: type, bound: float) -> None:
    x, query, key, value, proj = block(seed, dtype)
    shift, scale = reparametrisation(np.random.default_rng(seed), dtype)
    new_value, new_proj = value_to_proj(value, proj, shift, scale)
    expected = attention(x, query, key, value, proj)
    np.testing.assert_allclose(attention(x, query, key, new_value, new_proj), expected, rtol=bound, atol=bound)
    np.testing.assert_allclose(apply(x, new_value), (apply(x, value) - shift) / scale, rtol=bound, atol=bound)


@SEEDS
@PRECISION
def test_all_together_from_measured_spreads(seed: int, dtype: type, bound: float) -> None:
    x, query, key, value, proj = block(seed, dtype)
    q, k, v = (apply(x, layer) for layer in (query, key, value))
    key_shift, value_shift = (channel_shift(y.min(axis=0), y.max(axis=0)) for y in (k, v))
    spreads = [np.abs(y).max(axis=0).reshape(H, D) for y in (q, k - key_shift)]
    balance = balance_query_key(spreads[0], spreads[1]).reshape(C)
    value_scale = smoothing_scale(np.ptp(v, axis=0), np.abs(proj[0]).max(axis=1), 0.7, 0.3)
    new_query, new_key = query_to_key(query, key, key_shift, balance)
    new_value, new_proj = value_to_proj(value, proj, value_shift, value_scale)
    found = attention(x, new_query, new_key, new_value, new_proj)
    np.testing.assert_allclose(found, attention(x, query, key, value, proj), rtol=bound, atol=bound)
    levels = np.log(np.abs(apply(x, new_value)).max(axis=0))
    assert levels.std() < np.log(np.abs(v).max(axis=0)).std()  # what it is for


def test_no_change_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    layer = linear(rng, C, C, np.float32)
    for fold in (fold_into_outputs, fold_into_linear, fold_into_norm):
        same = fold(*layer, np.zeros(C, np.float32), np.ones(C, np.float32))
        np.testing.assert_array_equal(same[0], layer[0])
        np.testing.assert_array_equal(same[1], layer[1])


def test_bad_channels_are_refused() -> None:
    rng = np.random.default_rng(0)
    layer, ones = linear(rng, C, 5, np.float32), np.ones(C, np.float32)
    with pytest.raises(ValueError, match="of 5 channels"):
        fold_into_outputs(*layer, ones, ones)
    with pytest.raises(ValueError, match="of 12 channels"):
        fold_into_linear(*layer, ones[:5], ones[:5])
    for bad in (0.0, np.nan, np.inf):
        scale = np.where(np.arange(C) == 3, bad, 1.0)
        with pytest.raises(ValueError, match="other than zero"):
            fold_into_linear(*layer, ones, scale)
        with pytest.raises(ValueError, match="other than zero"):
            query_to_key((layer[0].T, ones), (layer[0].T, ones), ones, scale)
