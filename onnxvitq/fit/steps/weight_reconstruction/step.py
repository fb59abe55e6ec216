"""Weights solved again, all of them or none: each is solved against those before it."""

from collections.abc import Sequence
from dataclasses import replace

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.state import FitContext, FitState, token_weights
from onnxvitq.fit.step import Acceptance, Proposal
from onnxvitq.fit.steps.weight_reconstruction.reconstruct import reconstruct_weights
from onnxvitq.fit.steps.weight_reconstruction.solve import WeightReconstruction
from onnxvitq.graph.scratch import scratch_error, scratch_folder
from onnxvitq.runtime.memory import give_back


class WeightReconstructionStep:
    """New weights, scales and biases for every planned linear layer."""

    name = "weights"

    def runs(self, config: QuantConfig) -> bool:
        """Unless the method is "search" or the effort is "fast"."""
        return config.runs("weights")

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """Nothing: it runs the samples itself."""
        del state, context
        return ()

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """The plan with weights solved again."""
        options = WeightReconstruction(
            positions=token_weights(state), threads=context.config.threads, target=context.target
        )
        with scratch_folder() as folder:
            # Not read meanwhile, and this holds more than any other step. Operands are for the scale search alone.
            state.kept.put_aside(folder, lambda known: replace(known, lefts={}, rights={}))
            give_back()  # the graph before the last exact change, too
            try:
                plan, gain = reconstruct_weights(
                    state.graph, state.layers, state.plan, context.dataset, folder, options
                )
            except OSError as error:
                raise scratch_error(folder, error) from error
            state.kept.take_back()
        return Proposal(acceptance=Acceptance.ALL_OR_NOTHING, plan=plan, gain=gain)
