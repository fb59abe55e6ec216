"""Activations of fewer than 8 bits: the codes are the plan's, to the bit, and a bound is written only where one is needed."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from textgraph import graph_of, run

from onnxvitq.blocks.find import find_blocks
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.formats import QParams, activation_format
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.fit.initial_plan import make_plan
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.edit import with_outputs
from onnxvitq.graph.query import constants
from onnxvitq.graph.writing import to_proto
from onnxvitq.numerics.affine import fake_quantize
from onnxvitq.targets.ort_cpu.layout import apply_plan
from onnxvitq.targets.ort_cpu.narrow import LOWEST, lowest_value, narrow_range

GELU = "d = Div(x, root) e = Erf(d) o = Add(e, one) m = Mul(x, o) a = Mul(m, half)"
ACTIVATIONS = {
    "gelu": (GELU, -0.1701),
    "relu": ("a = Relu(x)", 0.0),
    "silu": ("e = Sigmoid(x) a = Mul(x, e)", -0.2785),
    "softmax": ("a = Softmax<axis = -1>(x)", 0.0),
    "powers": ("a = Exp(x)", 0.0),
    "reshaped": ("e = Relu(x) a = Reshape(e, shape)", 0.0),
    "shifted": ("e = Relu(x) a = Sub(e, one)", -np.inf),
    "scaled": ("e = Relu(x) a = Mul(e, scales)", -np.inf),  # a negative factor would turn it over
    "normed": ("a = LayerNormalization(x, scales, scales)", -np.inf),
}


def reader_of(nodes: str) -> gs.Graph:
    """x (N, 5, 8) -> a, which a linear of the identity reads; and an attention, or the graph is none of ours."""
    graph = graph_of(
        "(float[N,5,8] x, float[N,2,5,4] q) => (float[A,B,C] y, float[D,E,F,G] z)"
        " <float[8,8] W, float[8] scales, float root = {1.41421356}, float one = {1}, float half = {0.5},"
        " int64[3] shape = {0, 0, 8}>"
        f" {{ {nodes} y = MatMul(a, W) k = Transpose<perm = [0, 1, 3, 2]>(q) s = MatMul(q, k)"
        " w = Softmax<axis = -1>(s) z = MatMul(w, q) }",
        weights={"W": np.eye(8, dtype=np.float32)},
    )
    canonicalise(graph)
    return graph


def written(graph: gs.Graph, params: QParams) -> onnx.ModelProto:
    """The linear reads codes of these parameters; its own weight is exact."""
    blockmap = find_blocks(graph, "test")
    layers = Layers(blockmap=blockmap, constants=constants(graph, {"W"}))
    plan = make_plan(blockmap, QuantConfig(attention="float"))
    tensor = next(name for name, decision in plan.decisions.items() if decision.site.kind == "activation")
    weight = QParams(spec=plan.decisions["W"].spec, scale=np.full(8, 2**-6), zero_point=np.zeros(8, np.int64))
    decisions = {
        tensor: replace(plan.decisions[tensor], spec=params.spec, params=params),
        "W": replace(plan.decisions["W"], params=weight),
    }
    return to_proto(apply_plan(graph, layers, QuantPlan(decisions=decisions)), {})


def feeds(spread: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    x = (spread * rng.normal(size=(40, 5, 8))).astype(np.float32)
    x[0, 0, :4] = 0.0, -1e9, 1e9, -0.7518  # a GELU is lowest there
    return {"x": x, "q": rng.normal(size=(40, 2, 5, 4)).astype(np.float32)}


@pytest.mark.parametrize("level", ["disabled", "all"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_codes_are_those_of_fake_quantization_to_the_bit(name: str, level: str) -> None:
    graph = reader_of(ACTIVATIONS[name][0])
    fed = feeds(3.0)
    values = run(to_proto(with_outputs(graph, ["a"]), {}), fed)[0]
    for bits, zero, scale in ((2, 0, 0.9), (3, 3, 0.31), (4, 1, 0.17), (4, 15, 0.2), (6, 0, 0.05), (7, 40, 0.03)):
        params = QParams(spec=activation_format(bits), scale=np.array(scale, np.float32), zero_point=np.array(zero))
        got = run(written(graph, params), fed, level)[0]
        assert np.array_equal(got, fake_quantize(values, params)), (bits, zero)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_lowest_value_follows_from_what_computes_a_tensor(name: str) -> None:
    nodes, lowest = ACTIVATIONS[name]
    assert lowest_value(reader_of(nodes).tensors()["a"]) == lowest


def test_a_graph_input_and_a_constant_may_be_anything() -> None:
    tensors = reader_of("a = Relu(x)").tensors()
    assert lowest_value(tensors["x"]) == lowest_value(tensors["W"]) == -np.inf


def test_no_activation_goes_below_its_lowest_value() -> None:
    x = np.linspace(-20, 20, 2_000_001)
    sigmoid = 1 / (1 + np.exp(-x))
    tanh = np.tanh(0.7978845608 * (x + 0.044715 * x**3))
    values = {
        "gelu_tanh_half_last": 0.5 * x * (1 + tanh),
        "quick_gelu": x / (1 + np.exp(-1.702 * x)),
        "silu": x * sigmoid,
        "hard_swish": x * np.clip(x + 3, 0, 6) / 6,
        "mish": x * np.tanh(np.log1p(np.exp(x))),
    }
    for name, curve in values.items():
        assert LOWEST[name] < curve.min() < LOWEST[name] + 2e-4, name


@pytest.mark.parametrize(("name", "bounds"), [("gelu", 0), ("softmax", 0), ("relu", 0), ("normed", 1), ("shifted", 1)])
def test_a_bound_is_written_only_where_saturation_does_not_do(name: str, bounds: int) -> None:
    params = QParams(spec=activation_format(4), scale=np.array(0.2, np.float32), zero_point=np.array(1))
    counts = Counter(node.op_type for node in written(reader_of(ACTIVATIONS[name][0]), params).graph.node)
    assert counts["Clip"] == bounds


def test_eight_bits_are_bounded_by_saturation_alone() -> None:
    params = QParams(spec=activation_format(8), scale=np.array(0.2, np.float32), zero_point=np.array(7))
    assert [*narrow_range(params, 0.0), *narrow_range(params, -np.inf)] == [7, False, 7, False]


def test_a_range_that_was_clipped_above_the_lowest_value_needs_the_bound() -> None:
    """GELU goes to -0.17: out of reach of code 0 with steps of 0.2 and zero point 1, not with steps of 0.05."""
    coarse, fine = (
        QParams(spec=activation_format(4), scale=np.array(s, np.float32), zero_point=np.array(1)) for s in (0.2, 0.05)
    )
    assert [*narrow_range(coarse, -0.1701), *narrow_range(fine, -0.1701)] == [1 + 240, False, 1, True]
