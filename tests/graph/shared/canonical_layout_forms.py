"""The forms of ``passes/layout``; see ``canonical_forms``."""

from canonical_forms import Form, NearMiss

from onnxvitq.graph.passes import layout

HEADS_JOINED = (
    "(float[N,2,5,4] x) => (float[A,B,C,D] y) <int64[3] j = {-1, 5, 4}, int64[4] s = {-1, 2, 4, 5}>"
    "{ a = Reshape(x, j) t = Transpose<perm = [0, 2, 1]>(a) y = Reshape(t, s) }"
)
WINDOWS = (
    "(float[N,8,8,6] x) => (float[A,B,C,D] y)"
    "<int64[6] cut = {-1, 2, 4, 2, 4, 6}, int64[4] w = {-1, 4, 4, 6}, "
    "int64[6] u = {-1, 2, 2, 4, 4, 6}, int64[4] s = {-1, 8, 8, 6}>"
    "{ a = Reshape(x, cut) b = Transpose<perm = [0, 1, 3, 2, 4, 5]>(a) c = Reshape(b, w)"
    " d = Reshape(c, u) e = Transpose<perm = [0, 1, 3, 2, 4, 5]>(d) y = Reshape(e, s) }"
)
CHAINS = (
    Form(
        layout.merge_layout,
        "heads joined for the transpose of a key",
        HEADS_JOINED,
        "Transpose",
        (
            NearMiss("an axis that is turned is torn first", {"{-1, 5, 4}": "{-1, 4, 5}"}),
            NearMiss("other axes are turned, and torn then", {"[0, 2, 1]": "[2, 1, 0]"}),
            NearMiss("axes are turned by default, and torn then", {"Transpose<perm = [0, 2, 1]>": "Transpose"}),
            NearMiss("heads before the batch", {"{-1, 2, 4, 5}": "{2, -1, 4, 5}"}),
            NearMiss("an unknown number of tokens", {"[N,2,5,4]": "[N,2,T,4]"}),
            NearMiss("a reader between", {"C,D] y)": "C,D] y, float[E,F,G] a)"}),
            NearMiss("an operator between", {"y = Reshape(t": "r = Relu(t) y = Reshape(r"}),
            NearMiss("an unknown rank", {"float[N,2,5,4] x": "float[N] e, int64[R] r", "{ a": "{ x = Expand(e, r) a"}),
            NearMiss("a target from outside", {"5,4] x": "5,4] x, int64[3] j", "int64[3] j = {-1, 5, 4}, ": ""}),
            NearMiss(
                "already the shortest",
                {"t = Transpose": "y = Transpose", " y = Reshape(t, s)": "", "[A,B,C,D]": "[A,B,C]"},
            ),
        ),
    ),
    Form(
        layout.merge_layout,
        "heads joined, split otherwise",
        HEADS_JOINED.replace("{-1, 2, 4, 5}", "{-1, 4, 2, 5}"),
        "Transpose Reshape",
    ),
    Form(layout.merge_layout, "integers", HEADS_JOINED.replace("float", "int64"), "Transpose"),
    Form(
        layout.merge_layout,
        "the heads gathered from a computed shape",
        "(float[N,2,5,4] x) => (float[A,B,C,D] y) <int64[2] j = {5, 4}, int64[3] s = {2, 4, 5}, int64[1] two = {2}>"
        "{ n = Shape<start = 0, end = 1>(x) h = Mul(n, two) jn = Concat<axis = 0>(h, j) a = Reshape(x, jn)"
        " t = Transpose<perm = [0, 2, 1]>(a) sn = Concat<axis = 0>(n, s) y = Reshape(t, sn) }",
        "Transpose",
    ),
    Form(
        layout.merge_layout,
        "an image to tokens, turned twice",
        "(float[N,8,3,4] x) => (float[A,B,C] y) <int64[3] s = {-1, 12, 8}>"
        "{ a = Transpose<perm = [0, 2, 3, 1]>(x) b = Reshape(a, s) y = Transpose<perm = [0, 2, 1]>(b) }",
        "Reshape",
        (
            NearMiss(
                "height and width are turned",
                {"[0, 2, 3, 1]": "[0, 3, 2, 1]", "[0, 2, 1]": "[2, 0, 1]", "{-1, 12, 8}": "{-1, 2, 48}"},
            ),
            NearMiss("an image of unknown size", {"[N,8,3,4]": "[N,8,S,4]"}),
        ),
    ),
    Form(
        layout.merge_layout,
        "a linear layer's output laid out as an image and back",
        "(float[N,5,8] x) => (float[A,B,C] y) <float[8,12] W, int64[4] g = {-1, 5, 1, 12}, int64[1] i = {3}>"
        "{ p = MatMul(x, W) a = Reshape(p, g) b = Transpose<perm = [0, 3, 1, 2]>(a) c = Squeeze(b, i)"
        " y = Transpose<perm = [0, 2, 1]>(c) }",
        "MatMul",
    ),
    Form(layout.merge_layout, "windows cut and put together again", WINDOWS, "Identity"),
    Form(
        layout.merge_layout,
        "windows of another size",
        WINDOWS.replace("{-1, 4, 4, 6}", "{-1, 2, 2, 4, 24}").replace("int64[4] w", "int64[5] w"),
        "Identity",
    ),
    Form(
        layout.merge_layout,
        "Squeeze and Unsqueeze",
        "(float[N,1,5,4] x) => (float[A,B,C,D] y) <int64[1] i = {1}>"
        "{ a = Squeeze(x, i) t = Transpose<perm = [0, 2, 1]>(a) b = Unsqueeze(t, i) y = Transpose<perm = [0, 1, 3, 2]>(b) }",
        "Identity",
        (
            NearMiss("two unknown sizes", {"[N,1,5,4]": "[N,1,T,4]"}),
            NearMiss(
                "a reader between",
                {
                    "C,D] y)": "C,D] y, float[E,F,G,H] b)",
                    "x) =>": "x, float[N,4,5] z) =>",
                    "Squeeze(x, i) t": "Identity(z) t",
                },
            ),
        ),
    ),
    Form(
        layout.merge_layout,
        "Flatten",
        "(float[N,4,2,3] x) => (float[A,B,C,D] y) <int64[4] s = {-1, 2, 3, 4}>"
        "{ a = Transpose<perm = [0, 2, 3, 1]>(x) b = Flatten(a) c = Reshape(b, s) y = Transpose<perm = [0, 3, 1, 2]>(c) }",
        "Identity",
        (NearMiss("into another shape", {"{-1, 2, 3, 4}": "{-1, 8, 3, 1}"}),),
    ),
    Form(
        layout.merge_layout,
        "two unknown sizes, copied",
        "(float[N,T,8] x) => (float[A,B,C,D] y) <int64[4] s = {0, 0, 2, 4}>"
        "{ a = Reshape(x, s) t = Transpose<perm = [0, 2, 1, 3]>(a) y = Transpose<perm = [0, 2, 1, 3]>(t) }",
        "Reshape",
    ),
    Form(
        layout.merge_layout,
        "two unknown sizes, one copied and one left",
        "(float[2,4,N,T] x) => (float[A,B,C] y) <int64[3] s = {0, 0, 8}>"
        "{ a = Transpose<perm = [2, 3, 0, 1]>(x) b = Reshape(a, s) y = Transpose<perm = [0, 2, 1]>(b) }",
        "Transpose Reshape",
        (NearMiss("both would be left", {"[0, 2, 1]": "[2, 0, 1]"}),),
    ),
)

