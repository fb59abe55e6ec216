"""Activations of fewer than 8 bits: codes in uint8 that never leave 0 .. 2^bits - 1, as the plan has it.

QuantizeLinear saturates at 0 and at 255 only. The lower end of a narrow range is put at 0, and a Clip of the codes keeps the
upper one. (Of the codes, not of the values: onnxruntime moves a quantizer up through the splitting of heads into the integer
product before it, and a bound on the values would be in its way; measured, 7 to 10 % of a ViT-S's time.) Where the tensor has a
lowest possible value within the range (a softmax's 0, a GELU's -0.17), the whole range is moved up to end at 255 instead:
then the upper end saturates, the lower one is out of reach, and nothing is added.
"""

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.blocks.patterns import ACTIVATION
from onnxvitq.core.formats import QParams
from onnxvitq.graph.pattern import Match, match, producer

MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
NEVER_NEGATIVE = frozenset({"Softmax", "Exp"})
# The lowest value of each activation (a little below it, for rounding), by the label of the pattern that finds it.
LOWEST = {
    **dict.fromkeys(("gelu_op", "gelu_half_last", "gelu_half_first", "gelu_half_inside"), -0.1701),
    **dict.fromkeys(("gelu_tanh_half_last", "gelu_tanh_half_first"), -0.1701),
    "quick_gelu": -0.1637,
    "silu": -0.2785,
    **dict.fromkeys(("hard_swish", "hard_swish_sigmoid", "hard_swish_clip"), -0.3751),
    "mish": -0.3089,
    **dict.fromkeys(("relu", "relu_squared", "sigmoid"), 0.0),
    "tanh": -1.0,
}
LARGEST_CODE = 255


def lowest_value(tensor: gs.Tensor) -> float:
    """The least value that a tensor can take, by what computes it; -inf where that does not tell."""
    made = producer(tensor)
    while made is not None and made.op in MOVES:
        tensor = made.inputs[0]
        made = producer(tensor)
    if made is None:
        return -np.inf
    if made.op in NEVER_NEGATIVE:
        return 0.0
    found = match(ACTIVATION, tensor)
    return LOWEST.get(found.tags["activation"], -np.inf) if isinstance(found, Match) else -np.inf


def narrow_range(params: QParams, lowest: float) -> tuple[np.ndarray, bool]:
    """How uint8 codes keep within the plan's range: the zero point to write, and whether codes need a Clip at ``qmax``.

    Args:
        params: of an activation, unsigned and per tensor.
        lowest: value the tensor can take.

    Returns:
        The zero point, uint8, moved up by 255 - qmax where that makes saturation enough; else that of the plan.
    """
    room = LARGEST_CODE - params.spec.qmax
    zero = int(params.zero_point)
    moved = np.rint(lowest / float(params.scale)) + zero >= 0
    return np.array(zero + room * moved, np.uint8), room > 0 and not moved
