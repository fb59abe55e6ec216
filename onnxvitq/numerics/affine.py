"""The affine quantizer, bit-equal to onnxruntime's QuantizeLinear and DequantizeLinear (a test compares them)."""

import numpy as np

from onnxvitq.core.formats import QParams, TensorFormat
from onnxvitq.core.tensors import FloatArray, IntArray
from onnxvitq.numerics.magnitude import comfortable
from onnxvitq.numerics.pairs import LARGEST_PAIR, ROUNDED_UP, largest_pair, limit_pairs

# The smallest normal float32: QuantizeLinear's scale is one, and a processor may flush what is smaller to zero.
SMALLEST_SCALE = np.finfo(np.float32).tiny
SCALE_OF_ZEROS = np.float32(1e-12)  # any positive one serves: nothing is multiplied with it
WEIGHT_GRID = (0.8, 0.85, 0.9, 0.95, 1.0)  # multipliers of a channel's largest weight, tried as its scale
OUTPUTS = 128  # that are searched at a time: what is tried stays in the cache
FEW_BITS = 4
FEW_BITS_GRID = (*(0.05 * step for step in range(5, 16)), *WEIGHT_GRID)  # a finer step is worth clipping


def _spread(x: np.ndarray, params: QParams) -> tuple[FloatArray, FloatArray]:
    """Scales and zero points of a tensor, float32, in shapes that broadcast against it."""
    spread = params.spec.granularity.spread
    return spread(params.scale, x.shape), spread(params.zero_point.astype(np.float32), x.shape)


def quantize(x: FloatArray, params: QParams) -> IntArray:
    """Codes of ``x``: clip(rint(x / scale) + zero_point), ties to even, saturated to [qmin, qmax]; ``spec.storage``."""
    scale, zero = _spread(x, params)
    codes = np.rint(x / scale)
    codes += zero
    np.clip(codes, params.spec.qmin, params.spec.qmax, out=codes)
    if params.spec.limits_pairs:
        limit_pairs(codes)
    return codes.astype(params.spec.storage)


def dequantize(codes: IntArray, params: QParams) -> FloatArray:
    """Real values of codes: scale * (code - zero_point), float32."""
    scale, zero = _spread(codes, params)
    return (codes.astype(np.float32) - zero) * scale


def fake_quantize(x: FloatArray, params: QParams) -> FloatArray:
    """``dequantize(quantize(x))`` without the trip through integers; float32, same shape."""
    scale, zero = _spread(x, params)
    y = np.asarray(x / scale)
    np.rint(y, out=y)
    y += zero  # also where it is 0: no -0
    np.clip(y, params.spec.qmin, params.spec.qmax, out=y)
    if params.spec.limits_pairs:
        limit_pairs(y)
    if params.zero_point.any():
        y -= zero
    y *= scale
    return y


def params_from_range(low: float, high: float, spec: TensorFormat) -> QParams:
    """The per-tensor quantizer that covers [low, high], widened to hold zero exactly.

    Symmetric: scale = max(|low|, |high|) / qmax, zero point 0. Otherwise scale = (high - low) / (qmax - qmin) and the zero
    point is rounded. Units: scale is real value per integer step.

    Raises:
        ValueError: a bound is not finite, low > high, or the spec keeps an axis.
    """
    if spec.axis is not None or not (np.isfinite(low) and np.isfinite(high)) or low > high:
        raise ValueError(f"expected a finite range and a per-tensor spec, got [{low}, {high}], axis {spec.axis}")
    low, high = min(low, 0.0), max(high, 0.0)
    if spec.symmetric:
        scale, zero = max(-low, high) / spec.qmax, 0
    else:
        scale = (high - low) / (spec.qmax - spec.qmin)
        zero = spec.qmin if scale == 0 else int(np.clip(np.rint(spec.qmin - low / scale), spec.qmin, spec.qmax))
    return QParams(spec=spec, scale=_positive(np.float32(scale)), zero_point=np.array(zero))


def _positive(scale: FloatArray | np.float32) -> FloatArray:
    """Scales of one or many; where nothing but zeros was seen, one that serves."""
    return np.where(np.asarray(scale) == 0, SCALE_OF_ZEROS, np.maximum(scale, SMALLEST_SCALE)).astype(np.float32)


