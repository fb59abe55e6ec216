"""Types of arrays, and the description of a model's input."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.integer]


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
