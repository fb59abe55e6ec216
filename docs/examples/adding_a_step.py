"""A step of your own: the scale of every weight becomes a power of two, and is kept only if the output does not suffer."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

import onnxvitq
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.order import ORDER
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, LayerGain, Proposal


class PowerOfTwoScales:
    """Proposes the next power of two above each weight's scales; the runner decides."""

    name = "power-of-two"

    def runs(self, config: QuantConfig) -> bool:
        """Always."""
        del config
        return True

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """Nothing is measured."""
        del state, context
        return ()

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """The plan with other parameters; all weights or none."""
        del context
        fitted = {
            tensor: replace(decision.params, scale=np.exp2(np.ceil(np.log2(decision.params.scale))))
            for tensor, decision in state.plan.decisions.items()
            if decision.site.kind == "weight" and decision.params is not None
        }
        gain = LayerGain(kept=len(fitted), layers=len(fitted))
        return Proposal(acceptance=Acceptance.ALL_OR_NOTHING, plan=state.plan.with_params(fitted), gain=gain)


place = [step.name for step in ORDER].index("bias")
steps = (*ORDER[:place], PowerOfTwoScales(), *ORDER[place:])
config = QuantConfig(effort="fast", num_samples=16)
result = onnxvitq.quantize(
    "models/fashion_vit/model.onnx", "models/fashion_vit/calib", "step_int8.onnx", config, steps=steps
)
for step in result.report.steps:
    print(f"{step.name}: {'kept' if step.accepted else 'dropped'}, output SQNR {step.before} -> {step.after} dB")
