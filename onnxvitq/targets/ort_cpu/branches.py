"""The branch of low rank beside a quantized product: two small Gemms on codes, and one Add.

y = QGemm(z, W, b) + QGemm(Q(QGemm(z, A)), B), z the codes of the product's own input. Neither small Gemm has a bias, so both
become QGemm; B's output is float, which is what the Add reads. Layers that read one input and have one A share the first
Gemm.
"""

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.formats import QParams
from onnxvitq.core.layers import BlockMap, Linear
from onnxvitq.core.plan import Branch, QuantPlan
from onnxvitq.core.tensors import FloatArray
from onnxvitq.graph.edit import Editor
from onnxvitq.numerics.affine import quantize


def branch_names(plan: QuantPlan, blockmap: BlockMap) -> dict[str, tuple[str, str]]:
    """Linear -> names of the two Gemms of its branch, A's and B's; the audit looks for them in the optimised session."""
    first: dict[tuple[object, ...], str] = {}
    names = {}
    for linear in blockmap.linears:
        if linear.name in plan.branches:
            owner = first.setdefault((linear.input, _key(plan.branches[linear.name])), linear.name)
            names[linear.name] = (f"{owner}_branch_a", f"{linear.name}_branch_b")
    return names


class BranchWriter:
    """Writes branches into one graph; remembers what several of them share."""

    def __init__(self, edit: Editor) -> None:
        self._edit = edit
        self._shared: dict[tuple[object, ...], gs.Tensor] = {}

    def beside(self, product: gs.Tensor, linear: Linear, branch: Branch, codes: gs.Tensor) -> gs.Tensor:
        """``product`` (N, O) with the branch's output added.

        Args:
            product: what the quantized weight puts out.
            linear: whose branch it is.
            branch: its factors and formats.
            codes: of its input (N, I), dequantized, as the product reads them.
        """
        inner = self._once(("inner", codes.name, _key(branch)), lambda: self._inner(linear, branch, codes))
        operands = [inner, self._factor(f"{linear.name}_branch_b", branch.b, branch.b_params)]
        output = self._edit.node("Gemm", f"{linear.name}_branch_b", operands)
        return self._edit.node("Add", f"{linear.name}_with_branch", [product, output])

    def _once(self, key: tuple[object, ...], make: Callable[[], gs.Tensor]) -> gs.Tensor:
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def _inner(self, linear: Linear, branch: Branch, codes: gs.Tensor) -> gs.Tensor:
        """DQ(Q(z A)): the first Gemm, and its output's codes."""
        factor = self._factor(f"{linear.name}_branch_a", branch.a, branch.a_params)
        product = self._edit.node("Gemm", f"{linear.name}_branch_a", [codes, factor])
        return self._codes(product, branch.inner, f"{linear.name}_branch_inner")

    def _codes(self, x: gs.Tensor, params: QParams, name: str) -> gs.Tensor:
        scale = self._edit.constant(f"{name}_scale", params.scale)
        zero = self._edit.constant(f"{name}_zero_point", params.zero_point)
        codes = self._edit.node("QuantizeLinear", f"{name}_quantize", [x, scale, zero], dtype=params.spec.storage)
        return self._edit.node("DequantizeLinear", f"{name}_dequantize", [codes, scale, zero])

    def _zeros(self, params: QParams) -> gs.Tensor:
        size = "_".join(map(str, ("branch_zeros", *params.scale.shape)))
        return self._edit.constant(size, np.zeros(params.scale.shape, params.spec.storage))

    def _factor(self, name: str, values: FloatArray, params: QParams) -> gs.Tensor:
        """DequantizeLinear(int8), one scale a column or one for all."""
        codes = quantize(values, params)
        inputs = [
            self._edit.constant(f"{name}_codes", codes),
            self._edit.constant(f"{name}_scale", params.scale),
            self._once(("zeros", params.scale.shape), lambda: self._zeros(params)),
        ]
        axes = {} if params.spec.axis is None else {"axis": params.spec.axis}
        return self._edit.node("DequantizeLinear", f"{name}_dequantize", inputs, **axes)


def _key(branch: Branch) -> tuple[object, ...]:
    """What two branches on one input must agree in to share the first Gemm and its output's codes."""
    inner = branch.inner
    return branch.a.tobytes(), branch.a_params.scale.tobytes(), inner.scale.tobytes(), inner.zero_point.tobytes()
