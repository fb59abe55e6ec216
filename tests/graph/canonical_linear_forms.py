"""The forms of linear layers and of the layout around them that ``graph/passes`` rewrites; see ``canonical_forms``."""

from canonical_forms import Form, NearMiss

from onnxvitq.graph.passes import layout, linears, packed, scales

GEMM = "(float[N,4] x) => (float[A,B] y) <float[4,6] W, float[6] b> { y = Gemm(x, W, b) }"
GEMMS = (
    Form(
        linears.gemm_to_matmul,
        "a bias",
        GEMM,
        "MatMul Add",
        (
            NearMiss("a transposed input", {"[N,4] x": "[4,N] x", "Gemm(": "Gemm<transA = 1>("}),
            NearMiss("a computed weight", {"[N,4] x": "[N,4] x, float[4,6] W", "float[4,6] W, ": ""}),
            NearMiss("a computed bias", {"[N,4] x": "[N,4] x, float[6] b", "W, float[6] b": "W"}),
            NearMiss("one bias a row", {"[N,4] x": "[6,4] x", "float[6] b": "float[6,1] b"}),
        ),
        exact=False,
    ),
    Form(
        linears.gemm_to_matmul,
        "a transposed weight",
        GEMM.replace("[4,6]", "[6,4]").replace("Gemm(", "Gemm<transB = 1>("),
        "MatMul Add",
        exact=False,
    ),
    Form(
        linears.gemm_to_matmul,
        "factors",
        GEMM.replace("Gemm(", "Gemm<alpha = 0.3, beta = 1.7>("),
        "MatMul Add",
        exact=False,
    ),
    Form(
        linears.gemm_to_matmul,
        "a transposed weight, a factor and no bias",
        "(float[N,4] x) => (float[A,B] y) <float[6,4] W> { y = Gemm<transB = 1, alpha = 0.3>(x, W) }",
        "MatMul",
        exact=False,
    ),
    Form(linears.gemm_to_matmul, "one bias", GEMM.replace("float[6] b", "float b"), "MatMul Add", exact=False),
    Form(linears.gemm_to_matmul, "a bias row", GEMM.replace("float[6] b", "float[1,6] b"), "MatMul Add", exact=False),
)

