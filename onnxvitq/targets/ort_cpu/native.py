"""Which formats onnxruntime's CPU provider has integer kernels of; the others are simulated."""

from collections.abc import Sequence

from onnxvitq.core.formats import PerTensor, TensorFormat
from onnxvitq.core.plan import QuantPlan

UNSIGNED_BITS = 8  # of the left operand of QGemm and QLinearMatMul: uint8, or fewer bits in it


def is_native(activation: TensorFormat) -> bool:
    """Whether kernels read activations of that format."""
    number = activation.number
    return not number.signed and number.bits <= UNSIGNED_BITS and activation.granularity == PerTensor()


def why_simulated(plan: QuantPlan, tensors: Sequence[str]) -> str:
    """Why a product of these activations is simulated; "" where it is not, or is not planned."""
    decisions = [plan.decisions[tensor] for tensor in tensors if tensor in plan.decisions]
    foreign = [
        decision.spec for decision in decisions if decision.site.kind != "weight" and not is_native(decision.spec)
    ]
    if not foreign:
        return ""
    return f"simulated: onnxruntime's CPU provider has no integer kernel of {foreign[0].number} activations"
