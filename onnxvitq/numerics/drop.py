"""Lost decisions: the share that an error of a given size is expected to lose, and intervals of shares of few samples.

docs/methods.md, "Promise on decisions".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from onnxvitq.core.tensors import DoubleArray, FloatArray, LongArray

LEVEL = 0.95  # of intervals, two-sided, and of bounds, one-sided
ONE_SIDED, TWO_SIDED = 1.645, 1.960  # quantiles of the normal distribution at that level
HALVINGS = 60  # of a bisection between 0 and 1
# Ranks of the smallest margins, from which the density of margins near zero is estimated. With 64 of the bundled model's 1,936
# validation images, a bound by the mean's standard error alone was above the true share in 55 to 87 of 100 draws; with these,
# in 91 to 99.
NEAREST = (1, 2, 4, 8)
RIVALS = 32  # classes of the next largest scores that a decision may be lost to


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedDrop:
    """Expected share of decisions that an error loses, 0 to 1.

    With labels it is the share of right decisions that are lost, less the share of wrong ones that are put right, and may be
    negative.

    Attributes:
        share: the mean.
        bound: one-sided upper bound at ``LEVEL``: the share is above it in one case of twenty.
    """

    share: float
    bound: float


def expected_drop(
    scores: FloatArray, seen: tuple[FloatArray, FloatArray], labels: LongArray | None = None
) -> ExpectedDrop:
    """The share of decisions that is expected to be lost, and its upper bound.

    A decision is lost to class j when the error of the difference of two scores exceeds the margin. Errors are taken as
    normal and alike for all samples and classes, so that every sample counts by its margin, and not only the few whose
    decision did change: a count over 16 samples is 0 or 6 %, which says little.

    The bound adds the standard error of the mean over the samples, and that of the errors' size. Where hardly any sample has
    a margin as small as the errors, that standard error says nothing about the ones that were not drawn: the bound is then at
    least that of margins spread evenly between 0 and the k-th smallest one seen, k in ``NEAREST``, whose share of all samples
    has an exact bound. It holds where margins are no denser at zero than a little above it.

    Args:
        scores: (N, classes) of the float model.
        seen: scores (M, classes) of the float and of the quantized model, on M samples that may be others than the N.
        labels: (N,), indices of the right classes, where they are known.
    """
    count, deviation = len(scores), _deviation(*seen)
    if deviation == 0:
        return ExpectedDrop(share=0.0, bound=0.0)
    ordered = np.sort(scores.astype(np.float64), axis=1)
    margins = ordered[:, -1:] - ordered[:, -1 - RIVALS : -1]
    lost = np.minimum(_exceeded(margins, deviation).sum(axis=1), 1.0)
    shares = lost
    if labels is not None:
        own = np.take_along_axis(scores.astype(np.float64), labels[:, None], axis=1)[:, 0]
        right = scores.argmax(axis=1) == labels
        lost = np.where(right, lost, 0.0)
        shares = np.where(right, lost, -_exceeded(ordered[:, -1] - own, deviation))
        margins = margins[right]
    above = ONE_SIDED * float(shares.std()) / math.sqrt(count)
    above = max(above, _unseen(margins[:, -1], deviation, count) - float(lost.mean()))
    share, size = float(shares.mean()), ONE_SIDED * float(lost.mean()) / math.sqrt(2 * len(seen[0]))
    return ExpectedDrop(share=share, bound=share + math.hypot(above, size))


def _deviation(before: FloatArray, after: FloatArray) -> float:
    """Root mean square error of the difference of two scores: of any two, or of the two largest where that is more.

    Decisions are lost between the two largest, whose errors are larger than the others': 1.1 to 1.2 times on the bundled model.
    """
    errors = after.astype(np.float64) - before
    errors -= errors.mean(axis=1, keepdims=True)  # an error that all scores share changes no decision
    first, second = np.take_along_axis(errors, np.argsort(before, axis=1)[:, -2:], axis=1).T
    return math.sqrt(
        max(2 * float((errors**2).sum(axis=1).mean()) / (before.shape[1] - 1), float(((first - second) ** 2).mean()))
    )


def _exceeded(margins: DoubleArray, deviation: float) -> DoubleArray:
    """Probability that a normal error exceeds each margin."""
    tails: DoubleArray = np.vectorize(math.erfc, otypes=[np.float64])(margins / (deviation * math.sqrt(2))) / 2
    return tails


def _unseen(margins: DoubleArray, deviation: float, count: int) -> float:
    """Bound of the lost share, if margins are as dense near zero as the smallest ones of ``count`` samples may be."""
    smallest, bounds = np.sort(margins), [0.0]
    for place in (place for place in NEAREST if place <= len(smallest)):
        flat = deviation / math.sqrt(2 * math.pi) / max(float(smallest[place - 1]), np.finfo(np.float64).tiny)
        bounds.append(binomial_bound(place - 1, count) * min(0.5, flat))
    return max(bounds)


@cache
def binomial_bound(hits: int, count: int) -> float:
    """The exact one-sided upper bound at ``LEVEL`` of a share, of which ``hits`` of ``count`` samples were drawn."""
    return 1.0 if hits == count else _bisected(lambda p: _at_most(hits, count, p) > 1 - LEVEL)


def paired_interval(lost: int, gained: int, count: int) -> tuple[float, float]:
    """Interval at ``LEVEL`` of (lost - gained) / count, where a sample is lost, gained or neither (Bonett and Price 2012)."""
    first, second = (lost + 1) / (count + 2), (gained + 1) / (count + 2)
    half = TWO_SIDED * math.sqrt((first + second - (first - second) ** 2) / (count + 2))
    return max(-1.0, first - second - half), min(1.0, first - second + half)


def binomial_interval(hits: int, count: int) -> tuple[float, float]:
    """The exact interval (Clopper and Pearson 1934) at ``LEVEL`` of a share, of which ``hits`` of ``count`` were drawn."""
    tail = (1 - LEVEL) / 2
    low = 0.0 if hits == 0 else _bisected(lambda p: 1 - _at_most(hits - 1, count, p) < tail)
    high = 1.0 if hits == count else _bisected(lambda p: _at_most(hits, count, p) > tail)
    return low, high


def _at_most(hits: int, count: int, share: float) -> float:
    """Probability of at most ``hits`` of ``count`` trials, each with probability ``share``."""
    k: DoubleArray = np.arange(hits + 1, dtype=np.float64)
    steps = np.log((count - k[:-1]) / (k[:-1] + 1)) + math.log(share) - math.log1p(-share)
    logs = count * math.log1p(-share) + np.concatenate([[0.0], np.cumsum(steps)])
    return float(np.exp(logs).sum())


def _bisected(is_below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2
