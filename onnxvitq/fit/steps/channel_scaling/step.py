"""The two choices of channel scalings: folded into constants, or written as an operator."""

from collections.abc import Sequence

from onnxvitq.calibration.propagate import Change
from onnxvitq.core.plan import ChannelScaling
from onnxvitq.core.quantize_options import StepName
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.steps.channel_scaling.choose import choose_online_scalings, choose_scalings
from onnxvitq.report.records import Part


class FoldedScalings:
    """Channels of normalisations, values, queries and keys: folded into constants, free at run time."""

    name: StepName = "channels"

    def choose(self, state: FitState, context: FitContext) -> tuple[Change, tuple[Part, ...]]:
        """Scalings that quantize better on held-out rows."""
        return _change(choose_scalings(state.layers, state.plan, state.statistics, context.config.threads))


class OnlineScalings:
    """Channels that nothing before them takes the scale of: a Mul is written, which costs time."""

    name: StepName = "online-channels"

    def choose(self, state: FitState, context: FitContext) -> tuple[Change, tuple[Part, ...]]:
        """Scalings that gain enough on held-out rows to be worth an operator."""
        return _change(choose_online_scalings(state.layers, state.plan, state.statistics, context.config.threads))


def _change(scalings: Sequence[ChannelScaling]) -> tuple[Change, tuple[Part, ...]]:
    parts = tuple(
        Part(part=f"{scaling.kind} {scaling.source}", figures={"gain_db": scaling.gain_db}) for scaling in scalings
    )
    return Change(scalings=tuple(scalings)), parts