PATCH = (
    "(float[N,3,8,12] x) => (float[A,B,C] y) <float[12,3,4,4] W, float[12] b, int64[3] s = {0, 12, -1}>"
    "{ c = Conv<strides = [4, 4]>(x, W, b) r = Reshape(c, s) y = Transpose<perm = [0, 2, 1]>(r) }"
)
PATCHES = (
    Form(
        linears.patch_convolution,
        "a bias",
        PATCH,
        "Reshape Transpose Reshape MatMul Add",
        (
            NearMiss("overlapping patches", {"strides = [4, 4]": "strides = [2, 2]"}),
            NearMiss("padding", {"strides = [4, 4]": "strides = [4, 4], pads = [0, 0, 4, 0]"}),
            NearMiss("padding by name", {"strides = [4, 4]": 'strides = [4, 4], auto_pad = "SAME_UPPER"'}),
            NearMiss("groups", {"strides = [4, 4]": "strides = [4, 4], group = 3", "[12,3,4,4]": "[12,1,4,4]"}),
            NearMiss("dilation", {"strides = [4, 4]": "strides = [4, 4], dilations = [2, 2]"}),
            NearMiss("an image that patches do not fill", {"[N,3,8,12]": "[N,3,9,12]"}),
            NearMiss("an image of unknown size", {"[N,3,8,12]": "[N,3,S,12]"}),
            NearMiss("a computed weight", {"12] x": "12] x, float[12,3,4,4] W", "float[12,3,4,4] W, ": ""}),
            NearMiss("a kernel of one pixel", {"[12,3,4,4]": "[12,3,1,1]", "strides = [4, 4]": "strides = [1, 1]"}),
            NearMiss("not tokens", {"{0, 12, -1}": "{0, 24, 3}"}),
            NearMiss("another order", {"[0, 2, 1]": "[1, 2, 0]"}),
            NearMiss("the grid is read too", {"(float[A,B,C] y)": "(float[A,B,C] y, float[E,F,G,H] c)"}),
        ),
        exact=False,
    ),
    Form(
        linears.patch_convolution,
        "no bias, a static batch",
        PATCH.replace("float[12] b, ", "").replace("(x, W, b)", "(x, W)").replace("[N,3,8,12]", "[2,3,8,12]"),
        "Reshape Transpose Reshape MatMul",
        exact=False,
    ),
)

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
            NearMiss("two unknown sizes", {"[N,5,8]": "[N,T,8]"}),
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
            NearMiss(
                "a slice of two",
                {
                    "Slice(t, i0, i1, i0)": "Slice(t, i0, i2, i0)",
                    "q = Squeeze(c0, i0)": "q = ReduceSum<keepdims = 0>(c0, i0)",
                },
            ),
            NearMiss(
                "squeezed elsewhere", {"q = Squeeze(c0, i0)": "q = ReduceSum<keepdims = 0>(c0, i1)", "D] q": "D] q"}
            ),
        ),
    ),
    Form(
        packed.split_packed_linears,
        "Split and Squeeze",
        PACKED.replace(
            PICKS, "c0, c1, c2 = Split(t, w) q = Squeeze(c0, i) k = Squeeze(c1, i) v = Squeeze(c2, i) }"
        ).replace("float[8,24] W", "int64[3] w = {1, 1, 1}, int64[1] i = {0}, float[8,24] W"),
        THREE,
        (
            NearMiss(
                "parts of different sizes",
                {
                    "c0, c1, c2 = Split": "c0, c1 = Split",
                    "int64[3] w = {1, 1, 1}": "int64[2] w = {1, 2}",
                    "v = Squeeze(c2, i)": "v = Squeeze(c0, i)",
                    "k = Squeeze(c1, i)": "k = ReduceSum<keepdims = 0>(c1, i)",
                },
            ),
        ),
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

KEYS = (
    Form(
        layout.merge_key_transpose,
        "heads joined for the transpose",
        "(float[N,2,5,4] x) => (float[A,B,C,D] y) <int64[3] j = {-1, 5, 4}, int64[4] s = {-1, 2, 4, 5}>"
        "{ a = Reshape(x, j) t = Transpose<perm = [0, 2, 1]>(a) y = Reshape(t, s) }",
        "Transpose",
        (
            NearMiss("another order", {"[0, 2, 1]": "[2, 1, 0]"}),
            NearMiss("joined otherwise", {"{-1, 5, 4}": "{-1, 4, 5}"}),
            NearMiss("split otherwise", {"{-1, 2, 4, 5}": "{-1, 4, 2, 5}"}),
            NearMiss("heads before the batch", {"{-1, 2, 4, 5}": "{2, -1, 4, 5}"}),
            NearMiss("an unknown number of tokens", {"[N,2,5,4]": "[N,2,T,4]"}),
        ),
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

SCALED = (
    "(float[N,5,8] x) => (float[A,B,C,D] y) <float[8,8] W, float[8] b, float c = {0.3}, int64[4] s = {0, 0, 2, 4}>"
    "{ p = MatMul(x, W) a = Add(p, b) r = Reshape(a, s) t = Transpose<perm = [0, 2, 1, 3]>(r) y = Mul(t, c) }"
)
PRODUCT = (
    "(float[N,5,8] x, float[N,6,4] z) => (float[A,B,C] y) <float[8,4] W, float[4] b, float c = {0.3}>"
    "{ p = MatMul(x, W) a = Add(p, b) k = Transpose<perm = [0, 2, 1]>(z) s = MatMul(a, k) y = Mul(s, c) }"
)
SCALES = (
    Form(
        scales.fold_scalar_scales,
        "Mul behind a projection and its layout",
        SCALED,
        "MatMul Add Reshape Transpose",
        (
            NearMiss("one factor a column", {"float c = {0.3}": "float[4] c = {1, 2, 3, 4}"}),
            NearMiss(
                "a factor that adds a dimension", {"float c = {0.3}": "float[1,1,1,1,1] c = {0.3}", "C,D]": "C,D,E]"}
            ),
            NearMiss("an activation between", {"y = Mul(t": "u = Relu(t) y = Mul(u"}),
            NearMiss("another reader", {"(float[A,B,C,D] y)": "(float[A,B,C,D] y, float[E,F,G,H] t)"}),
            NearMiss("a computed factor", {"8] x": "8] x, float c", "float c = {0.3}, ": ""}),
            NearMiss("not after a constant weight", {"8] x": "8] x, float[8,8] W", "float[8,8] W, ": ""}),
        ),
        exact=False,
    ),
    Form(
        scales.fold_scalar_scales,
        "Div",
        SCALED.replace("Mul(t, c)", "Div(t, c)"),
        "MatMul Add Reshape Transpose",
        (
            NearMiss("the factor divided", {"(t, c)": "(c, t)"}),
            NearMiss("by zero", {"{0.3}": "{0}"}),
        ),
        exact=False,
    ),
    Form(
        scales.fold_scalar_scales,
        "no bias, the factor in a vector and on the left",
        SCALED.replace(" a = Add(p, b)", "")
        .replace("(a, s)", "(p, s)")
        .replace("float c", "float[1] c")
        .replace("(t, c)", "(c, t)"),
        "MatMul Reshape Transpose",
        exact=False,
    ),
    Form(
        scales.fold_scalar_scales,
        "behind the scores",
        PRODUCT,
        "MatMul Transpose Add MatMul",
        (
            NearMiss("neither operand is projected", {"MatMul(a, k)": "MatMul(e, k)", " a = Add(p, b)": " e = Exp(p)"}),
            NearMiss(
                "behind a bias that is computed",
                {"6,4] z": "6,4] z, float[6] e", "y = Mul(s": "f = Add(s, e) y = Mul(f"},
            ),
        ),
        exact=False,
    ),
    Form(
        scales.fold_scalar_scales,
        "a square root on each side",
        "(float[N,5,8] x) => (float[A,B,C] y) <float[8,4] W, float[8,4] V, float c = {0.55}>"
        "{ p = MatMul(x, W) q = Mul(p, c) o = MatMul(x, V) t = Transpose<perm = [0, 2, 1]>(o) k = Mul(t, c) y = MatMul(q, k) }",
        "MatMul MatMul Transpose MatMul",
        edits=2,
        exact=False,
    ),
)
