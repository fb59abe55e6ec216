"""Lost decisions: how many are expected of an error of a given size, and how far a share of a few samples can be trusted."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxvitq.spec import FloatArray

LEVEL = 0.95  # of intervals
HALVINGS = 60  # of a bisection between 0 and 1


def expected_drop(scores: FloatArray, errors: FloatArray) -> tuple[float, float]:
    """Share of samples whose largest score is expected to change, 0 to 1, and its standard error over the samples.

    A decision is lost to class j when the error of the difference of two scores exceeds the margin. Errors are taken as
    normal and alike for all samples and classes, so that every sample counts by its margin, and not only the few whose
    decision did change: of 16 samples that is the difference between 0 or 6 % and a figure.

    Args:
        scores: (N, classes) of the float model.
        errors: (M, classes) of the quantized one, on held-out samples, not necessarily the same.
    """
    spread = errors - errors.mean(axis=1, keepdims=True)  # what all scores have in common decides nothing
    classes = scores.shape[1]
    deviation = math.sqrt(2 * float((spread.astype(np.float64) ** 2).sum()) / (len(errors) * max(classes - 1, 1)))
    if deviation == 0 or classes < 2:
        return 0.0, 0.0
    ordered = np.sort(scores.astype(np.float64), axis=1)
    margins = ordered[:, -1:] - ordered[:, :-1]
    lost = np.vectorize(math.erfc, otypes=[np.float64])(margins / (deviation * math.sqrt(2))) / 2
    shares = np.minimum(lost.sum(axis=1), 1.0)
    return float(shares.mean()), float(shares.std() / math.sqrt(len(shares)))


def binomial_interval(hits: int, count: int) -> tuple[float, float]:
    """The exact (Clopper-Pearson) interval of a share of which ``hits`` of ``count`` samples were seen, at ``LEVEL``."""
    tail = (1 - LEVEL) / 2
    low = 0.0 if hits == 0 else _bisected(lambda p: 1 - _at_most(hits - 1, count, p) < tail)
    high = 1.0 if hits == count else _bisected(lambda p: _at_most(hits, count, p) > tail)
    return low, high


def _at_most(hits: int, count: int, share: float) -> float:
    """Probability of ``hits`` or fewer of ``count``."""
    k: NDArray[np.float64] = np.arange(hits + 1, dtype=np.float64)
    steps = np.log((count - k[:-1]) / (k[:-1] + 1)) + math.log(share) - math.log1p(-share)
    logs = count * math.log1p(-share) + np.concatenate([[0.0], np.cumsum(steps)])
    return float(np.exp(logs).sum())


def _bisected(is_below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2
