"""Second moments of a layer's rows over all samples: those that are fitted to, and those held out.

Shapes: I inputs, O outputs, n rows of one sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxvitq.calibration.held_out import HELD_OUT_EVERY, is_held_out
from onnxvitq.core.parallel import fan_out
from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.moments import CHUNK, Moments, Sums

LANES = 2  # of samples that are summed side by side; a fixed number, or the sums would depend on the machine's cores


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Of one sample: quantized inputs (n, I), targets (n, O), weights of the rows (n,)."""

    inputs: FloatArray
    targets: FloatArray
    mass: FloatArray


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
        for sample in (one for one in range(samples) if one // HELD_OUT_EVERY % LANES == lane):
            side, rows = int(is_held_out(sample)), rows_of(sample)
            if sum(len(one.mass) for one in (*waiting[side], rows)) > CHUNK:
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
