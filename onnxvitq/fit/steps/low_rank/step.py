"""Branches of low rank beside the linear layers, in closed form (Paper B): they cost time and bytes, so they have to gain."""

from collections.abc import Sequence

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.plan import QuantPlan
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, Proposal
from onnxvitq.fit.steps.low_rank.branches import branch_time
from onnxvitq.graph.scratch import scratch_error, scratch_folder
from onnxvitq.report.records import Part
from onnxvitq.targets.ort_cpu.branches import branch_bytes


class LowRankBranches:
    """A branch for each linear layer that the budget has room for."""

    name = "branches"

    def runs(self, config: QuantConfig) -> bool:
        """With the method "aiqvit"."""
        return config.learns

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """Nothing: it runs the samples itself."""
        del state, context
        return ()

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """The plan with branches."""
        from onnxvitq.fit.steps.block_learning.method import Learning  # torch is loaded only when asked for

        with scratch_folder() as folder:
            try:
                plan, gain = Learning.of(state, context, folder).branches(state.plan, context.config)
            except OSError as error:
                raise scratch_error(folder, error) from error
        return Proposal(acceptance=Acceptance.MUST_GAIN, plan=plan, gain=gain, parts=branch_parts(plan))


def branch_parts(plan: QuantPlan) -> tuple[Part, ...]:
    """Rank, bytes and time of each branch; the time over that of the layer's own product."""
    return tuple(
        Part(
            part=name,
            figures={
                "rank": branch.rank,
                "bytes": branch_bytes(branch),
                "time": round(branch_time(branch), 3),
            },
        )
        for name, branch in plan.branches.items()
    )
