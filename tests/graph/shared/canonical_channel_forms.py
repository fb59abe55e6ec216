"""The forms of ``passes/channels``; see ``canonical_forms``."""

import numpy as np
from canonical_forms import Form, NearMiss

from onnxvitq.graph.passes import channels

POSITIVE = {"v": np.array([0.4, 1.3, 0.7, 2.1, 0.2, 1.1], np.float32)}  # variances
NORM = "float[6] g, float[6] s, float[6] m, float[6] v"
CONV_NORM = (
    f"(float[N,3,T,7] x) => (float[A,B,C,D] y) <float[6,3,3,3] W, float[6] b, {NORM}>"
    "{ c = Conv(x, W, b) y = BatchNormalization(c, g, s, m, v) }"
)
LINEAR_NORM = (
    f"(float[N,8] x) => (float[A,B] y) <float[8,6] W, float[6] b, {NORM}>"
    "{ p = MatMul(x, W) a = Add(p, b) y = BatchNormalization(a, g, s, m, v) }"
)
LEVIT_NORM = (
    f"(float[N,5,8] x) => (float[A,B,C] y) <float[8,6] W, {NORM}, int64[2] rows = {{-1, 6}}, int64[3] tokens = {{-1, 5, 6}}>"
    "{ p = MatMul(x, W) r = Reshape(p, rows) n = BatchNormalization(r, g, s, m, v) y = Reshape(n, tokens) }"
)
BATCH_NORMS = (
    Form(
        channels.fold_batch_norm,
        "a convolution with a bias",
        CONV_NORM,
        "Conv",
        (
            NearMiss("another reader", {"C,D] y)": "C,D] y, float[E,F,G,H] c)"}),
            NearMiss("a computed parameter", {"7] x": "7] x, float[6] g", "float[6] g, ": ""}),
            NearMiss("training", {"y = BatchNormalization(": "y, rm, rv = BatchNormalization<training_mode = 1>("}),
            NearMiss("an activation between", {"y = BatchNormalization(c": "r = Relu(c) y = BatchNormalization(r"}),
            NearMiss("a transposed convolution", {"Conv(": "ConvTranspose(", "[6,3,3,3]": "[3,6,3,3]"}),
            NearMiss("a computed weight", {"7] x": "7] x, float[6,3,3,3] W", "float[6,3,3,3] W, ": ""}),
            NearMiss("a computed bias", {"7] x": "7] x, float[6] b", " float[6] b,": ""}),
        ),
        exact=False,
        weights=POSITIVE,
    ),
    Form(
        channels.fold_batch_norm,
        "a convolution without a bias, an epsilon",
        CONV_NORM.replace(" float[6] b,", "")
        .replace("W, b)", "W)")
        .replace("Normalization(", "Normalization<epsilon = 0.1>("),
        "Conv",
        exact=False,
        weights=POSITIVE,
    ),
    Form(
        channels.fold_batch_norm,
        "a convolution a channel",
        CONV_NORM.replace("[N,3,T,7]", "[N,6,T,7]")
        .replace("[6,3,3,3]", "[6,1,3,3]")
        .replace("Conv(", "Conv<group = 6>("),
        "Conv",
        exact=False,
        weights=POSITIVE,
    ),
    Form(
        channels.fold_batch_norm,
        "a convolution, something added, and pixels in a row",
        "(float[N,3,5,7] x) => (float[A,B,C] y) <float[6,3,3,3] W, float[6] b, float[6,3,5] e, int64[3] r = {0, 6, 15},"
        f" {NORM}> {{ c = Conv(x, W, b) a = Add(e, c) f = Reshape(a, r) y = BatchNormalization(f, g, s, m, v) }}",
        "Conv Add Reshape",
        (
            NearMiss("added twice", {"f = Reshape(a": "d = Add(a, e) f = Reshape(d"}),
            NearMiss("what is added adds an axis", {"[6,3,5] e": "[1,1,6,3,5] e", "f = Reshape(a": "f = Reshape(a"}),
            NearMiss("channels are torn", {"{0, 6, 15}": "{-1, 6, 45}", "[N,3,5,7]": "[3,3,5,7]"}),
        ),
        exact=False,
        weights=POSITIVE,
    ),
    Form(
        channels.fold_batch_norm,
        "a linear layer",
        LINEAR_NORM.replace(" a = Add(p, b)", "").replace(" float[6] b,", "").replace("(a, g", "(p, g"),
        "MatMul Add",
        (
            NearMiss("a computed weight", {"8] x": "8] x, float[8,6] W", "float[8,6] W, ": ""}),
            NearMiss("another reader", {"(float[A,B] y)": "(float[A,B] y, float[C,D] p)"}),
        ),
        exact=False,
        weights=POSITIVE,
    ),
    Form(
        channels.fold_batch_norm,
        "a linear layer with a bias",
        LINEAR_NORM,
        "MatMul Add",
        (NearMiss("the sum is read too", {"(float[A,B] y)": "(float[A,B] y, float[C,D] a)"}),),
        exact=False,
        weights=POSITIVE,
    ),
    Form(
        channels.fold_batch_norm,
        "a linear layer with one bias, in front",
        LINEAR_NORM.replace("float[6] b", "float b").replace("Add(p, b)", "Add(b, p)"),
        "MatMul Add",
        exact=False,
        weights=POSITIVE,
    ),
    Form(
        channels.fold_batch_norm,
        "rows of all images",
        LEVIT_NORM,
        "MatMul Add Reshape Reshape",
        (
            NearMiss(
                "rows that tear the channels",
                {"{-1, 6}": "{-1, 3}", **{f"float[6] {name}": f"float[3] {name}" for name in "gsmv"}},
                weights={"v": POSITIVE["v"][:3]},
            ),
            NearMiss(
                "the tokens are normalised",
                {
                    "{-1, 6}": "{-1, 5, 6, 1}",
                    "int64[2]": "int64[4]",
                    **{f"float[6] {n}": f"float[5] {n}" for n in "gsmv"},
                },
                weights={"v": POSITIVE["v"][:5]},
            ),
        ),
        exact=False,
        weights=POSITIVE,
    ),
    Form(
        channels.fold_batch_norm,
        "rows of all images, an unknown number of tokens",
        LEVIT_NORM.replace("[N,5,8]", "[2,T,8]").replace("{-1, 5, 6}", "{2, -1, 6}"),
        "MatMul Add Reshape Reshape",
        exact=False,
        weights=POSITIVE,
    ),
    Form(
        channels.fold_batch_norm,
        "channels first",
        f"(float[N,T,8] x) => (float[A,B,C] y) <float[8,6] W, {NORM}>"
        "{ p = MatMul(x, W) t = Transpose<perm = [0, 2, 1]>(p) y = BatchNormalization(t, g, s, m, v) }",
        "MatMul Add Transpose",
        (
            NearMiss("tokens of that number", {"[N,T,8]": "[N,6,8]", "perm = [0, 2, 1]": "perm = [0, 1, 2]"}),
            NearMiss("turned by default", {"Transpose<perm = [0, 2, 1]>": "Transpose"}),
        ),
        exact=False,
        weights=POSITIVE,
    ),
)

