"""What bits are chosen for, and what a promise is kept for: a network with a plan."""

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics
from onnxvitq.targets.registry import DEFAULT_TARGET
from onnxvitq.targets.target import Target


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedNetwork:
    """A network, a plan for it, and the statistics that the plan came from.

    Attributes:
        graph: canonical, exact changes included; never changed.
        layers: what was found in it, and its constants.
        plan: with parameters for every site: min-max ones where bits are to be chosen, fitted ones where a promise is kept.
        statistics: of ``graph`` on the calibration samples.
        target: that the plan is written for.
    """

    graph: gs.Graph
    layers: Layers
    plan: QuantPlan
    statistics: Statistics
    target: Target = DEFAULT_TARGET
