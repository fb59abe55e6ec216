"""Values of shape arithmetic: each operator, named sizes, and what is left unknown; names and Reshape targets."""

import numpy as np
import pytest
from textgraph import digest, graph_of

from onnxvitq.graph.symbolic import ShapeValues, computed_shapes, multiple, resolve_reshape, unify_names

Size = int | str | None


def value_of(nodes: str, weights: str = "", inputs: str = "float[N,4,6] x") -> list[object] | object:
    """The known elements of ``v``, or None."""
    constants = "int64 zero = {0}, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2}" + (
        f", {weights}" if weights else ""
    )
    graph = graph_of(f"({inputs}) => (int64 w) <{constants}> {{ {nodes} w = Size(v) }}")
    value = ShapeValues().of(graph.tensors()["v"])
    return None if value is None else value.tolist()


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("v = Shape(x)", ["N", 4, 6]),
        ("v = Shape<start = 1>(x)", [4, 6]),
        ("v = Shape<start = 0, end = 2>(x)", ["N", 4]),
        ("v = Shape<start = -2, end = -1>(x)", [4]),
        ("s = Shape(x) v = Gather(s, i1)", [4]),
        ("s = Shape(x) v = Gather(s, zero)", "N"),
        ("s = Shape(x) v = Gather<axis = -1>(s, i2)", [6]),
        ("s = Shape(x) v = Slice(s, i1, end)", [4, 6]),
        ("s = Shape(x) v = Slice(s, i0, i2)", ["N", 4]),
        ("s = Shape(x) v = Slice(s, i0, end, i0, i2)", ["N", 6]),
        ("s = Shape(x) v = Slice(s, last, end)", [6]),
        ("s = Shape(x) v = Slice(s, last, first, i0, last)", [6, 4, "N"]),
        ("s = Shape(x) v = Concat<axis = 0>(s, i2)", ["N", 4, 6, 2]),
        ("s = Shape(x) n = Gather(s, zero) v = Unsqueeze(n, i0)", ["N"]),
        ("s = Shape<start = 1, end = 2>(x) v = Squeeze(s, i0)", 4),
        ("s = Shape(x) n = Gather(s, zero) v = Reshape(n, last)", ["N"]),
        ("s = Shape(x) v = Cast<to = 7>(s)", ["N", 4, 6]),
        ("s = Shape(x) v = Where(flags, s, i2)", ["N", 2, 6]),
        ("s = Shape<start = 1>(x) v = Add(s, s)", [8, 12]),
        ("s = Shape<start = 1>(x) v = Sub(i2, s)", [-2, -4]),
        ("s = Shape<start = 1>(x) v = Mul(s, i2)", [8, 12]),
        ("s = Shape<start = 1>(x) v = Div(s, five)", [0, 1]),
        ("s = Shape<start = 1>(x) d = Sub(i0, s) v = Div(d, five)", [0, -1]),  # towards zero
        ("v = ConstantOfShape<value = int64[1] {7}>(i2)", [7, 7]),
    ],
)
def test_what_is_known_of_each_operator(nodes: str, expected: object) -> None:
    constants = (
        "int64[1] end = {9223372036854775807}, int64[1] last = {-1}, int64[1] first = {-9223372036854775807},"
        " bool[3] flags = {1, 0, 1}, int64[1] five = {5}"
    )
    assert value_of(nodes, constants) == expected


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("q = Equal(s, minus)", [False, False, False]),  # a named size is a size, never negative
        ("q = Equal(s, four)", [None, True, False]),  # N may be 4
        ("q = Equal(s, s)", [True, True, True]),
    ],
)
def test_equal_knows_what_a_name_cannot_be(nodes: str, expected: list[bool | None]) -> None:
    graph = graph_of(
        f"(float[N,4,6] x) => (bool[Z] q) <int64[1] minus = {{-1}}, int64[1] four = {{4}}> {{ s = Shape(x) {nodes} }}"
    )
    value = ShapeValues().of(graph.tensors()["q"])
    assert value is not None
    assert value.tolist() == expected


