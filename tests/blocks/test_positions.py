"""Which tokens the output picks, in the forms in which exporters write it."""

from collections.abc import Callable

import onnx
import pytest
from textgraph import graph_of
from transformer_text import transformer

from onnxvitq.blocks.find import find_blocks
from onnxvitq.blocks.positions import decisive_positions
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.reading import to_graph

GATHER = "class_token = Gather<axis = 1>(norm, first)"
TOKENS = "float[N,T,32] tokens"


def picked(end: str, *, weights: str = "", outputs: str = "float[A,B] logits") -> tuple[int, ...]:
    """Of the text transformer whose class token is taken otherwise."""
    text = transformer(depth=2).replace(GATHER, end).replace("float[A,B] logits", outputs)
    return of_text(text.replace("> {", f"{weights}> {{"))


def of_text(text: str) -> tuple[int, ...]:
    graph = graph_of(text)
    return decisive_positions(graph, find_blocks(graph, "the test's graph"))


def test_a_class_token_by_gather() -> None:
    assert picked(GATHER) == (0,)
    assert picked("class_token = Gather<axis = -2>(norm, first)") == (0,)


def test_another_position_by_gather() -> None:
    assert picked("class_token = Gather<axis = 1>(norm, third)", weights=", int64 third = {2}") == (2,)


SLICE = ", int64[1] from = {0}, int64[1] to = {1}, int64[1] axis = {1}, int64[2] flat = {0, 32}"


@pytest.mark.parametrize("steps", ["", ", to"])
def test_a_class_token_by_slice(steps: str) -> None:
    end = f"cut = Slice(norm, from, to, axis{steps}) class_token = Reshape(cut, flat)"
    assert picked(end, weights=SLICE) == (0,)
    assert picked(end, weights=SLICE.replace("axis = {1}", "axis = {-2}")) == (0,)


def test_a_distilled_model_has_two() -> None:
    end = "a = Gather<axis = 1>(norm, first) b = Gather<axis = 1>(norm, second) class_token = Add(a, b)"
    assert picked(end, weights=", int64 second = {1}") == (0, 1)


def test_two_tokens_of_one_slice() -> None:
    end = "cut = Slice(norm, from, to, axis) class_token = ReduceMean<axes = [1], keepdims = 0>(cut)"
    assert picked(end, weights=SLICE.replace("to = {1}", "to = {2}").replace(", int64[2] flat = {0, 32}", "")) == (0, 1)


def test_an_output_each() -> None:
    end = f"{GATHER} distilled = Gather<axis = 1>(norm, second)"
    outputs = "float[A,B] logits, float[C,D] distilled"
    assert picked(end, weights=", int64 second = {1}", outputs=outputs) == (0, 1)


def test_mean_pooling_picks_none() -> None:
    assert picked("class_token = ReduceMean<axes = [1], keepdims = 0>(norm)") == ()


def test_pooling_of_all_but_the_class_token_picks_none() -> None:
    end = "cut = Slice(norm, from, to, axis) class_token = ReduceMean<axes = [1], keepdims = 0>(cut)"
    weights = ", int64[1] from = {1}, int64[1] to = {9223372036854775807}, int64[1] axis = {1}"
    assert picked(end, weights=weights) == ()


def test_a_crop_picks_none() -> None:
    end = "cut = Slice(norm, from, to, axis) class_token = ReduceMean<axes = [1], keepdims = 0>(cut)"
    weights = ", int64[1] from = {0}, int64[1] to = {5}, int64[1] axis = {1}"
    assert picked(end, weights=weights) == ()


def test_a_dense_output_picks_none() -> None:
    assert picked("class_token = Identity(norm)", outputs="float[A,B,C] logits") == ()


def test_the_last_axis_and_the_batch_are_no_positions() -> None:
    end = f"{GATHER} channel = Gather<axis = 2>(norm, first) sample = Gather<axis = 0>(norm, first)"
    outputs = "float[A,B] logits, float[C,D] channel, float[E,F] sample"
    assert picked(end, outputs=outputs) == (0,)
    none = end.replace(GATHER, "class_token = ReduceMean<axes = [1], keepdims = 0>(norm)")
    assert picked(none, outputs=outputs) == ()


def test_what_is_picked_before_an_attention_is_mixed_again() -> None:
    text = transformer(depth=1).replace(GATHER, "class_token = ReduceMean<axes = [1], keepdims = 0>(norm)")
    text = text.replace(TOKENS, "float[N,T,32] image, float[N,T,32] other")
    text = text.replace(
        "> {",
        ", int64[1] one = {1}> { lead = Gather<axis = 1>(image, first_one) tokens = Concat<axis = 1>(lead, other)",
        1,
    ).replace(", int64[1] one = {1}", ", int64[1] first_one = {0}")
    assert of_text(text) == ()


def test_positions_that_are_computed_are_none() -> None:
    text = transformer(depth=1).replace("first)", "place)").replace(TOKENS, f"{TOKENS}, int64 place")
    assert of_text(text.replace("int64 first = {0}, ", "")) == ()


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
def test_an_exported_vit_reads_its_class_token(
    export_vit: Callable[[str, bool], onnx.ModelProto], exporter: str, dynamic: bool
) -> None:
    graph = to_graph(export_vit(exporter, dynamic))
    canonicalise(graph)
    assert decisive_positions(graph, find_blocks(graph, "the test's graph")) == (0,)
