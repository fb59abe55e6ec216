"""Linear layers whose input's range is measured at run time.

DynamicQuantizeLinear, MatMulInteger, Cast, Mul and Add, of standard operators too: onnxruntime fuses them with the bias, for
any shape (DynamicQuantizeMatMul; MatMulIntegerToFloat where several linears share the input: it is quantized once then).
"""

import numpy as np

from onnxvitq.core.layers import Linear
from onnxvitq.graph.pattern import producer
from onnxvitq.targets.ort_cpu.activations import ActivationWriter
from onnxvitq.targets.ort_cpu.draft import Draft, integer_name
from onnxvitq.targets.ort_cpu.weights import WeightWriter


class DynamicLinearWriter:
    """Writes linears into one graph."""

    def __init__(self, draft: Draft, activations: ActivationWriter, weights: WeightWriter) -> None:
        self._draft, self._edit = draft, draft.edit
        self._activations, self._weights = activations, weights

    def write(self, linear: Linear) -> None:
        """X W + b -> scale of x (,) * scales of W (O,) * MatMulInteger(codes of x, W int8) + b, of any rank."""
        draft, edit, name = self._draft, self._edit, linear.name
        weight_params = draft.plan.params(linear.weight)
        assert weight_params is not None  # planned_linear said so
        x, largest = draft.nodes[name].inputs[0], None  # of the plan's input, perhaps one position
        if linear.input in draft.plan.per_token:
            x, largest = self._activations.divided_rows(x)
        codes, scale, zero = self._activations.measured(x)
        dequantize = producer(self._weights.weight(linear, weight_params))
        assert dequantize is not None
        weight, weight_scale, weight_zero = dequantize.inputs
        output = draft.cut(linear)
        sums = edit.node("MatMulInteger", integer_name(name), [codes, weight, zero, weight_zero], dtype=np.int32)
        real = edit.node("Cast", f"{name}_sums", [sums], to=np.float32)
        scales = edit.node("Mul", f"{name}_scales", [scale, weight_scale])
        result = edit.node("Mul", f"{name}_scaled", [real, scales])
        if largest is not None:
            result = edit.node("Mul", f"{name}_rows", [result, largest])
        if linear.bias or name in draft.plan.biases:
            result = edit.node("Add", f"{name}_biased", [result, edit.constant(f"{name}_bias", draft.bias(linear))])
        draft.put_in_place(linear, output, result)
