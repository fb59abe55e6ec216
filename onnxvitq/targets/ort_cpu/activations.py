"""Activations on codes: QuantizeLinear and DequantizeLinear, one pair a tensor, shared by everything that reads it.

A format that there is no kernel of is simulated: the same values, rounded by float operators that every opset has.
"""

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.formats import QParams
from onnxvitq.graph.edit import largest_of_rows
from onnxvitq.numerics.dynamic import SMALLEST_ROW
from onnxvitq.targets.ort_cpu.draft import Draft
from onnxvitq.targets.ort_cpu.narrow import lowest_value, narrow_range
from onnxvitq.targets.ort_cpu.native import is_native


class ActivationWriter:
    """Quantizes activations of one graph, with calibrated ranges or with ranges measured at run time."""

    def __init__(self, draft: Draft) -> None:
        self._draft, self._edit = draft, draft.edit

    def calibrated(self, x: gs.Tensor, params: QParams, site: str) -> gs.Tensor:
        """The values of the codes of x: the last node's second input is their scale."""
        write = self._calibrated if is_native(params.spec) else self._simulated
        return self._draft.once(("codes", x.name), lambda: write(x, params, site))

    def _calibrated(self, x: gs.Tensor, params: QParams, site: str) -> gs.Tensor:
        """DequantizeLinear(QuantizeLinear(x))."""
        zero_point, bounded = narrow_range(params, lowest_value(x))
        scale = self._edit.constant(f"{site}_scale", params.scale)
        zero = self._draft.once(
            ("zero", int(zero_point)), lambda: self._edit.constant(f"zero_point_{zero_point}", zero_point)
        )
        codes = self._edit.node("QuantizeLinear", f"{site}_quantize", [x, scale, zero], dtype=np.uint8)
        if bounded:
            largest = params.spec.qmax
            bound = self._draft.once(
                ("largest", largest), lambda: self._edit.constant(f"code_{largest}", np.uint8(largest))
            )
            ends = [gs.Variable.empty(), bound]
            codes = self._edit.node("Clip", f"{site}_bounded", [codes, *ends], dtype=np.uint8)
        return self._edit.node("DequantizeLinear", f"{site}_dequantize", [codes, scale, zero])

    def _simulated(self, x: gs.Tensor, params: QParams, site: str) -> gs.Tensor:
        """clip(round(x / scale), qmin - zero point, qmax - zero point) * scale, in float32; round is to even, as codes are."""
        zero = np.float32(params.zero_point)
        scale = self._edit.constant(f"{site}_scale", params.scale)
        bounds = [
            self._edit.constant(f"{site}_{name}", np.float32(code) - zero)
            for name, code in (("lowest", params.spec.qmin), ("highest", params.spec.qmax))
        ]
        steps = self._edit.node("Div", f"{site}_steps", [x, scale])
        codes = self._edit.node("Round", f"{site}_rounded", [steps])
        kept = self._edit.node("Clip", f"{site}_clipped", [codes, *bounds])
        return self._edit.node("Mul", f"{site}_simulated", [kept, scale])

    def measured(self, x: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
        """Codes, scale and zero point of DynamicQuantizeLinear(x)."""
        codes, scale, zero = self._draft.once(("dynamic", x.name), lambda: self._measured(x)).inputs[0].outputs
        return codes, scale, zero

    def _measured(self, x: gs.Tensor) -> gs.Tensor:
        site = f"{x.name}_dynamic"
        codes = self._edit.node("DynamicQuantizeLinear", site, [x], dtype=np.uint8)
        for name, dtype in (("scale", np.float32), ("zero_point", np.uint8)):
            codes.inputs[0].outputs.append(gs.Variable(self._edit.unique(f"{site}_{name}"), dtype=dtype, shape=[]))
        return codes

    def divided_rows(self, x: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor]:
        """(x (.., C) over the largest magnitude of each row, that magnitude (.., 1))."""
        divided = self._draft.once(("divided", x.name), lambda: self._divided_rows(x))
        return divided, divided.inputs[0].inputs[1].inputs[0].inputs[1]

    def _divided_rows(self, x: gs.Tensor) -> gs.Tensor:
        smallest = self._draft.once(("smallest",), lambda: self._edit.constant("smallest_row", SMALLEST_ROW))
        numerator = self._draft.once(("one",), lambda: self._edit.constant("one", np.float32(1.0)))
        sizes = self._edit.node("Abs", f"{x.name}_sizes", [x])
        largest = self._edit.node("Max", f"{x.name}_divisor", [largest_of_rows(self._edit, x.name, sizes), smallest])
        inverse = self._edit.node("Div", f"{x.name}_inverse", [numerator, largest])
        return self._edit.node("Mul", f"{x.name}_divided", [x, inverse])
