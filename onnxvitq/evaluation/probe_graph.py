"""A float graph that computes what any plan of one model computes: its quantizers' parameters and its weights are inputs.

Evaluating a plan by writing it, opening it and running it costs a session a plan, and most of the time of a search over
hundreds of plans. Here one session serves them all: ``x`` of a planned tensor becomes

    scale * clip(round(x / scale), low, high)        low = qmin - zero point, high = qmax - zero point

in four float operators, which is what QuantizeLinear and DequantizeLinear compute, with ``scale``, ``low`` and ``high`` given
at each run. A tensor that is to stay float gets a scale so fine that rounding does nothing. Weights are given as the values
that their integers stand for. Products are then float products of exact integers: equal to the integer ones but for the
rounding of sums. That is enough to move an integer by one here and there, and a moved one moves others in all layers after it:
in a deep model the error of one sample may differ by some dB from the written model's, over many samples it is the same.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.formats import QParams
from onnxvitq.core.layers import Linear, products
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.tensors import FloatArray
from onnxvitq.graph.edit import Editor
from onnxvitq.graph.query import row_sums
from onnxvitq.numerics.affine import bias_has_codes, fake_quantize, raise_for_bias

# x / FINEST is a float32's own value shifted by 40 bits: rounding changes nothing above 2 ** -17, and 2 ** -41 below.
FINEST = np.float32(2.0**-40)
UNBOUNDED = np.finfo(np.float32).max


def probe_graph(graph: gs.Graph, layers: Layers, plan: QuantPlan) -> gs.Graph:
    """A copy of a canonical graph whose weights and quantizers are inputs; ``probe_parameters`` gives their values.

    A tensor that the plan has parameters for gets a quantizer before every reader that the plan names: a probe that is made
    for a plan without any costs hardly more than the float model, and evaluates weights. The outputs are those of ``graph``.
    """
    writer = _Writer(graph.copy(), layers, plan)
    for linear in planned_layers(layers, plan):
        writer.linear(linear)
    for node, operands in products(layers.blockmap):
        writer.product(node, operands)
    writer.graph.cleanup().toposort()
    return writer.graph


def probe_parameters(layers: Layers, plan: QuantPlan) -> dict[str, np.ndarray]:
    """Values of the probe's inputs that stand for a plan; a site without parameters is float.

    Unlike in a written model, a weight can be quantized while its input is float, and the other way round.
    """
    values: dict[str, np.ndarray] = {}
    for tensor, decision in plan.decisions.items():
        if decision.site.kind == "weight":
            continue
        if tensor in layers.constants:
            values[_constant(tensor)] = _dequantized(layers.constants[tensor], decision.params)
        else:
            values.update(_quantizer(tensor, decision.params))
    for linear in planned_layers(layers, plan):
        weight = plan.weights.get(linear.name, layers.constants[linear.weight])
        bias = plan.biases.get(linear.name, layers.bias(linear.name))
        params, inputs = plan.params(linear.weight), plan.params(linear.input)
        if params is not None and inputs is not None and bias_has_codes(params, bias, float(inputs.scale)):
            params = raise_for_bias(params, bias, float(inputs.scale))
            step = (params.scale * inputs.scale).astype(np.float64)
            bias = (np.rint(bias / step) * step).astype(np.float32)
        values[weight_input(linear)], values[_bias(linear)] = _dequantized(weight, params), bias
    return values


def planned_layers(layers: Layers, plan: QuantPlan) -> Iterator[Linear]:
    """Linears whose input and weight the plan has a format for."""
    for linear in layers.blockmap.linears:
        if linear.weight in plan.decisions and _reads(plan, linear.input, (linear.name, 0)):
            yield linear


def _reads(plan: QuantPlan, tensor: str, reader: tuple[str, int]) -> bool:
    return tensor in plan.decisions and reader in plan.decisions[tensor].site.consumers


def _dequantized(values: FloatArray, params: QParams | None) -> FloatArray:
    return values if params is None else fake_quantize(values, params)


def _quantizer(tensor: str, params: QParams | None) -> dict[str, np.ndarray]:
    names = (f"{tensor}:scale", f"{tensor}:low", f"{tensor}:high")
    values = [FINEST, -UNBOUNDED, UNBOUNDED]
    if params is not None:
        zero = int(params.zero_point)
        values = [np.float32(params.scale), np.float32(params.spec.qmin - zero), np.float32(params.spec.qmax - zero)]
    return {name: np.array(value, np.float32) for name, value in zip(names, values, strict=True)}


def _constant(tensor: str) -> str:
    return f"{tensor}:values"


def weight_input(linear: Linear) -> str:
    """The name of the probe's input that is a linear's weight."""
    return f"{linear.name}:weight"


def _bias(linear: Linear) -> str:
    return f"{linear.name}:bias"


class _Writer:
    """Adds quantizers to one graph, one a tensor."""

    def __init__(self, graph: gs.Graph, layers: Layers, plan: QuantPlan) -> None:
        self.graph, self._layers, self._plan = graph, layers, plan
        self._edit = Editor(graph)
        self._nodes, self._tensors = {node.name: node for node in graph.nodes}, graph.tensors()
        self._made: dict[str, gs.Tensor] = {}

    def linear(self, linear: Linear) -> None:
        """Q(x) W + b with W and b as inputs; a layer without a bias gets one."""
        node = self._nodes[linear.name]
        output = self._nodes[linear.bias_node or linear.name].outputs[0]
        source = node.inputs[0]
        weight = self._input(weight_input(linear), (linear.in_features, linear.out_features))
        node.inputs = [self._quantized(source, linear.input), weight]
        bias = self._input(_bias(linear), (linear.out_features,))
        if linear.bias_node:
            last = self._nodes[linear.bias_node]
            last.inputs = [bias if isinstance(one, gs.Constant) else one for one in last.inputs]
            return
        plain = gs.Variable(f"{linear.output}:plain", dtype=np.float32, shape=output.shape)
        node.outputs = [plain]
        self.graph.nodes.append(gs.Node("Add", f"{linear.name}:add", inputs=[plain, bias], outputs=[output]))

    def product(self, node: str, operands: tuple[str, str]) -> None:
        """A product of quantized operands, where the plan has a format for both."""
        if not all(_reads(self._plan, tensor, (node, port)) for port, tensor in enumerate(operands)):
            return
        for port, tensor in enumerate(operands):
            source = self._nodes[node].inputs[port]
            quantized = self._quantized(source, tensor)
            self._nodes[node].inputs[port] = quantized
            for total in row_sums(source):
                total.inputs[0] = quantized

    def _quantized(self, source: gs.Tensor, site: str) -> gs.Tensor:
        if isinstance(source, gs.Constant):
            make = self._constant
        elif self._plan.params(site) is not None:
            make = self._round
        else:
            return source
        if site not in self._made:
            self._made[site] = make(source, site)
        return self._made[site]

    def _constant(self, source: gs.Constant, site: str) -> gs.Tensor:
        return self._input(_constant(site), source.values.shape)

    def _round(self, source: gs.Tensor, site: str) -> gs.Tensor:
        scale, low, high = (self._input(name, ()) for name in _quantizer(site, None))
        value = self._edit.node("Div", f"{site}:divided", [source, scale])
        value = self._edit.node("Round", f"{site}:rounded", [value])
        value = self._edit.node("Clip", f"{site}:clipped", [value, low, high])
        value = self._edit.node("Mul", f"{site}:dequantized", [value, scale])
        value.shape = source.shape
        return value

    def _input(self, name: str, shape: Sequence[int]) -> gs.Variable:
        variable = gs.Variable(name, dtype=np.float32, shape=tuple(shape))
        self.graph.inputs.append(variable)
        return variable
