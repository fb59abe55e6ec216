"""Objectives that a search minimises: (reference, approximation) -> float, lower is better, 0 when equal.

Both arrays are (S, ..) with the samples first; a loss is the mean over samples (Paper A, eq. 10).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.decibels import sqnr_of_error
from onnxvitq.numerics.magnitude import comfortable

Objective = Callable[[FloatArray, FloatArray], float]

SMALLEST = np.float32(1e-30)  # power that a sample of zeros is divided by: far below that of a comfortable size
GAMMA, THETA = 0.1, 0.2  # Paper A: weight of the ranking term, margin of its hinge
OFFSETS = 8  # pairs looked at for each key


def _dots(a: FloatArray, b: FloatArray) -> FloatArray:
    """Inner product of each sample, (S, n) and (S, n) -> (S,).

    By BLAS in float32, whose relative error (1e-6) is far below the differences between candidates.
    """
    return np.matmul(a[:, None, :], b[:, :, None])[:, 0, 0]


def mse(reference: FloatArray, approximation: FloatArray) -> float:
    """Mean over samples of ||error||^2 / ||reference||^2: the inverse of the signal-to-noise power ratio."""
    ref = reference.reshape(len(reference), -1)
    error = ref - approximation.reshape(len(reference), -1)
    return float(np.mean(_dots(error, error) / np.maximum(_dots(ref, ref), SMALLEST), dtype=np.float64))


def pearson_loss(reference: FloatArray, approximation: FloatArray) -> float:
    """1 - mean over samples of the Pearson correlation over all elements of a sample (Paper A, eqs. 10 and 11).

    Computed as half the squared distance of the two centred, normalised vectors, which is the same and does not cancel.
    It ignores gain and offset, so it may only set a scale within bounds (the search's [0.5, 1.2]). A constant sample
    correlates perfectly with a constant and not at all with anything else.
    """
    return _distance(_standardised(reference), approximation)


def against(objective: Objective, reference: FloatArray) -> Callable[[FloatArray], float]:
    """An objective as a function of the approximation; the part that depends on the reference alone is computed once.

    No objective depends on the unit: where float32 has no room for squares, both are taken in another one.
    """
    unit = comfortable(reference)
    if unit != 1:
        scaled = against(objective, reference * unit)
        return lambda approximation: scaled(approximation * unit)
    if objective is not pearson_loss:
        return lambda approximation: objective(reference, approximation)
    standardised = _standardised(reference)
    return lambda approximation: _distance(standardised, approximation)


_Standardised = tuple[FloatArray, NDArray[np.bool_]]


def _distance(reference: _Standardised, approximation: FloatArray) -> float:
    """Half the mean squared distance of two samples' standardised vectors."""
    a, flat_a = reference
    b, flat_b = _standardised(approximation)
    b -= a
    loss = _dots(b, b) / 2
    return float(np.mean(np.where(flat_a | flat_b, flat_a != flat_b, loss), dtype=np.float64))


def _standardised(values: FloatArray) -> _Standardised:
    """(S, ..) -> each sample centred and of norm one, (S, n); and whether it was constant, (S,)."""
    flat = values.reshape(len(values), -1)
    size = np.sqrt(_dots(flat, flat))
    flat = flat - flat.mean(axis=1, keepdims=True)
    norm = np.sqrt(_dots(flat, flat))
    smallest = np.sqrt(SMALLEST)
    flat /= np.maximum(norm, smallest)[:, None]
    # A constant less its float32 mean leaves the mean's rounding.
    return flat, norm <= np.maximum(1e-6 * size, smallest)


def ranking_hinge(reference: FloatArray, approximation: FloatArray) -> float:
    """Mean hinge over pairs of keys of one query whose order the approximation should keep (Paper A, eq. 13).

    Phi((a'_i - a'_j) sign(a_i - a_j)), Phi(p) = max(theta - p, 0). Where the paper leaves the choice open (docs/methods.md,
    "Ranking-aware objective"),
    a reconstruction: scores are divided by the reference's standard deviation in the sample, so that theta = 0.2 has a
    meaning; the mean is taken, not the sum, which would drown the correlation; and only pairs further apart than theta in
    the reference count, so that the float tensor itself pays nothing. Pairs are (i, i + offset) for up to 8 offsets
    spread over half the keys: every key is in as many pairs as any other, and nothing is random.

    Shapes: (S, .., K), K keys last.
    """
    keys = reference.shape[-1]
    offsets = np.unique(np.linspace(1, max(keys // 2, 1), OFFSETS).astype(int))
    spread = reference.reshape(len(reference), -1).std(axis=1).reshape(-1, *[1] * (reference.ndim - 1))
    scale = 1.0 / np.maximum(spread, SMALLEST)
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


def sqnr_db(reference: FloatArray, approximation: FloatArray) -> float:
    """Signal-to-quantization-noise ratio in dB, from the mean relative error power of the samples; 120 at most."""
    return sqnr_of_error(against(mse, reference)(approximation))
