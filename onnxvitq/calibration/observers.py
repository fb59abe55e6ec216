"""Statistics of one tensor over a stream of samples, in bounded memory. Pure numpy.

Reservoir sampling: Vitter, "Random sampling with a reservoir", 1985.
"""

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxvitq.core.tensors import FloatArray

ROWS = 512  # rows kept of a tensor, over all samples
IMAGES = 6  # samples whose attention operands are kept
MATRICES, QUERIES = 16, 32  # heads (or heads x windows) and, of a left operand, rows kept of each sample
FIRST_SHARE = 8  # samples after which the rows are full
WHOLE_BYTES = 64 * 2**20  # of a tensor kept whole, over all samples


class Observer(Protocol):
    """Observes one tensor, sample by sample."""

    def update(self, values: FloatArray, sample: int) -> bool:
        """Take in the tensor of one sample, counted from 0. False where a value is not finite."""
        ...

    def result(self) -> Any:
        """The statistic: a value of the field of ``core.statistics.Statistics`` that answers the request."""
        ...


class RangeObserver:
    """Lowest and highest value of a tensor. Memory: two numbers."""

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
        """(lowest, highest); (inf, -inf) where nothing was taken in."""
        return self._low, self._high


class ChannelObserver:
    """Lowest and highest value of each channel (the last axis). Memory: (2, C)."""

    def __init__(self) -> None:
        self._bounds: FloatArray | None = None

    def update(self, values: FloatArray, sample: int) -> bool:
        """Take in one sample's tensor (.., C)."""
        del sample
        rows = values.reshape(-1, values.shape[-1])
        if self._bounds is None:
            self._bounds = np.stack([np.full(rows.shape[1], sign * np.inf, np.float32) for sign in (1, -1)])
        if not len(rows):
            return True
        low, high = rows.min(axis=0), rows.max(axis=0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return False
        self._bounds = np.stack([np.minimum(self._bounds[0], low), np.maximum(self._bounds[1], high)])
        return True

    def result(self) -> FloatArray:
        """(2, C): lowest, then highest value of each channel."""
        return np.zeros((2, 0), np.float32) if self._bounds is None else self._bounds


class RowObserver:
    """A random sample of at most ``ROWS`` rows of a tensor, equally many of each sample.

    The number of samples need not be known beforehand. Each gives ``ROWS // FIRST_SHARE`` rows at first; whenever the store is
    full, every sample's share is halved: rows were drawn in random order, so the first half is a random half. From one row a
    sample on, samples replace each other at random (reservoir sampling). Memory: ROWS x C, reached after ``FIRST_SHARE``
    samples and constant from there.

    Args:
        seed: of what is drawn.
        positions: (T,), weights of T tokens; a row is drawn as often as its token weighs, where the rows of a sample are a
            multiple of T. None draws without repetition.
    """

    def __init__(self, seed: int, positions: FloatArray | None = None) -> None:
        self._seed, self._positions = seed, positions
        self._share = ROWS // FIRST_SHARE
        # One block for all samples: many small ones, freed and made anew at each halving, leave holes between them.
        self._store = np.empty((0, 0), np.float32)
        self._counts: list[int] = []

    def update(self, values: FloatArray, sample: int) -> bool:
        """Take in one sample's tensor (.., C), whose leading axes are rows.

        Which rows are drawn depends only on the seed, the sample's number and the number of rows, so tensors with equally many
        rows are sampled alike.
        """
        rows = values.reshape(-1, values.shape[-1])
        rng = np.random.default_rng([self._seed, sample, rows.shape[0]])
        drawn = rows[_by_weight(rng, rows.shape[0], self._positions)[: self._share]]
        if not np.isfinite(drawn).all():
            return False
        if not self._counts:
            self._store = np.empty((ROWS, rows.shape[1]), np.float32)
        while self._share > 1 and sum(self._counts) + len(drawn) > ROWS:
            self._halve()
            drawn = drawn[: self._share]
        kept = sum(self._counts)
        if kept + len(drawn) <= ROWS:
            self._store[kept : kept + len(drawn)] = drawn
            self._counts.append(len(drawn))
        elif len(drawn) and (place := int(rng.integers(0, sample + 1))) < len(self._counts):
            self._store[place] = drawn[0]  # one row a sample by now
        return True

    def _halve(self) -> None:
        """Keep the first half of every sample's rows, moved together."""
        self._share //= 2
        stops = np.cumsum(self._counts)
        parts = [
            self._store[stop - count : stop][: self._share] for stop, count in zip(stops, self._counts, strict=True)
        ]
        self._counts = [len(part) for part in parts]
        if parts:
            self._store[: sum(self._counts)] = np.concatenate(parts)

    def result(self) -> FloatArray:
        """(S, r, C): r rows of each of S samples; r is the number of rows of the sample that gave the fewest."""
        r = min(self._counts, default=0)
        if not self._counts:
            return np.zeros((0, 0, 0), np.float32)
        starts = np.cumsum([0, *self._counts[:-1]])
        return np.stack([self._store[start : start + r] for start in starts])


class OperandObserver:
    """Matrices of an operand (.., m, k) of a product of two activations, for a few samples.

    Which samples, which matrices and, of a left operand, which rows are kept depends only on the seed, the sample's number and
    the sizes, so both operands of a product are kept alike. Memory: IMAGES x MATRICES matrices; of a left operand QUERIES rows
    of each.

    Args:
        seed: of what is drawn.
        side: of the product.
        positions: (T,), weights of tokens for the rows of a left operand, as in ``RowObserver``.
    """

    def __init__(self, seed: int, side: Literal["left", "right"], positions: FloatArray | None = None) -> None:
        self._seed, self._side, self._positions = seed, side, positions
        self._kept: dict[int, tuple[tuple[int, ...], FloatArray]] = {}

    def update(self, values: FloatArray, sample: int) -> bool:
        """Take in one sample's tensor."""
        place = _place(self._seed, sample)
        if place >= IMAGES:
            return True
        matrices = values.reshape(-1, *values.shape[-2:])
        matrices = matrices[_drawn(matrices.shape[0], MATRICES, self._seed, sample)]
        if self._side == "left":
            rng = np.random.default_rng([self._seed, sample, matrices.shape[1]])
            matrices = matrices[:, np.sort(_by_weight(rng, matrices.shape[1], self._positions)[:QUERIES])]
        self._kept[place] = (values.shape, matrices)
        return bool(np.isfinite(matrices).all())

    def result(self) -> FloatArray:
        """(S, L, m, k), L the leading axes joined: the kept samples whose tensor had the same shape as that of the first."""
        kept = [self._kept[place] for place in sorted(self._kept)]
        return np.stack([part for shape, part in kept if shape == kept[0][0]])


def operand_samples(seed: int, count: int) -> frozenset[int]:
    """Numbers of the samples that an ``OperandObserver`` keeps of ``count``: a sweep over these alone has the same result."""
    places = {_place(seed, sample): sample for sample in range(count)}  # the last one of a place is kept
    return frozenset(places[place] for place in range(min(count, IMAGES)))


def _place(seed: int, sample: int) -> int:
    """The place in which an ``OperandObserver`` keeps a sample; from ``IMAGES`` on nowhere (reservoir sampling)."""
    return sample if sample < IMAGES else int(np.random.default_rng([seed, sample]).integers(0, sample + 1))


def _by_weight(rng: np.random.Generator, size: int, positions: FloatArray | None) -> NDArray[np.intp]:
    """Indices of ``size`` rows in random order, each about as often as its token weighs in ``positions`` (T,).

    Any number of them from the start is a random sample, whose mean is the weighted mean. Weights are rounded to whole
    repetitions.
    """
    if positions is None or size % len(positions):
        return rng.permutation(size)
    repetitions = np.maximum(np.rint(np.tile(positions, size // len(positions))), 1).astype(np.intp)
    return rng.permutation(np.repeat(np.arange(size), repetitions))


def _drawn(size: int, wanted: int, seed: int, sample: int) -> NDArray[np.intp]:
    """``wanted`` of ``size`` indices, sorted; all of them where there are fewer."""
    if size <= wanted:
        return np.arange(size)
    return np.sort(np.random.default_rng([seed, sample, size]).permutation(size)[:wanted])


class WholeObserver:
    """The tensor itself, of the first samples. Memory: ``WHOLE_BYTES``, but at least one sample."""

    def __init__(self) -> None:
        self._kept: list[FloatArray] = []
        self._room = WHOLE_BYTES

    def update(self, values: FloatArray, sample: int) -> bool:
        """Take in one sample's tensor."""
        self._room -= values.nbytes
        if sample == 0 or self._room >= 0:
            self._kept.append(values.copy())  # as it is, it would keep all memory of the session that gave it
            return bool(np.isfinite(values).all())
        return True

    def result(self) -> tuple[FloatArray, ...]:
        """The kept tensors, one a sample, from the first sample on."""
        return tuple(self._kept)
