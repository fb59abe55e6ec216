"""The forms of ``passes/selection``; see ``canonical_forms``."""

from canonical_forms import Form, NearMiss

from onnxvitq.graph.passes import selection

TAIL = (
    "(float[N,5,8] x) => (float[A,B] y) <float[8] g, float[8] b, float[8,6] W, int64 i = {2}>"
    "{ n = LayerNormalization(x, g, b) p = MatMul(n, W) r = Relu(p) y = Gather<axis = 1>(r, i) }"
)
ATTENTION = (
    "(float[N,5,8] x, float[N,1,1,5] m) => (float[A,B] y)"
    "<float[8,8] Q, float[8,8] K, float[8,8] V, int64[4] s = {0, 5, 2, 4}, int64[3] j = {-1, 5, 8}, int64[1] i = {0},"
    " int64[2] o = {-1, 8}>"
    "{ a = MatMul(x, Q) b = Reshape(a, s) q = Transpose<perm = [0, 2, 1, 3]>(b)"
    " c = MatMul(x, K) d = Reshape(c, s) k = Transpose<perm = [0, 2, 3, 1]>(d)"
    " e = MatMul(x, V) f = Reshape(e, s) v = Transpose<perm = [0, 2, 1, 3]>(f)"
    " t = MatMul(q, k) u = Add(t, m) p = Softmax<axis = -1>(u) h = MatMul(p, v)"
    " z = Transpose<perm = [0, 2, 1, 3]>(h) w = Reshape(z, j) l = Add(w, x) g = Gather<axis = 1>(l, i) y = Reshape(g, o) }"
)
PICKS = (
    Form(
        selection.pick_early,
        "a token of a linear layer",
        TAIL,
        "Gather LayerNormalization MatMul Relu Gather",
        (
            NearMiss("two tokens", {"int64 i = {2}": "int64[2] i = {2, 0}", "[A,B] y": "[A,B,C] y"}),
            NearMiss("a token that is computed", {"x) =>": "x, int64 i) =>", ", int64 i = {2}": ""}),
            NearMiss("an unknown number of tokens", {"[N,5,8]": "[N,T,8]"}),
            NearMiss(
                "a sequence picked after a product with a vector",
                {
                    "W)": "v)",
                    "float[8,6] W": "float[8] v",
                    "axis = 1": "axis = 0",
                    "[N,5,8]": "[5,7,8]",
                    "[A,B] y": "[A] y",
                },
            ),
            NearMiss("one token", {"[N,5,8]": "[N,1,8]", "{2}": "{0}"}),
            NearMiss("a column", {"axis = 1": "axis = 2"}),
            NearMiss("all tokens are an output, too", {"[A,B] y": "[A,B] y, float[C,D,E] r"}),
            NearMiss("another reader", {"[A,B] y": "[A,B] y, float[C,D,E] o", "y = Gather": "o = Tanh(r) y = Gather"}),
            NearMiss("an operator that mixes tokens", {"Relu(p)": "Softmax<axis = 1>(p)"}),
            NearMiss("a norm over the tokens", {"r = Relu(p)": "w = Relu(p) r = Softmax<axis = -2>(w)"}),
            NearMiss("an operator it does not know", {"Relu(p)": "CumSum(p, i)"}),
            NearMiss(
                "nothing that takes long",
                {"n = LayerNormalization(x, g, b) p = MatMul(n, W) r = Relu(p)": "r = Relu(x)", ", float[8,6] W": ""},
            ),
        ),
        edits=3,
        exact=False,
    ),
    Form(
        selection.pick_early,
        "the class token of an attention",
        ATTENTION,
        "Gather MatMul MatMul MatMul Reshape Reshape Reshape Transpose Transpose Transpose"
        " MatMul Add Softmax MatMul Transpose Reshape Add Gather Reshape",
        (
            NearMiss("tokens are joined with the batch", {"j = {-1, 5, 8}": "j = {5, -1, 8}"}),
            NearMiss("a target that is computed", {"Reshape(z, j)": "Reshape(z, jj)", "{ a =": "{ jj = Shape(x) a ="}),
        ),
        edits=10,
        exact=False,
    ),
    Form(
        selection.pick_early,
        "operands that vary with the token, and some that do not",
        "(float[N,5,8] x, float[N,1,8] c) => (float[A,B] y) <float[5,8] e, float[8] b, float[8,6] W, int64 i = {-1}>"
        "{ s = Add(x, e) t = Mul(s, c) u = Add(b, t) p = MatMul(u, W) y = Gather<axis = -2>(p, i) }",
        "Gather Add Mul Add MatMul Gather",
        (
            NearMiss(
                "the token does not vary",
                {"float[N,5,8] x": "float[N,1,8] x", "float[5,8] e": "float[1,8] e", "{-1}": "{0}"},
            ),
            NearMiss("a batch", {"axis = -2": "axis = 0", "[A,B]": "[A,B]"}),
        ),
        edits=4,
        exact=False,
    ),
    Form(
        selection.pick_early,
        "a reduction over channels",
        "(float[N,5,8] x) => (float[A,B] y) <float[8,6] W, int64[1] d = {-1}, int64 i = {1}>"
        "{ m = ReduceMean<axes = [2]>(x) s = Sub(x, m) q = Mul(s, s) r = ReduceSum(q, d) t = Div(s, r) p = MatMul(t, W)"
        " y = Gather<axis = 1>(p, i) }",
        "Gather ReduceMean Sub Mul ReduceSum Div MatMul Gather",
        edits=6,
        exact=False,
    ),
)
