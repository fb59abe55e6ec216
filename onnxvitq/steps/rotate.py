"""Which residual streams are rotated before anything is quantized: exact in float, and easier to quantize.

A rotation is worth having where the linears that read the stream's norms err less on held-out rows, each norm with the best
shift and scale of its channels before, and with the best one after: what a scale a channel can do is no reason to rotate.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxvitq.blockmap import Linear, Norm, Stream
from onnxvitq.numerics.rotation import rotation
from onnxvitq.plan import Problem, QuantPlan, Rotation
from onnxvitq.spec import FloatArray, Stats
from onnxvitq.steps.reparametrise import layers_of, norm_candidates

TINY = 1e-30  # an error below every error


def choose_rotations(
    problem: Problem, plan: QuantPlan, stats: Stats, streams: Sequence[Stream], seed: int
) -> list[Rotation]:
    """The streams whose norms' readers err less on held-out rows when they are rotated, on average over the norms in dB.

    Args:
        problem: the graph's layers.
        plan: their formats.
        stats: rows of the norms.
        streams: of the graph.
        seed: of the matrices; each stream has its own.
    """
    chosen: list[Rotation] = []
    for index, stream in enumerate(streams):
        matrix = rotation(stream.width, seed + index)
        gains = [_gain(problem, plan, stats.rows, reading, matrix) for reading in _readings(problem, plan, stream)]
        if gains and np.mean(gains) > 0:
            chosen.append(Rotation(stream=stream, matrix=matrix, gain_db=round(float(np.mean(gains)), 2)))
    return chosen


_Reading = tuple[Norm, list[Linear]]  # a norm, and the linears that read it


def _readings(problem: Problem, plan: QuantPlan, stream: Stream) -> Iterator[_Reading]:
    """The norms of a stream that only quantized linears read, directly."""
    norms = {norm.name: norm for norm in problem.blockmap.norms}
    for name, names in stream.norms:
        norm, readers = norms[name], [problem.blockmap.linear(reader) for reader in names]
        if norm.only_linears and norm.output in plan.decisions and all(one.weight in plan.decisions for one in readers):
            yield norm, readers


def _gain(
    problem: Problem, plan: QuantPlan, rows: Mapping[str, FloatArray], reading: _Reading, matrix: NDArray[np.float64]
) -> float:
    """How many dB less the readers err with the stream rotated: the same function of x Q, gamma and beta folded."""
    norm, readers = reading
    weight, bias = layers_of(problem, readers)
    gamma = problem.constants[norm.gamma].reshape(-1)
    beta = problem.constants[norm.beta].reshape(-1) if norm.beta else np.zeros_like(gamma)
    shifted = bool(norm.beta) and all(one.bias for one in readers)
    turned = ((rows[norm.output] - beta) / gamma @ matrix).astype(np.float32)
    layers = (matrix.T @ (gamma[:, None] * weight)).astype(np.float32), (bias + beta @ weight).astype(np.float32)
    straight = norm_candidates((weight, bias), plan, rows[norm.output], readers, shifted=shifted)
    rotated = norm_candidates(layers, plan, turned, readers, shifted=bool(norm.beta))
    before, after = (min(map(noise, candidates)) for candidates, noise in (straight, rotated))
    return 10 * float(np.log10(max(before, TINY) / max(after, TINY)))
