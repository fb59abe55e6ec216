"""The forms of ``passes/linears`` and ``passes/scales``; see ``canonical_forms``."""

from canonical_forms import Form, NearMiss

from onnxvitq.graph.passes import linears, scales

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
