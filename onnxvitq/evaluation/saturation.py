"""Which linears would saturate on calibration data, on processors that add two products of codes in 16 bits."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from onnxvitq.core.plan import Layers
from onnxvitq.numerics.saturation import Saturation


def describe_saturation(layers: Layers, found: Mapping[str, Saturation]) -> dict[str, Any]:
    """For the report: how many linears were looked at, and those that some input saturates, the worst first."""
    members = [
        {"name": name, "role": layers.blockmap.linear(name).role, **asdict(one), "at_risk": one.at_risk}
        for name, one in sorted(found.items(), key=lambda entry: -entry[1].largest)
        if one.pairs
    ]
    return {"looked_at": len(found), "at_risk": sum(one.at_risk for one in found.values()), "layers": members}
