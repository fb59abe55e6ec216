"""Write a plan into a canonical graph in the layout that onnxruntime's CPU provider runs fastest.

* QuantizeLinear / DequantizeLinear on inputs only; softmax, normalisation, GELU and residual adds stay float.
* A linear is Gemm with an int8 per-channel weight and an int32 bias, which becomes QGemm with a float output. A float bias
  Add behind a quantized MatMul would, in a static graph, first be fused to a float Gemm and never quantized.
* A linear whose input is quantized at run time is DynamicQuantizeLinear, MatMulInteger, Cast, Mul and Add, of standard
  operators too: onnxruntime fuses them with the bias, for any shape (DynamicQuantizeMatMul; MatMulIntegerToFloat where
  several linears share the input: it is quantized once then).
* Gemm wants two dimensions: rows are joined before and split after, neighbouring Reshapes are merged, and what works row by
  row between (the residual stream) stays on joined rows (``join_rows``).
* Where one token is read of the result, the last block computes that token alone (``pick_early``).
* One quantize pass a tensor, shared by everything that reads it. Both attention products are on uint8.
* Zero points and zero vectors of one value, length and type are stored once.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.errors import PlanError
from onnxvitq.core.formats import QParams
from onnxvitq.core.layers import Attention, Linear, products
from onnxvitq.core.plan import Layers, QuantPlan, _reads, planned_linear
from onnxvitq.core.tensors import IntArray
from onnxvitq.graph.canonical import run_pass
from onnxvitq.graph.edit import Editor, largest_of_rows
from onnxvitq.graph.passes.layout import merge_reshapes
from onnxvitq.graph.passes.rows import FUSED_INTO_GEMM, join_rows
from onnxvitq.graph.passes.selection import pick_early
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import row_sums
from onnxvitq.numerics.affine import quantize, raise_for_bias
from onnxvitq.numerics.dynamic import SMALLEST_ROW
from onnxvitq.targets.ort_cpu.branches import BranchWriter
from onnxvitq.targets.ort_cpu.narrow import lowest_value, narrow_range
from onnxvitq.targets.ort_cpu.packing import FIELDS, Packer

SIGNED_FROM = -128  # added to an unsigned 8-bit code


def apply_plan(graph: gs.Graph, layers: Layers, plan: QuantPlan, *, packed: bool = False) -> gs.Graph:
    """A new graph with the plan written into it; ``graph`` is left as it was (constants are shared, never written).

    Args:
        graph: canonical.
        layers: what was found in it.
        plan: with parameters.
        packed: weights of fewer than 8 bits take that many bits, unpacked when a session loads; else they are int8, which
            loads faster and computes the same.

    Raises:
        PlanError: the plan names a tensor or a node that the graph does not have.
    """
    _check(graph, plan)
    written = graph.copy()
    run_pass(written, pick_early)
    writer = _Writer(written, layers, plan)
    writer.packer = Packer(writer.edit, graph.opset) if packed else None
    blockmap = layers.blockmap
    for linear in blockmap.linears:
        if planned_linear(plan, linear):
            write = writer.dynamic_linear if linear.input in plan.dynamic else writer.linear
            write(linear)
    for node, operands in products(blockmap):
        writer.product(node, operands)
    if writer.packer is not None:
        writer.packer.write()
    written.cleanup().toposort()
    run_pass(written, merge_reshapes)
    run_pass(written, join_rows)
    run_pass(written, merge_reshapes)
    return written


def apply_products(graph: gs.Graph, layers: Layers, plan: QuantPlan) -> gs.Graph:
    """A new graph with the plan's products on codes and every linear layer left float, for whoever computes these himself."""
    written = graph.copy()
    writer = _Writer(written, layers, plan)
    for node, operands in products(layers.blockmap):
        writer.product(node, operands)
    written.cleanup().toposort()
    return written


def _check(graph: gs.Graph, plan: QuantPlan) -> None:
    tensors, nodes, hint = graph.tensors(), {node.name for node in graph.nodes}, "was it made for another model?"
    for name, decision in plan.decisions.items():
        if name not in tensors:
            raise PlanError(name, "the plan names a tensor that the graph does not have", hint)
        for reader, _ in decision.site.consumers:
            if reader not in nodes:
                raise PlanError(reader, "the plan names a node that the graph does not have", hint)
    for name in (plan.dynamic | plan.per_token) - tensors.keys():
        raise PlanError(name, "the plan names a tensor that the graph does not have", hint)
    for name in plan.biases:
        if name not in nodes:
            raise PlanError(name, "the plan has a bias for a node that the graph does not have", hint)


def _vector_axis(x: gs.Tensor) -> int | None:
    """The first axis of known size, but the last: one scale a position of it is one run of the kernel a position."""
    sizes = enumerate(x.shape[:-1]) if x.shape is not None else ()
    return next((axis for axis, size in sizes if isinstance(size, int) and size > 1), None)


