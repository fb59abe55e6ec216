"""Exact reparametrisations: the same function in float from tensors that are easier to quantize.

Pure functions of small arrays; each returns new ones, in the dtype of what it rewrites, worked out in float64. Which shift
and scale to use is for the caller to measure (docs/methods.md, "Channel scaling").
Shapes: C channels, I inputs, O outputs, H heads, D channels a head. Weights are (I, O), rows are (N, I).

Throughout u' = (u - shift) / scale is what is quantized in place of u, channel by channel; its producer computes u' at no cost,
and its consumer undoes the change in its weight.
"""

import numpy as np
from numpy.typing import NDArray

from onnxvitq.core.tensors import DoubleArray, RealArray

WeightBias = tuple[RealArray, RealArray]  # (I, O) and (O,) of a linear layer

LOWEST, HIGHEST = 1e-2, 1e2  # a scale further off costs the weight what the activation gains


def channel_shift(low: RealArray, high: RealArray) -> RealArray:
    """Middle of each channel's range: (C,) and (C,) -> (C,). RepQ-ViT (Li et al. 2023), its zero points without the scale.

    Raises:
        ValueError: shapes disagree, a bound is not finite, or low > high.
    """
    if low.shape != high.shape or not (np.isfinite(low) & np.isfinite(high)).all() or (low > high).any():
        raise ValueError(f"expected finite ranges of as many channels, got {low.shape} and {high.shape}")
    return (0.5 * (low.astype(np.float64) + high)).astype(low.dtype)


def smoothing_scale(
    spread: RealArray, weight_spread: RealArray, strength: float, weight_exponent: float = 0.0
) -> RealArray:
    """Scale by channel, (C,): (spread / weight_spread ^ weight_exponent) ^ strength over its geometric mean.

    One family for what is published, within [0.01, 100]. Strength 0 is no change. Strength 1 with exponent 0 makes all
    channels of u' spread alike (RepQ-ViT's r). SmoothQuant's scale of strength a (Xiao et al. 2023) has exponent
    (1 - a) / a: 1 at its usual a = 0.5, where u' and the weight's rows spread alike up to one factor. A channel without
    spread, in the activation or (where its exponent counts) in the weight, is left as it is.

    Args:
        spread: (C,) how far each channel of the shifted activation reaches: half its range, or a standard deviation.
        weight_spread: (C,) how far the rows of the consumers' weights reach: max over O of |W|.
        strength: usually 0 to 1.
        weight_exponent: usually 0 to 1.

    Raises:
        ValueError: shapes disagree, or a spread is negative or not finite.
    """
    a, b = _spreads(spread, weight_spread)
    alive = (a > 0) & ((b > 0) | (weight_exponent == 0))
    wanted = np.zeros(a.shape)
    wanted[alive] = np.log(a[alive])
    if weight_exponent != 0:
        wanted[alive] -= weight_exponent * np.log(b[alive])
    return _normalised(strength * wanted, alive).astype(spread.dtype)


def balance_query_key(query_spread: RealArray, key_spread: RealArray) -> RealArray:
    """Scale s (H, D) for q / s and k * s: both then spread alike in each channel, up to one factor for the head.

    s = sqrt(query_spread / key_spread) over its geometric mean in the head, within [0.01, 100]; a channel without spread in
    either is left as it is. Equal to smoothing with strength 0.5 and the key in the weight's place. With rotary positions
    between the linear and the product, the two channels of a rotated pair need one s: hand in their common spreads.

    Raises:
        ValueError: shapes disagree, or a spread is negative or not finite.
    """
    q, k = _spreads(query_spread, key_spread)
    alive = (q > 0) & (k > 0)
    ratio = np.divide(q, k, out=np.ones(q.shape), where=alive)
    return _normalised(0.5 * np.log(ratio), alive).astype(query_spread.dtype)


def fold_into_norm(
    gamma: RealArray, beta: RealArray, shift: RealArray, scale: RealArray
) -> tuple[RealArray, RealArray]:
    """gamma', beta' (C,) of a normalisation whose output is (u - shift) / scale in place of u; arguments all (C,)."""
    return fold_into_outputs(gamma, beta, shift, scale)


