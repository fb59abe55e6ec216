"""What a layer loses with fewer bits: Paper A's Omega, and the error of a layer's own output.

Paper A (METHODS.md, section 1.6, eq. 18): Omega_i = sum_j sigma_j(Y_i) * ||Y^_i - Y_i||_2^2, the nuclear norm of a module's
feature times its squared quantization error, where Y is the attention map of an attention and the output of an MLP. What the
paper leaves open is reconstructed: the module alone is quantized; the attention map is the softmax's output; norms and errors
are means over images (and sums over heads, which are blocks of one block-diagonal map).
"""

import numpy as np

from onnxvitq.numerics.affine import fake_quantize, params_from_weight
from onnxvitq.numerics.fit import times
from onnxvitq.spec import FloatArray, QParams, QuantSpec

CLIPPING = (0.6, 0.7, 0.8, 0.9)  # multipliers of a channel's largest weight that are tried beside 1
FEW_BITS = 5  # with more, clipping the largest weight costs more than finer steps bring


def nuclear_norm(features: FloatArray) -> float:
    """Sum of the singular values of (.., m, k): summed over the leading axes but for the first, the mean over that."""
    matrices = features if features.ndim > 2 else features[None]
    values = np.linalg.svd(matrices.astype(np.float64), compute_uv=False)
    return float(values.sum() / len(matrices))


def omega(features: FloatArray, quantized: FloatArray) -> float:
    """Nuclear norm of (B, .., m, k) times the squared quantization error, per image."""
    images = len(features) if features.ndim > 2 else 1
    difference = quantized.astype(np.float64) - features
    return nuclear_norm(features) * float((difference**2).sum()) / images


def clipped_params(weight: FloatArray, spec: QuantSpec) -> QParams:
    """Scales of a weight (I, O): with few bits each channel's that has the least squared error, of ``CLIPPING``."""
    best = params_from_weight(weight, spec)
    if spec.bits > FEW_BITS:
        return best
    scale, least = np.array(best.scale), _squared_errors(weight, best)
    for multiplier in CLIPPING:
        params = params_from_weight(weight, spec, multiplier)
        errors = _squared_errors(weight, params)
        better = errors < least
        scale, least = np.where(better, params.scale, scale), np.where(better, errors, least)
    return QParams(spec=spec, scale=scale.astype(np.float32), zero_point=best.zero_point)


def _squared_errors(weight: FloatArray, params: QParams) -> FloatArray:
    difference = fake_quantize(weight, params) - weight
    return np.einsum("io,io->o", difference, difference)


def output_errors(rows: FloatArray, weight: FloatArray, specs: "tuple[QuantSpec, ...]") -> FloatArray:
    """Mean squared error of a linear layer's output with its weight (I, O) in each of these formats.

    Args:
        rows: (.., I) sampled inputs.
        weight: real values.
        specs: formats, symmetric, a scale an output channel.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    errors = []
    for spec in specs:
        difference = times(flat, fake_quantize(weight, clipped_params(weight, spec)) - weight)
        errors.append(float(np.mean(difference.astype(np.float64) ** 2)))
    return np.array(errors)