class _Writer:
    """Writes into one graph; remembers what several layers share."""

    def __init__(self, graph: gs.Graph, layers: Layers, plan: QuantPlan) -> None:
        self.edit = Editor(graph)
        self.layers, self.plan = layers, plan
        self.nodes = {node.name: node for node in graph.nodes}
        self.tensors = graph.tensors()
        self.packer: Packer | None = None
        self._values = {(a.context_node, 1) for a in layers.blockmap.attentions if self._may_be_signed(a)}
        self._shared: dict[tuple[object, ...], gs.Tensor] = {}
        self._branches = BranchWriter(self.edit)

    def linear(self, linear: Linear) -> None:
        """X W + b -> Gemm(DQ(Q(rows of x)), DQ(W int8), DQ(b int32)), split into rows again."""
        x = self.nodes[linear.name].inputs[0]  # of the plan's input, perhaps one position
        input_params, weight_params = self.plan.params(linear.input), self.plan.params(linear.weight)
        assert input_params is not None  # planned_linear said so
        assert weight_params is not None
        bias = self.plan.biases.get(linear.name)
        if bias is None:
            bias = self.layers.bias(linear.name)
        weight_params = raise_for_bias(weight_params, bias, float(input_params.scale))
        rows = self._rows(x, linear.in_features)
        operands = [self._codes(rows, input_params, linear.input), self._weight(linear, weight_params)]
        codes = np.rint(bias.astype(np.float64) / (weight_params.scale * input_params.scale)).astype(np.int32)
        scales = [operand.inputs[0].inputs[1] for operand in operands]
        packed = self.packer is not None and weight_params.spec.bits in FIELDS
        operands.append(self._bias(linear, codes, scales, at_load=packed))
        output = self._cut(linear)
        result = self.edit.node("Gemm", integer_name(linear.name), operands)
        if linear.name in self.plan.branches:
            result = self._branches.beside(result, linear, self.plan.branches[linear.name], operands[0])
        result.shape = [None, linear.out_features]
        if x.shape is None or len(x.shape) != 2 or any(node.op in FUSED_INTO_GEMM for node in output.outputs):
            result = self.edit.node("Reshape", f"{linear.name}_rows_back", [result, self._back(x, linear.out_features)])
        self._put_in_place(linear, output, result)

    def dynamic_linear(self, linear: Linear) -> None:
        """X W + b -> scale of x (,) * scales of W (O,) * MatMulInteger(codes of x, W int8) + b, of any rank."""
        weight_params = self.plan.params(linear.weight)
        assert weight_params is not None  # planned_linear said so
        x, largest = self.nodes[linear.name].inputs[0], None  # of the plan's input, perhaps one position
        if linear.input in self.plan.per_token:
            x, largest = self._divided_rows(x)
        codes, scale, zero = self._dynamic_codes(x)
        dequantize = producer(self._weight(linear, weight_params))
        assert dequantize is not None
        weight, weight_scale, weight_zero = dequantize.inputs
        name, output = linear.name, self._cut(linear)
        sums = self.edit.node("MatMulInteger", integer_name(name), [codes, weight, zero, weight_zero], dtype=np.int32)
        real = self.edit.node("Cast", f"{name}_sums", [sums], to=np.float32)
        scales = self.edit.node("Mul", f"{name}_scales", [scale, weight_scale])
        result = self.edit.node("Mul", f"{name}_scaled", [real, scales])
        if largest is not None:
            result = self.edit.node("Mul", f"{name}_rows", [result, largest])
        bias = self.plan.biases.get(name)
        if bias is None and linear.bias:
            bias = self.layers.bias(name)
        if bias is not None:
            result = self.edit.node("Add", f"{name}_biased", [result, self.edit.constant(f"{name}_bias", bias)])
        self._put_in_place(linear, output, result)

    def _cut(self, linear: Linear) -> gs.Variable:
        """A float linear's output, which its nodes no longer make."""
        last = self.nodes[linear.bias_node or linear.name]
        output = last.outputs[0]
        last.outputs.clear()
        return output

    def _put_in_place(self, linear: Linear, output: gs.Variable, result: gs.Variable) -> None:
        result.shape = output.shape
        self.edit.redirect(output, result)
        self.tensors[linear.output] = result

    def product(self, node: str, operands: tuple[str, str]) -> None:
        """A product on codes, where the plan has parameters for both operands."""
        if not all(_reads(self.plan, tensor, node) for tensor in operands):
            return
        for index, tensor in enumerate(operands):
            params = self.plan.params(tensor)
            assert params is not None  # _reads said so
            source = self.nodes[node].inputs[index]
            if isinstance(source, gs.Constant):
                codes = self._constant_codes(source, params)
            elif (node, index) in self._values:
                codes = self._signed_codes(source, params, tensor)
            else:
                codes = self._codes(source, params, tensor)
            self.nodes[node].inputs[index] = codes
            for total in row_sums(source):  # or they would not be the sums of what is multiplied
                total.inputs[0] = codes

    def _once(self, key: tuple[object, ...], make: Callable[[], gs.Tensor]) -> gs.Tensor:
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def _rows(self, x: gs.Tensor, width: int) -> gs.Tensor:
        """(.., I) -> (N, I)."""
        if x.shape is not None and len(x.shape) == 2:
            return x
        shape = self._once(
            ("rows", width), lambda: self.edit.constant(f"rows_of_{width}", np.array([-1, width], np.int64))
        )
        return self._once(("flat", x.name), lambda: self.edit.node("Reshape", f"{x.name}_rows", [x, shape]))

    def _back(self, x: gs.Tensor, width: int) -> gs.Tensor:
        """The shape (.., O): a constant when at most one leading size is unknown, else computed once an input."""
        lead: Sequence[object] | None = None if x.shape is None else x.shape[:-1]
        sizes = [size if isinstance(size, int) else -1 for size in lead or ()]
        if lead is not None and sizes.count(-1) <= 1:
            target = (*sizes, width)
            name = "shape_" + "_".join(str(size).replace("-", "m") for size in target)
            return self._once(("shape", target), lambda: self.edit.constant(name, np.array(target, np.int64)))
        return self._once(("shape", x.name, width), lambda: self._computed_shape(x, width))

    def _computed_shape(self, x: gs.Tensor, width: int) -> gs.Tensor:
        bounds = [
            self.edit.constant(f"{x.name}_{name}", np.array([value])) for name, value in (("from", 0), ("to", -1))
        ]
        shape = self.edit.node("Shape", f"{x.name}_shape", [x], dtype=np.int64)
        lead = self.edit.node("Slice", f"{x.name}_lead", [shape, *bounds], dtype=np.int64)
        tail = self.edit.constant(f"{x.name}_{width}", np.array([width]))
        return self.edit.node("Concat", f"{x.name}_{width}_shape", [lead, tail], dtype=np.int64, axis=0)

    def _codes(self, x: gs.Tensor, params: QParams, site: str) -> gs.Tensor:
        """DequantizeLinear(QuantizeLinear(x)), one pair a tensor."""

        def write() -> gs.Tensor:
            zero_point, bounded = narrow_range(params, lowest_value(x))
            scale = self.edit.constant(f"{site}_scale", params.scale)
            zero = self._once(
                ("zero", int(zero_point)), lambda: self.edit.constant(f"zero_point_{zero_point}", zero_point)
            )
            codes = self.edit.node("QuantizeLinear", f"{site}_quantize", [x, scale, zero], dtype=np.uint8)
            if bounded:
                largest = params.spec.qmax
                bound = self._once(
                    ("largest", largest), lambda: self.edit.constant(f"code_{largest}", np.uint8(largest))
                )
                ends = [gs.Variable.empty(), bound]
                codes = self.edit.node("Clip", f"{site}_bounded", [codes, *ends], dtype=np.uint8)
            return self.edit.node("DequantizeLinear", f"{site}_dequantize", [codes, scale, zero])

        return self._once(("codes", x.name), write)

    def _dynamic_codes(self, x: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
        """Codes, scale and zero point of DynamicQuantizeLinear(x), one node a tensor."""

        def write() -> gs.Tensor:
            site = f"{x.name}_dynamic"
            codes = self.edit.node("DynamicQuantizeLinear", site, [x], dtype=np.uint8)
            for name, dtype in (("scale", np.float32), ("zero_point", np.uint8)):
                codes.inputs[0].outputs.append(gs.Variable(self.edit.unique(f"{site}_{name}"), dtype=dtype, shape=[]))
            return codes

        codes, scale, zero = self._once(("dynamic", x.name), write).inputs[0].outputs
        return codes, scale, zero

    def _divided_rows(self, x: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor]:
        """(x (.., C) over the largest magnitude of each row, that magnitude (.., 1)), once a tensor."""

        def write() -> gs.Tensor:
            smallest = self._once(("smallest",), lambda: self.edit.constant("smallest_row", SMALLEST_ROW))
            one = self._once(("one",), lambda: self.edit.constant("one", np.float32(1.0)))
            sizes = self.edit.node("Abs", f"{x.name}_sizes", [x])
            largest = self.edit.node("Max", f"{x.name}_divisor", [largest_of_rows(self.edit, x.name, sizes), smallest])
            inverse = self.edit.node("Div", f"{x.name}_inverse", [one, largest])
            return self.edit.node("Mul", f"{x.name}_divided", [x, inverse])

        divided = self._once(("divided", x.name), write)
        return divided, divided.inputs[0].inputs[1].inputs[0].inputs[1]

    def _may_be_signed(self, attention: Attention) -> bool:
        """Whether P V may be a product of unsigned and signed codes.

        On processors without VNNI, two neighbouring products are added in 16 bits. That is safe where the probabilities of a
        row add up to one, and so their codes to 256 at most; where weights that may saturate are written, it is not asked for.
        """
        value, probs = self.plan.params(attention.value), self.plan.params(attention.probs)
        if value is None or probs is None or value.spec.bits != 8 or value.spec.signed or not attention.probs_first:
            return False
        weights = [self.plan.params(linear.weight) for linear in self.layers.blockmap.linears]
        full = any(one is not None and one.spec.bits == 8 and not one.spec.saturation_free for one in weights)
        softmax = producer(self.tensors[attention.probs])
        sums_to_one = softmax is not None and softmax.op == "Softmax"
        return full or (sums_to_one and float(probs.scale) * 256 >= 1 and int(probs.zero_point) == 0)

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
            return self._codes(x, params, site)

        def write() -> gs.Tensor:
            zero = (params.zero_point.astype(np.int16) + SIGNED_FROM).astype(np.int8)
            size = source.shape[axis]
            one = [self.edit.constant(f"{site}_scale", params.scale), self.edit.constant(f"{site}_zero_point", zero)]
            each = [
                self.edit.constant(f"{site}_scales", np.full(size, params.scale)),
                self.edit.constant(f"{site}_zero_points", np.full(size, zero)),
            ]
            codes = self.edit.node("QuantizeLinear", f"{site}_quantize", [source, *each], dtype=np.int8, axis=axis)
            turned = self.edit.node("Transpose", f"{site}_turned", [codes], dtype=np.int8, perm=turn.attrs["perm"])
            return self.edit.node("DequantizeLinear", f"{site}_dequantize", [turned, *one])

        return self._once(("signed", x.name), write)

    def _constant_codes(self, x: gs.Constant, params: QParams) -> gs.Tensor:
        """DequantizeLinear of the codes of a constant operand."""

        def write() -> gs.Tensor:
            codes = quantize(self.layers.constants[x.name], params)
            values = {"codes": codes, "scale": params.scale, "zero_point": params.zero_point}
            inputs = [self.edit.constant(f"{x.name}_{name}", value) for name, value in values.items()]
            return self.edit.node("DequantizeLinear", f"{x.name}_dequantize", inputs)

        return self._once(("constant", x.name), write)

    def _weight(self, linear: Linear, params: QParams) -> gs.Tensor:
        """DequantizeLinear(int8 (I, O)), scale (O,), axis 1. A tied weight is stored once when its values and scales agree."""
        weight = self.plan.weights.get(linear.name, self.layers.constants[linear.weight])

        def write() -> gs.Tensor:
            codes, name = quantize(weight, params), f"{linear.name}_weight_codes"
            stored = self.packer.int8(name, codes, params.spec.bits) if self.packer else self.edit.constant(name, codes)
            inputs = [
                stored,
                self.edit.constant(f"{linear.name}_weight_scale", params.scale),
                self._zeros(codes.dtype, linear.out_features),
            ]
            return self.edit.node("DequantizeLinear", f"{linear.name}_weight_dequantize", inputs, axis=1)

        own = linear.name if linear.name in self.plan.weights else linear.weight
        return self._once(("weight", own, params.scale.tobytes()), write)

    def _bias(self, linear: Linear, codes: IntArray, scales: Sequence[gs.Constant], *, at_load: bool) -> gs.Tensor:
        """DequantizeLinear(int32 (O,)) in units of input scale x weight scale, as QGemm adds it.

        ``at_load``: the units are not stored, a Mul computes them when the session loads. That takes a tenth of the time to
        load DeiT-T, and spares bytes only beside weights that are packed: of 8 bits they take a hundredth of the file.
        """
        name = f"{linear.name}_bias_scale"
        product = scales[1].values * scales[0].values
        inputs = [
            self.edit.constant(f"{linear.name}_bias_codes", codes),
            self.edit.node("Mul", name, scales) if at_load else self.edit.constant(name, product),
            self._zeros(np.dtype(np.int32), linear.out_features),
        ]
        return self.edit.node("DequantizeLinear", f"{linear.name}_bias_dequantize", inputs, axis=0)

    def _zeros(self, dtype: "np.dtype[np.generic]", size: int) -> gs.Tensor:
        return self._once(
            ("zeros", dtype, size), lambda: self.edit.constant(f"zeros_{dtype}_{size}", np.zeros(size, dtype))
        )


def integer_name(linear: str) -> str:
    """The name of the integer product that a linear becomes; the audit looks for it in the optimised session."""
    return f"{linear}_int8"
