"""Random inputs of a model: for shapes that only a run tells, and for timing."""

import numpy as np

from onnxvitq.core.tensors import InputSpec

FREE_SIDE = 224  # pixels, of an image whose size is free


def random_feed(inputs: tuple[InputSpec, ...], batch: int, seed: int, side: int = FREE_SIDE) -> dict[str, np.ndarray]:
    """Normal noise (integers: 0 or 1) for every input; an unknown size is ``batch`` in front and ``side`` elsewhere."""
    rng = np.random.default_rng(seed)
    feed: dict[str, np.ndarray] = {}
    for spec in inputs:
        sizes = [size or (batch if axis == 0 else side) for axis, size in enumerate(spec.shape)]
        if len(sizes) == 4 and spec.shape[1] is None:
            sizes[1] = 3
        values = rng.normal(size=sizes) if spec.dtype.startswith("float") else rng.integers(0, 2, sizes)
        feed[spec.name] = values.astype(spec.dtype)
    return feed
