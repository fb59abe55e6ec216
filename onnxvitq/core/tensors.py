"""Types of arrays, and what is known of a model's inputs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """The model's image input: its name, numpy dtype name, and shape; None where a dimension is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
