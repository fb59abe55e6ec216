"""Graphs written as text: a test shows the graph it is about, and weights are drawn at random.

    x = Text("(float[N,4,8] x) => (float[N,4,8] y) <float[8,8] W> { y = MatMul(x, W) }")

A value between ``<`` and ``>`` that no node computes is a weight. A node is called after its first output.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import onnxruntime

from onnxvitq.graph.reading import to_graph
from onnxvitq.graph.writing import to_proto

IR_VERSION = 10
SIZES = {"N": 3, "T": 5, "B": 2}  # what a named size of an input stands for when a test runs a graph
LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def model_of(text: str, *, opset: int = 17, weights: Mapping[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """The model of a text graph ``(inputs) => (outputs) <weights> { nodes }``; ``weights`` replaces random ones."""
    proto = onnx.parser.parse_model(f'<ir_version: {IR_VERSION}, opset_import: ["" : {opset}]> g {text}')
    rng = np.random.default_rng(0)
    computed = {name for node in proto.graph.node for name in node.output}
    given = dict(weights or {})
    drawn = [value for value in proto.graph.value_info if value.name not in computed]
    for value in drawn:
        proto.graph.value_info.remove(value)
        values = given.pop(value.name, None)
        if values is None:
            shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
            fan_in = shape[0] if len(shape) == 2 else 1  # a product keeps the scale of its input
            values = (rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, value.name))
    assert not given, f"no such weight: {given.keys()}"
    for node in proto.graph.node:
        node.name = node.output[0]
    return proto


def graph_of(text: str, *, opset: int = 17, weights: Mapping[str, np.ndarray] | None = None) -> gs.Graph:
    """The graph of a text graph."""
    return to_graph(model_of(text, opset=opset, weights=weights))


def proto_of(graph: gs.Graph) -> onnx.ModelProto:
    """The graph as a model, the graph left as it is."""
    return to_proto(graph.copy(), {})


def feeds_of(proto: onnx.ModelProto, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    """Random values for the inputs of a model; named sizes from ``sizes`` or ``SIZES``."""
    rng, feeds = np.random.default_rng(seed), {}
    known = {**SIZES, **sizes}
    weights = {initializer.name for initializer in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        shape = [size.dim_value if size.HasField("dim_value") else known[size.dim_param] for size in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        drawn = rng.integers(0, 2, shape) if dtype in (np.bool_, np.int64) else rng.normal(size=shape)
        feeds[value.name] = np.asarray(drawn, dtype)
    return feeds


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], level: str = "disabled") -> list[np.ndarray]:
    """onnxruntime's outputs, on one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails shows in its exception
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def difference(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Largest |got - expected| over the largest |expected| of the same output; infinite when shapes or NaNs differ."""
    worst = 0.0
    for one, other in zip(got, expected, strict=True):
        if one.shape != other.shape or not np.array_equal(np.isnan(one), np.isnan(other)):
            return float("inf")
        gap = np.nan_to_num(np.abs(one.astype(np.float64) - other))
        scale = np.nan_to_num(np.abs(other)).max(initial=0.0)
        worst = max(worst, float(gap.max(initial=0.0)) / float(scale or 1.0))
    return worst


def operators(graph: gs.Graph) -> str:
    """The operators of a graph in order, in one line."""
    return " ".join(node.op for node in graph.nodes)


def digest(graph: gs.Graph) -> str:
    """A fingerprint of everything a graph holds: nodes, attributes, edges, weights, shapes."""
    for node in graph.nodes:  # a tensor that was never read is written in another form of the same bytes
        for value in node.attrs.values():
            if isinstance(value, gs.Constant):
                assert value.values is not None
    proto = gs.export_onnx(graph.copy(), do_type_check=False)
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
