"""The forms of ``passes/rows``; see ``canonical_forms``."""

import onnx_graphsurgeon as gs
from canonical_forms import Form, NearMiss

from onnxvitq.graph.passes import rows


def join_rows(graph: gs.Graph) -> int:
    """The pass, for a runtime that merges a sigmoid with the Gemm before it."""
    return rows.join_rows(graph, kept_apart=frozenset({"Sigmoid"}))


CONSTANTS = (
    "float[8,8] W, float[8,16] U, float[16,8] D, float[8] g, float[8] b, float[1,1,8] v,"
    " int64[2] r = {-1, 8}, int64[2] w = {-1, 16}, int64[3] s = {-1, 5, 8}, int64[3] t = {-1, 5, 16}"
)
# An MLP of a transformer as it is written: joined rows for each linear layer, and split again.
MLP = (
    f"(float[N,5,8] x) => (float[A,B,C] y) <{CONSTANTS}>"
    "{ a = Reshape(x, r) p = Gemm(a, W) q = Reshape(p, s) e = Add(q, v) n = LayerNormalization(e, g, b) m = Reshape(n, r)"
    " h = Gemm(m, U) i = Reshape(h, t) k = Erf(i) l = Reshape(k, w) o = Gemm(l, D) z = Reshape(o, s) f = Add(z, e)"
    " y = Transpose<perm = [0, 2, 1]>(f) }"
)
# SiLU, whose sigmoid could be merged with the product before it if nothing else read that.
GATE = (
    "(float[N,5,8] x) => (float[A,B,C] y) <float[8,8] W, float[8,4] D, int64[2] r = {-1, 8}, int64[3] s = {-1, 5, 8},"
    " int64[3] t = {-1, 5, 4}>"
    "{ a = Reshape(x, r) p = Gemm(a, W) q = Reshape(p, s) c = Sigmoid(q) d = Mul(q, c) e = Reshape(d, r) o = Gemm(e, D)"
    " y = Reshape(o, t) }"
)
# The stream comes as (.., C) and is read so, too.
ENTERS = (
    f"(float[N,5,8] x, float[N,5,8] z) => (float[A,B,C] y) <{CONSTANTS}>"
    "{ c = Softmax(x) d = Softmax(z) e = Add(c, d) n = LayerNormalization<axis = 2>(e, g, b) m = Reshape(n, r)"
    " o = Reshape(e, r) h = Gemm(m, W) i = Gemm(o, W) j = Reshape(h, s) k = Reshape(i, s) l = Add(j, k) f = Add(l, e)"
    " y = Softmax<axis = 1>(f) }"
)
ROWS = (
    Form(
        join_rows,
        "an MLP on joined rows",
        MLP,
        "Reshape Gemm Add LayerNormalization Gemm Erf Gemm Add Reshape Transpose",
        edits=4,
    ),
    Form(
        join_rows,
        "an activation that two read",
        GATE,
        "Reshape Gemm Sigmoid Mul Gemm Reshape",
        (
            NearMiss("the activation alone reads the product", {"Mul(q, c)": "Mul(c, c)"}),
            NearMiss(
                "two sizes are unknown",
                {"[N,5,8]": "[N,T,8]", ", int64[3] s = {-1, 5, 8}": "", "{ a": "{ s = Shape(x) a"},
            ),
            NearMiss("an activation over tokens", {"Sigmoid(q)": "Softmax<axis = 1>(q)"}),
            NearMiss("it is an output", {"[A,B,C] y)": "[A,B,C] y, float[E,F,G] d, float[H,I,J] c)"}),
            NearMiss("a factor a token", {"Mul(q, c)": "Mul(q, f)", "float[8,8] W": "float[8,8] W, float[5,1] f"}),
            NearMiss(
                "the result read with its own sizes",
                {"e = Reshape(d, r)": "k = Softmax<axis = 1>(d) e = Reshape(k, r)"},
            ),
        ),
        edits=2,
    ),
    Form(
        join_rows,
        "a stream that comes from elsewhere and goes there",
        ENTERS,
        "Softmax Softmax Reshape Reshape Add LayerNormalization Gemm Gemm Add Add Reshape Softmax",
        (
            NearMiss(
                "a norm over tokens, too",
                {"axis = 2>(e, g, b)": "axis = 1>(e, u, u)", "float[8] g": "float[5,8] u, float[8] g"},
            ),
            NearMiss(
                "as many Reshapes as before",
                {"l = Add(j, k)": "l = Add(j, e)", "[A,B,C] y": "[A,B,C] y, float[E,F,G] k"},
            ),
        ),
        edits=4,
    ),
)
