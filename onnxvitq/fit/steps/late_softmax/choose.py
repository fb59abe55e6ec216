"""Which attentions divide late: exp(S - max S) quantized, and the product divided by the row sums of the codes.

A softmax output is small and uneven: at 197 tokens its mean is 1.3 steps of 1 / 255. The exponentials fill [0, 1] in every row.
"""

import numpy as np

from onnxvitq.core.formats import TensorFormat
from onnxvitq.core.layers import Attention
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics
from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.affine import fake_quantize, params_from_range
from onnxvitq.numerics.decibels import gain_db

WORTH_DB = 3.0  # of an attention's own result; each costs about 0.3 % of a ViT-S's time


def attentions_to_divide_late(layers: Layers, plan: QuantPlan, stats: Statistics) -> dict[str, float]:
    """Attention name -> gain in dB of its result, where it is worth it.

    Reads the sampled operands of the product with V (``Statistics.lefts`` and ``rights``).
    """
    gains: dict[str, float] = {}
    for attention in layers.blockmap.attentions:
        planned = _is_plain(attention) and attention.probs in plan.decisions
        if planned and stats.has_pairs(attention.probs, attention.value):
            probs, value = stats.lefts[attention.probs], stats.rights[attention.value]
            gain = _gain(probs, value, plan.decisions[attention.probs].spec)
            if gain >= WORTH_DB:
                gains[attention.name] = round(gain, 2)
    return gains


def _is_plain(attention: Attention) -> bool:
    return attention.direct and attention.probs_first


def _gain(probs: FloatArray, value: FloatArray, spec: TensorFormat) -> float:
    """How much nearer to P V the late division comes: (S, L, m, k) rows of P, (S, L, k, n)."""
    reference = probs @ value
    plain = fake_quantize(probs, params_from_range(0.0, float(probs.max()), spec)) @ value
    exponentials = fake_quantize(probs / probs.max(axis=-1, keepdims=True), params_from_range(0.0, 1.0, spec))
    late = exponentials @ value / exponentials.sum(axis=-1, keepdims=True)
    noise = [float(np.square(got - reference, dtype=np.float64).mean()) for got in (plain, late)]
    return gain_db(noise[0], noise[1], float(np.square(reference, dtype=np.float64).mean()))
