"""How much a layer loses with fewer bits: Paper A's Omega, and the error of a layer's own output.

Paper A (eq. 18; docs/methods.md, "Nuclear norm criterion"):
Omega_i = sum_j sigma_j(Y_i) * ||Y^_i - Y_i||_2^2, the nuclear norm of a module's
feature times its squared quantization error, where Y is the attention map of an attention and the output of an MLP. Where the
paper leaves a choice open, ours is: the module alone is quantized; the attention map is the softmax's output; norms and errors
are means over images (and sums over heads, which are blocks of one block-diagonal map).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxvitq.core.tensors import DoubleArray, FloatArray
from onnxvitq.numerics.affine import fake_quantize
from onnxvitq.numerics.rounding import Format, RowFeedback


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rounded:
    """A linear layer's weight after rounding.

    Attributes:
        values: (I, O), values of codes.
        shift: (O,), change of the bias that makes up for the mean error.
        errors: (O,), mean squared error of each output on held-out rows.
    """

    values: FloatArray
    shift: FloatArray
    errors: DoubleArray


class Rounder:
    """Rounds linear layers' weights that read the same inputs, plainly or with feedback of the error.

    With feedback, the error is that which weight reconstruction leaves. That is 1 to 15 dB better than plain rounding at 4
    bits, layer by layer (bundled model): bits chosen by plain errors go to layers that reconstruction would help anyway.

    Args:
        rows: (n, I), sampled inputs to fit to.
        held: (m, I), held-out inputs to evaluate on.
        feedback: round with feedback, and let the bias make up for the mean error.
    """

    def __init__(self, rows: FloatArray, held: FloatArray, *, feedback: bool) -> None:
        self._held, self._mean = held, rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._feedback = RowFeedback(rows - self._mean) if feedback else None

    def __call__(self, formats: Sequence[Format]) -> list[Rounded]:
        """Round weights (I, O), each with its parameters: symmetric, per tensor or with a scale an output channel."""
        if self._feedback is not None:
            values = self._feedback.round(formats)
        else:
            values = [fake_quantize(weight, params) for weight, params in formats]
        return [self._evaluated(weight, value) for (weight, _), value in zip(formats, values, strict=True)]

    def _evaluated(self, weight: FloatArray, value: FloatArray) -> Rounded:
        error = value - weight
        shift = np.zeros(weight.shape[1], np.float32) if self._feedback is None else -(self._mean @ error)
        difference = (self._held @ error + shift).astype(np.float64)
        return Rounded(values=value, shift=shift, errors=(difference**2).mean(axis=0))
