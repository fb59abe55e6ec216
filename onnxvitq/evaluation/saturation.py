"""Which linears would saturate on calibration data, on processors that add two products of codes in 16 bits."""

from dataclasses import asdict
from typing import Any

from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics
from onnxvitq.numerics.saturation import Saturation
from onnxvitq.targets.registry import DEFAULT_TARGET
from onnxvitq.targets.target import Target


def estimate_linears(
    layers: Layers, plan: QuantPlan, stats: Statistics, workers: int, target: Target = DEFAULT_TARGET
) -> dict[str, Saturation]:
    """Name -> estimate, for every planned linear on an integer kernel of the target."""
    return dict(target.estimate_saturation(layers, plan, stats, workers))


def describe_saturation(layers: Layers, found: dict[str, Saturation]) -> dict[str, Any]:
    """For the report: how many linears were looked at, and those that some input saturates, the worst first."""
    members = [
        {"name": name, "role": layers.blockmap.linear(name).role, **asdict(one), "at_risk": one.at_risk}
        for name, one in sorted(found.items(), key=lambda entry: -entry[1].largest)
        if one.pairs
    ]
    return {"looked_at": len(found), "at_risk": sum(one.at_risk for one in found.values()), "layers": members}