def fold_into_outputs(weight: RealArray, bias: RealArray, shift: RealArray, scale: RealArray) -> WeightBias:
    """weight', bias' of a linear layer whose output is (u - shift) / scale in place of u.

    Args:
        weight: (I, O), or (O,) where the layer multiplies channel by channel (gamma, LayerScale).
        bias: (O,).
        shift: (O,).
        scale: (O,), not zero.

    Raises:
        ValueError: the channels disagree, or a scale is zero or not finite.
    """
    _check_channels(shift, scale, weight.shape[-1])
    divisor = scale.astype(np.float64)
    return (weight / divisor).astype(weight.dtype), ((bias.astype(np.float64) - shift) / divisor).astype(bias.dtype)


def fold_into_linear(weight: RealArray, bias: RealArray, shift: RealArray, scale: RealArray) -> WeightBias:
    """weight', bias' with u' W' + b' = u W + b for u' = (u - shift) / scale: W' = scale W by rows, b' = b + shift W.

    Args:
        weight: (I, O).
        bias: (O,).
        shift: (I,).
        scale: (I,), not zero.

    Raises:
        ValueError: the channels disagree, or a scale is zero or not finite.
    """
    _check_channels(shift, scale, weight.shape[0])
    scaled = scale.astype(np.float64)[:, None] * weight
    moved = bias + shift.astype(np.float64) @ weight  # (I,) @ (I, O)
    return scaled.astype(weight.dtype), moved.astype(bias.dtype)


def query_to_key(
    query: WeightBias, key: WeightBias, shift: RealArray, scale: RealArray
) -> tuple[WeightBias, WeightBias]:
    """query', key' with q' = q / scale and k' = (k - shift) * scale: the same attention weights.

    q' k'^T = q k^T - q shift^T, and softmax does not see what is constant along a row. With rotary positions after the
    key's linear the shift must be zero, for the rotation makes q shift^T differ from key to key.

    Args:
        query: weight (I, H D) and bias of the linear that makes q.
        key: the same of k.
        shift: (H D,), from ``channel_shift`` of k; zeros for none.
        scale: (H D,), from ``balance_query_key``; ones for none.
    """
    balanced = fold_into_outputs(*query, np.zeros_like(shift), scale)
    return balanced, fold_into_outputs(*key, shift, 1.0 / scale.astype(np.float64))


def value_to_proj(
    value: WeightBias, proj: WeightBias, shift: RealArray, scale: RealArray
) -> tuple[WeightBias, WeightBias]:
    """value', proj' with v' = (v - shift) / scale: the same output of the attention.

    A v' = (A v - shift) / scale where the rows of A sum to one, so the projection takes back both. Needs a softmax with
    nothing after it that changes the row sums (no mixing of heads after it).

    Args:
        value: weight (I, H D) and bias of the linear that makes v.
        proj: weight (H D, O) and bias of the linear that reads A v.
        shift: (H D,).
        scale: (H D,).
    """
    return fold_into_outputs(*value, shift, scale), fold_into_linear(*proj, shift, scale)


def _spreads(first: RealArray, second: RealArray) -> tuple[DoubleArray, DoubleArray]:
    """Both in float64, checked to be finite, not negative and of one shape."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    if a.shape != b.shape or not (np.isfinite(a) & np.isfinite(b)).all() or (a < 0).any() or (b < 0).any():
        raise ValueError(f"expected finite spreads >= 0 of one shape, got {a.shape} and {b.shape}")
    return a, b


def _normalised(logarithm: DoubleArray, alive: NDArray[np.bool_]) -> DoubleArray:
    """exp, with geometric mean 1 over the live channels of the last axis before the clamp; 1 in the others."""
    count = np.maximum(alive.sum(axis=-1, keepdims=True), 1)
    mean = np.where(alive, logarithm, 0.0).sum(axis=-1, keepdims=True) / count
    return np.exp(np.clip(np.where(alive, logarithm - mean, 0.0), np.log(LOWEST), np.log(HIGHEST)))


def _check_channels(shift: RealArray, scale: RealArray, channels: int) -> None:
    if shift.shape != (channels,) or scale.shape != (channels,):
        raise ValueError(f"expected shift and scale of {channels} channels, got {shift.shape} and {scale.shape}")
    if not np.isfinite(scale).all() or (scale == 0).any():
        raise ValueError("scale: expected finite values other than zero")
