"""The multiple-choice knapsack problem, solved exactly: one option a group, least sum of errors, sum of sizes in a budget.

Groups are taken one after the other. Of the partial sums only those are kept that no other beats in both size and error
(Pareto) and, for one budget, only those that can still lead to a better choice than the best one known: the remaining groups
contribute at least the bound of their linear relaxation (the lower convex hull of each group's options, its steps taken in the
order of gain per size).

Paper A (docs/methods.md, "Nuclear norm criterion") picks from the Pareto front by its sum Omega; it is
additive, so nothing needs enumerating.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxvitq.core.tensors import DoubleArray, LongArray

Sizes = Sequence[LongArray]  # of each group: (options,)
Errors = Sequence[DoubleArray]  # of each group: (options,)
Origin = tuple[
    LongArray, LongArray
]  # of each partial sum: index of the sum that it extends, and the option that was added
MOST_POINTS = 100_000  # points of a front; where more sums differ, sizes are counted in coarser steps
SLACK = 1e-12  # relative; two sums of the same errors in another order may differ by it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Front:
    """The P choices that no other choice beats in both size and error, smallest first.

    Attributes:
        sizes: (P,), sum of sizes, rising.
        errors: (P,), sum of errors, falling.
        choices: (P, groups), index of each group's option.
    """

    sizes: LongArray
    errors: DoubleArray
    choices: LongArray


def pareto_front(sizes: Sizes, errors: Errors) -> Front:
    """The Pareto front of all choices.

    Args:
        sizes: of each group, the size of each option, (options,).
        errors: of each group, the error of each option, (options,).

    It is exact as long as there are at most ``MOST_POINTS`` different sums of sizes in units of their greatest common divisor
    (of layers whose widths are multiples of 64 there are some thousands). Beyond, sizes are rounded up to a coarser step
    while points are compared, and a point may be missing that is smaller than its neighbour by less than one such step a
    group; the sizes that are returned are exact.
    """
    unit = math.gcd(*(int(size) for options in sizes for size in options)) or 1
    unit = max(unit, -(-sum(int(options.max()) for options in sizes) // MOST_POINTS))
    rounded = [-(-options // unit) for options in sizes]
    total, error = np.zeros(1, np.int64), np.zeros(1)
    steps: list[Origin] = []
    for size, cost in zip(rounded, errors, strict=True):
        total, error, added = _extended(total, error, size, cost)
        steps.append(added)
    choices = _choices(steps, np.arange(len(total)))
    true = sum((options[choices[:, index]] for index, options in enumerate(sizes)), np.zeros(len(total), np.int64))
    kept = _nondominated(true, error)
    return Front(sizes=true[kept], errors=error[kept], choices=choices[kept])


def least_error(sizes: Sizes, errors: Errors, budget: float) -> tuple[int, ...]:
    """The index of each group's option with the least sum of errors whose sum of sizes is at most ``budget``.

    Raises:
        ValueError: even the smallest options exceed the budget.
    """
    return _minimise(_as_floats(errors), _as_floats(sizes), budget)


def _as_floats(values: Sizes | Errors) -> list[DoubleArray]:
    return [np.asarray(options, np.float64) for options in values]  # sizes are whole numbers far below 2 ** 53


def _extended(
    total: LongArray, error: DoubleArray, size: LongArray, cost: DoubleArray
) -> tuple[LongArray, DoubleArray, Origin]:
    """(sizes, errors, origins) of all sums extended by one more group, without those that another sum beats."""
    sizes, errors = (total[:, None] + size).reshape(-1), (error[:, None] + cost).reshape(-1)
    kept = _nondominated(sizes, errors)
    return sizes[kept], errors[kept], (kept // len(size), kept % len(size))


def _nondominated(sizes: LongArray | DoubleArray, errors: DoubleArray) -> LongArray:
    """Indices of the points that no other point beats, sorted by size; of equal points the first."""
    order = np.lexsort((errors, sizes))
    falling = errors[order]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(falling)[:-1]])
    return order[falling < best_before]


def _choices(steps: Sequence[Origin], positions: LongArray) -> LongArray:
    """(P, groups): the options that led to the last group's sums at these positions."""
    found = np.empty((len(positions), len(steps)), np.int64)
    for group in range(len(steps) - 1, -1, -1):
        parents, options = steps[group]
        found[:, group], positions = options[positions], parents[positions]
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Relaxed:
    """The linear relaxation of some groups: the least cost that any total weight allows, linear between breaks.

    Attributes:
        breaks: (B,), total weights at which the slope changes, rising.
        bounds: (B,), least cost at each of them.
        steps: (group, weight, cost) that lead from each break to the next, best gain per weight first.
    """

    breaks: DoubleArray
    bounds: DoubleArray
    steps: tuple[tuple[int, float, float], ...]