SCALED = (
    "(float[N,T,8] x) => (float[A,B,C] y) <float[8,6] W, float[6] b, float[6] g>"
    "{ p = MatMul(x, W) a = Add(p, b) y = Mul(a, g) }"
)
IMAGE = (
    "(float[N,3,6,8] x) => (float[A,B,C,D] y) <float[6,3,1,3] W, float[6] b, float[6,1,1] g>"
    "{ c = Conv(x, W, b) y = Mul(g, c) }"
)
CHANNEL_SCALES = (
    Form(
        channels.fold_channel_scales,
        "a linear layer with a bias",
        SCALED,
        "MatMul Add",
        (
            NearMiss("a factor a token", {"[N,T,8]": "[N,6,8]", "float[6] g": "float[6,1] g"}),
            NearMiss("a factor a token and channel", {"[N,T,8]": "[N,4,8]", "float[6] g": "float[4,6] g"}),
            NearMiss("one factor", {"float[6] g": "float[1] g"}),
            NearMiss("a factor that adds an axis", {"float[6] g": "float[1,1,1,6] g", "B,C]": "B,C,D]"}),
            NearMiss("another reader", {"B,C] y)": "B,C] y, float[D,E,F] a)"}),
            NearMiss("the product is read too", {"B,C] y)": "B,C] y, float[D,E,F] p)"}),
            NearMiss("an activation between", {"y = Mul(a": "r = Relu(a) y = Mul(r"}),
            NearMiss("two additions between", {"y = Mul(a": "r = Add(a, b) y = Mul(r"}),
            NearMiss("a computed factor", {"8] x": "8] x, float[6] g", ", float[6] g>": ">"}),
            NearMiss("a computed weight", {"8] x": "8] x, float[8,6] W", "float[8,6] W, ": ""}),
            NearMiss("a constant in front", {"T,8] x": "6,6] x", "MatMul(x, W)": "MatMul(W, x)"}),
            NearMiss("drawn at random", {"MatMul(x, W)": "RandomNormal<shape = [3, 5, 6]>()"}),
            NearMiss("divided by", {"Mul(a, g)": "Div(a, g)"}),
            NearMiss("a factor without end", weights={"g": np.array([1, 2, np.inf, 4, 5, 6], np.float32)}),
        ),
        exact=False,
    ),
    Form(
        channels.fold_channel_scales,
        "before the bias",
        SCALED.replace("a = Add(p, b) y = Mul(a, g)", "s = Mul(g, p) y = Add(s, b)"),
        "MatMul Add",
        exact=False,
    ),
    Form(
        channels.fold_channel_scales,
        "a single bias, a factor of three axes",
        SCALED.replace("float[6] b", "float b").replace("float[6] g", "float[1,1,6] g"),
        "MatMul Add",
        exact=False,
    ),
    Form(
        channels.fold_channel_scales,
        "positions added, channels turned to the front",
        SCALED.replace("[N,T,8]", "[N,5,8]")
        .replace("float[6] b", "float[5,6] b")
        .replace("float[6] g", "float[6,1] g")
        .replace("y = Mul(a", "t = Transpose<perm = [0, 2, 1]>(a) y = Mul(t"),
        "MatMul Add Transpose",
        (NearMiss("the factor is of the tokens", {"float[6,1] g": "float[5] g"}),),
        exact=False,
    ),
    Form(
        channels.fold_channel_scales,
        "positions added after the turn",
        SCALED.replace("[N,T,8]", "[N,5,8]")
        .replace("float[6] b", "float[6,5] b")
        .replace("float[6] g", "float[6,1] g")
        .replace("a = Add(p, b)", "t = Transpose<perm = [0, 2, 1]>(p) a = Add(t, b)"),
        "MatMul Transpose Add",
        exact=False,
    ),
    Form(
        channels.fold_channel_scales,
        "a convolution with a bias",
        IMAGE,
        "Conv",
        (
            NearMiss("a factor a row", {"float[6,1,1] g": "float[6,1] g"}),
            NearMiss("a factor a column", {"float[6,1,1] g": "float[6] g"}),
            NearMiss("a transposed convolution", {"Conv(": "ConvTranspose(", "[6,3,1,3]": "[3,6,1,3]"}),
            NearMiss(
                "something added that adds an axis",
                {
                    "y = Mul(g, c)": "a = Add(c, e) y = Mul(g, a)",
                    "<f": "<float[1,1,1,1,1] e, f",
                    "C,D]": "C,D,E]",
                    "[6,1,1] g": "[6,1,1,1] g",
                    "[N,3,6,8]": "[6,3,6,8]",
                },
            ),
        ),
        exact=False,
    ),
    Form(
        channels.fold_channel_scales,
        "a convolution without a bias, tokens made of its pixels",
        "(float[N,3,6,8] x) => (float[A,B,C] y) <float[5,3,1,3] W, int64[3] s = {0, 5, 36}, float[5] g>"
        "{ c = Conv(x, W) r = Reshape(c, s) t = Transpose<perm = [0, 2, 1]>(r) y = Mul(t, g) }",
        "Conv Reshape Transpose",
        (NearMiss("channels are torn", {"{0, 5, 36}": "{0, 36, 5}", "[0, 2, 1]": "[0, 1, 2]"}),),
        exact=False,
    ),
    Form(
        channels.fold_channel_scales,
        "one factor for all channels of a convolution",
        IMAGE.replace("float[6,1,1] g", "float g"),
        "Conv",
        (NearMiss("of a transposed convolution", {"Conv(": "ConvTranspose(", "[6,3,1,3]": "[3,6,1,3]"}),),
        exact=False,
    ),
)

