"""The forms of ``passes/fused``; see ``canonical_forms``."""

from canonical_forms import Form, NearMiss

from onnxvitq.graph.passes import fused

GELU = "(float[N,T,8] x) => (float[A,B,C] y) { y = com.microsoft.Gelu(x) }"
BIAS = "(float[N,T,8] x) => (float[A,B,C] y) <float[8] b> { y = com.microsoft.BiasGelu(x, b) }"
NORM = (
    "(float[N,T,8] x, float[N,T,8] s) => (float[A,B,C] y, float[D,E,F] z) <float[8] g, float[8] b, float[8] c>"
    "{ y, m, v, t = com.microsoft.SkipLayerNormalization<epsilon = 0.001>(x, s, g, b, c) z = Relu(t) }"
)
PRODUCT = (
    "(float[N,2,T,8] x, float[N,2,6,8] z) => (float[A,B,C,D] y)"
    "{ y = com.microsoft.FusedMatMul<transB = 1, alpha = 0.3>(x, z) }"
)
OPENED = (
    Form(
        fused.open_fused,
        "Gelu",
        GELU,
        "Div Erf Add Mul Mul",
        (
            NearMiss("the operator of the standard", {"com.microsoft.Gelu": "Gelu"}),
            NearMiss("an operator that is not opened", {"Gelu(x)": "FusedGelu(x)"}),
            NearMiss("another domain", {"com.microsoft.Gelu": "com.microsoft.nchwc.Gelu"}),
        ),
        exact=False,
        opset=20,
    ),
    Form(fused.open_fused, "BiasGelu", BIAS, "Add Div Erf Add Mul Mul", exact=False),
    Form(
        fused.open_fused, "FastGelu", BIAS.replace("Bias", "Fast"), "Add Pow Mul Add Mul Tanh Add Mul Mul", exact=False
    ),
    Form(
        fused.open_fused,
        "FastGelu, no bias",
        GELU.replace("Gelu", "FastGelu"),
        "Pow Mul Add Mul Tanh Add Mul Mul",
        exact=False,
    ),
    Form(fused.open_fused, "QuickGelu", GELU.replace("Gelu", "QuickGelu"), "Mul Sigmoid Mul", exact=False),
    Form(
        fused.open_fused,
        "QuickGelu, a factor",
        GELU.replace("Gelu(", "QuickGelu<alpha = 0.9>("),
        "Mul Sigmoid Mul",
        exact=False,
    ),
    Form(
        fused.open_fused,
        "SkipLayerNormalization",
        NORM,
        "Add Add Relu LayerNormalization",
        (
            NearMiss("its mean is read", {"z = Relu(t)": "z = Relu(m)"}),
            NearMiss("its inverse deviation is read", {"z = Relu(t)": "z = Relu(v)"}),
        ),
        exact=False,
    ),
    Form(
        fused.open_fused,
        "SkipLayerNormalization, no bias, nothing else read",
        NORM.replace("(x, s, g, b, c)", "(x, s, g, b)").replace("y, m, v, t =", "y =").replace("Relu(t)", "Relu(y)"),
        "Add LayerNormalization Relu",
        exact=False,
    ),
    Form(
        fused.open_fused,
        "SkipLayerNormalization, nothing but a factor",
        NORM.replace("(x, s, g, b, c)", "(x, s, g)"),
        "Add Relu LayerNormalization",
        exact=False,
    ),
    Form(
        fused.open_fused,
        "FusedMatMul, a transposed key and a scale",
        PRODUCT,
        "Transpose MatMul Mul",
        (NearMiss("an unknown rank", {"float[N,2,6,8] z": "float[N] e, int64[R] r", "{ y": "{ z = Expand(e, r) y"}),),
        exact=False,
    ),
    Form(
        fused.open_fused,
        "FusedMatMul, a transposed left side",
        PRODUCT.replace("transB = 1, alpha = 0.3", "transA = 1").replace("[N,2,T,8]", "[N,2,6,T]"),
        "Transpose MatMul",
        exact=False,
    ),
)