def _hull(cost: DoubleArray, weight: DoubleArray) -> list[tuple[float, float]]:
    """Lower convex hull of one group's options as (weight, cost), from the lightest on."""
    hull: list[tuple[float, float]] = []
    for w, c in sorted(zip(weight.tolist(), cost.tolist(), strict=True)):
        if hull and c >= hull[-1][1]:
            continue
        while len(hull) > 1:
            (w0, c0), (w1, c1) = hull[-2:]
            if (c1 - c0) * (w - w0) < (c - c0) * (w1 - w0):
                break
            hull.pop()
        hull.append((w, c))
    return hull


def _relaxed(hulls: Sequence[list[tuple[float, float]]]) -> _Relaxed:
    steps = [
        (group, w1 - w0, c1 - c0) for group, hull in enumerate(hulls) for (w0, c0), (w1, c1) in itertools.pairwise(hull)
    ]
    steps.sort(key=lambda step: step[2] / step[1])
    start = (sum(hull[0][0] for hull in hulls), sum(hull[0][1] for hull in hulls))
    return _Relaxed(
        breaks=np.cumsum([start[0], *(step[1] for step in steps)]),
        bounds=np.cumsum([start[1], *(step[2] for step in steps)]),
        steps=tuple(steps),
    )


def _reached(relaxed: _Relaxed, limit: float) -> float:
    """The cost of a choice within the limit, found by taking the relaxation's steps that fit, each group's in order."""
    weight, cost = float(relaxed.breaks[0]), float(relaxed.bounds[0])
    stopped: set[int] = set()
    for group, more, gain in relaxed.steps:
        if group in stopped or weight + more > limit:
            stopped.add(group)
        else:
            weight, cost = weight + more, cost + gain
    return cost


def _minimise(costs: Sequence[DoubleArray], weights: Sequence[DoubleArray], limit: float) -> tuple[int, ...]:
    """The option of each group with the least sum of costs whose sum of weights is within the limit."""
    hulls = [_hull(cost, weight) for cost, weight in zip(costs, weights, strict=True)]
    first = _relaxed(hulls)
    heaviest, dearest = (sum(float(options.max()) for options in values) for values in (weights, costs))
    most = limit + SLACK * heaviest
    if first.breaks[0] > most:
        raise ValueError(f"expected a limit of at least {first.breaks[0]:.6g}, got {limit:.6g}")
    known = _reached(first, most) + SLACK * dearest
    weight, cost = np.zeros(1), np.zeros(1)
    steps: list[tuple[LongArray, LongArray]] = []
    for group, (group_cost, group_weight) in enumerate(zip(costs, weights, strict=True)):
        spent, sums = (weight[:, None] + group_weight).reshape(-1), (cost[:, None] + group_cost).reshape(-1)
        rest = _relaxed(hulls[group + 1 :])
        room = most - spent
        promising = (room >= rest.breaks[0]) & (sums + np.interp(room, rest.breaks, rest.bounds) <= known)
        positions = np.flatnonzero(promising)
        kept = positions[_nondominated(spent[positions], sums[positions])]
        weight, cost = spent[kept], sums[kept]
        steps.append((kept // len(group_cost), kept % len(group_cost)))
    position = np.array([int(np.argmin(cost))])
    return tuple(int(option) for option in _choices(steps, position)[0])
