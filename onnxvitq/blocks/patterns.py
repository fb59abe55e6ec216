"""Every form in which exporters write the parts of a transformer block, as data. A new form is one more constant here.

The forms are those of torch 2.13 (torch.export based exporter, opset 18 to 23; TorchScript exporter, opset 13 to 20) and
transformers 5. Patterns are matched on a canonical graph: NaN guards, scale Muls, packed projections and Gemm are gone.
"""

from onnxvitq.graph.pattern import Const, OneOf, Op, Pattern, Through, Var

LAYOUT = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"})
# Between the product Q K and the Softmax: scaling, relative position bias (written in place, too), masks, windows, soft caps.
BEFORE_SOFTMAX = LAYOUT | {"Add", "Sub", "Mul", "Div", "Where", "Clip", "ScatterND", "Tanh"}
# Between the Softmax and the product with V: dropout, a NaN guard that could not be removed, a gate between two maps.
AFTER_SOFTMAX = LAYOUT | {"Where", "Dropout", "Mul", "Add", "Sub", "Div"}
# Between a projection and the operand of an attention product: heads, rotary embedding, normalisation, pooling.
AFTER_PROJECTION = LAYOUT | {
    *("Add", "Sub", "Mul", "Div", "Neg", "Slice", "Split", "Concat", "Gather", "Pad", "Expand", "Where", "Clip", "Max"),
    *("LayerNormalization", "RMSNormalization", "LpNormalization", "BatchNormalization", "InstanceNormalization"),
    *("Conv", "MaxPool", "AveragePool", "ReduceMax", "ReduceMean", "ReduceL2", "Sqrt", "Reciprocal", "Pow", "Relu"),
}
# Between an attention's result and the projection that reads it.
BEFORE_PROJECTION = LAYOUT | {
    "Mul",
    "Div",
    "Concat",
    "Slice",
    "LayerNormalization",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
}
# Between the first linear of an MLP and its activation, and between the activation and the second.
BEFORE_ACTIVATION = LAYOUT | {"Add", "Conv", "BatchNormalization", "Slice", "Split"}
AFTER_ACTIVATION = LAYOUT | {"Dropout", "LayerNormalization", "RMSNormalization"}


def add(left: Pattern, right: Pattern) -> Op:
    """Left + right, in either order."""
    return Op("Add", (left, right))


def mul(left: Pattern, right: Pattern) -> Op:
    """Left * right, in either order."""
    return Op("Mul", (left, right))


PRODUCT = Op("MatMul", (Var("input"), Const("weight", rank=2)), name="product")
LINEAR = OneOf((("bias", Op("Add", (PRODUCT, Const("bias")), name="bias_node")), ("plain", PRODUCT)), tag="linear_form")

PATCHES = Op("Reshape", (Op("Transpose", (Op("Reshape", (Var("image"),)),), name="turn"),))
SEPARABLE = Op(
    "ReduceSum", (mul(Through(LAYOUT | {"Expand"}, Op("Softmax", (Var("scores"),), name="softmax")), Var("key")),)
)


def attention(query: Pattern) -> OneOf:
    """The pattern of an attention: softmax(query key) value, or value softmax(query key)."""
    scores = Op("MatMul", (query, Var("key")), name="scores")
    masked = Through(BEFORE_SOFTMAX, scores, mixing=True)
    softmax = Op("Softmax", (masked,), name="softmax")
    probs = Through(AFTER_SOFTMAX, softmax, mixing=True)
    exponentials = Op("Exp", (Op("Sub", (masked, Op("ReduceMax"))),), name="softmax")
    return OneOf(
        (
            ("probs_first", Op("MatMul", (probs, Var("value")), name="context")),  # every ViT, DeiT, BEiT, CLIP...
            ("value_first", Op("MatMul", (Var("value"), probs), name="context")),  # attention over channels
            (
                "exponentials_first",
                Op("MatMul", (exponentials, Var("value")), name="context"),
            ),  # divided late, by the row sums
        ),
        tag="order",
    )


ATTENTION = attention(Var("query"))
# One latent that pools all tokens (SigLIP, attention pooling). Only where no computed query is found: a constant on the left
# may also mix heads.
LEARNED_QUERY = attention(Const("query"))

