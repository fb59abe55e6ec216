"""The promise on decisions (``--max-drop``): bits are raised and layers returned to float until it is kept (``precision``)."""

from collections.abc import Sequence

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, Proposal
from onnxvitq.precision.promise import PromiseKeeper
from onnxvitq.report.records import Section


class KeepPromise:
    """Comes last: it promises something of the model that is written."""

    name = "quality"

    def runs(self, config: QuantConfig) -> bool:
        """With a share of decisions that may be lost."""
        return config.max_drop is not None

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """Nothing beyond the ranges that the baseline asks for."""
        del state, context
        return ()

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """The plan that keeps the promise, or the best there is; whether it does is in the report's section ``quality``."""
        network = context.network(state)
        keeper = PromiseKeeper(network, context.held_out(), context.held_out_decisions(), context.config)
        plan, report = keeper.keep()
        section = Section(key=self.name, content=report)
        return Proposal(acceptance=Acceptance.FINAL, plan=plan, section=section, recorded=False)
