"""The correction of low rank that takes most of a layer's error away, in closed form.

A branch z A B beside a quantized product has to put out what the product lacks: R = Y - Q(X) Q(W) - b, the error of the
quantized weight *and* of the quantized input. Among the matrices of rank r, the A B that lowers the mean square of R - z A B
most is a truncated singular value decomposition, not of the regression's coefficients but of them as the inputs see them
(whitened): reduced-rank regression (Izenman 1975). With H = U diag(v) U^T the damped gram of z about its mean and C the cross
moments with R, K = v^-1/2 U^T C holds the whole of what can be explained, and each singular value squared is what its rank
takes off the summed square error. Shapes: I inputs, O outputs, r ranks. Solved in float64, handed back in float32.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxvitq.numerics.moments import DoubleArray, Moments, centred
from onnxvitq.spec import FloatArray

DAMPING = 1e-3  # of the gram, in units of its mean diagonal: directions that hardly vary are noise, and would ask for a large A


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRank:
    """A (I, r), B (r, O), and what each rank takes off the summed square error, falling: (r,).

    Every column of z A varies by one about its mean: the one scale that the inner codes have then suits all of them.
    """

    a: FloatArray
    b: FloatArray
    energy: DoubleArray

    @property
    def product(self) -> FloatArray:
        """A B (I, O)."""
        return self.a @ self.b

    def first(self, rank: int) -> "LowRank":
        """The best correction of a lower rank."""
        return LowRank(a=self.a[:, :rank], b=self.b[:rank], energy=self.energy[:rank])


def low_rank(moments: Moments, rank: int, damping: float = DAMPING) -> LowRank:
    """The best correction of at most that rank; fewer where fewer directions explain anything.

    Args:
        moments: of the inputs z that the branch reads and the residuals R that it has to put out. The mean of R is left to
            the layer's bias.
        rank: >= 0.
        damping: added to the gram's diagonal, in units of its mean; > 0.

    Raises:
        ValueError: a negative rank, damping <= 0, or no row has weight.
    """
    if rank < 0 or not damping > 0:
        raise ValueError(f"expected rank >= 0 and damping > 0, got {rank} and {damping}")
    about = centred(moments)
    values, vectors = np.linalg.eigh(about.gram)
    values = np.maximum(values, 0.0) + damping * (float(about.gram.diagonal().mean()) or 1.0)
    whitener = vectors / np.sqrt(values)  # (I, I): columns scaled; whitener^T H whitener = 1
    left, strength, right = np.linalg.svd(whitener.T @ about.cross, full_matrices=False)  # (I, k), (k,), (k, O)
    kept = min(rank, int(np.count_nonzero(strength > 1e-7 * max(float(strength[0]), 1e-300)))) if strength.size else 0
    spread = np.sqrt(moments.mass)
    return LowRank(
        a=(whitener @ left[:, :kept] * spread).astype(np.float32),
        b=(strength[:kept, None] * right[:kept] / spread).astype(np.float32),
        energy=strength[:kept] ** 2,
    )


def share_budget(gains: Mapping[str, DoubleArray], costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """Ranks by layer, most gain a unit of cost first, until the budget is spent.

    As the gains of one layer fall, taking the best next rank everywhere is optimal but for what the last one leaves unspent.

    Args:
        gains: layer -> what each rank gains, falling, in a unit that layers share.
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
