"""Residual streams turned by a Hadamard rotation (``--also rotation``): exact under layer normalisation, and folded."""

from collections.abc import Sequence

from onnxvitq.blocks.streams import find_streams
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.exact_changes import REASON, exact_proposal
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Proposal
from onnxvitq.fit.steps.channel_scaling.choose import scaling_requests
from onnxvitq.fit.steps.rotation.rewrite import rotate_streams
from onnxvitq.report.records import Part


class Rotation:
    """Every residual stream that is linear in its channels is turned."""

    name = "rotation"

    def runs(self, config: QuantConfig) -> bool:
        """Where it is asked for: no effort rotates by itself."""
        return config.runs("rotation")

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """As the channel scalings that follow it."""
        del context
        return scaling_requests(state.layers.blockmap)

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """The graph with all such streams turned; no statistics follow a rotation."""
        streams, misses = find_streams(state.graph, state.layers.blockmap)
        parts = [
            Part(part=f"stream {stream.name}", figures={"channels": stream.width, "norms": len(stream.norms)})
            for stream in streams
        ]
        parts += [Part(part=f"stream {miss.name}", figures={REASON: miss.reason}) for miss in misses]
        graph = rotate_streams(state.graph, state.layers.blockmap, streams, context.config.seed)
        return exact_proposal(tuple(parts), graph, None)
