"""What a layer loses with fewer bits: Paper A's Omega, and the error of a layer's own output.

Paper A (METHODS.md, section 1.6, eq. 18): Omega_i = sum_j sigma_j(Y_i) * ||Y^_i - Y_i||_2^2, the nuclear norm of a module's
feature times its squared quantization error, where Y is the attention map of an attention and the output of an MLP. What the
paper leaves open is reconstructed: the module alone is quantized; the attention map is the softmax's output; norms and errors
are means over images (and sums over heads, which are blocks of one block-diagonal map).
"""

from collections.abc import Sequence

import numpy as np

from onnxvitq.numerics.affine import fake_quantize, params_from_weight
from onnxvitq.numerics.fit import times
from onnxvitq.spec import FloatArray, QuantSpec


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


def output_errors(rows: FloatArray, weight: FloatArray, specs: Sequence[QuantSpec]) -> FloatArray:
    """Mean squared error of a linear layer's output with its weight (I, O) in each of these formats, by the largest weight.

    Scales that clip were tried. Alone, a layer's error is smaller with them; but weights that are clipped shrink what every
    layer writes, these errors add up in the same direction, and together the layers lost 1 to 1.5 dB at 3 and 4 bits.

    Args:
        rows: (.., I) sampled inputs.
        weight: real values.
        specs: formats, symmetric, a scale an output channel.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    errors = []
    for spec in specs:
        difference = times(flat, fake_quantize(weight, params_from_weight(weight, spec)) - weight)
        errors.append(float(np.mean(difference.astype(np.float64) ** 2)))
    return np.array(errors)
