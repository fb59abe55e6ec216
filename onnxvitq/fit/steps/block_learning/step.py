"""Blocks learned by gradients (Paper B), from the closed form on. Needs torch, which is loaded when the step runs."""

from collections.abc import Sequence

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.state import FitContext, FitState, token_weights
from onnxvitq.fit.step import Acceptance, LayerGain, Proposal
from onnxvitq.fit.steps.block_learning.available import require_torch
from onnxvitq.fit.steps.block_learning.checkpoint import BlockOutcome
from onnxvitq.graph.scratch import scratch_error, scratch_folder
from onnxvitq.report.records import Part


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
        """The plan with what each block learned, where that is better on held-out samples of the block."""
        from onnxvitq.fit.steps.block_learning.reconstruct import reconstruct
        from onnxvitq.fit.steps.block_learning.training import Reconstruction

        config = context.config
        options = Reconstruction(
            iterations=config.iterations,
            curriculum=config.curriculum,
            positions=token_weights(state),
            seed=config.seed,
            threads=config.threads,
            target=context.target,
            checkpoint=context.checkpoint,
            progress=lambda done, total, loss: context.progress(f"learn (loss {loss:.3g})", done, total),
        )
        with scratch_folder() as folder:
            try:
                plan, outcomes = reconstruct(state.graph, state.layers, state.plan, context.dataset, folder, options)
            except OSError as error:
                raise scratch_error(folder, error) from error
        return Proposal(
            acceptance=Acceptance.ALL_OR_NOTHING,
            plan=plan,
            gain=LayerGain(kept=sum(outcome.kept for outcome in outcomes), layers=len(outcomes)),
            parts=tuple(map(block_part, outcomes)),
        )


def block_part(outcome: BlockOutcome) -> Part:
    """What became of a block, for the report: dB of its own outputs on held-out samples."""
    return Part(
        part=f"block {outcome.block}",
        accepted=outcome.kept,
        before=outcome.before,
        after=outcome.after,
        figures={"unit": outcome.block, "kept": outcome.kept, "reason": outcome.reason},
    )
