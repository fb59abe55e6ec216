"""Bits of each layer's weights, where a budget or a promise says how many there may be (``precision``)."""

from collections.abc import Sequence

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, LayerGain, Proposal
from onnxvitq.fit.steps.bias import row_requests
from onnxvitq.precision.allocator import BitAllocator
from onnxvitq.report.records import Section


class ChooseBits:
    """The widths of all layers at once; what is fitted afterwards is fitted to them."""

    name = "bits"

    def runs(self, config: QuantConfig) -> bool:
        """With a budget of bits or bytes, or a promise and widths to choose from."""
        return config.mixed

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """Rows of every linear layer's input, to round weights by."""
        del context
        return row_requests(state.layers, state.plan)

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """The plan with the chosen widths and min-max parameters."""
        network = context.network(state)
        decisions = None if context.config.sized else context.held_out_decisions()
        plan, report = BitAllocator(network, context.held_out(), context.config, decisions).choose()
        count = len(report.chosen.bits)
        return Proposal(
            acceptance=Acceptance.DECIDED,
            plan=plan,
            gain=LayerGain(kept=count, layers=count),
            section=Section(key="precision", content=report),
        )
