"""Random inputs of a model, to observe shapes and to measure times."""

import numpy as np

from onnxvitq.core.tensors import InputSpec

FREE_SIDE = 224  # pixels, of an image whose size is free


def random_feed(inputs: tuple[InputSpec, ...], batch: int, seed: int, side: int = FREE_SIDE) -> dict[str, np.ndarray]:
    """A random value for every input: normally distributed, or 0 and 1 for integers.

    Args:
        inputs: of the model.
        batch: size of a first axis that is dynamic.
        seed: the same seed gives the same values.
        side: size of every other axis that is dynamic; dynamic channels of an image (N, C, H, W) are 3.

    Returns:
        Input name -> array.
    """
    rng = np.random.default_rng(seed)
    feed: dict[str, np.ndarray] = {}
    for spec in inputs:
        sizes = [size or (batch if axis == 0 else side) for axis, size in enumerate(spec.shape)]
        if len(sizes) == 4 and spec.shape[1] is None:
            sizes[1] = 3
        values = rng.normal(size=sizes) if spec.dtype.startswith("float") else rng.integers(0, 2, sizes)
        feed[spec.name] = values.astype(spec.dtype)
    return feed
