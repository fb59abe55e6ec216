"""Weights and bias that absorb the error of a layer's quantized inputs, in closed form.

Ridge regression against the float model's outputs (ERQ, Zhong et al. 2024, "activation quantization error reduction"), here
about the start W0 and with a bias that is not penalised. Shapes: I inputs, O outputs. Solved in float64, returned in
float32. docs/methods.md, "Ridge regression".
"""

import numpy as np

from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.moments import Moments

FLOOR = 1e-10  # least strength: keeps a rank-deficient gram solvable and moves nothing that float32 would show

Affine = tuple[FloatArray, FloatArray]  # weight (I, O) and bias (O,)


def best_bias(moments: Moments, weight: FloatArray) -> FloatArray:
    """The bias that is best for a given weight: (O,), E[t - a W].

    Paper A's bias correction (Eq. 16), exact: b + E[t - (a W + b)] for any b. ``Ridge`` ends with it, and so should
    every later change of the weight, such as rounding.

    Raises:
        ValueError: shapes disagree.
    """
    _check(moments, weight)
    return (moments.mean_t - moments.mean_a @ weight.astype(np.float64)).astype(np.float32)


class Ridge:
    """The W and b that minimise the sum over rows of w |a W + b - t|^2, + lambda |W - W0|^2, for any lambda.

    lambda = strength * the mean diagonal of the centred gram, so strength has no unit and does not depend on the number of
    rows. Without a penalty on b the problem falls apart: W - W0 = (G + lambda)^-1 (C - G W0) with G and C about the means,
    then b = E[t - a W]. So a strong lambda leaves W0 with its bias corrected exactly, a weak one is least squares, and the
    bias that the layer had plays no part. C - G W0, as costly as a solution, is the same for all strengths.

    Args:
        moments: of the quantized inputs and the float outputs.
        weight: (I, O), W0, the float weight.

    Raises:
        ValueError: shapes disagree.
    """

    def __init__(self, moments: Moments, weight: FloatArray) -> None:
        _check(moments, weight)
        self._moments, self._start = moments, weight
        self._wanted = moments.cross - moments.gram @ weight.astype(np.float64)  # (I, O)

    def __call__(self, strength: float) -> Affine:
        """Weight (I, O) and bias (O,), float32. strength: >= 0; infinity corrects the bias only.

        Raises:
            ValueError: a negative strength.
        """
        penalty, weight = _penalty(self._moments, strength), self._start
        if np.isfinite(penalty):
            gram = self._moments.gram.copy()
            np.fill_diagonal(gram, gram.diagonal() + penalty)
            weight = (self._start + np.linalg.solve(gram, self._wanted)).astype(np.float32)
        return weight, best_bias(self._moments, weight)  # for the float32 weight, rather than for the float64 weight


def _check(moments: Moments, weight: FloatArray) -> None:
    if weight.shape != moments.cross.shape:
        raise ValueError(f"expected a weight of shape {moments.cross.shape}, got {weight.shape}")


def _penalty(moments: Moments, strength: float) -> float:
    """Lambda. It is positive also where no input varies: there any lambda leaves the weight as it is."""
    if not strength >= 0:
        raise ValueError(f"strength: expected >= 0, got {strength}")
    return max(strength, FLOOR) * (float(moments.gram.diagonal().mean()) or 1.0)
