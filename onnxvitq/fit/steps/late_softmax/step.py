"""The choice of attentions whose softmax is divided after the product with V."""

from onnxvitq.calibration.propagate import Change
from onnxvitq.core.quantize_options import StepName
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.steps.late_softmax.choose import attentions_to_divide_late
from onnxvitq.report.records import Part


class LateSoftmax:
    """Exponentials instead of quotients are quantized, where an attention's own result gains from it.

    It reads the operands that the scale search asks for and asks for none itself: without that search (effort "fast") nothing
    is divided late.
    """

    name: StepName = "softmax"

    def choose(self, state: FitState, context: FitContext) -> tuple[Change, tuple[Part, ...]]:
        """Attentions that gain; none where products with V may be in float, which is as fast, and exact."""
        if context.config.product_form == "mixed":
            return Change(), ()
        gains = attentions_to_divide_late(state.layers, state.plan, state.statistics)
        parts = tuple(Part(part=f"softmax {name}", figures={"gain_db": gain}) for name, gain in gains.items())
        return Change(late=tuple(gains)), parts
