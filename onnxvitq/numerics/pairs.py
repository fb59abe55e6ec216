"""Weight codes whose products with uint8 codes cannot saturate on processors that add two of them in 16 bits.

AVX2 and AVX512 without VNNI multiply with ``vpmaddubsw``: x_2j w_2j + x_2j+1 w_2j+1, uint8 x int8, is cut to -32768 .. 32767
before anything is summed in 32 bits. With x up to 255 it fits for every input when the two codes, where they have one sign,
add up to 128 at most. 7 bits (codes to 63) see to that at the price of 6 dB; but few pairs of 8-bit codes need it, and steps
so wide that none does cost about 1 dB.
"""

import numpy as np

from onnxvitq.core.formats import BYTE, UINT8, NumberFormat
from onnxvitq.core.tensors import FloatArray

_SUM = NumberFormat(bits=2 * BYTE, signed=True, symmetric=False)  # what two products are added in
FLOOR, CEILING = _SUM.qmin, _SUM.qmax
LARGEST_PAIR = CEILING // UINT8.qmax  # of two codes that have one sign: 128
ROUNDED_UP = 1  # two real values that add up to one less are at most LARGEST_PAIR when both are rounded up


def partner(index: int) -> int:
    """The other input (row of a weight) of the pair that this one belongs to."""
    return index ^ 1


def largest_pair(weight: FloatArray) -> FloatArray:
    """(I, O) -> (O,): the largest sum of magnitudes of two values of a pair that have one sign."""
    first, second = pairs_of_rows(weight)
    total = np.abs(first + second)
    # Not by the sign of the product, which is zero for tiny values. (A reduction with ``where`` takes five times as long.)
    total *= (first > 0) == (second > 0)
    return total.max(axis=0, initial=0.0)


def limit_pairs(codes: np.ndarray) -> None:
    """Take what is too much off both codes of a pair, in place; what is odd off the larger.

    Args:
        codes: (I, O) whole numbers of a signed or a float type, -127 to 127.
    """
    first, second = pairs_of_rows(codes)
    total = first + second
    if total.max(initial=0) <= LARGEST_PAIR and total.min(initial=0) >= -LARGEST_PAIR:
        return  # nearly always: steps are as wide as that takes
    over = np.maximum(np.abs(total) - LARGEST_PAIR, 0)
    pairs, columns = np.nonzero((over > 0) & (first * second > 0))
    if not len(pairs):
        return
    excess, sign = over[pairs, columns], np.sign(total[pairs, columns])
    less, more = np.floor(excess / 2), np.ceil(excess / 2)
    at_first = np.abs(first[pairs, columns]) >= np.abs(second[pairs, columns])
    first[pairs, columns] -= (sign * np.where(at_first, more, less)).astype(codes.dtype)
    second[pairs, columns] -= (sign * np.where(at_first, less, more)).astype(codes.dtype)


def room_beside(codes: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(lowest, highest) code that may stand beside each of ``codes``, the other of its pair."""
    return np.where(codes < 0, -LARGEST_PAIR - codes, -LARGEST_PAIR), np.where(
        codes > 0, LARGEST_PAIR - codes, LARGEST_PAIR
    )


def pairs_of_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Views of the first and the second row of each pair; the last row of an odd number has none beside it."""
    stop = len(weight) // 2 * 2
    return weight[0:stop:2], weight[1:stop:2]
