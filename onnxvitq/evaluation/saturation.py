"""Which linears would saturate on calibration data, on processors that add two products of codes in 16 bits."""

from collections.abc import Mapping

from onnxvitq.core.plan import Layers
from onnxvitq.numerics.saturation import Saturation
from onnxvitq.report.model_records import SaturatedLayer, SaturationReport


def describe_saturation(layers: Layers, found: Mapping[str, Saturation]) -> SaturationReport:
    """How many linears were looked at, and those that some input saturates, the worst first."""
    members = tuple(
        SaturatedLayer(
            name=name,
            role=layers.blockmap.linear(name).role,
            pairs=saturation.pairs,
            largest=saturation.largest,
            cut=saturation.cut,
            at_risk=saturation.at_risk,
        )
        for name, saturation in sorted(found.items(), key=lambda entry: -entry[1].largest)
        if saturation.pairs
    )
    at_risk = sum(saturation.at_risk for saturation in found.values())
    return SaturationReport(looked_at=len(found), at_risk=at_risk, layers=members)
