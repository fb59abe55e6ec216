"""Rotations folded into a graph: the same function, other constants, no operator more."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from stream_text import embedded, with_weights
from textgraph import difference, digest, feeds_of, graph_of, model_of, operators, proto_of, run

from onnxvitq.blocks.find import find_blocks
from onnxvitq.blocks.streams import find_streams
from onnxvitq.fit.steps.rotation.rewrite import rotate_streams
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.reading import to_graph
from onnxvitq.numerics.rotation import rotation

EXACT = 1e-5  # of the largest output: constants are rounded to float32 anew
FORMS = [("dynamo", True), ("dynamo", False), ("torchscript", True), ("torchscript", False)]


def rotated(graph: gs.Graph, seed: int = 0) -> gs.Graph:
    """With every stream turned that can be; there is one."""
    blockmap = find_blocks(graph, "the test's graph")
    streams, _ = find_streams(graph, blockmap)
    assert streams
    return rotate_streams(graph, blockmap, streams, seed)


def assert_same_function(text: str) -> gs.Graph:
    """The rotated graph of a text graph, which computes the same."""
    model = model_of(text)
    graph, feeds = to_graph(model), feeds_of(model)
    before = digest(graph)
    changed = rotated(graph)
    assert difference(run(proto_of(changed), feeds), run(model, feeds)) < EXACT
    assert digest(graph) == before
    return changed


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"a": "tokens = Add(placed, positions) -> tokens = Sub(positions, placed)"},
        {"a": "tokens = Add(placed, positions) -> twice = Mul(half, placed) tokens = Add(twice, positions)"},
        {"a": "tokens = Add(placed, positions) -> shared = Add(placed, one) tokens = Add(shared, positions)"},
        {"a": "class_token = Gather<axis = 1>(norm -> class_token = ReduceMean<axes = [1], keepdims = 0>(norm)"
              " unread = Gather<axis = 1>(norm"},
        {"a": "norm = LayerNormalization(b0_end -> mean = ReduceMean<axes = [1]>(b0_end) norm = LayerNormalization(mean"},
    ],
    ids=["plain", "sub", "scaled", "shifted by one number", "pooled after", "pooled before"],
)  # fmt: skip
def test_a_text_transformer_stays_what_it_was(changes: dict[str, str]) -> None:
    text = embedded(depth=1, **changes)
    assert sorted(operators(assert_same_function(text)).split()) == sorted(
        operators(graph_of(text).cleanup().toposort()).split()
    )


@pytest.mark.parametrize(("exporter", "dynamic"), FORMS)
def test_an_exported_model_stays_what_it_was(
    export_vit: Callable[[str, bool], onnx.ModelProto], exporter: str, dynamic: bool
) -> None:
    model = export_vit(exporter, dynamic)
    graph = to_graph(model)
    canonicalise(graph)
    feeds = {"image": np.random.default_rng(0).normal(size=(2 if dynamic else 1, 3, 16, 16)).astype(np.float32)}
    changed = rotated(graph)
    assert difference(run(proto_of(changed), feeds), run(model, feeds)) < EXACT
    assert len(changed.nodes) == len(graph.nodes)


def test_the_stream_is_the_stream_turned() -> None:
    text = embedded(depth=1)
    graph = graph_of(text)
    changed = rotated(graph, seed=5)
    for either in (graph, changed):
        either.outputs = [either.tensors()["b0_end"]]
    feeds = feeds_of(model_of(text))
    before, after = (run(proto_of(either.cleanup()), feeds)[0] for either in (graph, changed))
    assert after == pytest.approx(before @ rotation(32, 5), abs=1e-4)
    assert np.abs(after - before).max() > 0.1


def test_norms_lose_their_scale_and_shift() -> None:
    changed = rotated(graph_of(embedded(depth=1)))
    norms = [node for node in changed.nodes if node.op == "LayerNormalization"]
    assert len(norms) == 3
    for node in norms:
        assert np.array_equal(node.inputs[1].values, np.ones(32, np.float32))
        assert not node.inputs[2].values.any()


def test_all_blocks_are_found_again_after_it() -> None:
    graph = graph_of(embedded())
    before, after = find_blocks(graph, "one"), find_blocks(rotated(graph), "other")
    assert [linear.name for linear in after.linears] == [linear.name for linear in before.linears]
    assert after.attentions == before.attentions
    assert [norm.output for norm in after.norms] == [norm.output for norm in before.norms]


def test_a_reader_without_a_bias_gets_one() -> None:
    text = embedded(depth=1).replace("b0_k = MatMul", "b0_k_out = MatMul").replace("b0_k_out = Add(b0_k, b0_k_b)", "")
    changed = assert_same_function(text.replace(", float[32] b0_k_b", ""))
    linear = next(one for one in find_blocks(changed, "it").linears if one.name == "b0_k_out")
    assert linear.bias
    assert linear.output == "b0_k_out"


def test_one_weight_of_two_readers_becomes_two() -> None:
    text = embedded(depth=1).replace("MatMul(b0_norm1, b0_v_W)", "MatMul(b0_norm1, b0_q_W)")
    changed = assert_same_function(text.replace("float[32,32] b0_v_W, ", ""))
    weights = {node.name: node.inputs[1].values for node in changed.nodes if node.name in ("b0_q", "b0_v")}
    assert np.array_equal(weights["b0_q"], weights["b0_v"])


def test_a_layer_that_reads_the_stream_and_writes_it() -> None:
    change = "tokens = Add(placed, positions) -> mixed = MatMul(placed, b0_proj_W) tokens = Add(mixed, positions)"
    assert_same_function(embedded(depth=1, change=change))


def test_channels_on_the_second_axis_of_a_convolution() -> None:
    """A stem whose kernel overlaps, flattened to tokens, and a convolution that reads the stream."""
    text = embedded(depth=1).replace("(float[N,T,8] patches)", "(float[N,3,6,6] image)")
    text = text.replace(
        "embedded = MatMul(patches, e_W) placed = Add(embedded, e_b)",
        "stem = Conv<kernel_shape = [2, 2]>(image, s_W, s_b) more = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
        "(stem, c_W, s_b) both = Add(stem, more) row = Reshape(both, rows) placed = Transpose<perm = [0, 2, 1]>(row)",
    )
    text = text.replace("float[8,32] e_W, float[32] e_b, float[5,32] positions", "float[25,32] positions")
    text = with_weights(text, "float[32,3,2,2] s_W, float[32] s_b, float[32,32,3,3] c_W, int64[3] rows = {0, 32, 25}")
    changed = assert_same_function(text)
    assert {node.op for node in changed.nodes} >= {"Conv"}


def test_words_that_are_looked_up() -> None:
    text = embedded(depth=1).replace("(float[N,T,8] patches)", "(float[N,T,8] patches, int64[N,T] words)")
    text = text.replace(
        "tokens = Add(placed", "word = Gather<axis = 0>(table, words) said = Add(placed, word) tokens = Add(said"
    )
    model = model_of(with_weights(text, "float[4,32] table"))
    feeds = {**feeds_of(model), "words": np.arange(15).reshape(3, 5) % 4}
    changed = rotated(to_graph(model))
    assert difference(run(proto_of(changed), feeds), run(model, feeds)) < EXACT


def test_a_root_mean_square_norm_commutes_as_well() -> None:
    rms = (
        "b0_norm2_q = Mul(b0_mid, b0_mid) b0_norm2_v = ReduceMean<axes = [-1]>(b0_norm2_q) b0_norm2_e ="
        " Add(b0_norm2_v, eps) b0_norm2_s = Sqrt(b0_norm2_e) b0_norm2_n = Div(b0_mid, b0_norm2_s)"
        " b0_norm2 = Mul(b0_norm2_n, b0_norm2_g)"
    )
    text = embedded(depth=1, change=f"b0_norm2 = LayerNormalization(b0_mid, b0_norm2_g, b0_norm2_b) -> {rms}")
    text = with_weights(text.replace(", float[32] b0_norm2_b", ""), "float eps = {1e-6}")
    assert_same_function(text)
    broken = text.replace("b0_norm2_v = ReduceMean<axes = [-1]>", "b0_norm2_v = ReduceMean<axes = [1]>")
    graph = graph_of(broken)
    assert not find_streams(graph, find_blocks(graph, "over tokens"))[0]
