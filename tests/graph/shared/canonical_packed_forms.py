"""The forms of ``passes/packed``; see ``canonical_forms``."""

from canonical_forms import Form, NearMiss

from onnxvitq.graph.passes import packed

PACKED = (
    "(float[N,5,8] x) => (float[A,B,C,D] q, float[E,F,G,H] k, float[I,J,K,L] v)"
    "<float[8,24] W, float[24] b, int64[5] s = {0, 0, 3, 2, 4}, int64 zero = {0}, int64 one = {1}, int64 last = {-1}>"
    "{ p = MatMul(x, W) a = Add(p, b) r = Reshape(a, s) t = Transpose<perm = [2, 0, 3, 1, 4]>(r)"
    " q = Gather(t, zero) k = Gather(t, one) v = Gather(t, last) }"
)
PICKS = " q = Gather(t, zero) k = Gather(t, one) v = Gather(t, last) }"
SLICES = (
    "c0 = Slice(t, i0, i1, i0) c1 = Slice(t, i1, i2, i0) c2 = Slice(t, i2, end, i0)"
    " q = Squeeze(c0, i0) k = Squeeze(c1, i0) v = Squeeze(c2, i0) }"
)
BOUNDS = "int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] end = {9223372036854775807}, float[8,24] W"
THREE = " ".join(["MatMul"] * 3 + ["Add"] * 3 + ["Reshape"] * 3 + ["Transpose"] * 3)
HEADS = (
    "(float[N,5,8] x) => (float[A,B,C,D] q, float[E,F,G,H] k, float[I,J,K,L] v)"
    "<float[8,16] W, float[16] b, int64[4] s = {0, 0, 2, 8}, int64[3] w = {2, 2, 4}>"
    "{ p = MatMul(x, W) a = Add(p, b) r = Reshape(a, s) t = Transpose<perm = [0, 2, 1, 3]>(r)"
    " q, k, v = Split<axis = 3>(t, w) }"
)
SPLITS = (
    Form(
        packed.split_packed_linears,
        "Gather",
        PACKED,
        THREE,
        (
            NearMiss(
                "a reader of all three",
                {" q = Gather(t, zero)": " q = ReduceSum<keepdims = 0>(t, i)", "<f": "<int64[1] i = {0}, f"},
            ),
            NearMiss("two at once", {"int64 zero = {0}": "int64[2] zero = {0, 1}", "[A,B,C,D] q": "[A,B,C,D,Z] q"}),
            NearMiss("a token is picked", {"[2, 0, 3, 1, 4]": "[1, 0, 3, 2, 4]"}),
            NearMiss("two unknown sizes, joined anew", {"[N,5,8]": "[N,T,8]", "{0, 0, 3, 2, 4}": "{-1, 5, 3, 2, 4}"}),
            NearMiss("the packed result is an output", {"L] v)": "L] v, float[U,V,M] a)"}),
            NearMiss("a computed weight", {"8] x": "8] x, float[8,24] W", "float[8,24] W, ": ""}),
            NearMiss("picks of different axes", {"Gather(t, one)": "Gather<axis = 2>(t, one)"}),
        ),
    ),
    Form(
        packed.split_packed_linears,
        "Gather, no bias",
        PACKED.replace(" a = Add(p, b)", "").replace("(a, s)", "(p, s)"),
        THREE.replace("Add Add Add ", ""),
    ),
    Form(
        packed.split_packed_linears,
        "Gather with nothing turned",
        PACKED.replace(" t = Transpose<perm = [2, 0, 3, 1, 4]>(r)", "").replace("Gather(t", "Gather<axis = 2>(r"),
        THREE.replace(" Transpose Transpose Transpose", ""),
    ),
    Form(
        packed.split_packed_linears,
        "Gather of an axis between heads and their width",
        PACKED.replace("{0, 0, 3, 2, 4}", "{0, 0, 2, 3, 4}").replace("[2, 0, 3, 1, 4]", "[3, 0, 2, 1, 4]"),
        THREE,
    ),
    Form(
        packed.split_packed_linears,
        "Slice and Squeeze",
        PACKED.replace(PICKS, SLICES).replace("float[8,24] W", BOUNDS),
        THREE,
        (
            NearMiss("in steps", {"i0) c1": "i0, i2) c1"}),
            NearMiss(
                "picks of different axes",
                {
                    "c1 = Slice(t, i1, i2, i0)": "c1 = Slice(t, i1, i2, i1)",
                    "k = Squeeze(c1, i0)": "k = ReduceSum<keepdims = 0>(c1, i1)",
                },
            ),
        ),
    ),
    Form(
        packed.split_packed_linears,
        "Slices of one and of two",
        PACKED.replace(PICKS, SLICES)
        .replace("float[8,24] W", BOUNDS)
        .replace("c0 = Slice(t, i0, i1, i0)", "c0 = Slice(t, i0, i2, i0)")
        .replace("q = Squeeze(c0, i0)", "q = ReduceSum<keepdims = 0>(c0, i0)"),
        THREE + " ReduceSum",
    ),
    Form(
        packed.split_packed_linears,
        "a Slice that keeps its axis",
        PACKED.replace(PICKS, SLICES)
        .replace("float[8,24] W", BOUNDS)
        .replace("q = Squeeze(c0, i0)", "q = ReduceSum<keepdims = 0>(c0, i1)"),
        THREE + " ReduceSum",
    ),
    Form(
        packed.split_packed_linears,
        "Split and Squeeze",
        PACKED.replace(
            PICKS, "c0, c1, c2 = Split(t, w) q = Squeeze(c0, i) k = Squeeze(c1, i) v = Squeeze(c2, i) }"
        ).replace("float[8,24] W", "int64[3] w = {1, 1, 1}, int64[1] i = {0}, float[8,24] W"),
        THREE,
        (NearMiss("the batch is split", {"[2, 0, 3, 1, 4]": "[0, 2, 3, 1, 4]", "[N,5,8]": "[3,5,8]"}),),
    ),
    Form(
        packed.split_packed_linears,
        "Gather behind two unknown sizes",
        PACKED.replace("[N,5,8]", "[N,T,8]"),
        THREE,
    ),
    Form(
        packed.split_packed_linears,
        "heads of queries and keys that are narrower than those of values",
        HEADS,
        THREE,
        (
            NearMiss("another reader", {"L] v)": "L] v, float[I,J,K,M] z)", " q, k": " z = Relu(t) q, k"}),
            NearMiss("everything is an output", {"L] v)": "L] v, float[I,J,K,M] t)"}),
            NearMiss("the tokens are split", {"axis = 3": "axis = 2", "{2, 2, 4}": "{1, 2, 2}"}),
            NearMiss("an activation between", {"r = Reshape(a": "e = Relu(a) r = Reshape(e"}),
        ),
    ),
    Form(
        packed.split_packed_linears,
        "heads of one projection",
        HEADS.replace("axis = 3", "axis = 1").replace("{2, 2, 4}", "{1, 1, 2}").replace("{0, 0, 2, 8}", "{0, 0, 4, 4}"),
        THREE,
    ),
    Form(
        packed.split_packed_linears,
        "narrower heads behind two unknown sizes",
        HEADS.replace("[N,5,8]", "[N,T,8]"),
        THREE,
    ),
    Form(
        packed.split_packed_linears,
        "narrower heads, nothing turned and no bias",
        HEADS.replace(" a = Add(p, b)", "")
        .replace("(a, s)", "(p, s)")
        .replace(" t = Transpose<perm = [0, 2, 1, 3]>(r)", "")
        .replace("(t, w)", "(r, w)"),
        "MatMul MatMul MatMul Reshape Reshape Reshape",
    ),
    Form(
        packed.split_packed_linears,
        "Split of the last axis",
        "(float[N,T,8] x) => (float[A,B,C] q, float[D,E,F] k, float[G,H,I] v)"
        "<float[8,24] W, float[24] b, int64[3] w = {8, 12, 4}>"
        "{ p = MatMul(x, W) a = Add(p, b) q, k, v = Split<axis = -1>(a, w) }",
        "MatMul MatMul MatMul Add Add Add",
        (
            NearMiss("another axis", {"axis = -1": "axis = 1", "[N,T,8]": "[N,24,8]"}),
            NearMiss("another reader", {"I] v)": "I] v, float[J,K,L] z)", " q, k": " z = Relu(a) q, k"}),
            NearMiss("an activation between", {"q, k, v =": "c = Relu(a) q, k, v =", "(a, w)": "(c, w)"}),
        ),
    ),
    Form(
        packed.split_packed_linears,
        "Slices of the last axis",
        "(float[N,T,8] x) => (float[A,B,C] q, float[D,E,F] k)"
        "<float[8,16] W, int64[1] i0 = {0}, int64[1] i8 = {8}, int64[1] end = {16}, int64[1] axis = {2}>"
        "{ p = MatMul(x, W) q = Slice(p, i0, i8, axis) k = Slice(p, i8, end, axis) }",
        "MatMul MatMul",
        (
            NearMiss(
                "in steps",
                {"int64[1] axis = {2}": "int64[1] axis = {2}, int64[1] step = {2}", "end, axis)": "end, axis, step)"},
            ),
            NearMiss("no axis", {"(p, i0, i8, axis)": "(p, i0, i8)"}),
        ),
    ),
)
