"""Search for scales by the error of a product's output, one operand at a time in turn.

Paper A's interval search; docs/methods.md, "Interval search".
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from onnxvitq.core.formats import EIGHT_BITS, QParams, TensorFormat
from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.affine import fake_quantize, params_from_range, params_from_steps, weight_steps
from onnxvitq.numerics.objectives import Objective, against

LOWEST, HIGHEST = 0.5, 1.2  # Paper A: alpha and beta, the search range in units of the maximum's scale
# With fewer bits a finer step is worth more clipping than Paper A's alpha allows: of a tail of activations much more.
LOWEST_ACTIVATION = {7: 0.4, 6: 0.3, 5: 0.2, 4: 0.1, 3: 0.1, 2: 0.1}
LOWEST_WEIGHT = {2: 0.3}
OUTPUTS = 256  # columns of a weight that a search looks at: with 384 rows, 10^5 products decide on two numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How far a search goes.

    Attributes:
        candidates: number of scales tried for an operand in a round.
        rounds: most passes over the two operands.
    """

    candidates: int = 16
    rounds: int = 2

    def grid(self, spec: TensorFormat) -> list[float]:
        """Multipliers of the min-max scale, evenly spaced over [0.5, 1.2] (lower for few bits); 1 is always among them."""
        lowest = (LOWEST_WEIGHT if spec.symmetric else LOWEST_ACTIVATION).get(spec.bits, LOWEST)
        return sorted({1.0, *np.linspace(lowest, HIGHEST, self.candidates).round(6).tolist()})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProductFit:
    """The result of a search for the two operands of a product.

    Attributes:
        left: parameters of the left operand (the input of a linear layer).
        right: parameters of the right operand (the weight of a linear layer).
        multiplier: of the right operand's min-max scales.
        loss: the objective with these parameters, on the data that the search looked at.
        minmax_loss: the objective with min-max parameters, on the same data.
    """

    left: QParams
    right: QParams
    multiplier: float
    loss: float
    minmax_loss: float


Candidate = Callable[[float], QParams]


def fit_linear(
    rows: FloatArray,
    weight: FloatArray,
    specs: tuple[TensorFormat, TensorFormat],
    bounds: tuple[float, float],
    objective: Objective,
    search: Search,
) -> ProductFit:
    """Scales of the input and of the weight of y = x W.

    Args:
        rows: (S, r, I) sampled inputs, grouped by image.
        weight: (I, O); several layers that read one input are put side by side along O.
        specs: formats of the input (per tensor) and of the weight (per tensor, or axis 1).
        bounds: lowest and highest value of the input over all calibration data.
        objective: of (reference, approximation), both (S, r, O).
        search: the grid.

    Returns:
        left = the input's parameters, right = the weight's: one multiplier for all its channels, as the paper has one
        interval a layer.
    """
    steps, spec = weight_steps(weight, specs[1]), specs[1]
    some = some_outputs(weight.shape[1])
    looked_at, own = np.ascontiguousarray(weight[:, some]), steps if spec.axis is None else steps[some]
    loss = against(objective, times(rows, looked_at))
    fit = _alternate(
        (rows, looked_at),
        (_range_candidate(bounds, specs[0]), lambda multiplier: params_from_steps(own, spec, multiplier)),
        lambda left, right: loss(times(left, right)),
        search,
    )
    return replace(fit, right=params_from_steps(steps, spec, fit.multiplier))


def some_outputs(count: int) -> slice:
    """At most ``OUTPUTS`` of ``count`` columns, evenly spaced, so that every layer and every head is among them."""
    return slice(None, None, -(-count // OUTPUTS))


def times(rows: FloatArray, weight: FloatArray) -> FloatArray:
    """(S, r, I) @ (I, O) -> (S, r, O) as one product: numpy would compute S small ones."""
    return (rows.reshape(-1, rows.shape[-1]) @ weight).reshape(*rows.shape[:-1], -1)


def fit_product(
    left: FloatArray,
    right: FloatArray,
    specs: tuple[TensorFormat, TensorFormat],
    bounds: tuple[tuple[float, float], tuple[float, float]],
    objective: Objective,
    search: Search,
) -> ProductFit:
    """Scales of both operands of a product of two activations, A = left @ right.

    Args:
        left: (S, L, m, k) sampled rows of the left operand, L heads (or heads x windows).
        right: (S, L, k, n).
        specs: formats of the two, per tensor.
        bounds: (lowest, highest) of each over all calibration data.
        objective: of (reference, approximation), both (S, L, m, n).
        search: the grid.
    """
    loss = against(objective, left @ right)
    return _alternate(
        (left, right),
        (_range_candidate(bounds[0], specs[0]), _range_candidate(bounds[1], specs[1])),
        lambda a, b: loss(a @ b),
        search,
    )


def _range_candidate(bounds: tuple[float, float], spec: TensorFormat) -> Candidate:
    """The function from a multiplier to parameters.

    At 8 bits the multiplier scales both ends of the range, as published. With fewer bits, where clips go deep, only the
    longer side is clipped, and the shorter one stays where the clip does not reach it. Multiplied alike, a GELU's side below
    zero is clipped away with its tail above (validation agreement of the bundled model and its twin at W3A3: 90.4 and 87.6 %
    so, 93.3 and 91.7 % this way; at W8A8 the two are equal).
    """
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)  # zero is always held: a clip may lie below a range above it

    def candidate(multiplier: float) -> QParams:
        if multiplier >= 1 or spec.bits >= EIGHT_BITS:
            return params_from_range(multiplier * low, multiplier * high, spec)
        clip = multiplier * max(-low, high)
        return params_from_range(max(low, -clip), min(high, clip), spec)

    return candidate


def _alternate(
    operands: tuple[FloatArray, FloatArray],
    candidates: tuple[Candidate, Candidate],
    loss_of: Callable[[FloatArray, FloatArray], float],
    search: Search,
) -> ProductFit:
    """Search one operand with the other one fixed, in turn, until a round changes nothing (at most ``search.rounds``).

    The right operand goes first (the weight, as published). Starts from min-max, which is on the grid: never worse.
    """
    best = [1.0, 1.0]
    params = [candidates[0](1.0), candidates[1](1.0)]
    quantized = [fake_quantize(operand, p) for operand, p in zip(operands, params, strict=True)]
    start = lowest = loss_of(quantized[0], quantized[1])
    searched: list[FloatArray | None] = [None, None]  # the other operand that a side was last searched beside
    for _ in range(search.rounds):
        before = tuple(best)
        for side in (1, 0):
            other = quantized[1 - side]
            if searched[side] is other:
                continue  # every candidate would have the loss that it had
            searched[side] = other
            for multiplier in search.grid(params[side].spec):
                trial = candidates[side](multiplier)
                approximation = fake_quantize(operands[side], trial)
                loss = loss_of(approximation, other) if side == 0 else loss_of(other, approximation)
                if loss < lowest:
                    lowest, best[side], params[side], quantized[side] = loss, multiplier, trial, approximation
        if tuple(best) == before:
            break
    return ProductFit(left=params[0], right=params[1], multiplier=best[1], loss=lowest, minmax_loss=start)
