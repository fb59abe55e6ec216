"""Which linears would saturate on calibration data, on processors that add two products of codes in 16 bits."""

from dataclasses import asdict
from typing import Any

import numpy as np

from onnxvitq.core.parallel import fan_out
from onnxvitq.core.plan import Layers, QuantPlan, linear_groups
from onnxvitq.core.statistics import Statistics
from onnxvitq.core.tensors import FloatArray, IntArray
from onnxvitq.numerics.affine import quantize
from onnxvitq.numerics.dynamic import dynamic_params
from onnxvitq.numerics.saturation import Saturation, estimate_saturation

ROWS = 128  # of a layer's inputs that are looked at


def estimate_linears(layers: Layers, plan: QuantPlan, stats: Statistics, workers: int) -> dict[str, Saturation]:
    """Name -> estimate, for every planned linear; of one whose input was not sampled
    (``StatisticsRequest`` of rows) only what some input would do.

    Inputs that are divided by each token's size are taken undivided: their codes reach further.
    """
    groups = linear_groups(layers, plan)
    named = [(name, tensor) for tensor, names in groups.items() for name in names]

    def estimate(one: tuple[str, str]) -> Saturation:
        name, tensor = one
        params = plan.params(layers.blockmap.linear(name).weight)
        assert params is not None  # the min-max step ran before
        weight = plan.weights.get(name, layers.weight(name))
        rows = stats.rows.get(tensor, np.zeros((0, 0, len(weight)), np.float32))
        return estimate_saturation(_codes(plan, tensor, rows), quantize(weight, params))

    return dict(zip((name for name, _ in named), fan_out(estimate, named, workers), strict=True))


def describe_saturation(layers: Layers, found: dict[str, Saturation]) -> dict[str, Any]:
    """For the report: how many linears were looked at, and those that some input saturates, the worst first."""
    members = [
        {"name": name, "role": layers.blockmap.linear(name).role, **asdict(one), "at_risk": one.at_risk}
        for name, one in sorted(found.items(), key=lambda entry: -entry[1].largest)
        if one.pairs
    ]
    return {"looked_at": len(found), "at_risk": sum(one.at_risk for one in found.values()), "layers": members}


def _codes(plan: QuantPlan, tensor: str, rows: FloatArray) -> IntArray:
    """(S, r, C) -> (n, C) codes of some of the rows."""
    samples = rows[:, : max(1, ROWS // max(len(rows), 1))]
    if tensor in plan.dynamic and len(samples):
        return np.concatenate([quantize(sample, dynamic_params(sample)) for sample in samples])
    params = plan.params(tensor)
    assert params is not None  # the min-max step ran before
    return quantize(samples.reshape(-1, samples.shape[-1]), params)
