"""Blocks learned by gradients (Paper B), from the closed form on. Needs torch, which is loaded when the step runs."""

from collections.abc import Sequence

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, Proposal
from onnxvitq.fit.steps.block_learning.available import require_torch
from onnxvitq.graph.scratch import scratch_error, scratch_folder


class BlockLearning:
    """Every block in turn is made to put out what the float block puts out."""

    name = "reconstruction"

    def runs(self, config: QuantConfig) -> bool:
        """With the method "aiqvit"."""
        return config.learns

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """No statistics, but torch, which had better be missed before the work begins.

        Raises:
            ConfigError: torch is not installed.
        """
        del state, context
        require_torch()
        return ()

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """The plan with what each block learned."""
        from onnxvitq.fit.steps.block_learning.method import Learning

        with scratch_folder() as folder:
            try:
                plan, gain, parts = Learning.of(state, context, folder).reconstruction(state.plan, context.config)
            except OSError as error:
                raise scratch_error(folder, error) from error
        return Proposal(acceptance=Acceptance.ALL_OR_NOTHING, plan=plan, gain=gain, parts=parts)
