"""Linear layers whose input has a calibrated range: Gemm on int8 codes, which onnxruntime turns into QGemm.

Gemm wants two dimensions: rows are joined before and split after.
"""

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.layers import Linear
from onnxvitq.numerics.affine import bias_has_codes, raise_for_bias
from onnxvitq.targets.ort_cpu.activations import ActivationWriter
from onnxvitq.targets.ort_cpu.branches import BranchWriter
from onnxvitq.targets.ort_cpu.draft import Draft, integer_name, simulated_name
from onnxvitq.targets.ort_cpu.fusions import FUSED_INTO_GEMM
from onnxvitq.targets.ort_cpu.native import is_native
from onnxvitq.targets.ort_cpu.weights import WeightWriter


class LinearWriter:
    """Writes linears into one graph."""

    def __init__(self, draft: Draft, activations: ActivationWriter, weights: WeightWriter) -> None:
        self._draft, self._edit = draft, draft.edit
        self._activations, self._weights = activations, weights
        self._branches = BranchWriter(draft.edit)

    def write(self, linear: Linear) -> None:
        """X W + b -> Gemm(DQ(Q(rows of x)), DQ(W int8), DQ(b int32)), split into rows again.

        Where the input's format is simulated, the Gemm stays a float one, of the same constants. A bias that is too large
        for int32 in the units of its channel is added behind it, in float.
        """
        draft = self._draft
        x = draft.nodes[linear.name].inputs[0]  # of the plan's input, perhaps one position
        input_params, weight_params = draft.plan.params(linear.input), draft.plan.params(linear.weight)
        assert input_params is not None  # planned_linear said so
        assert weight_params is not None
        bias = draft.bias(linear)
        on_codes = bias_has_codes(weight_params, bias, float(input_params.scale))
        if on_codes:
            weight_params = raise_for_bias(weight_params, bias, float(input_params.scale))
        rows = self._rows(x, linear.in_features)
        operands = [
            self._activations.calibrated(rows, input_params, linear.input),
            self._weights.weight(linear, weight_params),
        ]
        if on_codes:
            codes = np.rint(bias.astype(np.float64) / (weight_params.scale * input_params.scale)).astype(np.int32)
            scales = [operand.inputs[0].inputs[1] for operand in operands]
            operands.append(self._weights.bias(linear, codes, scales, weight_params.spec.bits))
        output = draft.cut(linear)
        name = integer_name(linear.name) if is_native(input_params.spec) else simulated_name(linear.name)
        result = self._edit.node("Gemm", name, operands)
        if linear.name in draft.plan.branches:
            result = self._branches.beside(result, linear, draft.plan.branches[linear.name], operands[0])
        if not on_codes:
            result = self._edit.node(
                "Add", f"{linear.name}_biased", [result, self._edit.constant(f"{linear.name}_bias", bias)]
            )
        result.shape = [None, linear.out_features]
        if x.shape is None or len(x.shape) != 2 or any(node.op in FUSED_INTO_GEMM for node in output.outputs):
            back = self._back(x, linear.out_features)
            result = self._edit.node("Reshape", f"{linear.name}_rows_back", [result, back])
        draft.put_in_place(linear, output, result)

    def _rows(self, x: gs.Tensor, width: int) -> gs.Tensor:
        """(.., I) -> (N, I)."""
        if x.shape is not None and len(x.shape) == 2:
            return x
        shape = self._draft.once(
            ("rows", width), lambda: self._edit.constant(f"rows_of_{width}", np.array([-1, width], np.int64))
        )
        return self._draft.once(("flat", x.name), lambda: self._edit.node("Reshape", f"{x.name}_rows", [x, shape]))

    def _back(self, x: gs.Tensor, width: int) -> gs.Tensor:
        """The shape (.., O): a constant when at most one leading size is unknown, else computed once an input."""
        lead: Sequence[object] | None = None if x.shape is None else x.shape[:-1]
        sizes = [size if isinstance(size, int) else -1 for size in lead or ()]
        if lead is not None and sizes.count(-1) <= 1:
            target = (*sizes, width)
            name = "shape_" + "_".join(str(size).replace("-", "m") for size in target)
            return self._draft.once(("shape", target), lambda: self._edit.constant(name, np.array(target, np.int64)))
        return self._draft.once(("shape", x.name, width), lambda: self._computed_shape(x, width))

    def _computed_shape(self, x: gs.Tensor, width: int) -> gs.Tensor:
        bounds = [
            self._edit.constant(f"{x.name}_{name}", np.array([value])) for name, value in (("from", 0), ("to", -1))
        ]
        shape = self._edit.node("Shape", f"{x.name}_shape", [x], dtype=np.int64)
        lead = self._edit.node("Slice", f"{x.name}_lead", [shape, *bounds], dtype=np.int64)
        tail = self._edit.constant(f"{x.name}_{width}", np.array([width]))
        return self._edit.node("Concat", f"{x.name}_{width}_shape", [lead, tail], dtype=np.int64, axis=0)
