"""Rounding of weights by the error of the layer's output: the inputs after each input compensate its rounding error.

GPTQ (Frantar et al. 2023) in the form of QuIP (Chee et al. 2023: LDLQ, shown there to be the same procedure): the damped gram
is factored as U D U^T, U unit upper triangular, and w_k + sum_{j<k} U_jk (w_j - q_j) is rounded in place of w_k. Unlike the
published form it inverts nothing. Shapes: I inputs, O outputs. Solved in float64, returned in float32.
docs/methods.md, "Error feedback".
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxvitq.core.formats import QParams
from onnxvitq.core.tensors import DoubleArray, FloatArray, IntArray
from onnxvitq.numerics.affine import dequantize, fake_quantize
from onnxvitq.numerics.pairs import partner, room_beside

BLOCK = 128  # inputs rounded between two matrix products
DAMPING = 0.01  # of the gram, in units of its mean diagonal
ROWS_BLOCK, TOGETHER = 64, 8  # of ``RowFeedback``: inputs factored at once, and of these inputs rounded at once

Format = tuple[FloatArray, QParams]  # a weight (I, O) and its parameters, per tensor or axis 1


def round_with_feedback(weight: FloatArray, params: QParams, gram: DoubleArray, damping: float = DAMPING) -> FloatArray:
    """Values q = scale * code with a low (w - q)^T H (w - q), H = gram, for each output.

    Inputs are rounded in order of decreasing diagonal: those that matter most while most others can still compensate for
    them. An output whose plain rounding has the lower error keeps that, so none gets worse. A bias should be fitted after
    it (``ridge.best_bias``) when the gram is centred.

    Args:
        weight: (I, O).
        params: of the weight, per tensor or axis 1; never changed.
        gram: (I, I) of the inputs as the quantized layer sees them; about the means where the bias is free.
        damping: added to the diagonal, in units of its mean; > 0. An input that never varied (zero diagonal) is rounded to
            the nearest code.

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
    rounded = _feed_back((weight, params), _unit_upper(ordered), order)
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
    """(w - q)^T H (w - q) for each output, (O,): the error that ``round_with_feedback`` and ``refit_scale`` lower."""
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
    upper = _upper(gram)
    upper /= upper.diagonal().copy()
    return upper


def _upper(gram: np.ndarray) -> np.ndarray:
    """U of gram = U U^T, upper triangular, in the type of the gram."""
    return np.asarray(np.linalg.cholesky(gram[::-1, ::-1])[::-1, ::-1])


def _feed_back(weight: Format, upper: DoubleArray, order: NDArray[np.intp]) -> FloatArray:
    """Round the inputs in that order, each with the error that those before it left; (I, O)."""
    columns = _Columns([weight], order, np.float64)
    for start in range(0, len(order), BLOCK):
        block = slice(start, min(start + BLOCK, len(order)))
        owed = upper[:start, block].T @ columns.error[:start]  # (B, start) @ (start, O)
        columns.round(block, columns.weight[block] + owed, upper[block, block])
    return columns.values()[0]


class _Columns:
    """Weights side by side along O, each column with its own format, that are rounded input by input.

    Args:
        formats: the weights with their parameters.
        order: (I,), indices of the inputs in the order in which they are rounded.
        dtype: in which weights and errors are held.

    Attributes:
        parts: columns of each weight.
        weight: (I, O), inputs in the order in which they are rounded. Likewise the next two.
        rounded: (I, O), values of codes.
        error: (I, O), weight - rounded.
    """

    def __init__(self, formats: Sequence[Format], order: NDArray[np.intp], dtype: type[np.floating]) -> None:
        self._order, self._place = order, np.argsort(order)  # place: of an input among the rows
        sizes = [weight.shape[1] for weight, _ in formats]
        self.parts = [slice(stop - size, stop) for size, stop in zip(sizes, np.cumsum(sizes).tolist(), strict=True)]
        self.weight = np.empty((len(order), sum(sizes)), dtype)
        for part, (weight, _) in zip(self.parts, formats, strict=True):
            self.weight[:, part] = weight[order]
        self.rounded, self.error = np.empty(self.weight.shape, np.float32), np.empty_like(self.weight)
        bounds = [(params.spec.qmin - params.zero_point, params.spec.qmax - params.zero_point) for _, params in formats]
        self._scale = _along([params.scale for _, params in formats], sizes)
        self._low, self._high = (_along([bound[side] for bound in bounds], sizes) for side in (0, 1))
        limited = [np.asarray(params.spec.limits_pairs) for _, params in formats]
        self._limited = np.flatnonzero(_along(limited, sizes))

    def round(self, block: slice, wanted: np.ndarray, upper: np.ndarray, together: int = 1) -> None:
        """Round the rows of a block.

        Args:
            block: the rows (inputs).
            wanted: (B, O), values to round, without the feedback from rows of the same block; overwritten.
            upper: (B, B), by which the errors of rows of the block are fed back to those after them.
            together: number of rows rounded at once, without feedback among them. Pairs of codes are only limited at 1.
        """
        for start in range(block.start, block.stop, together):
            rows = slice(start, min(start + together, block.stop))
            done, own = slice(0, start - block.start), slice(start - block.start, rows.stop - block.start)
            value, rounded = wanted[own], self.rounded[rows]
            value += upper[done, own].T @ self.error[block.start : start]
            if together == 1 and len(self._limited):
                self._limit(start, value[0])
            np.divide(value.astype(np.float32, copy=False), self._scale, out=rounded)
            np.rint(rounded, out=rounded)
            np.maximum(rounded, self._low, out=rounded)
            np.minimum(rounded, self._high, out=rounded)
            rounded *= self._scale
            np.subtract(self.weight[rows], rounded, out=self.error[rows])

    def _limit(self, row: int, value: np.ndarray) -> None:
        """Limit ``value`` (O,) where codes are limited in pairs and the other code of the pair is rounded already."""
        other = partner(int(self._order[row]))
        if other < len(self._place) and self._place[other] < row:
            scale = self._scale[self._limited]
            low, high = room_beside(np.rint(self.rounded[self._place[other], self._limited] / scale))
            value[self._limited] = np.clip(value[self._limited], low * scale, high * scale)

    def values(self) -> list[FloatArray]:
        """Each weight's rounded values, (I, O), inputs in their own order."""
        return [self.rounded[self._place, part] + np.float32(0) for part in self.parts]  # no -0


