"""Softmax divided late: the same function, the powers quantized, the row sums those of the codes."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from textgraph import difference, feeds_of, model_of, proto_of, run
from transformer_text import transformer

from onnxvitq.blocks.find import find_blocks
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.plan import Layers
from onnxvitq.fit.initial_plan import make_plan
from onnxvitq.fit.steps.late_softmax.rewrite import divide_late
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.query import constants
from onnxvitq.graph.reading import to_graph
from onnxvitq.graph.writing import to_proto
from onnxvitq.numerics.affine import params_from_range
from onnxvitq.targets.ort_cpu.layout import apply_products

EXACT = 1e-5  # of the largest output: the division comes after another sum
NAMES = ["b0_probs", "b1_probs"]


def canonical(model: onnx.ModelProto):  # type: ignore[no-untyped-def]
    graph = to_graph(model)
    canonicalise(graph)
    return graph, find_blocks(graph, "test")


@pytest.mark.parametrize("opset", [17, 18, 21])
def test_a_text_transformer_stays_what_it_was(opset: int) -> None:
    graph, blockmap = canonical(model_of(transformer(), opset=opset))
    before = proto_of(graph)
    late = divide_late(graph, blockmap, NAMES)
    after = proto_of(late)
    onnx.checker.check_model(after, full_check=True)
    counts = Counter(node.op_type for node in after.graph.node)
    assert (counts["Softmax"], counts["Exp"], counts["ReduceMax"], counts["ReduceSum"]) == (0, 2, 2, 2)
    feeds = feeds_of(before)
    assert difference(run(after, feeds), run(before, feeds)) <= EXACT
    assert Counter(node.op for node in graph.nodes)["Softmax"] == 2  # the original is left as it was


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_an_exported_model_stays_what_it_was(export_vit: Callable[[str, bool], onnx.ModelProto], exporter: str) -> None:
    graph, blockmap = canonical(export_vit(exporter, True))
    before = proto_of(graph)
    late = divide_late(graph, blockmap, [one.name for one in blockmap.attentions])
    feeds = feeds_of(before, batch=2)
    assert difference(run(proto_of(late), feeds), run(before, feeds)) <= EXACT
    assert "Softmax" not in {node.op for node in late.nodes}


def test_only_the_named_attentions_change() -> None:
    graph, blockmap = canonical(model_of(transformer()))
    counts = Counter(node.op for node in divide_late(graph, blockmap, ["b1_probs"]).nodes)
    assert counts["Softmax"] == counts["Exp"] == 1


def test_the_attentions_are_found_again() -> None:
    graph, blockmap = canonical(model_of(transformer()))
    again = find_blocks(divide_late(graph, blockmap, NAMES), "test")
    assert [one.context_node for one in again.attentions] == [one.context_node for one in blockmap.attentions]
    assert [one.proj_linear for one in again.attentions] == ["b0_proj", "b1_proj"]
    assert [one.role for one in again.linears] == [one.role for one in blockmap.linears]


def test_a_mask_between_is_taken_along() -> None:
    """Rows with hidden positions: the largest of what is left is taken away."""
    text = (
        "(float[N,2,5,4] q, float[N,2,4,5] k, float[N,2,5,4] v, float[N,1,1,5] m) => (float[A,B,C,D] y)"
        " { s = MatMul(q, k) a = Add(s, m) p = Softmax<axis = -1>(a) y = MatMul(p, v) }"
    )
    graph, blockmap = canonical(model_of(text))
    before = proto_of(graph)
    feeds = feeds_of(before)
    feeds["m"] = np.where(np.arange(5) < 3, 0.0, -1e9).astype(np.float32) * np.ones((3, 1, 1, 1), np.float32)
    late = divide_late(graph, blockmap, ["p"])
    assert difference(run(proto_of(late), feeds), run(before, feeds)) <= EXACT


def test_the_row_sums_are_those_of_the_codes() -> None:
    """With the powers on eight levels, rows of E V / sum E are still averages of V: constant V comes back exactly."""
    graph, blockmap = canonical(model_of(transformer(depth=1)))
    late = divide_late(graph, blockmap, ["b0_probs"])
    found = find_blocks(late, "test")
    attention = found.attentions[0]
    layers = Layers(blockmap=found, constants=constants(late, {one.weight for one in found.linears}))
    plan = make_plan(found, QuantConfig())
    fitted = {}
    for name, (low, high) in {attention.probs: (0.0, 30.0), attention.value: (0.0, 4.0)}.items():
        fitted[name] = params_from_range(low, high, plan.decisions[name].spec)
    written = apply_products(late, layers, plan.with_params(fitted))
    totals = [node for node in written.nodes if node.op == "ReduceSum"]
    assert [node.inputs[0].inputs[0].op for node in totals] == ["DequantizeLinear"]
    context = next(node for node in written.nodes if node.name == attention.context_node)
    assert context.inputs[0] is totals[0].inputs[0]
    onnx.checker.check_model(to_proto(written, {}), full_check=True)