X = Var("x")
SQRT2, SQRT_HALF = 2**0.5, 0.5**0.5
ERF = add(
    Op(
        "Erf",
        (
            OneOf(
                (
                    ("div", Op("Div", (X, Const("root", SQRT2)))),
                    ("mul", mul(X, Const("root", SQRT_HALF))),
                ),
                tag="pre_scale",
            ),
        ),
    ),
    Const("one", 1.0),
)
TANH = add(
    Op(
        "Tanh",
        (
            mul(
                OneOf(
                    (
                        ("cubic_pow", add(X, mul(Op("Pow", (X, Const("three", 3.0))), Const("c", 0.044715)))),
                        ("cubic_mul", add(X, mul(mul(mul(X, X), X), Const("c", 0.044715)))),
                    ),
                    tag="cubic",
                ),
                Const("root_2_pi", 0.7978845608),
            ),
        ),
    ),
    Const("one", 1.0),
)
ACTIVATION = OneOf(
    (
        ("gelu_op", Op("Gelu", (X,))),  # opset 20 and later
        ("gelu_half_last", mul(mul(X, ERF), Const("half", 0.5))),  # TorchScript exporter
        ("gelu_half_first", mul(mul(X, Const("half", 0.5)), ERF)),  # torch.export based exporter, opset 18
        ("gelu_half_inside", mul(X, mul(ERF, Const("half", 0.5)))),
        ("gelu_tanh_half_last", mul(mul(X, TANH), Const("half", 0.5))),
        ("gelu_tanh_half_first", mul(mul(X, Const("half", 0.5)), TANH)),
        ("quick_gelu", mul(X, Op("Sigmoid", (mul(X, Const("slope", 1.702)),)))),  # CLIP
        ("silu", mul(X, Op("Sigmoid", (X,)))),
        ("relu", Op("Relu", (X,))),
        ("swish_op", Op("Swish", (X,))),  # opset 24
        ("hard_swish", Op("HardSwish", (X,))),
        ("hard_swish_sigmoid", mul(X, Op("HardSigmoid", (X,)))),
        ("hard_swish_clip", Op("Div", (mul(X, Op("Clip", (add(X, Const("three", 3.0)),))), Const("six", 6.0)))),
        ("mish", Op("Mish", (X,))),
        ("leaky_relu", Op("LeakyRelu", (X,))),
        ("relu_squared", Op("Pow", (Op("Relu", (X,)), Const("two", 2.0)))),
        ("elu", Op("Elu", (X,))),
        ("tanh", Op("Tanh", (X,))),
        ("sigmoid", Op("Sigmoid", (X,))),
    ),
    tag="activation",
)
ACTIVATED = Through(AFTER_ACTIVATION, ACTIVATION)
GATED = Through(AFTER_ACTIVATION, mul(ACTIVATION, Var("gate")))  # SwiGLU, GEGLU

CENTRED = Op("Sub", (X, Op("ReduceMean", (X,), name="mean")), name="centred")
VARIANCE = OneOf(
    (
        ("pow", Op("ReduceMean", (Op("Pow", (CENTRED, Const("two", 2.0))),))),
        ("mul", Op("ReduceMean", (mul(CENTRED, CENTRED),))),
    ),
    tag="square",
)
NORMALISED = Op("Div", (CENTRED, Op("Sqrt", (add(VARIANCE, Const("epsilon")),))))
SCALED = Op("Mul", (NORMALISED, Const("gamma")), name="scaled")
MEAN_SQUARE = OneOf(
    (
        ("pow", Op("ReduceMean", (Op("Pow", (X, Const("two", 2.0))),))),
        ("mul", Op("ReduceMean", (mul(X, X),))),
    ),
    tag="square",
)
ROOT = Op("Sqrt", (add(MEAN_SQUARE, Const("epsilon")),))
RMS = OneOf(
    (
        ("div", Op("Div", (X, ROOT))),
        ("reciprocal", mul(X, Op("Reciprocal", (ROOT,)))),
        ("one_over", mul(X, Op("Div", (Const("one", 1.0), ROOT)))),
        ("power", mul(X, Op("Pow", (add(MEAN_SQUARE, Const("epsilon")), Const("exponent", -0.5))))),
    ),
    tag="root",
)
NORM = OneOf(
    (
        ("op", Op("LayerNormalization", (X, Const("gamma")))),
        ("rms_op", Op("RMSNormalization", (X, Const("gamma")))),  # opset 23
        ("rms", mul(RMS, Const("gamma"))),
        ("decomposed", add(SCALED, Const("beta"))),  # TorchScript exporter below opset 17
    ),
    tag="form",
)