def params_from_weight(weight: FloatArray, spec: TensorFormat, multiplier: float = 1.0) -> QParams:
    """Symmetric quantizer of a weight (I, O): scale = multiplier * max|w| / qmax, over the axis the spec keeps.

    A saturation-free one has steps so wide that no pair has to be limited (multiplier 1).

    Raises:
        ValueError: the spec is not symmetric.
    """
    return params_from_steps(weight_steps(weight, spec), spec, multiplier)


def weight_steps(weight: FloatArray, spec: TensorFormat) -> FloatArray:
    """What ``params_from_weight`` multiplies, () or (O,); a search over multipliers looks at the weight once.

    Raises:
        ValueError: the spec is not symmetric.
    """
    if not spec.symmetric:
        raise ValueError("weights are quantized symmetrically")
    largest = spec.granularity.largest(np.abs(weight))
    steps: FloatArray = np.asarray(largest.astype(np.float32) / np.float32(spec.qmax))
    if spec.limits_pairs:
        pair = largest_pair(weight).max(axis=0 if spec.axis is None else ())
        steps = np.maximum(steps, pair / np.float32(LARGEST_PAIR - ROUNDED_UP))
    return steps


def params_from_steps(steps: FloatArray, spec: TensorFormat, multiplier: float) -> QParams:
    """Symmetric quantizer with scales multiplier * steps."""
    scale = _positive(np.float32(multiplier) * steps)
    return QParams(spec=spec, scale=scale, zero_point=np.zeros(scale.shape, np.int64))


def least_squares_params(weight: FloatArray, spec: TensorFormat) -> QParams:
    """Symmetric quantizer of a weight (I, O) with a scale an output, each the one of a grid with the least squared error.

    The grid goes from a share of the channel's largest weight to all of it; with few bits it begins lower, as a finer step is
    then worth clipping more.
    """
    grid = WEIGHT_GRID if spec.bits > FEW_BITS else FEW_BITS_GRID
    scale = np.empty(weight.shape[1], np.float32)
    for start in range(0, weight.shape[1], OUTPUTS):
        part = np.ascontiguousarray(weight[:, start : start + OUTPUTS])
        size = comfortable(part, axis=0)
        if (size != 1).any():
            part = part * size
        steps = weight_steps(part, spec)
        tried = [params_from_steps(steps, spec, multiplier) for multiplier in grid]
        errors = np.stack([_squared_error(part, params) for params in tried])
        scales = np.stack([params.scale for params in tried])
        chosen = scales[errors.argmin(axis=0), np.arange(part.shape[1])]
        scale[start : start + OUTPUTS] = np.maximum(chosen / size, SMALLEST_SCALE)
    return QParams(spec=spec, scale=scale, zero_point=np.zeros(scale.shape, np.int64))


def _squared_error(weight: FloatArray, params: QParams) -> FloatArray:
    """Of each output of (I, O), summed: (O,)."""
    error = fake_quantize(weight, params)
    np.subtract(weight, error, out=error)
    np.multiply(error, error, out=error)
    summed: FloatArray = error.sum(axis=0)
    return summed


def raise_for_bias(params: QParams, bias: FloatArray, input_scale: float) -> QParams:
    """Weight scales (O,) raised where the int32 bias, in units of input_scale * scale, would overflow.

    A channel of tiny weights with a large bias needs it; onnxruntime's own quantizer does the same. Half of the int32
    range is left for the sum of products. The units themselves stay normal float32 numbers: of smaller ones nothing is left.
    """
    needed = np.maximum(np.abs(bias).astype(np.float64) / 2**30, SMALLEST_SCALE) / input_scale
    return QParams(
        spec=params.spec, scale=np.maximum(params.scale, needed.astype(np.float32)), zero_point=params.zero_point
    )


def bias_has_codes(params: QParams, bias: FloatArray, input_scale: float) -> bool:
    """Whether the bias fits int32 with weight scales none of which is wider than the layer's widest was.

    Wider ones would round that channel's weights away; a bias so large beside its weights is to be added in float.
    """
    return bool(
        raise_for_bias(params, bias, input_scale).scale.max() <= max(params.scale.max(), SMALLEST_SCALE / input_scale)
    )


def product_unit(left: QParams, right: QParams) -> float:
    """What one step of a product of codes is worth, at most: 0 or infinity where float32 has no normal number for it.

    Kernels multiply the two scales in float32. A scale at its floor means that its tensor is smaller than its codes can tell.
    """
    scales = [float(params.scale.max()) for params in (left, right)]
    unit = scales[0] * scales[1]
    if unit > float(np.finfo(np.float32).max):
        return np.inf
    return 0.0 if min(*scales, unit) <= SMALLEST_SCALE else unit
