"""Which rows of a layer's input are used, and their second moments over all samples: of those fitted to, and those held out.

Shapes: I inputs, O outputs, n rows of one sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxvitq.calibration.held_out import HELD_OUT_EVERY, is_held_out
from onnxvitq.core.parallel import fan_out
from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.moments import CHUNK, Moments, Sums

LANES = 2  # of samples that are summed side by side; a fixed number, or the sums would depend on the machine's cores
ROWS_AN_INPUT, FEW_ROWS = 8, 2048  # rows of a layer's inputs that are used, over all samples; at least FEW_ROWS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Rows of one sample.

    Attributes:
        inputs: (n, I) what the quantized layer reads.
        targets: (n, O) what it should put out.
        mass: (n,) weights of the rows, above 0.
    """

    inputs: FloatArray
    targets: FloatArray
    mass: FloatArray


def used_rows(
    shape: Sequence[int], sample: tuple[int, int], positions: FloatArray | None
) -> tuple[np.ndarray, FloatArray]:
    """Numbers of the rows of a sample's tensor that are used, and their weights; (n,) each.

    Every n-th row is, so that all samples together give a few rows an input; rows that weigh more than others are all used.

    Args:
        shape: (.., T, I) of the tensor.
        sample: its number, and how many samples there are.
        positions: (T,) weight of each token; None weighs all alike, and so does a tensor of another number of tokens.
    """
    count = int(np.prod(shape[:-1]))
    weights = np.ones(count, np.float32)
    if positions is not None and len(shape) >= 3 and shape[-2] == len(positions):
        weights = np.tile(positions, count // len(positions))
    step = max(1, count * sample[1] // max(FEW_ROWS, ROWS_AN_INPUT * shape[-1]))
    used = np.zeros(count, bool)
    used[sample[0] % step :: step] = True
    weights = np.where(weights > 1, weights, step)  # a row stands for those left out
    used |= weights > step
    rows = np.flatnonzero(used)
    return rows, weights[rows].astype(np.float32)


def summed(
    shape: tuple[int, int], samples: int, rows_of: Callable[[int], Rows], workers: int
) -> tuple[Moments, Moments]:
    """Moments of the samples that are fitted to, and of those held out (the same where there are none).

    Args:
        shape: (I, O).
        samples: how many.
        rows_of: the rows of a sample, by its number; called from several threads.
        workers: threads.
    """

    def sum_up(lane: int) -> list[Sums]:
        sums = [Sums(*shape), Sums(*shape)]
        waiting: list[list[Rows]] = [[], []]
        for sample in (number for number in range(samples) if number // HELD_OUT_EVERY % LANES == lane):
            side, rows = int(is_held_out(sample)), rows_of(sample)
            if sum(len(part.mass) for part in (*waiting[side], rows)) > CHUNK:
                _add(sums[side], waiting[side])
            waiting[side].append(rows)
        for total, rest in zip(sums, waiting, strict=True):
            _add(total, rest)
        return sums

    first, *others = fan_out(sum_up, range(LANES), workers)
    for lane in others:
        for side in first:
            side.merge(lane.pop(0))  # what is merged is given back at once
    fitting = first[0].about_means()
    return fitting, first[1].about_means() if first[1].mass else fitting


def _add(sums: Sums, waiting: list[Rows]) -> None:
    """Take in the rows that wait: a few large products instead of many small ones."""
    if waiting:
        columns = [[getattr(rows, name) for rows in waiting] for name in ("inputs", "targets", "mass")]
        waiting.clear()
        sums.add(*(np.concatenate(column) for column in columns))
