"""Residual streams that may be rotated, and what makes each of them a miss."""

from collections.abc import Callable

import onnx
import pytest
from stream_text import embedded, with_weights
from textgraph import graph_of
from transformer_text import transformer

from onnxvitq.blocks.find import find_blocks
from onnxvitq.blocks.streams import find_streams
from onnxvitq.core.layers import Operand, Stream
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.reading import to_graph

END = "class_token = Gather<axis = 1>(norm, first)"


def found_in(text: str) -> tuple[list[Stream], list[str]]:
    """Streams, and the reasons of the misses."""
    graph = graph_of(text)
    streams, misses = find_streams(graph, find_blocks(graph, "the test's graph"))
    return list(streams), [miss.reason for miss in misses]


def only_stream(text: str) -> Stream:
    (stream,), misses = found_in(text)
    assert not misses
    return stream


def only_miss(text: str) -> str:
    """Why there is no stream at all."""
    streams, reasons = found_in(text)
    assert not streams
    return "; ".join(reasons)


def test_a_pre_norm_transformer_is_one_stream() -> None:
    stream = only_stream(embedded(depth=1))
    assert (stream.name, stream.width) == ("tokens", 32)
    writers = [("embedded", 1, -1), ("placed", 1, -1), ("tokens", 1, -1)]
    writers += [(f"b0_{name}{part}", 1, -1) for name in ("proj", "fc2") for part in ("", "_out")]
    readers = [(name, 1, -2) for name in ("b0_q", "b0_k", "b0_v", "b0_fc1", "head")]
    assert set(stream.operands) == {Operand(node=n, index=i, axis=a) for n, i, a in writers + readers}
    assert {(name, frozenset(linears)) for name, linears in stream.norms} == {
        ("b0_norm1", frozenset({"b0_q", "b0_k", "b0_v"})),
        ("b0_norm2", frozenset({"b0_fc1"})),
        ("norm", frozenset({"head"})),
    }


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ("tokens = Add(placed, positions) -> tokens = Sub(placed, positions)", 0),
        ("tokens = Add(placed, positions) -> tokens = Add(positions, placed)", 0),
        ("tokens = Add(placed, positions) -> kept = Identity(placed) tokens = Add(kept, positions)", 0),
        ("tokens = Add(placed, positions) -> twice = Mul(placed, half) tokens = Add(twice, positions)", 0),
        ("tokens = Add(placed, positions) -> shared = Add(placed, one) tokens = Add(shared, positions)", 0),
        ("tokens = Add(placed, positions) -> less = Div(placed, root) tokens = Add(less, positions)", 0),
        (f"{END} -> class_token = ReduceMean<axes = [1], keepdims = 0>(norm)", 0),
        ("norm = Layer -> size = Shape(b0_end) norm = Layer", 0),
    ],
    ids=["sub", "order", "identity", "scaled", "shifted by one number", "divided", "pooled", "shape read"],
)
def test_what_treats_channels_alike_is_passed(change: str, more: int) -> None:
    assert len(only_stream(embedded(depth=1, change=change)).operands) == 12 + more


def test_tokens_that_are_joined_are_turned_as_well() -> None:
    change = "tokens = Add(placed, positions) -> joined = Concat<axis = 1>(place, placed) tokens = Add(joined, far)"
    text = embedded(depth=1, change=change)
    text = text.replace("(float[N,T,8] patches)", "(float[1,T,8] patches)")
    stream = only_stream(with_weights(text, "float[1,1,32] place, float[6,32] far"))
    assert {Operand(node="joined", index=0, axis=-1), Operand(node="tokens", index=1, axis=-1)} <= set(stream.operands)


