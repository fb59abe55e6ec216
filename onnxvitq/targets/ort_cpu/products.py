"""Products of two activations on codes: the two of every attention, and the others."""

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.formats import EIGHT_BITS, UINT8, QParams
from onnxvitq.core.layers import Attention
from onnxvitq.core.plan import reads
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import row_sums
from onnxvitq.numerics.affine import fake_quantize, quantize
from onnxvitq.targets.ort_cpu.activations import ActivationWriter
from onnxvitq.targets.ort_cpu.draft import Draft
from onnxvitq.targets.ort_cpu.native import is_native

SIGNED_FROM = -UINT8.levels // 2  # -128, added to an unsigned 8-bit code


class ProductWriter:
    """Writes products into one graph; made before anything else is written into it."""

    def __init__(self, draft: Draft, activations: ActivationWriter) -> None:
        self._draft, self._edit, self._activations = draft, draft.edit, activations
        self._signed = {(a.context_node, 1) for a in draft.layers.blockmap.attentions if self._may_be_signed(a)}

    def write(self, node: str, operands: tuple[str, str]) -> None:
        """A product on codes, where the plan has parameters for both operands."""
        plan, nodes = self._draft.plan, self._draft.nodes
        if not all(reads(plan, tensor, node) for tensor in operands):
            return
        for index, tensor in enumerate(operands):
            params = plan.params(tensor)
            assert params is not None  # ``reads`` said so
            source = nodes[node].inputs[index]
            if isinstance(source, gs.Constant):
                codes = self._constant_codes(source, params)
            elif (node, index) in self._signed:
                codes = self._signed_codes(source, params, tensor)
            else:
                codes = self._activations.calibrated(source, params, tensor)
            nodes[node].inputs[index] = codes
            for total in row_sums(source):  # or they would not be the sums of what is multiplied
                total.inputs[0] = codes

    def _may_be_signed(self, attention: Attention) -> bool:
        """Whether P V may be a product of unsigned and signed codes.

        On processors without VNNI, two neighbouring products are added in 16 bits. That is safe where the probabilities of a
        row add up to one, and so their codes to 256 at most; where weights that may saturate are written, it is not asked for.
        """
        plan = self._draft.plan
        value, probs = plan.params(attention.value), plan.params(attention.probs)
        if value is None or probs is None or value.spec.number != UINT8 or not attention.probs_first:
            return False
        weights = [plan.params(linear.weight) for linear in self._draft.layers.blockmap.linears]
        full = any(
            weight is not None and weight.spec.bits == EIGHT_BITS and not weight.spec.saturation_free
            for weight in weights
        )
        softmax = producer(self._draft.tensors[attention.probs])
        sums_to_one = softmax is not None and softmax.op == "Softmax"
        return full or (sums_to_one and float(probs.scale) * UINT8.levels >= 1 and int(probs.zero_point) == 0)

    def _signed_codes(self, x: gs.Tensor, params: QParams, site: str) -> gs.Tensor:
        """The same codes, less 128, as int8: the integer kernel takes a third of the time for a signed right operand.

        onnxruntime turns a signed scalar QuantizeLinear into an unsigned one, and moves it through Reshape and Transpose to
        where it can. One whose scale is a vector (here of equal values) it leaves alone, so that is what is written, in
        front of the Transpose: a byte an element is then turned instead of four.
        """
        turn = producer(x)
        source = turn.inputs[0] if turn is not None and turn.op == "Transpose" and "perm" in turn.attrs else None
        axis = None if source is None else _vector_axis(source)
        if turn is None or source is None or axis is None:
            return self._activations.calibrated(x, params, site)

        def write() -> gs.Tensor:
            zero = (params.zero_point.astype(np.int16) + SIGNED_FROM).astype(np.int8)
            size = source.shape[axis]
            scalars = [
                self._edit.constant(f"{site}_scale", params.scale),
                self._edit.constant(f"{site}_zero_point", zero),
            ]
            vectors = [
                self._edit.constant(f"{site}_scales", np.full(size, params.scale)),
                self._edit.constant(f"{site}_zero_points", np.full(size, zero)),
            ]
            codes = self._edit.node("QuantizeLinear", f"{site}_quantize", [source, *vectors], dtype=np.int8, axis=axis)
            turned = self._edit.node("Transpose", f"{site}_turned", [codes], dtype=np.int8, perm=turn.attrs["perm"])
            return self._edit.node("DequantizeLinear", f"{site}_dequantize", [turned, *scalars])

        return self._draft.once(("signed", x.name), write)

    def _constant_codes(self, x: gs.Constant, params: QParams) -> gs.Tensor:
        """DequantizeLinear of the codes of a constant operand; of a format without a kernel, their values."""

        def write() -> gs.Tensor:
            values = self._draft.layers.constants[x.name]
            if not is_native(params.spec):
                return self._edit.constant(f"{x.name}_simulated", fake_quantize(values, params))
            codes = quantize(values, params)
            parts = {"codes": codes, "scale": params.scale, "zero_point": params.zero_point}
            inputs = [self._edit.constant(f"{x.name}_{name}", part) for name, part in parts.items()]
            return self._edit.node("DequantizeLinear", f"{x.name}_dequantize", inputs)

        return self._draft.once(("constant", x.name), write)


def _vector_axis(x: gs.Tensor) -> int | None:
    """The first axis of known size, but the last: one scale a position of it is one run of the kernel a position."""
    sizes = enumerate(x.shape[:-1]) if x.shape is not None else ()
    return next((axis for axis, size in sizes if isinstance(size, int) and size > 1), None)
