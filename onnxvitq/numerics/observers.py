"""Statistics of a tensor over a stream of samples, in bounded memory.

Each observer has ``update(values, sample) -> bool`` (False when a value is not finite) and ``result()``.
"""

import numpy as np

from onnxvitq.spec import FloatArray

ROWS = 1024  # rows kept a tensor, over all samples
IMAGES = 6  # whole tensors kept
FIRST_SHARE = 8  # samples that fill the rows at first


class Range:
    """Lowest and highest value. Memory: two numbers."""

    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf

    def update(self, values: FloatArray, sample: int) -> bool:
        """Take in one sample's tensor, of any shape."""
        del sample
        if values.size == 0:
            return True
        low, high = float(values.min()), float(values.max())  # a NaN anywhere makes both NaN
        if not (np.isfinite(low) and np.isfinite(high)):
            return False
        self._low, self._high = min(self._low, low), max(self._high, high)
        return True

    def result(self) -> tuple[float, float]:
        """(lowest, highest)."""
        return self._low, self._high


class Rows:
    """A sample of at most ``ROWS`` rows, as many of each sample, drawn without replacement.

    The number of samples need not be known: each gives ``ROWS // FIRST_SHARE`` rows at first; whenever the store is full
    every sample's share is halved, and rows were drawn in random order, so the first half is a random half. Past one row
    a sample, samples replace each other at random (reservoir sampling). Memory: ROWS x features, reached after
    ``FIRST_SHARE`` samples and constant from there.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._share = ROWS // FIRST_SHARE
        self._kept: list[FloatArray] = []

    def update(self, values: FloatArray, sample: int) -> bool:
        """Take in one sample's tensor (.., C): its leading axes are rows. The positions drawn depend on the seed, the
        sample's number and the number of rows only, so tensors with equally many rows are sampled alike."""
        rows = values.reshape(-1, values.shape[-1])
        rng = np.random.default_rng([self._seed, sample, rows.shape[0]])
        drawn = rows[rng.permutation(rows.shape[0])[: self._share]]
        if not np.isfinite(drawn).all():
            return False
        if sum(len(part) for part in self._kept) + len(drawn) > ROWS:
            if self._share > 1:
                self._share //= 2
                self._kept = [part[: self._share].copy() for part in self._kept]
                drawn = drawn[: self._share]
            else:
                place = int(rng.integers(0, sample + 1))
                if place < len(self._kept):
                    self._kept[place] = drawn.copy()
                return True
        self._kept.append(drawn.copy())
        return True

    def result(self) -> FloatArray:
        """(S, r, C): r rows of each of S samples (samples with fewer rows than r set r)."""
        r = min((len(part) for part in self._kept), default=0)
        return np.stack([part[:r] for part in self._kept]) if self._kept else np.zeros((0, 0, 0), np.float32)


class Images:
    """Whole tensors of at most ``IMAGES`` samples, a uniform choice among all (reservoir sampling).

    Which samples are kept depends on the seed and the samples' numbers only, so all tensors keep the same ones.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._kept: list[FloatArray] = []

    def update(self, values: FloatArray, sample: int) -> bool:
        """Take in one sample's tensor."""
        if len(self._kept) < IMAGES:
            place = len(self._kept)
            self._kept.append(values)
        else:
            place = int(np.random.default_rng([self._seed, sample]).integers(0, sample + 1))
            if place < IMAGES:
                self._kept[place] = values
        return bool(np.isfinite(values).all()) if place < IMAGES else True

    def result(self) -> tuple[FloatArray, ...]:
        """The kept tensors."""
        return tuple(self._kept)