SHIFTED = SCALED.replace("y = Mul(a, g)", "y = Add(a, g)")
CHANNEL_SHIFTS = (
    Form(
        channels.fold_channel_shifts,
        "a linear layer with a bias",
        SHIFTED,
        "MatMul Add",
        (
            NearMiss("the bias itself", {"a = Add(p, b) y = Add(a, g)": "y = Add(p, g)"}),
            NearMiss("a shift a token", {"[N,T,8]": "[N,6,8]", "float[6] g": "float[6,1] g"}),
            NearMiss("positions", {"[N,T,8]": "[N,4,8]", "float[6] g": "float[4,6] g"}),
            NearMiss("one shift", {"float[6] g": "float g"}),
            NearMiss("another reader", {"B,C] y)": "B,C] y, float[D,E,F] a)"}),
            NearMiss("an activation between", {"y = Add(a": "r = Relu(a) y = Add(r"}),
            NearMiss("a computed shift", {"8] x": "8] x, float[6] g", ", float[6] g>": ">"}),
        ),
        exact=False,
    ),
    Form(
        channels.fold_channel_shifts,
        "channels turned to the front",
        SHIFTED.replace("y = Add(a", "t = Transpose<perm = [0, 2, 1]>(a) y = Add(t").replace(
            "float[6] g", "float[6,1] g"
        ),
        "MatMul Add Transpose",
        exact=False,
    ),
    Form(
        channels.fold_channel_shifts,
        "a convolution with a bias",
        IMAGE.replace("Mul(", "Add("),
        "Conv",
        (
            NearMiss("a shift a row", {"float[6,1,1] g": "float[6,1] g"}),
            NearMiss("a shift a column", {"float[6,1,1] g": "float[6] g"}),
            NearMiss("the convolution is read too", {"C,D] y)": "C,D] y, float[E,F,G,H] c)"}),
        ),
        exact=False,
    ),
    Form(
        channels.fold_channel_shifts,
        "a convolution without a bias",
        IMAGE.replace("Mul(", "Add(").replace(" float[6] b,", "").replace("W, b)", "W)"),
        "Conv",
        exact=False,
    ),
    Form(
        channels.fold_channel_shifts,
        "one shift for all channels of a convolution",
        IMAGE.replace("Mul(", "Add(").replace("float[6,1,1] g", "float[1] g"),
        "Conv",
        exact=False,
    ),
)