def _along(values: Sequence[np.ndarray], sizes: Sequence[int]) -> FloatArray:
    """A value () or values (O,) of each weight -> one value for each column of all weights."""
    return np.concatenate(
        [np.broadcast_to(value, size).astype(np.float32) for value, size in zip(values, sizes, strict=True)]
    )


class RowFeedback:
    """``round_with_feedback`` of many weights that read the same inputs, from n sampled rows in place of an (I, I) gram.

    X: the rows (n, I), scaled so that the damping is 1. The feedback to a block of inputs follows from the error R (n, O) of
    the output that the inputs before it left. With P = (1 + X_> X_>^T)^-1 of the inputs after the block (Woodbury, from the
    last block up) and 1 + X_b^T P X_b = U D U^T, the values to round are w + D^-1 U^-1 X_b^T P R, and U is the feedback
    within the block. U and D are made of squares of ``TOGETHER``: so many inputs are rounded at once, without feedback among
    them, and pairs of codes are limited at the end. The result is for choosing widths, not for writing: errors are 1 to 5 %
    larger than one by one (MiniLM, bundled model), at all widths alike. For that float32 is enough: no direction of X X^T is
    more than I / damping times the 1 that is added to it.

    Args:
        rows: (n, I), sampled inputs about their means; it is meant for n below I.
        damping: as in ``round_with_feedback``.
    """

    def __init__(self, rows: FloatArray, damping: float = DAMPING) -> None:
        power = np.einsum("ni,ni->i", rows, rows, dtype=np.float64)  # (I,): diagonal of n times the gram
        self._dead = not power.any()
        self._order = np.argsort(-power, kind="stable")
        self._rows = rows[:, self._order] / np.float32(np.sqrt(damping * power.mean()) or 1.0)
        self._blocks: list[tuple[slice, FloatArray, FloatArray]] = []  # inputs, (B, n) owed of R, U
        inverse = np.eye(len(rows), dtype=np.float32)
        for start in reversed(range(0, rows.shape[1], ROWS_BLOCK)):
            block = slice(start, min(start + ROWS_BLOCK, rows.shape[1]))
            seen = inverse @ self._rows[:, block]  # P X_b
            gram = self._rows[:, block].T @ seen
            np.fill_diagonal(gram, gram.diagonal() + 1.0)
            upper = _upper(gram)
            half = np.linalg.inv(upper) @ seen.T
            inverse -= half.T @ half
            owed, within = np.empty_like(half), np.empty_like(upper)
            for first in range(0, len(upper), TOGETHER):  # gram = U D U^T, U = upper root^-1, D = root root^T
                some = slice(first, first + TOGETHER)
                root = np.linalg.inv(upper[some, some])
                owed[some], within[:, some] = root.T @ half[some], upper[:, some] @ root
            self._blocks.append((block, owed, within))
        self._blocks.reverse()

    def round(self, formats: Sequence[Format]) -> list[FloatArray]:
        """Each weight's rounded values, (I, O) float32.

        Args:
            formats: weights (I, O) with their parameters.
        """
        if self._dead:
            return [fake_quantize(weight, params) for weight, params in formats]
        columns = _Columns(formats, self._order, np.float32)
        left = np.zeros((len(self._rows), columns.weight.shape[1]), np.float32)
        more = np.empty_like(left)
        for block, owed, upper in self._blocks:
            columns.round(block, columns.weight[block] + owed @ left, upper, TOGETHER)
            left += np.matmul(self._rows[:, block], columns.error[block], out=more)
        return [
            fake_quantize(values, params) if params.spec.limits_pairs else values
            for values, (_, params) in zip(columns.values(), formats, strict=True)
        ]


def _errors(weight: FloatArray, rounded: FloatArray, gram: DoubleArray) -> DoubleArray:
    """(O,): (w - q)^T H (w - q)."""
    error = weight.astype(np.float64) - rounded
    return np.einsum("io,io->o", error, gram @ error)  # (I, I) @ (I, O)
