"""Second moments of a layer's rows over all samples: those that are fitted to, and those held out.

Shapes: I inputs, O outputs, n rows of one sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxvitq.fanout import fan_out
from onnxvitq.numerics.moments import CHUNK, Moments, add, empty, merge
from onnxvitq.spec import FloatArray
from onnxvitq.steps.step import HELD_OUT_EVERY, is_held_out

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

    def sum_up(lane: int) -> list[Moments]:
        sums = [empty(*shape), empty(*shape)]
        waiting: list[list[Rows]] = [[], []]
        for sample in (one for one in range(samples) if one // HELD_OUT_EVERY % LANES == lane):
            side, rows = int(is_held_out(sample)), rows_of(sample)
            if sum(len(one.mass) for one in (*waiting[side], rows)) > CHUNK:
                sums[side] = _added(sums[side], waiting[side])
            waiting[side].append(rows)
        return [_added(total, rows) for total, rows in zip(sums, waiting, strict=True)]

    lanes = fan_out(sum_up, range(LANES), workers)
    fitting, held = (merge(*(lane.pop(0) for lane in lanes)) for _ in range(2))  # what is merged is given back at once
    return (fitting, held) if held.mass else (fitting, fitting)


def _added(sums: Moments, waiting: list[Rows]) -> Moments:
    """The sums with the waiting rows, which wait no longer: a few large products instead of many small ones."""
    if not waiting:
        return sums
    columns = [[getattr(rows, name) for rows in waiting] for name in ("inputs", "targets", "mass")]
    waiting.clear()
    inputs, targets, mass = (np.concatenate(column) for column in columns)
    return add(sums, inputs, targets, mass)