@pytest.mark.parametrize(
    ("change", "weights", "reason"),
    [
        ("tokens = Add(placed -> tokens = Mul(placed", "", "Mul tokens scales channel by channel"),
        ("tokens = Add(placed -> bent = Tanh(placed) tokens = Add(bent", "", "Tanh bent is not linear"),
        ("b0_mid = Add(tokens, -> b0_mid = Add(b0_norm1,", "", "Add b0_mid reads the norm b0_norm1"),
        ("b0_mid = Add(tokens, -> b0_twice = Mul(tokens, tokens) b0_mid = Add(b0_twice,", "", "Mul b0_twice scales"),
        (f"{END} -> bent = Relu(norm) class_token = Gather<axis = 1>(bent, first)", "", "Relu bent reads the norm norm"),
        (f"{END} -> sum = ReduceSum<keepdims = 0>(norm, last) class_token = Mul(sum, half)", "int64[1] last = {1}",
         "ReduceSum sum reads the norm norm"),
        ("norm = LayerNormalization(b0_end -> most = ReduceMax<axes = [1]>(b0_end) norm = LayerNormalization(most", "",
         "ReduceMax most is not linear"),
        ("tokens = Add(placed, positions) -> half0 = Concat<axis = -1>(placed0, placed1) tokens = Add(half0, positions)"
         , "", "joins channels"),
        ("norm = LayerNormalization( -> norm = LayerNormalization<axis = -2>(", "", "other axes than the channels"),
    ],
    ids=["scaled", "activation", "post-norm", "squared", "norm read", "norm summed", "largest", "joined", "axis"],
)  # fmt: skip
def test_one_change_makes_it_a_miss(change: str, weights: str, reason: str) -> None:
    text = embedded(depth=1, change=change)
    if "placed0" in change:
        halves = "zero = Split<axis = -1>(placed)"
        text = text.replace("half0 =", halves.replace("zero", "placed0, placed1") + " half0 =")
    if "axis = -2" in change:
        text = text.replace("float[32] norm_g, float[32] norm_b", "float[5,32] norm_g, float[5,32] norm_b")
    assert reason in only_miss(with_weights(text, weights) if weights else text)


def test_the_input_of_the_graph_cannot_be_turned() -> None:
    assert only_miss(transformer(depth=1)) == "tokens is an input of the graph"


@pytest.mark.parametrize(
    ("tensor", "said"), [("b0_end", "b0_end is an output"), ("norm", "norm, normalised, is an output")]
)
def test_nor_can_an_output(tensor: str, said: str) -> None:
    text = embedded(depth=1).replace("(float[A,B] logits)", f"(float[A,B] logits, float[N,T,32] {tensor})")
    assert said in only_miss(text)


def test_a_scale_of_zero_cannot_be_divided_away() -> None:
    graph = graph_of(embedded(depth=1))
    gamma = graph.tensors()["b0_norm2_g"]
    gamma.values = gamma.values * 0
    streams, misses = find_streams(graph, find_blocks(graph, "the test's graph"))
    assert not streams
    assert "b0_norm2: its scale is not one number a channel" in misses[0].reason


def test_one_stream_that_cannot_does_not_keep_another_from_it() -> None:
    """Two models in one graph; the outputs are added."""
    one = embedded(depth=1)
    other = transformer(depth=1)
    for name in ("b0_", "norm", "tokens", "class_token", "head", "logits"):
        other = other.replace(name, f"z_{name}")
    header, nodes = one.split("> {")
    other_weights = ", ".join(
        part.strip() for part in other.split("<", 1)[1].split("> {")[0].split(", ") if "z_" in part
    )
    inputs = header.replace("patches)", "patches, float[N,T,32] z_tokens)", 1)
    text = f"{inputs}, {other_weights}> {{{nodes.rstrip(' }')} {other.split('> {')[1]}"
    text = text.replace("logits = Identity(head_out)", "", 1).replace(
        "z_logits = Identity(z_head_out)", "logits = Add(head_out, z_head_out)"
    )
    streams, misses = found_in(text)
    assert [stream.name for stream in streams] == ["tokens"]
    assert misses == ["z_tokens is an input of the graph"]


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_exported_models_are_one_stream(
    export_vit: Callable[[str, bool], onnx.ModelProto], exporter: str, dynamic: bool
) -> None:
    graph = to_graph(export_vit(exporter, dynamic))
    canonicalise(graph)
    (stream,), misses = find_streams(graph, find_blocks(graph, "the test's graph"))
    assert (stream.width, len(stream.norms), misses) == (32, 5, ())