def test_two_names_may_be_equal() -> None:
    graph = graph_of("(float[N] x, float[M] z) => (bool[1] q) { s = Shape(x) t = Shape(z) q = Equal(s, t) }")
    value = ShapeValues().of(graph.tensors()["q"])
    assert value is not None
    assert value.tolist() == [None]


def test_where_follows_what_expand_to_minus_one_means() -> None:
    # torch writes expand(-1, 4): where the target is -1 take the size of the input
    nodes = (
        "s = Shape(x) t = Concat<axis = 0>(n, r) o = ConstantOfShape<value = int64[1] {1}>(l) q = Equal(t, m)"
        " v = Where(q, o, t)"
    )
    weights = "int64[1] m = {-1}, int64[2] r = {-1, 6}, int64[1] l = {3}"
    assert value_of(f"n = Shape<start = 0, end = 1>(x) {nodes}", weights) == ["N", 1, 6]


@pytest.mark.parametrize(
    "nodes",
    [
        "s = Shape(x) v = Neg(s)",  # an operator that is not looked into
        "v = Cast<to = 7>(x)",  # a value of the input
        "s = Shape(x) f = ArgMax<axis = 0, keepdims = 0>(s) v = Gather(s, f)",
        "t = Shape<start = 0, end = 1>(x) v = Gather(table, t)",  # an index that has only a name
        "t = Shape<start = 0, end = 1>(x) v = Slice(table, i0, t)",  # a bound that has only a name
        "s = Shape(x) v = Add(s, i2)",  # N + 2 has no name
        "s = Shape(x) v = Mul(s, s)",
        "s = Shape<start = 1>(x) v = Div(s, i0)",  # by zero
        "s = Shape(x) q = Equal(s, i2) v = Where(q, s, i2)",  # a condition that is not known
        "s = Shape(x) r = Unsqueeze(s, i0) v = Squeeze(r, i0)",  # through two dimensions
        "v = ConstantOfShape(n)",
        "s = Shape<start = 0, end = 1>(x) v = ConstantOfShape<value = int64[1] {1}>(s)",
    ],
)
def test_what_stays_unknown(nodes: str) -> None:
    assert value_of(nodes, "int64[5] table = {5, 6, 7, 8, 9}", "float[N,4,6] x, int64[1] n") is None


def test_division_of_floats_is_left_alone() -> None:
    graph = graph_of(
        "(float[7,4] x) => (int64[2] v) <float[1] two = {2}>"
        "{ s = Shape(x) f = Cast<to = 1>(s) h = Div(f, two) v = Cast<to = 7>(h) }"
    )
    assert ShapeValues().of(graph.tensors()["h"]) is None
    assert ShapeValues().of(graph.tensors()["v"]) is None


def test_values_of_a_float_fill_are_left_alone() -> None:
    graph = graph_of(
        "(float[2,3] x) => (float[2,3] v) { s = Shape(x) v = ConstantOfShape<value = float[1] {-inf}>(s) }"
    )
    assert ShapeValues().of(graph.tensors()["v"]) is None


def test_two_dimensional_constants_are_not_joined_along_the_wrong_axis() -> None:
    graph = graph_of("(float[N] x) => (int64[2,4] v) <int64[2,2] t = {1, 2, 3, 4}> { v = Concat<axis = 1>(t, t) }")
    assert ShapeValues().of(graph.tensors()["v"]) is None


def test_constants_are_read_unless_they_are_large() -> None:
    text = "(int64[N] x) => (int64[A] y) <int64[64] a, int64[65] b> { c = Add(a, x) d = Add(b, x) y = Concat<axis = 0>(c, d) }"
    tensors = graph_of(text, weights={"a": np.arange(64), "b": np.arange(65)}).tensors()
    known = ShapeValues().of(tensors["a"])
    assert known is not None
    assert known.tolist() == list(range(64))
    assert ShapeValues().of(tensors["b"]) is None


def test_evaluating_never_changes_the_graph() -> None:
    graph = graph_of("(float[N,4,6] x) => (int64[1] v) <int64[1] one = {1}> { s = Shape(x) v = Gather(s, one) }")
    before = digest(graph)
    ShapeValues().of(graph.tensors()["v"])
    assert digest(graph) == before


