"""What a search minimises: (reference, approximation) -> float, lower is better, 0 when equal.

Both arrays are (S, ..) with the samples first; a loss is the mean over samples (Paper A, eq. 10). Accumulated in float64.
"""

from collections.abc import Callable

import numpy as np

from onnxvitq.spec import FloatArray

Objective = Callable[[FloatArray, FloatArray], float]

GAMMA, THETA = 0.1, 0.2  # Paper A: weight of the ranking term, margin of its hinge
OFFSETS = 16  # pairs looked at for each key


def mse(reference: FloatArray, approximation: FloatArray) -> float:
    """Mean over samples of ||error||^2 / ||reference||^2: the inverse of the signal-to-noise power ratio."""
    ref = reference.reshape(len(reference), -1)
    error = ref - approximation.reshape(len(reference), -1)
    power = np.einsum("sn,sn->s", ref, ref, dtype=np.float64)
    noise = np.einsum("sn,sn->s", error, error, dtype=np.float64)
    return float(np.mean(noise / np.maximum(power, 1e-30)))


def pearson_loss(reference: FloatArray, approximation: FloatArray) -> float:
    """1 - mean over samples of the Pearson correlation over all elements of a sample (Paper A, eqs. 10 and 11).

    It ignores gain and offset, so it may only set a scale within bounds (the search's [0.5, 1.2]). A constant sample
    correlates perfectly with a constant and not at all with anything else.
    """
    a = reference.reshape(len(reference), -1)
    b = approximation.reshape(len(reference), -1)
    a = a - a.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    b = b - b.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    both = np.einsum("sn,sn->s", a, b, dtype=np.float64)
    power_a = np.einsum("sn,sn->s", a, a, dtype=np.float64)
    power_b = np.einsum("sn,sn->s", b, b, dtype=np.float64)
    flat_a, flat_b = power_a <= 1e-30, power_b <= 1e-30
    correlation = both / np.sqrt(np.maximum(power_a * power_b, 1e-60))
    correlation = np.where(flat_a | flat_b, (flat_a & flat_b).astype(np.float64), correlation)
    return float(1.0 - np.mean(np.clip(correlation, -1.0, 1.0)))


def ranking_hinge(reference: FloatArray, approximation: FloatArray) -> float:
    """Mean hinge over pairs of keys of one query whose order the approximation should keep (Paper A, eq. 13).

    Phi((a'_i - a'_j) sign(a_i - a_j)), Phi(p) = max(theta - p, 0). Where the paper leaves the choice open (METHODS 1.3),
    a reconstruction: scores are divided by the reference's standard deviation in the sample, so that theta = 0.2 has a
    meaning; the mean is taken, not the sum, which would drown the correlation; and only pairs further apart than theta in
    the reference count, so that the float tensor itself pays nothing. Pairs are (i, i + offset) for up to 16 offsets
    spread over half the keys: every key is in as many pairs as any other, and nothing is random.

    Shapes: (S, .., K), K keys last.
    """
    keys = reference.shape[-1]
    offsets = np.unique(np.linspace(1, max(keys // 2, 1), OFFSETS).astype(int))
    spread = reference.reshape(len(reference), -1).std(axis=1).reshape(-1, *[1] * (reference.ndim - 1))
    scale = 1.0 / np.maximum(spread, 1e-30)
    ref, approx = reference * scale, approximation * scale
    total, count = 0.0, 0
    for offset in offsets:
        wanted = ref - np.roll(ref, -offset, axis=-1)
        got = approx - np.roll(approx, -offset, axis=-1)
        counted = np.abs(wanted) > THETA
        hinge = np.maximum(THETA - got * np.sign(wanted), 0.0)
        total += float(hinge.sum(where=counted, dtype=np.float64))
        count += int(counted.sum())
    return total / max(count, 1)


def ranking_loss(reference: FloatArray, approximation: FloatArray) -> float:
    """Pearson loss plus gamma times the ranking hinge (Paper A, eq. 12), for attention scores (S, .., K)."""
    return pearson_loss(reference, approximation) + GAMMA * ranking_hinge(reference, approximation)


OBJECTIVES: dict[str, Objective] = {"mse": mse, "pearson": pearson_loss, "ranking": ranking_loss}
