"""The sensitivity report: the output's error with one kind of site of one block quantized, for each. It changes nothing."""

from collections.abc import Sequence

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.evaluation.one_at_a_time import one_at_a_time
from onnxvitq.evaluation.probe import OutputProbe
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, Proposal
from onnxvitq.report.records import Section, SensitivityReport

REPORTED = 8  # held-out samples that it is measured on: each is run once for every part


class ReportSensitivity:
    """Fills in the report's section ``sensitivity``."""

    name = "sensitivity"

    def runs(self, config: QuantConfig) -> bool:
        """Where it is asked for."""
        return config.sensitivity

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """Nothing: the output is measured."""
        del state, context
        return ()

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """No plan, a section."""
        samples = context.held_out(REPORTED)
        probe = OutputProbe(state.graph, state.layers, state.plan, samples, context.config.threads)
        content = SensitivityReport(
            output=context.output,
            outputs=context.outputs,
            samples=len(samples.feeds),
            parts=one_at_a_time(state.layers, state.plan, probe),
        )
        section = Section(key=self.name, content=content)
        return Proposal(acceptance=Acceptance.DECIDED, section=section, recorded=False)
