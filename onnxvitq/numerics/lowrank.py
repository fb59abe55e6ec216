"""The low-rank correction that removes the most of a layer's error, in closed form.

A branch z A B beside a quantized product has to compute the product's error: R = Y - Q(X) Q(W) - b, the error of the
quantized weight *and* of the quantized input. Among the matrices of rank r, the A B that lowers the mean square of R - z A B
most is a truncated singular value decomposition, not of the regression's coefficients but of them as the inputs see them
(whitened): reduced-rank regression (Izenman 1975). With H = U diag(v) U^T the damped gram of z about its mean and C the cross
moments with R, K = v^-1/2 U^T C holds everything that a linear function of z can explain, and each singular value squared is
the amount by which its rank lowers the summed square error. docs/methods.md, "Low-rank branches". Shapes: I inputs, O outputs,
r ranks. Solved in float64, returned in float32.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxvitq.core.tensors import DoubleArray, FloatArray
from onnxvitq.numerics.moments import Moments

DAMPING = 1e-3  # of the gram, in units of its mean diagonal: directions that hardly vary are noise, and would ask for a large A


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRank:
    """A correction z A B of rank r.

    Attributes:
        a: A, (I, r). Every column of z A has variance 1, so that one scale suits all of them when z A is quantized.
        b: B, (r, O).
        energy: (r,), by how much each rank lowers the summed square error, falling.
    """

    a: FloatArray
    b: FloatArray
    energy: DoubleArray

    def first(self, rank: int) -> "LowRank":
        """The best correction of a rank that is lower or equal."""
        return LowRank(a=self.a[:, :rank], b=self.b[:rank], energy=self.energy[:rank])


def low_rank(moments: Moments, rank: int, dampings: Sequence[float] = (DAMPING,)) -> list[LowRank]:
    """The best correction of at most that rank for each damping; fewer ranks where fewer directions explain anything.

    Args:
        moments: of the inputs z that the branch reads and the residuals R that it has to compute. The mean of R is left to
            the layer's bias.
        rank: >= 0.
        dampings: added to the gram's diagonal, in units of its mean; > 0. The gram is decomposed once for all.

    Raises:
        ValueError: a negative rank, or a damping <= 0.
    """
    if rank < 0 or not all(damping > 0 for damping in dampings):
        raise ValueError(f"expected rank >= 0 and damping > 0, got {rank} and {dampings}")
    if not rank:
        nothing = np.zeros((len(moments.gram), 0), np.float32), np.zeros((0, len(moments.mean_t)), np.float32)
        return [LowRank(a=nothing[0], b=nothing[1], energy=np.zeros(0))] * len(dampings)
    values, vectors = np.linalg.eigh(moments.gram)
    along = vectors.T @ moments.cross  # (I, O)
    mean, spread = float(moments.gram.diagonal().mean()) or 1.0, np.sqrt(moments.mass)
    fits = []
    for damping in dampings:
        root = 1 / np.sqrt(np.maximum(values, 0.0) + damping * mean)  # columns of vectors * root whiten
        left, strength, right = _strongest(root[:, None] * along, rank)
        fits.append(
            LowRank(
                a=((vectors * root) @ left * spread).astype(np.float32),
                b=(strength[:, None] * right / spread).astype(np.float32),
                energy=strength**2,
            )
        )
    return fits


def _strongest(matrix: DoubleArray, rank: int) -> tuple[DoubleArray, DoubleArray, DoubleArray]:
    """(I, k), (k,), (k, O): the k largest singular values of (I, O) above rounding noise, at most ``rank``.

    From the smaller one of the two grams, a tenth of the time that a full decomposition of a wide matrix takes; of squares,
    so values below 1e-7 of the largest are noise.
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    squares, vectors = np.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)
    strength = np.sqrt(np.maximum(squares[::-1], 0.0))
    kept = min(rank, int(np.count_nonzero(strength > 1e-7 * max(float(strength[0]), 1e-300)))) if strength.size else 0
    strength, vectors = strength[:kept], vectors[:, ::-1][:, :kept]
    if tall:
        return matrix @ vectors / strength, strength, vectors.T
    return vectors, strength, (matrix.T @ vectors / strength).T


def errors_by_rank(held_out: Moments, fitted: Moments, fit: LowRank) -> DoubleArray:
    """Summed square error with the first 0, 1... r ranks, each with the bias that is best on the fitted rows: (r + 1,).

    All from one product with the gram: for the first r of A and B the error has the term tr(A^T G A B B^T), whose parts
    are sums over the leading r x r blocks.

    Args:
        held_out: moments of the rows to evaluate on.
        fitted: moments of the rows that the bias is fitted to.
        fit: the correction, in float.
    """
    inputs, targets = held_out.mean_a - fitted.mean_a, held_out.mean_t - fitted.mean_t
    a, b = fit.a.astype(np.float64), fit.b.astype(np.float64)
    signal = held_out.t2 + held_out.mass * targets**2
    moved = inputs @ a  # (r,)
    gram = a.T @ held_out.gram @ a + held_out.mass * np.outer(moved, moved)  # (r, r)
    cross = a.T @ held_out.cross + held_out.mass * np.outer(moved, targets)  # (r, O)
    along = np.cumsum([0.0, *(cross * b).sum(axis=1)])
    squares = np.diag(np.pad(np.cumsum(np.cumsum(gram * (b @ b.T), axis=0), axis=1), ((1, 0), (1, 0))))
    return np.maximum(float(signal.sum()) - 2 * along + squares, 0.0)


def share_budget(gains: Mapping[str, DoubleArray], costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """Ranks by layer, most gain a unit of cost first, until the budget is spent.

    As the gains of one layer fall, taking the best next rank everywhere is optimal but for the part of the budget that is
    left over.

    Args:
        gains: layer -> gain of each rank, falling, in a unit that layers share.
        costs: layer -> cost of one rank, > 0 (bytes, say).
        budget: in the unit of ``costs``.
    """
    ranks = dict.fromkeys(gains, 0)
    queue = [(-float(gain[0]) / costs[name], name) for name, gain in gains.items() if gain.size]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        if costs[name] > budget:
            continue
        budget -= costs[name]
        ranks[name] += 1
        if ranks[name] < gains[name].size:
            heapq.heappush(queue, (-float(gains[name][ranks[name]]) / costs[name], name))
    return ranks
