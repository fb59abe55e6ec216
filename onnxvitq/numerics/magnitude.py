"""Powers of two that bring values to where float32 has room for their squares: exact to multiply with, exact to take back."""

import numpy as np

from onnxvitq.core.tensors import FloatArray

ROOM = 40  # binary digits: the square of 2^-40 times a rounding error of 2^-24 is far above the smallest float32


def comfortable(values: FloatArray, axis: int | None = None) -> FloatArray:
    """The power of two that makes the largest magnitude one of [0.5, 1), or nearly so at the ends of float32; 1 where it is
    between 2^-40 and 2^40 or zero.

    Without it, squares of values near 1e-31 are zero and those of values near 1e30 infinite, and all candidates of a search
    look alike.

    Args:
        values: of any shape.
        axis: which is looked along, such as the inputs of a weight (I, O) for a factor an output (O,); None for one factor.
    """
    largest = np.abs(values).max(axis=axis, initial=0.0)
    _, exponents = np.frexp(largest)
    usual = (np.abs(exponents) <= ROOM) | (largest == 0)
    # 2^126 is the largest power whose inverse is normal: of values that are smaller still, some digits are missing anyway.
    return np.where(usual, np.float32(1), np.ldexp(np.float32(1), -np.clip(exponents, -126, 126))).astype(np.float32)