def shape_of(tensor: str, text: str) -> list[Size]:
    return list(graph_of(text).tensors()[tensor].shape)


RESHAPED = "(float[N,4,6] x) => (float[P,Q] y) <int64[2] s = {-1, 24}> { a = Reshape(x, s) y = Relu(a) }"
EXPANDED = (
    "(float[N,4,6] x) => (float[P,Q,R] y) <float[1,1,6] c, int64[2] r = {1, 6}>"
    "{ n = Shape<start = 0, end = 1>(x) t = Concat<axis = 0>(n, r) a = Expand(c, t) y = Relu(a) }"
)
ADDED = (
    "(float[N,4] x, float[M,4] z) => (float[P,Q] y) <int64[2] s = {-1, 4}>"
    "{ a = Reshape(x, s) b = Add(a, x) y = Relu(b) }"
)


def test_a_reshape_that_keeps_the_known_sizes_keeps_the_name() -> None:
    assert shape_of("a", RESHAPED) == ["N", 24]


@pytest.mark.parametrize(
    ("old", "new"),
    [("[N,4,6]", "[N,T,24]"), ("[N,4,6]", "[?,T,24]"), ("{-1, 24}", "{4, -1}")],
    ids=["two names", "a size without a name", "elsewhere"],
)
def test_a_reshape_that_does_not_gets_a_new_name(old: str, new: str) -> None:
    shape = shape_of("a", RESHAPED.replace(old, new))
    assert "N" not in shape
    assert "T" not in shape


JOINED = (
    "(float[N,4,6] x) => (float[P,Q,R] y) <int64[2] s = {-1, 6}, int64[3] t = {-1, 4, 6}, int64[2] u = {-1, 3}>"
    "{ a = Reshape(x, s) b = Relu(a) c = Reshape(b, u) d = Reshape(c, t) y = Relu(d) }"
)


def test_joined_rows_are_many_times_the_size_and_split_rows_the_size_again() -> None:
    assert shape_of("b", JOINED) == ["N times 4", 6]
    assert shape_of("c", JOINED) == ["N times 8", 3]
    assert shape_of("d", JOINED) == ["N", 4, 6]


def test_rows_that_are_no_whole_number_of_times_the_size_stay_unknown() -> None:
    size = shape_of("a", JOINED.replace("{-1, 6}", "{-1, 16}").replace("{-1, 3}", "{-1, 8}"))[0]
    assert multiple(str(size)) == (size, 1)
    assert size != "N"


def test_an_exporters_own_name_is_no_multiple() -> None:
    assert multiple("N times 4") == ("N", 4)
    assert [multiple(name) for name in ("2*N", "N times", " times 4", "N times four")] == [
        ("2*N", 1),
        ("N times", 1),
        (" times 4", 1),
        ("N times four", 1),
    ]


def test_a_size_of_one_expands_to_the_name_of_the_target() -> None:
    assert shape_of("a", EXPANDED) == ["N", 1, 6]


def test_a_target_of_one_does_not_shrink_an_unknown_size() -> None:
    text = "(float[N,1,4] x) => (float[P,Q,R] y) <int64[3] s = {1, 3, 4}> { a = Expand(x, s) y = Relu(a) }"
    assert shape_of("a", text) == ["N", 3, 4]


def test_a_target_with_another_name_leaves_the_size_unknown() -> None:
    text = EXPANDED.replace("float[N,4,6] x", "float[N,4,6] x, float[M,1,6] c").replace("float[1,1,6] c, ", "")
    assert shape_of("a", text)[0] not in ("N", "M")


def test_operands_of_one_name_give_it_to_their_result() -> None:
    assert shape_of("b", ADDED) == ["N", 4]
    assert shape_of("b", ADDED.replace("Add(a, x)", "Add(a, z)"))[0] not in ("N", "M")


def test_a_new_name_is_replaced_wherever_it_stands() -> None:
    text = RESHAPED.replace("y = Relu(a)", "b = Relu(a) c = Exp(b) y = Sqrt(c)")
    assert shape_of("c", text) == ["N", 24]


