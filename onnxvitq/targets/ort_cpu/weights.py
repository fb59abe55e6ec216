"""Weights and biases of linears as constants of codes, packed where that is asked for."""

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.formats import QParams
from onnxvitq.core.layers import Linear
from onnxvitq.core.tensors import IntArray
from onnxvitq.numerics.affine import quantize
from onnxvitq.targets.ort_cpu.draft import Draft
from onnxvitq.targets.ort_cpu.packing import Packer


class WeightWriter:
    """Writes the constants of linears into one graph.

    Args:
        draft: the graph.
        packer: of weights of few bits; None stores them as int8.
    """

    def __init__(self, draft: Draft, packer: Packer | None) -> None:
        self._draft, self._edit, self._packer = draft, draft.edit, packer

    def weight(self, linear: Linear, params: QParams) -> gs.Tensor:
        """DequantizeLinear(int8 (I, O)), scale (O,), axis 1. A tied weight is stored once when its values and scales agree."""
        own = linear.name if linear.name in self._draft.plan.weights else linear.weight
        return self._draft.once(("weight", own, params.scale.tobytes()), lambda: self._weight(linear, params))

    def _weight(self, linear: Linear, params: QParams) -> gs.Tensor:
        values = self._draft.plan.weights.get(linear.name, self._draft.layers.constants[linear.weight])
        codes, name = quantize(values, params), f"{linear.name}_weight_codes"
        stored = self._packer.int8(name, codes, params.spec.bits) if self._packer else self._edit.constant(name, codes)
        inputs = [
            stored,
            self._edit.constant(f"{linear.name}_weight_scale", params.scale),
            self._draft.zeros(codes.dtype, linear.out_features),
        ]
        return self._edit.node("DequantizeLinear", f"{linear.name}_weight_dequantize", inputs, axis=1)

    def bias(self, linear: Linear, codes: IntArray, scales: Sequence[gs.Constant], bits: int) -> gs.Tensor:
        """DequantizeLinear(int32 (O,)) in units of input scale x weight scale, as QGemm adds it.

        Beside weights that are packed the units are not stored, a Mul computes them when the session loads. That takes a
        tenth of the time to load DeiT-T, and spares bytes only there: of 8 bits, units take a hundredth of the file.

        Args:
            linear: whose bias it is.
            codes: (O,) int32.
            scales: of the input, (), and of the weight, (O,).
            bits: of the weight.
        """
        name = f"{linear.name}_bias_scale"
        product = scales[1].values * scales[0].values
        at_load = self._packer is not None and self._packer.packs(bits)
        inputs = [
            self._edit.constant(f"{linear.name}_bias_codes", codes),
            self._edit.node("Mul", name, scales) if at_load else self._edit.constant(name, product),
            self._draft.zeros(np.dtype(np.int32), linear.out_features),
        ]
        return self._edit.node("DequantizeLinear", f"{linear.name}_bias_dequantize", inputs, axis=0)
