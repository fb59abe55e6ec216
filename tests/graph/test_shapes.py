"""Shape inference: where onnx's gives up, what the arithmetic on shapes tells, and that weights do not matter."""

import numpy as np
from textgraph import digest, graph_of

from onnxvitq.graph.shapes import INFERRED_VALUES, infer_shapes, stated_shapes

Shapes = dict[str, list[int | str]]

# What paddle2onnx writes: a slice without steps, a -1 and a 0 in the target, and another reshape behind.
PADDLE = (
    "(float[?,4,6] x) => (float[P,Q,R] y) <int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] copied = {0}, int64[1] rest = {-1},"
    " int64[2] heads = {2, 3}, float[24,5] W>"
    "{ s = Shape(x) b = Slice(s, i0, i1, i0) t = Concat<axis = 0>(b, rest) a = Reshape(x, t)"
    " p = Relu(a) q = Shape(p) c = Slice(q, i0, i1) u = Concat<axis = 0>(c, copied, rest) d = Reshape(p, u) y = Relu(d) }"
)
# onnx knows neither how long a slice with a computed end is, nor what Where chooses.
CHOSEN = (
    "(float[N,T,6] x) => (float[P,Q,R] y) <int64[1] i0 = {0}, int64[1] minus = {-1}, int64[1] one = {1}, float[6,5] W>"
    "{ s = Shape(x) l = Shape(s) d = Slice(s, i0, l) e = Equal(d, minus) t = Where(e, one, d) a = Reshape(x, t)"
    " f = Relu(a) y = MatMul(f, W) }"
)


def shapes_of(text: str, *names: str) -> Shapes:
    tensors = graph_of(text).tensors()
    return {name: tensors[name].shape for name in names}


def test_a_paddle_chain_has_shapes_to_its_end() -> None:
    found = shapes_of(PADDLE, "x", "a", "p", "d")
    assert found["x"] == ["x.0", 4, 6]
    assert found["a"][0] == found["p"][0] == found["d"][0] == "x.0"
    assert found["a"] == found["p"]
    assert [len(shape) for shape in found.values()] == [3, 2, 2, 3]
    assert all(isinstance(size, int | str) for shape in found.values() for size in shape)


def test_a_chosen_target_tells_the_shape_and_inference_goes_on() -> None:
    assert shapes_of(CHOSEN, "a", "f") == {"a": ["N", "T", 6], "f": ["N", "T", 6]}
    assert shapes_of(CHOSEN, "y")["y"][-1] == 5


def test_computed_reshapes_behind_each_other() -> None:
    again = (
        " s2 = Shape(f) l2 = Shape(s2) d2 = Slice(s2, i0, l2) e2 = Equal(d2, minus) t2 = Where(e2, one, d2)"
        " a2 = Reshape(f, t2) y = MatMul(a2, W) }"
    )
    assert shapes_of(CHOSEN.replace(" y = MatMul(f, W) }", again), "a2") == {"a2": ["N", "T", 6]}


def test_sizes_without_a_name_get_one_each() -> None:
    found = shapes_of(
        "(float[?,?] x, float[?] z) => (float[P,Q] y) { a = Relu(x) b = Exp(z) y = Add(a, b) }", "x", "a", "z"
    )
    assert found == {"x": ["x.0", "x.1"], "a": ["x.0", "x.1"], "z": ["z.0"]}


def test_a_rank_that_cannot_be_told_stays_unknown() -> None:
    text = "(float[N] x, int64[R] r) => (float[P,Q] y) { a = Expand(x, r) b = Relu(a) y = MatMul(b, b) }"
    assert shapes_of(text, "a", "b") == {"a": None, "b": None}


def test_a_large_constant_is_not_read_and_stays_one() -> None:
    width = INFERRED_VALUES + 1
    graph = graph_of(f"(float[N,{width}] x) => (float[P,Q] y) <float[{width}] w> {{ a = Add(x, w) y = Relu(a) }}")
    assert graph.tensors()["a"].shape == ["N", width]
    assert isinstance(graph.tensors()["w"].values, np.ndarray)
    assert [tensor.name for tensor in graph.inputs] == ["x"]


def test_inferring_again_changes_nothing() -> None:
    for text in (PADDLE, CHOSEN):
        graph = graph_of(text)
        before = digest(graph)
        infer_shapes(graph)
        assert digest(graph) == before


ROWS = (
    "(float[N,4,6] x) => (float[P,Q,R] y) <int64[2] s = {-1, 6}, int64[3] t = {-1, 4, 6}>"
    "{ a = Reshape(x, s) b = Relu(a) y = Reshape(b, t) }"
)


def stated(text: str) -> dict[str, list[int | str]]:
    """What is stated for the runtime."""
    found = stated_shapes(graph_of(text))
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in found}


def test_a_reshape_is_stated_in_sizes_of_the_inputs() -> None:
    assert stated(ROWS) == {"a": ["N times 4", 6]}


def test_only_joined_rows_are_stated() -> None:
    split_again = ROWS.replace("y = Reshape(b, t)", "c = Reshape(b, t) d = Relu(c) y = Reshape(d, s)")
    assert stated(split_again) == {"a": ["N times 4", 6]}  # not c: what onnxruntime can compare, it does not give back


def test_a_size_that_no_input_has_is_not_stated() -> None:
    unknown = "int64[2] s = {-1, 6}, int64[3] t = {-1, 4, 6}>{ z = NonZero(x) f = Cast<to = 1>(z) a = Reshape(f, s)"
    assert stated(ROWS.replace("int64[2] s = {-1, 6}, int64[3] t = {-1, 4, 6}>{ a = Reshape(x, s)", unknown)) == {}


def test_the_widest_rows_have_a_name_of_their_own() -> None:
    # Gemms of 6, 12, 6 and 6 features: what the runtime can tell from the row before is not stated.
    mlp = ROWS.replace("R] y) <", "R] y) <float[6,12] U, float[12,6] D, float[6,6] W, ")
    mlp = mlp.replace("b = Relu(a)", "c = Gemm(a, W) d = Gemm(c, U) e = Relu(d) f = Gemm(e, D) b = Gemm(f, W)")
    assert stated(mlp) == {"a": ["N times 4", 6], "d": ["d rows", 12], "f": ["N times 4", 6]}
    assert stated(mlp.replace("[N,4,6]", "[2,4,6]")) == {"a": [8, 6]}


def test_what_is_quantized_at_run_time_is_stated_and_its_widest_rows_apart() -> None:
    text = (
        "(float[N,24] x) => (float[P,Q,R] y) <int64[3] s = {-1, 4, 6}, int8[6,12] U, int8[12,6] D, int8[6,6] W>"
        "{ a = Reshape(x, s) q, c, z = DynamicQuantizeLinear(a) u = MatMulInteger(q, U, z) v = Cast<to = 1>(u)"
        " r, d, o = DynamicQuantizeLinear(v) w = MatMulInteger(r, D, o) e = Cast<to = 1>(w)"
        " p, f, n = DynamicQuantizeLinear(e) g = MatMulInteger(p, W, n) h = Cast<to = 1>(g) y = Relu(h) }"
    )
    assert stated(text) == {"a": ["N", 4, 6], "u": ["u rows", 4, 12], "w": ["N", 4, 6]}
    assert stated(
        text.replace("q, c, z = DynamicQuantizeLinear(a)", "b = Relu(a) q, c, z = DynamicQuantizeLinear(b)")
    ) == {
        "u": ["u rows", 4, 12],
        "w": ["N", 4, 6],
    }