def test_a_product_takes_only_its_leading_sizes_from_both_operands() -> None:
    text = "(float[N,4,6] x, float[N,6,M] z) => (float[P,Q,R] y) { a = MatMul(x, z) y = Relu(a) }"
    assert shape_of("a", text) == ["N", 4, "M"]


def test_only_annotations_change() -> None:
    graph = graph_of(ADDED)
    for tensor in graph.tensors().values():
        if tensor.name in "ab":
            tensor.shape = ["fresh" + tensor.name, 4]
    before = [(node.op, [t.name for t in (*node.inputs, *node.outputs)]) for node in graph.nodes]
    unify_names(graph)
    assert {name: graph.tensors()[name].shape for name in "ab"} == {"a": ["N", 4], "b": ["N", 4]}
    assert [(node.op, [t.name for t in (*node.inputs, *node.outputs)]) for node in graph.nodes] == before


@pytest.mark.parametrize(
    ("target", "source", "expected"),
    [
        ([2, 24], [2, 4, 6], [2, 24]),
        (["N", 24], ["N", 4, 6], [-1, 24]),
        ([-1, 24], ["N", 4, 6], [-1, 24]),
        ([0, 24], ["N", 4, 6], [-1, 24]),
        ([0, 24], [2, 4, 6], [2, 24]),
        ([0, 0, 2, 3], ["N", 4, 6], [-1, 4, 2, 3]),
        (["M", 24], ["N", 4, 6], [-1, 24]),  # whatever it is called, the element count decides
        (["N", 4, -1], ["N", 4, 6], [-1, 4, 6]),
        (["N", -1], ["N", 4, 6], [-1, 24]),
        ([-1, "N", 8], [4, "N", 6], [3, -1, 8]),
    ],
)
def test_targets_that_resolve(target: list[Size], source: list[Size], expected: list[int]) -> None:
    assert resolve_reshape(np.array(target, object), source) == expected


@pytest.mark.parametrize(
    ("target", "source"),
    [
        (["N", "T", 6], ["N", "T", 6]),
        (["N", -1], ["N", "T", 6]),
        ([0, 0, 6], ["N", "T", 6]),
        (["M", -1], ["N", 4, 6]),
        ([0, -1], [None, 4, 6]),
        (["N", 7, -1], ["N", 4, 6]),
        (["N", 0, -1], ["N", 0, 6]),
        ([-1, -1], [4, 6]),
    ],
    ids=["names", "name and -1", "copied", "another name", "no name", "indivisible", "empty", "-1 twice"],
)
def test_targets_that_do_not_resolve(target: list[Size], source: list[Size]) -> None:
    assert resolve_reshape(np.array(target, object), source) is None


def told(text: str, known: tuple[str, ...] = ()) -> dict[str, list[Size]]:
    return {name: [*sizes] for name, sizes in computed_shapes(graph_of(text), known).items()}


COMPUTED = (
    "(float[N,4,6] x) => (float[P,Q,R] y) <int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] copied = {0}, int64[1] rest = {-1}>"
    "{ s = Shape(x) b = Slice(s, i0, i1) t = Concat<axis = 0>(b, copied, rest) a = Reshape(x, t) y = Relu(a) }"
)


def test_a_computed_reshape_tells_what_its_target_does() -> None:
    assert told(COMPUTED) == {"a": ["N", 4, "a.2"]}


def test_a_reshape_that_is_known_is_not_told_again() -> None:
    assert told(COMPUTED, ("a",)) == {}


def test_a_target_of_unknown_values_tells_nothing() -> None:
    assert told(COMPUTED.replace("[N,4,6] x", "[N,4,6] x, int64[1] i1").replace("int64[1] i1 = {1}, ", "")) == {}


def test_a_size_copied_from_an_unknown_shape_has_a_name_of_its_own() -> None:
    text = "(float[N] z, int64[R] r) => (float y) <int64[2] t = {0, -1}> { x = Expand(z, r) a = Reshape(x, t) y = Relu(a) }"
    assert told(text) == {"a": ["a.0", "a.1"]}
