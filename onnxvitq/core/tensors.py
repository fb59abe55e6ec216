"""Types of arrays, and the description of a model's input."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]  # of sums and solutions, which float32 is too coarse for
RealArray = NDArray[np.floating]  # of either type
IntArray = NDArray[np.integer]
LongArray = NDArray[np.int64]  # of sizes, indices and class labels


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: of the tensor.
        dtype: name of the numpy type ("float32").
        shape: sizes; None where a size is dynamic.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
