"""Questions about tensors and nodes."""

import numpy as np
import pytest
from textgraph import graph_of

from onnxvitq.graph.query import (
    constant_input,
    constants,
    integers,
    is_output,
    is_probabilities,
    is_row,
    is_static,
    only_reader,
    same_lead,
    uniform_value,
)

TEXT = (
    "(float[N,4] x) => (float[A,B] y, float[C,D] z) <float[4] w, int64[2] s = {-1, 4}, float[1,4] r, float[4,1] c, float one>"
    "{ a = Add(x, w) b = Mul(a, a) z = Relu(b) e = Exp(z) y = Reshape(e, s) }"
)


def test_integers_are_read_from_integer_constants_only() -> None:
    tensors = graph_of(TEXT).tensors()
    assert integers(tensors["s"]) == [-1, 4]
    assert integers(tensors["w"]) is None
    assert integers(tensors["x"]) is None
    assert integers(None) is None


@pytest.mark.parametrize(
    ("shape", "static"), [([2, 3], True), ([], True), (["N", 3], False), ([None], False), (None, False)]
)
def test_static_means_every_size_is_a_number(shape: list[object] | None, static: bool) -> None:
    assert is_static(shape) == static


def test_the_only_reader_reads_once_and_the_caller_does_not() -> None:
    graph = graph_of(TEXT)
    tensors = graph.tensors()
    assert only_reader(tensors["x"], graph) is tensors["a"].inputs[0]
    assert only_reader(tensors["a"], graph) is None  # read twice by one node
    assert only_reader(tensors["z"], graph) is None  # an output too
    assert only_reader(tensors["y"], graph) is None
    assert {name for name in tensors if is_output(tensors[name], graph)} == {"y", "z"}


def test_the_constant_operand_of_a_node_of_two() -> None:
    nodes = {node.name: node for node in graph_of(TEXT).nodes}
    found = constant_input(nodes["a"])
    assert found is not None
    assert (found[0], found[1].name) == (1, "w")
    assert constant_input(nodes["b"]) is None
    assert constant_input(nodes["z"]) is None


def test_a_row_adds_the_same_to_every_row() -> None:
    text = TEXT.replace("a = Add(x, w)", "p = Add(x, w) q = Add(p, r) u = Add(one, q) a = Add(u, c)").replace(
        "N,4", "4,4"
    )
    tensors = graph_of(text).tensors()
    assert [name for name in ("w", "r", "c", "one", "x") if is_row(tensors[name], 4)] == ["w", "r", "one"]


@pytest.mark.parametrize(
    ("shape", "other", "same"),
    [
        (["N", 5], ["N", 5], True),
        (["M", 5], ["N", 5], True),  # the element count makes one unknown the same
        (["M", "S"], ["N", "T"], False),
        (["N"], ["N", 5], False),
        ([], [], True),
    ],
)
def test_leading_sizes_agree_but_for_one_name(shape: list[object], other: list[object], same: bool) -> None:
    assert same_lead(shape, other) == same


@pytest.mark.parametrize(
    ("nodes", "value"),
    [
        ("v = Expand(two, s)", 2.0),
        ("e = Expand(two, s) v = Transpose(e)", 2.0),
        ("f = Expand(yes, s) v = Where(f, two, x)", 2.0),
        ("f = Expand(no, s) v = Where(f, x, two)", 2.0),
        ("f = Expand(both, s) v = Where(f, two, two)", None),
        ("v = ConstantOfShape(s)", 0.0),
        ("v = ConstantOfShape<value = float[1] {-inf}>(s)", -np.inf),
        ("v = Relu(x)", None),
        ("e = Expand(two, s) v = Exp(e)", None),
        ("v = Expand(w, s)", None),
    ],
)
def test_one_value_whatever_the_input(nodes: str, value: float | None) -> None:
    weights = "float two = {2}, bool yes = {1}, bool no = {0}, bool[2] both = {0, 1}, float[2] w = {1, 2}, int64[2] s = {2, 2}"
    graph = graph_of(f"(float[2,2] x) => (float[A,B] y) <{weights}> {{ {nodes} y = Add(x, v) }}")
    assert uniform_value(graph.tensors()["v"]) == value


@pytest.mark.parametrize(
    ("nodes", "answer"),
    [
        ("float[2,3,5] y) {{ y = Softmax<axis = -1>(x) }}", True),
        ("float[2,3,5] y) {{ y = Softmax<axis = 2>(x) }}", True),
        (
            "float[2,3,5] y) {weights} {{ f = Reshape(x, flat) p = Softmax(f) y = Reshape(p, back) }}",
            True,
        ),  # of exporters
        ("float[6,5] y) {weights} {{ p = Softmax(x) y = Reshape(p, flat) }}", True),
        ("float[2,3,5] y) {{ y = Softmax<axis = 1>(x) }}", False),  # of the tokens
        ("float[2,5,3] y) {{ p = Softmax(x) y = Transpose<perm = [0, 2, 1]>(p) }}", False),  # the classes are elsewhere
        ("float[2,3,5] y) {{ p = Softmax(x) y = Relu(p) }}", False),
        ("float[6,5] y) {weights} {{ y = Reshape(x, flat) }}", False),
    ],
)
def test_what_a_softmax_puts_out(nodes: str, answer: bool) -> None:
    text = nodes.format(weights="<int64[2] flat = {6, 5}, int64[3] back = {2, 3, 5}>")
    assert is_probabilities(graph_of(f"(float[2,3,5] x) => ({text}").outputs[0]) is answer


def test_constants_by_name() -> None:
    graph = graph_of(
        "(float[N,4] x) => (float[A,B] y) <float[4] b = {1, 2, 3, 4}, float[4] c> { p = Add(x, b) y = Add(p, c) }"
    )
    values = constants(graph, {"b"})
    assert list(values) == ["b"]
    assert np.array_equal(values["b"], np.array([1, 2, 3, 4], np.float32))
