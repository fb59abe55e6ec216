"""Rounding of weights by the error of the layer's output: each input's rounding error is made up for by the inputs after it.

GPTQ (Frantar et al. 2023) in the form of QuIP (Chee et al. 2023: LDLQ, shown there to be the same procedure): the damped gram
is factored as U D U^T, U unit upper triangular, and w_k + sum_{j<k} U_jk (w_j - q_j) is rounded in place of w_k. Unlike the
published form it inverts nothing. Shapes: I inputs, O outputs. Solved in float64, handed back in float32.
"""

import numpy as np
from numpy.typing import NDArray

from onnxvitq.numerics.affine import dequantize, fake_quantize
from onnxvitq.numerics.moments import DoubleArray
from onnxvitq.numerics.pairs import partner, room_beside
from onnxvitq.spec import FloatArray, IntArray, QParams

BLOCK = 128  # inputs rounded between two matrix products


def round_with_feedback(weight: FloatArray, params: QParams, gram: DoubleArray, damping: float = 0.01) -> FloatArray:
    """Values scale * code with a low (w - q)^T H (w - q), H = gram, for each output.

    Inputs go in order of decreasing diagonal: those that matter most are rounded while most others can still make up for
    it. An output whose plain rounding has the lower error keeps that, so none gets worse. A bias should be fitted after
    it (``ridge.best_bias``) when the gram is centred.

    Args:
        weight: (I, O).
        params: of the weight, per tensor or axis 1; never changed.
        gram: (I, I) of the inputs as the quantized layer sees them; about the means where the bias is free.
        damping: added to the diagonal, in units of its mean; > 0. A dead input (zero diagonal) is plainly rounded.

    Returns:
        (I, O) float32; ``affine.quantize`` gives its codes exactly.

    Raises:
        ValueError: shapes disagree, scales along axis 0, damping <= 0, or a gram that is not one.
    """
    _check(weight, params, gram)
    if not damping > 0:
        raise ValueError(f"damping: expected > 0, got {damping}")
    plain = fake_quantize(weight.astype(np.float32), params)
    mean = float(gram.diagonal().mean())
    if mean == 0:
        return plain
    order = np.argsort(-gram.diagonal(), kind="stable")
    ordered = gram[np.ix_(order, order)].astype(np.float64, copy=False)
    np.fill_diagonal(ordered, ordered.diagonal() + damping * mean)
    rounded = np.empty_like(plain)
    rounded[order] = _feed_back(weight[order].astype(np.float64), params, _unit_upper(ordered), order)
    better = _errors(weight, rounded, gram) < _errors(weight, plain, gram)
    return np.where(better, rounded, plain)


def refit_scale(codes: IntArray, target: FloatArray, gram: DoubleArray, params: QParams) -> QParams:
    """The scales that suit fixed codes best: s = (q^T H w) / (q^T H q) for each output, or over all of them.

    A scale at most doubles or halves (codes that the gram hardly sees would ask for anything, or for a negative one), and is
    kept as it was where that does not lower (w - s q)^T H (w - s q).

    Args:
        codes: (I, O) integers.
        target: (I, O), w, what the codes stand for.
        gram: (I, I), H, as in ``round_with_feedback``.
        params: symmetric, per tensor or axis 1: the scales that the codes were made with.

    Raises:
        ValueError: shapes disagree, scales along axis 0, or a zero point that is not 0.
    """
    _check(target, params, gram)
    if codes.shape != target.shape or params.zero_point.any():
        raise ValueError(f"expected symmetric codes of shape {target.shape}, got {codes.shape}")
    q = codes.astype(np.float64)
    weighted = gram @ q  # (I, I) @ (I, O)
    along = np.einsum("io,io->o", weighted, target.astype(np.float64))
    norm = np.einsum("io,io->o", weighted, q)
    if params.spec.axis is None:
        along, norm = along.sum(), norm.sum()
    old = params.scale.astype(np.float64)
    best = np.where(norm > 0, along / np.where(norm > 0, norm, 1.0), old)
    new = np.clip(best, 0.5 * old, 2 * old).astype(np.float32)
    gain = (old - new) * ((old + new) * norm - 2 * along)  # (w - old q)^T H (w - old q) - (w - new q)^T H (w - new q)
    return QParams(spec=params.spec, scale=np.where(gain > 0, new, params.scale), zero_point=params.zero_point)


def rounding_error(codes: IntArray, params: QParams, target: FloatArray, gram: DoubleArray) -> DoubleArray:
    """(w - q)^T H (w - q) for each output, (O,): what both functions here lower."""
    return _errors(target, dequantize(codes, params), gram)


def _check(weight: FloatArray, params: QParams, gram: DoubleArray) -> None:
    if weight.ndim != 2 or gram.shape != (len(weight), len(weight)):
        raise ValueError(f"expected a weight (I, O) and a gram (I, I), got {weight.shape} and {gram.shape}")
    if not np.isfinite(gram).all():
        raise ValueError("gram: expected finite values")
    if params.spec.axis not in (None, 1):
        raise ValueError(f"expected scales per tensor or along axis 1, got axis {params.spec.axis}")


def _unit_upper(gram: DoubleArray) -> DoubleArray:
    """U of gram = U D U^T, unit upper triangular: Cholesky from the last row up."""
    upper = np.linalg.cholesky(gram[::-1, ::-1])[::-1, ::-1]
    return upper / upper.diagonal()


def _feed_back(weight: DoubleArray, params: QParams, upper: DoubleArray, order: NDArray[np.intp]) -> FloatArray:
    """Round the rows of (I, O) from first to last, each with what the rows before it left; ``order``: of the inputs."""
    rounded = np.empty(weight.shape, np.float32)
    place = np.argsort(order)  # of an input among the rows
    error = np.zeros(weight.shape)  # w - q of the rows done so far
    for start in range(0, len(weight), BLOCK):
        stop = min(start + BLOCK, len(weight))
        wanted = weight[start:stop] + upper[:start, start:stop].T @ error[:start]  # (B, start) @ (start, O)
        for row in range(start, stop):
            owed = upper[start:row, row] @ error[start:row]  # (row - start,) @ (row - start, O)
            value = wanted[row - start] + owed
            other = partner(int(order[row]))
            if params.spec.limits_pairs and other < len(place) and place[other] < row:
                low, high = room_beside(np.rint(rounded[place[other]] / params.scale))
                value = np.clip(value, low * params.scale, high * params.scale)
            rounded[row] = fake_quantize(value[None].astype(np.float32), params)[0]
            error[row] = weight[row] - rounded[row]
    return rounded


def _errors(weight: FloatArray, rounded: FloatArray, gram: DoubleArray) -> DoubleArray:
    """(O,): (w - q)^T H (w - q)."""
    error = weight.astype(np.float64) - rounded
    return np.einsum("io,io->o", error, gram @ error)  # (I, I) @ (I, O)
