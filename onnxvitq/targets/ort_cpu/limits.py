"""Which linears would saturate on calibration data, on processors that add two products of codes in 16 bits."""

import numpy as np

from onnxvitq.core.parallel import fan_out
from onnxvitq.core.plan import Layers, QuantPlan, linear_groups
from onnxvitq.core.statistics import Statistics
from onnxvitq.core.tensors import FloatArray, IntArray
from onnxvitq.numerics.affine import quantize
from onnxvitq.numerics.dynamic import dynamic_params
from onnxvitq.numerics.saturation import Saturation, estimate_saturation
from onnxvitq.targets.ort_cpu.native import is_native

ROWS = 128  # of a layer's inputs that are looked at


def estimate_linears(layers: Layers, plan: QuantPlan, statistics: Statistics, workers: int) -> dict[str, Saturation]:
    """Name -> estimate, for every planned linear on an integer kernel; of one whose input was not sampled
    (``StatisticsRequest`` rows) only what some input would do.

    Inputs that are divided by each token's size are taken undivided: their codes reach further.
    """
    groups = linear_groups(layers, plan)
    named = [
        (name, tensor) for tensor, names in groups.items() for name in names if is_native(plan.decisions[tensor].spec)
    ]

    def estimate(request: tuple[str, str]) -> Saturation:
        name, tensor = request
        params = plan.params(layers.blockmap.linear(name).weight)
        assert params is not None  # the min-max step ran before
        weight = plan.weights.get(name, layers.weight(name))
        rows = statistics.rows.get(tensor, np.zeros((0, 0, len(weight)), np.float32))
        return estimate_saturation(_codes(plan, tensor, rows), quantize(weight, params))

    return dict(zip((name for name, _ in named), fan_out(estimate, named, workers), strict=True))


def _codes(plan: QuantPlan, tensor: str, rows: FloatArray) -> IntArray:
    """(S, r, C) -> (n, C) codes of some of the rows."""
    samples = rows[:, : max(1, ROWS // max(len(rows), 1))]
    if tensor in plan.dynamic and len(samples):
        return np.concatenate([quantize(sample, dynamic_params(sample)) for sample in samples])
    params = plan.params(tensor)
    assert params is not None  # the min-max step ran before
    return quantize(samples.reshape(-1, samples.shape[-1]), params)
