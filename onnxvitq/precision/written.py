"""What the file of a choice of widths weighs: it is written, as what unpacking adds depends on the widths."""

from collections.abc import Sequence
from dataclasses import dataclass

from onnxvitq.core.plan import QuantPlan
from onnxvitq.graph.writing import to_proto
from onnxvitq.precision.costs import WidthCosts
from onnxvitq.precision.groups import with_fitted_widths
from onnxvitq.precision.network import PlannedNetwork

RECIPE = 4096  # bytes kept free for what the written file says of itself


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WrittenChoice:
    """A choice as it would be written.

    Attributes:
        plan: with the chosen formats and min-max parameters.
        other_bytes: of the file, that are no weights of the groups.
        weight_bytes: of the groups' weights.
    """

    plan: QuantPlan
    other_bytes: float
    weight_bytes: float

    @property
    def file_bytes(self) -> float:
        """Of the whole file."""
        return self.other_bytes + self.weight_bytes


class WrittenChoices:
    """Makes the file of a choice when it is first asked for: most choices never are.

    Args:
        network: its plan has min-max parameters.
        costs: whose choices these are.
    """

    def __init__(self, network: PlannedNetwork, costs: WidthCosts) -> None:
        self._network, self._costs = network, costs
        self._known: dict[tuple[int, ...], WrittenChoice] = {}

    def __call__(self, choice: Sequence[int]) -> WrittenChoice:
        """The written choice (the number of an option for each group)."""
        key = tuple(choice)
        if key not in self._known:
            network, costs = self._network, self._costs
            plan = with_fitted_widths(network.layers, network.plan, costs.groups, costs.bits(choice))
            proto = to_proto(network.target.write(network.graph, network.layers, plan, packed=True), {})
            weights = costs.size(choice) / 8
            other = proto.ByteSize() + RECIPE - weights
            self._known[key] = WrittenChoice(plan=plan, other_bytes=other, weight_bytes=weights)
        return self._known[key]
