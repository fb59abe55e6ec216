"""Which linears are behind a tensor and ahead of one: nearest first, through some operators, not without end."""

import onnx_graphsurgeon as gs
import pytest
from textgraph import digest, graph_of

from onnxvitq.blocks.walk import MAX_NODES, is_mixed, linear_ahead, linears_behind, made_by_layers

KINDS = frozenset({"Add", "Mul", "Neg", "Concat"})
TEXT = (
    "(float[4,4] x) => (float[4,4] y) <float[4,4] A, float[4,4] B, float c = {2}>"
    "{ a = MatMul(x, A) b = MatMul(x, B) n = Neg(a) m = Mul(n, c) s = Add(m, b) r = Relu(s) t = Neg(r) y = MatMul(t, B) }"
)
BY_OUTPUT = {"a": "first", "b": "second"}


@pytest.fixture
def graph() -> gs.Graph:
    return graph_of(TEXT)


def behind(graph: gs.Graph, tensor: str, kinds: frozenset[str] = KINDS) -> list[str]:
    return linears_behind(graph.tensors()[tensor], kinds, BY_OUTPUT)


def test_behind_the_nearest_comes_first(graph: gs.Graph) -> None:
    assert behind(graph, "s") == ["second", "first"]  # one step against three


def test_behind_a_linears_own_output_is_itself(graph: gs.Graph) -> None:
    assert behind(graph, "a") == ["first"]


def test_behind_goes_only_through_what_was_asked(graph: gs.Graph) -> None:
    assert behind(graph, "s", KINDS - {"Neg"}) == ["second"]
    assert behind(graph, "t") == []  # Relu is between
    assert behind(graph, "t", KINDS | {"Relu"}) == ["second", "first"]


@pytest.mark.parametrize("tensor", ["x", "c"])
def test_behind_inputs_and_constants_is_nothing(graph: gs.Graph, tensor: str) -> None:
    assert behind(graph, tensor) == []


def test_behind_a_linear_is_not_looked(graph: gs.Graph) -> None:
    assert linears_behind(graph.tensors()["s"], KINDS | {"MatMul"}, {"b": "second", "x": "input"}) == [
        "second",
        "input",  # through the product that is no linear here
    ]


def test_each_linear_is_named_once() -> None:
    graph = graph_of("(float[4,4] x) => (float[4,4] y) <float[4,4] A> { a = MatMul(x, A) n = Neg(a) y = Add(n, a) }")
    assert linears_behind(graph.tensors()["y"], KINDS, {"a": "first"}) == ["first"]


def chain(length: int) -> gs.Graph:
    links = " ".join(f"n{i + 1} = Neg(n{i})" for i in range(length))
    return graph_of(f"(float[4,4] x) => (float[4,4] n{length}) <float[4,4] A> {{ n0 = MatMul(x, A) {links} }}")


def test_the_way_behind_is_bounded() -> None:
    for length, found in ((MAX_NODES - 2, ["first"]), (MAX_NODES + 1, [])):
        assert linears_behind(chain(length).tensors()[f"n{length}"], KINDS, {"n0": "first"}) == found


def ahead(graph: gs.Graph, tensor: str, kinds: frozenset[str] = KINDS) -> str:
    return linear_ahead(graph.tensors()[tensor], kinds, {"t": "last", "s": "near"})


def test_ahead_the_nearest_wins(graph: gs.Graph) -> None:
    assert ahead(graph, "a") == "near"
    assert ahead(graph, "r") == "last"
    assert ahead(graph, "t") == "last"


def test_ahead_goes_only_through_what_was_asked(graph: gs.Graph) -> None:
    assert ahead(graph, "a", frozenset({"Neg", "Mul"})) == ""
    assert linear_ahead(graph.tensors()["a"], KINDS, {"t": "last"}) == ""  # Relu is between
    assert linear_ahead(graph.tensors()["a"], KINDS | {"Relu"}, {"t": "last"}) == "last"
    assert ahead(graph, "y") == ""


def test_the_way_ahead_is_bounded() -> None:
    for length, found in ((MAX_NODES - 2, "last"), (MAX_NODES + 1, "")):
        assert linear_ahead(chain(length).tensors()["n0"], KINDS, {f"n{length}": "last"}) == found


def test_made_by_layers_are_what_depends_on_one() -> None:
    graph = graph_of(
        "(float[N,3,8,8] image, float[4,4] grid) => (float[A,B] y, float[C,D,E,F] z) <float[4,4] A, float[2,3,3,3] K>"
        "{ g = Neg(grid) a = MatMul(g, A) n = Neg(a) size = Shape(n) s = Cast<to = 1>(size) y = Add(n, g)"
        " c = Conv(image, K) z = Relu(c) }"
    )
    before = digest(graph)
    assert made_by_layers(graph, {"a": "first"}) == {"a", "n", "y", "c", "z"}
    assert made_by_layers(graph, {}) == {"c", "z"}
    assert digest(graph) == before


@pytest.mark.parametrize(
    ("nodes", "mixed"),
    [
        ("y = Add(a, x)", True),
        ("n = Neg(a) y = Concat<axis = 0>(n, x)", True),
        ("b = MatMul(a, A) y = Add(b, x)", True),  # also behind a layer
        ("t = Transpose(a) y = MatMul(a, x)", True),
        ("n = Neg(a) y = MatMul(a, n)", True),  # also with itself: an attention
        ("y = Add(a, A)", False),  # a constant
        ("n = Neg(a) y = Add(n, a)", False),  # nothing but itself
        ("b = MatMul(a, A) y = Softmax(b)", False),
        ("b = MatMul(x, A) y = Neg(a) z = Add(b, x)", False),  # beside it
    ],
)
def test_what_another_tensor_is_mixed_into(nodes: str, mixed: bool) -> None:
    graph = graph_of(f"(float[4,4] x) => (float[4,4] y) <float[4,4] A> {{ a = MatMul(x, A) {nodes} }}")
    assert is_mixed(graph, graph.tensors()["a"]) is mixed
