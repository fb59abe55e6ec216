"""The forms of ``passes/convolutions``; see ``canonical_forms``."""

from canonical_forms import Form, NearMiss
from textgraph import SIZES

from onnxvitq.graph.passes import convolutions

PATCH = (
    "(float[N,3,8,12] x) => (float[A,B,C,D] y) <float[5,3,4,4] W, float[5] b>{ y = Conv<strides = [4, 4]>(x, W, b) }"
)
PATCHES = (
    Form(
        convolutions.patch_convolution,
        "a bias",
        PATCH,
        "Reshape Transpose Reshape MatMul Add Reshape Transpose",
        (
            NearMiss("overlapping patches", {"strides = [4, 4]": "strides = [2, 2]"}),
            NearMiss("no strides", {"<strides = [4, 4]>": ""}),
            NearMiss("padding", {"strides = [4, 4]": "strides = [4, 4], pads = [0, 0, 4, 0]"}),
            NearMiss("padding by name", {"strides = [4, 4]": 'strides = [4, 4], auto_pad = "SAME_UPPER"'}),
            NearMiss(
                "groups", {"strides = [4, 4]": "strides = [4, 4], group = 3", "[5,3,4,4]": "[6,1,4,4]", "[5]": "[6]"}
            ),
            NearMiss("dilation", {"strides = [4, 4]": "strides = [4, 4], dilations = [2, 2]"}),
            NearMiss("an image that patches do not fill", {"[N,3,8,12]": "[N,3,9,12]"}),
            NearMiss("an image of unknown size", {"[N,3,8,12]": "[N,3,S,12]"}),
            NearMiss("a computed weight", {"12] x": "12] x, float[5,3,4,4] W", "float[5,3,4,4] W, ": ""}),
            NearMiss("a computed bias", {"12] x": "12] x, float[5] b", ", float[5] b>": ">"}),
            NearMiss("a kernel of one pixel", {"[5,3,4,4]": "[5,3,1,1]", "strides = [4, 4]": "strides = [1, 1]"}),
        ),
        exact=False,
    ),
    Form(
        convolutions.patch_convolution,
        "channels that no inference tells",
        PATCH.replace("[N,3,8,12] x", "[N,T,8,12] x").replace("[5,3,4,4]", f"[5,{SIZES['T']},4,4]"),
        "Reshape Transpose Reshape MatMul Add Reshape Transpose",
        exact=False,
    ),
    Form(
        convolutions.patch_convolution,
        "no bias, a static batch",
        PATCH.replace(", float[5] b>", ">").replace("(x, W, b)", "(x, W)").replace("[N,3,8,12]", "[2,3,8,12]"),
        "Reshape Transpose Reshape MatMul Reshape Transpose",
        exact=False,
    ),
    Form(
        convolutions.patch_convolution,
        "patches that are not square",
        PATCH.replace("[5,3,4,4]", "[5,3,1,6]").replace("[4, 4]", "[1, 6]"),
        "Reshape Transpose Reshape MatMul Add Reshape Transpose",
        exact=False,
    ),
    Form(
        convolutions.patch_convolution,
        "one dimension",
        PATCH.replace("[N,3,8,12]", "[N,3,12]")
        .replace("[5,3,4,4]", "[5,3,4]")
        .replace("[4, 4]", "[4]")
        .replace(",D]", "]"),
        "Reshape Transpose Reshape MatMul Add Reshape Transpose",
        (NearMiss("overlapping patches", {"strides = [4]": "strides = [2]"}),),
        exact=False,
    ),
    Form(
        convolutions.patch_convolution,
        "three dimensions",
        PATCH.replace("[N,3,8,12]", "[N,3,4,8,12]")
        .replace("[5,3,4,4]", "[5,3,2,4,3]")
        .replace("[4, 4]", "[2, 4, 3]")
        .replace(",D]", ",D,E]"),
        "Reshape Transpose Reshape MatMul Add Reshape Transpose",
        (NearMiss("frames that patches do not fill", {"[N,3,4,8,12]": "[N,3,5,8,12]"}),),
        exact=False,
    ),
)

POINT = "(float[N,6,T,5] x) => (float[A,B,C,D] y) <float[8,6,1,1] W, float[8] b> { y = Conv(x, W, b) }"
POINTS = (
    Form(
        convolutions.pointwise_convolution,
        "a bias, an image of unknown size",
        POINT,
        "Transpose MatMul Add Transpose",
        (
            NearMiss("a kernel of nine pixels", {"[8,6,1,1]": "[8,6,3,3]"}),
            NearMiss("a kernel of a row", {"[8,6,1,1]": "[8,6,1,2]"}),
            NearMiss("groups", {"Conv(": "Conv<group = 2>(", "[8,6,1,1]": "[8,3,1,1]"}),
            NearMiss("padding", {"Conv(": "Conv<pads = [1, 1, 1, 1]>("}),
            NearMiss("padding by name", {"Conv(": 'Conv<auto_pad = "SAME_LOWER">('}),
            NearMiss("a computed weight", {"5] x": "5] x, float[8,6,1,1] W", "float[8,6,1,1] W, ": ""}),
            NearMiss("a computed bias", {"5] x": "5] x, float[8] b", ", float[8] b>": ">"}),
            NearMiss("transposed", {"Conv(": "ConvTranspose(", "[8,6,1,1]": "[6,8,1,1]"}),
        ),
        exact=False,
    ),
    Form(
        convolutions.pointwise_convolution,
        "no bias, with everything said",
        POINT.replace(", float[8] b>", ">").replace(
            "(x, W, b)",
            "<kernel_shape = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1], group = 1, strides = [1, 1]>(x, W)",
        ),
        "Transpose MatMul Transpose",
        exact=False,
    ),
    Form(
        convolutions.pointwise_convolution,
        "every second pixel of every third row",
        POINT.replace("Conv(", 'Conv<strides = [3, 2], auto_pad = "VALID">('),
        "Slice Transpose MatMul Add Transpose",
        exact=False,
    ),
    Form(
        convolutions.pointwise_convolution,
        "one dimension",
        POINT.replace("6,T,5", "6,T").replace("6,1,1", "6,1").replace(",D]", "]"),
        "Transpose MatMul Add Transpose",
        (NearMiss("a kernel of three", {"[8,6,1]": "[8,6,3]"}),),
        exact=False,
    ),
    Form(
        convolutions.pointwise_convolution,
        "three dimensions and a stride",
        POINT.replace("6,T,5", "6,T,5,4")
        .replace("6,1,1", "6,1,1,1")
        .replace(",D]", ",D,E]")
        .replace("Conv(", "Conv<strides = [2, 1, 2]>("),
        "Slice Transpose MatMul Add Transpose",
        exact=False,
    ),
)
