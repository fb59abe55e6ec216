"""How near the products of calibration data come to saturating where two of them are added in 16 bits (``numerics.pairs``)."""

from dataclasses import dataclass

import numpy as np

from onnxvitq.core.tensors import IntArray
from onnxvitq.numerics.pairs import CEILING, LARGEST_PAIR, pairs_of_rows

AT_A_TIME = 2**22  # sums computed at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """How near one linear comes to saturating.

    Attributes:
        pairs: share of its pairs of weights that saturate for some input, 0 to 1.
        largest: the largest sum of such a pair over the calibration rows, in units of the largest that fits (over 1: it was
            cut); 0 where no pair can saturate.
        cut: share of all sums over those rows that were cut, 0 to 1.
    """

    pairs: float
    largest: float
    cut: float

    @property
    def at_risk(self) -> bool:
        """Whether calibration data saturates."""
        return self.largest > 1


def estimate_saturation(inputs: IntArray, weight: IntArray) -> Saturation:
    """What would be cut of the products of codes.

    Args:
        inputs: (n, I) uint8 codes of calibration rows.
        weight: (I, O) int8 codes.
    """
    first, second = (rows.astype(np.int32) for rows in pairs_of_rows(weight))
    pair, column = np.nonzero((np.abs(first + second) > LARGEST_PAIR) & (first * second > 0))
    if not len(pair) or not len(inputs):
        return Saturation(pairs=len(pair) / max(first.size, 1), largest=0.0, cut=0.0)
    codes = inputs.T.astype(np.int32)
    left, right = pairs_of_rows(codes)
    largest, cut = 0, 0
    for start in range(0, len(pair), step := max(1, AT_A_TIME // len(inputs))):
        part = slice(start, start + step)
        k, o = pair[part], column[part]
        sums = np.abs(left[k] * first[k, o, None] + right[k] * second[k, o, None])
        largest, cut = max(largest, int(sums.max())), cut + int((sums > CEILING).sum())
    return Saturation(pairs=len(pair) / first.size, largest=largest / CEILING, cut=cut / (first.size * len(inputs)))