MERGES = (
    Form(
        layout.merge_transposes,
        "two orders",
        "(float[2,3,4,5] x) => (float[A,B,C,D] y)"
        "{ a = Transpose<perm = [0, 2, 1, 3]>(x) y = Transpose<perm = [3, 1, 0, 2]>(a) }",
        "Transpose",
        (
            NearMiss(
                "something between",
                {"y = Transpose<perm = [3, 1, 0, 2]>(a)": "r = Relu(a) y = Transpose<perm = [3, 1, 0, 2]>(r)"},
            ),
            NearMiss("an order by default", {"Transpose<perm = [0, 2, 1, 3]>": "Transpose"}),
        ),
    ),
    Form(
        layout.merge_reshapes,
        "two shapes",
        "(float[N,4,6] x) => (float[A,B] y) <int64[2] s = {-1, 6}, int64[2] u = {-1, 24}>"
        "{ a = Reshape(x, s) y = Reshape(a, u) }",
        "Reshape",
        (
            NearMiss("a zero copies a size", {"{-1, 24}": "{0, 6}"}),
            NearMiss("a computed shape", {"6] x": "6] x, int64[2] u", ", int64[2] u = {-1, 24}": ""}),
            NearMiss("something between", {"y = Reshape(a": "r = Relu(a) y = Reshape(r"}),
        ),
    ),
)
