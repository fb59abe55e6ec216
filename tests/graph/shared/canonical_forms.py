"""The forms that ``graph/passes`` rewrites, and near misses of each that change exactly one thing."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxvitq.graph.canonical import Pass
from onnxvitq.graph.passes import activations, attention, constants, no_ops

Weights = Mapping[str, np.ndarray]
Changes = Mapping[str, str]


@dataclass(frozen=True)
class NearMiss:
    """A form with one thing changed, which the pass must leave alone.

    Attributes:
        label: what is changed.
        changes: text of the form -> text in its place.
        weights: name -> value, of constants.
    """

    label: str
    changes: Changes = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """A graph that a pass rewrites.

    Attributes:
        rewrite: the pass.
        label: what is special about the form.
        text: the graph, in onnx's text format.
        after: the operators of the rewritten graph, in order.
        near_misses: graphs that differ in one thing and are left alone.
        edits: number that the pass returns.
        exact: whether outputs stay the same to the bit.
        opset: version of the operator set.
        weights: name -> value, of constants.
    """

    rewrite: Pass
    label: str
    text: str
    after: str
    near_misses: tuple[NearMiss, ...] = ()
    edits: int = 1
    exact: bool = True
    opset: int = 17
    weights: Weights = field(default_factory=dict)


FOLDS = (
    Form(
        constants.fold_constants,
        "operators on constants",
        "(float[N,4] x) => (float[A,B] y) <float[4] a = {1, 2, 3, 4}, float[4] b = {0.1, 0.2, 0.3, 0.4}>"
        "{ c = Mul(a, b) d = Sqrt(c) y = Add(x, d) }",
        "Add",
        (
            NearMiss("an operand is computed", {"Mul(a, b)": "Mul(a, x)"}),
            NearMiss("a random operator", {"Mul(a, b)": "RandomUniformLike(a)"}),
            NearMiss("it is an output", {"d = Sqrt(c) y = Add(x, d)": "", "c = Mul": "y = Mul", "[A,B]": "[A]"}),
        ),
        edits=2,
    ),
    Form(
        constants.fold_constants,
        "an operator on one constant",
        "(float[N,4] x) => (float[A,B] y) <float[4] a> { c = Tanh(a) y = Add(x, c) }",
        "Add",
        (
            NearMiss("no reference implementation", {"Tanh": "Gelu"}),
            NearMiss("a sequence", {"c = Tanh(a)": "s = SplitToSequence(a) c = ConcatFromSequence<axis = 0>(s)"}),
        ),
        exact=False,  # another library's tanh
        opset=20,
    ),
    Form(
        constants.fold_constants,
        "shape arithmetic with known sizes",
        "(float[N,4,6] x, float[N,24] z) => (float[A,B,C] y) <int64[1] m = {-1}>"
        "{ s = Shape<start = 1>(x) t = Concat<axis = 0>(m, s) y = Reshape(z, t) }",
        "Reshape",
        (
            NearMiss("a size has only a name", {"float[N,4,6] x": "float[4,N,6] x"}),
            NearMiss(
                "made of values, not of sizes",
                {"float[N,4,6] x": "int64[1,2] x", "Shape<start = 1>": "ReduceMax<axes = [0], keepdims = 0>"},
            ),
        ),
        edits=2,
    ),
    Form(
        constants.fold_constants,
        "Expand of a constant",
        "(float[3,4] x) => (float[A,B] y) <float[1,4] c, int64[2] s = {3, 4}> { e = Expand(c, s) y = Add(x, e) }",
        "Add",
        (
            NearMiss("too many elements", {"s = {3, 4}": "s = {6000000, 4}", "float[3,4] x": "float[1,4] x"}),
            NearMiss("to a size from outside", {"[3,4] x": "[3,4] x, int64[2] s", ", int64[2] s = {3, 4}": ""}),
        ),
    ),
    Form(
        constants.fold_constants,
        "a mask made of constants by Expand and Where",
        "(float[N,2,5,5] x) => (float[A,B,C,D] y)"
        "<bool[1] t = {1}, int64[2] s = {5, 5}, float[1] zero = {0}, float[1] low = {-inf}>"
        "{ e = Expand(t, s) m = Where(e, zero, low) y = Add(x, m) }",
        "Add",
        (
            NearMiss("visible where the caller says", {"5,5] x": "5,5] x, bool[1] t", "bool[1] t = {1}, ": ""}),
            NearMiss("of an unknown size", {"int64[2] s = {5, 5}, ": "", "e = Expand": "s = Shape(x) e = Expand"}),
        ),
        edits=2,
    ),
)

SHAPES = (
    Form(
        constants.static_reshapes,
        "the batch gathered from a shape",
        "(float[N,4,6] x) => (float[A,B] y) <int64 zero = {0}, int64[1] axis = {0}, int64[1] width = {24}>"
        "{ s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, axis) t = Concat<axis = 0>(u, width) y = Reshape(x, t) }",
        "Reshape",
        (
            NearMiss("a width from outside", {"6] x": "6] x, int64[1] width", ", int64[1] width = {24}": ""}),
            NearMiss("two unknown sizes", {"Concat<axis = 0>(u, width)": "Concat<axis = 0>(u, u)"}),
        ),
    ),
    Form(
        constants.static_reshapes,
        "the batch beside a literal -1",
        "(float[N,4,6] x) => (float[A,B,C] y) <int64[2] rest = {4, -1}>"
        "{ n = Shape<start = 0, end = 1>(x) t = Concat<axis = 0>(n, rest) y = Reshape(x, t) }",
        "Reshape",
        (
            NearMiss("another size is unknown", {"[N,4,6]": "[N,T,6]"}),
            NearMiss("elements that do not divide", {"{4, -1}": "{7, -1}"}),
        ),
    ),
    Form(
        constants.static_reshapes,
        "the shape of another tensor",
        "(float[N,24] x, float[N,4,6] z) => (float[A,B,C] y) { s = Shape(z) y = Reshape(x, s) }",
        "Reshape",
        (NearMiss("two unknown sizes", {"[N,4,6]": "[N,T,6]"}),),
    ),
)

PLAIN_ATTENTION = (
    "(float[N,2,T,8] q, float[N,2,6,8] k, float[N,2,6,12] v) => (float[A,B,C,D] y) { y = Attention(q, k, v) }"
)
FLAT_ATTENTION = (
    "(float[N,T,16] q, float[N,6,16] k, float[N,6,24] v) => (float[A,B,C] y)"
    "{ y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v) }"
)
FLAT_SOFTMAX = (
    "(float[N,2,T,6] x) => (float[A,B,C,D] y)"
    "{ f = Flatten<axis = 3>(x) p = Softmax<axis = -1>(f) s = Shape(x) y = Reshape(p, s) }"
)
FLAT_SOFTMAXES = (
    Form(
        attention.merge_flat_softmax,
        "over the last axis",
        FLAT_SOFTMAX,
        "Softmax",
        (
            NearMiss("over two axes", {"axis = 3": "axis = 2"}),
            NearMiss("over the other axis", {"Softmax<axis = -1>": "Softmax<axis = 0>"}),
            NearMiss("flattened by default", {"Flatten<axis = 3>": "Flatten"}),
            NearMiss("the shape of another", {"6] x": "6] x, float[N,2,T,6] z", "Shape(x)": "Shape(z)"}),
            NearMiss(
                "a part of the shape",
                {"s = Shape(x)": "s = Shape<start = 2>(x)", "[A,B,C,D]": "[A,B]", "[N,2,T,6]": "[1,1,T,6]"},
            ),
            NearMiss("the rows are read too", {"C,D] y)": "C,D] y, float[E,F] f)"}),
            NearMiss("their probabilities are read too", {"C,D] y)": "C,D] y, float[E,F] p)"}),
        ),
    ),
    Form(
        attention.merge_flat_softmax,
        "everything said from the end or not at all",
        FLAT_SOFTMAX.replace("axis = 3", "axis = -1").replace("<axis = -1>(f)", "(f)"),
        "Softmax",
    ),
)

VISIBLE = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0, 1, 0, 1, 0, 1]], np.bool_)
ROW_HIDDEN = np.array([[1], [1], [0], [1]], np.bool_)
MASKED_ATTENTION = (
    "(float[N,2,4,8] q, float[N,2,6,8] k, float[N,2,6,12] v) => (float[A,B,C,D] y) <bool[4,6] m>"
    "{ y = Attention(q, k, v, m) }"
)
ATTENTIONS = (
    Form(
        attention.open_attention,
        "four dimensions",
        PLAIN_ATTENTION,
        "Transpose MatMul Mul Softmax MatMul",
        (
            NearMiss("causal", {"Attention(": "Attention<is_causal = 1>("}),
            NearMiss("soft cap", {"Attention(": "Attention<softcap = 5.0>("}),
            NearMiss("grouped queries", {"[N,2,6,8] k": "[N,1,6,8] k", "[N,2,6,12] v": "[N,1,6,12] v"}),
            NearMiss("its scores are read", {"y = ": "y, pk, pv, z = ", "D] y)": "D] y, float[E,F,G,H] z)"}),
            NearMiss(
                "keys of earlier calls",
                {"12] v)": "12] v, float[N,2,3,8] pk, float[N,2,3,12] pv)", "(q, k, v)": "(q, k, v, , pk, pv)"},
            ),
        ),
        exact=False,
        opset=23,
    ),
    Form(
        attention.open_attention,
        "three dimensions",
        FLAT_ATTENTION,
        "Reshape Reshape Reshape Transpose Transpose Transpose Transpose MatMul Mul Softmax MatMul Transpose Reshape",
        (
            NearMiss(
                "grouped queries",
                {"kv_num_heads = 2": "kv_num_heads = 1", "[N,6,16] k": "[N,6,8] k", "[N,6,24] v": "[N,6,12] v"},
            ),
            NearMiss("an unknown width", {"[N,T,16] q": "[N,T,W] q"}),
            NearMiss("values of an unknown width", {"[N,6,24] v": "[N,6,W] v"}),
        ),
        exact=False,
        opset=23,
    ),
    Form(
        attention.open_attention,
        "a scale",
        PLAIN_ATTENTION.replace("Attention(", "Attention<scale = 0.7>("),
        "Transpose MatMul Mul Softmax MatMul",
        exact=False,
        opset=23,
    ),
    Form(
        attention.open_attention,
        "a finite mask to add",
        MASKED_ATTENTION.replace("bool", "float"),
        "Transpose MatMul Mul Add Softmax MatMul",
        exact=False,
        opset=23,
    ),
    Form(
        attention.open_attention,
        "a mask to add that hides a row",
        MASKED_ATTENTION.replace("bool", "float"),
        "Transpose MatMul Mul Add Softmax IsNaN Where MatMul",
        exact=False,
        opset=23,
        weights={"m": np.where(VISIBLE & ROW_HIDDEN, 0, -np.inf).astype(np.float32)},
    ),
    Form(
        attention.open_attention,
        "a mask of booleans",
        MASKED_ATTENTION,
        "Transpose MatMul Mul Where Softmax MatMul",
        exact=False,
        opset=23,
        weights={"m": VISIBLE},
    ),
    Form(
        attention.open_attention,
        "a mask of booleans that hides a row",
        MASKED_ATTENTION,
        "Transpose MatMul Mul Where Softmax IsNaN Where MatMul",
        exact=False,
        opset=23,
        weights={"m": VISIBLE & ROW_HIDDEN},
    ),
    Form(
        attention.open_attention,
        "a mask of booleans from outside",
        PLAIN_ATTENTION.replace("12] v", "12] v, bool[N,1,T,6] m").replace("(q, k, v)", "(q, k, v, m)"),
        "Transpose MatMul Mul Where Softmax IsNaN Where MatMul",
        exact=False,
        opset=23,
    ),
    Form(
        attention.open_attention,
        "three dimensions, a scale and a mask from outside",
        FLAT_ATTENTION.replace("24] v", "24] v, float[N,2,T,6] m")
        .replace("v) }", "v, m) }")
        .replace("<q", "<scale = 0.2, q"),
        "Reshape Reshape Reshape Transpose Transpose Transpose Transpose MatMul Mul Add Softmax IsNaN Where MatMul"
        " Transpose Reshape",
        exact=False,
        opset=23,
    ),
)

NO_OPS = (
    Form(
        no_ops.remove_no_ops,
        "Identity",
        "(float[N,4] x) => (float[A,B] y) { i = Identity(x) y = Relu(i) }",
        "Relu",
        (
            NearMiss("from an input to an output", {"i = Identity(x) y = Relu(i)": "y = Identity(x)"}),
            NearMiss(
                "from an output to an output",
                {"=> (": "=> (float[C,D] z, ", "i = Identity(x) y = Relu(i)": "z = Relu(x) y = Identity(z)"},
            ),
        ),
    ),
    Form(
        no_ops.remove_no_ops,
        "Dropout",
        "(float[N,4] x) => (float[A,B] y) <float r = {0.5}> { d = Dropout(x, r) y = Relu(d) }",
        "Relu",
        (
            NearMiss("in training", {"(x, r)": "(x, r, t)", "<float r": "<bool t = {1}, float r"}),
            NearMiss("its mask is read", {"d = D": "d, m = D", "Relu(d)": "Where(m, d, x)"}),
        ),
    ),
    Form(
        no_ops.remove_no_ops,
        "Dropout with a switch that is off",
        "(float[N,4] x) => (float[A,B] y) <float r = {0.5}, bool t = {0}> { d = Dropout(x, r, t) y = Relu(d) }",
        "Relu",
        (NearMiss("a switch from outside", {"4] x": "4] x, bool t", ", bool t = {0}": ""}),),
    ),
    Form(
        no_ops.remove_no_ops,
        "Pad by nothing",
        "(float[N,4] x) => (float[A,B] y) <int64[4] p = {0, 0, 0, 0}> { c = Pad(x, p) y = Relu(c) }",
        "Relu",
        (
            NearMiss("by one", {"{0, 0, 0, 0}": "{0, 0, 0, 1}"}),
            NearMiss("by one less", {"{0, 0, 0, 0}": "{0, -1, 0, 0}"}),
            NearMiss("by what is computed", {"x) =>": "x, int64[4] p) =>", "<int64[4] p = {0, 0, 0, 0}>": ""}),
        ),
    ),
    Form(
        no_ops.remove_no_ops,
        "Cast to the same type",
        "(float[N,4] x) => (float[A,B] y) { c = Cast<to = 1>(x) y = Relu(c) }",
        "Relu",
        (
            NearMiss("to another type", {"to = 1": "to = 11", "float[A,B]": "double[A,B]"}),
            NearMiss("from another type", {"float[N,4]": "int64[N,4]"}),
        ),
    ),
    Form(
        no_ops.remove_no_ops,
        "Transpose that moves nothing",
        "(float[N,4] x) => (float[A,B] y) { t = Transpose<perm = [0, 1]>(x) y = Relu(t) }",
        "Relu",
        (
            NearMiss("another order", {"[0, 1]": "[1, 0]"}),
            NearMiss("the order reversed by default", {"<perm = [0, 1]>": ""}),
        ),
    ),
    Form(
        no_ops.remove_no_ops,
        "adding zeros",
        "(float[N,4] x) => (float[A,B] y) <float[4] z = {0, 0, 0, 0}> { a = Add(z, x) y = Relu(a) }",
        "Relu",
        (
            NearMiss("one is not zero", {"0, 0}": "0, 0.001}"}),
            NearMiss("they add a dimension", {"float[4] z": "float[1,1,4] z", "[A,B]": "[A,B,C]"}),
            NearMiss("they widen it", {"[N,4] x": "[N,1] x"}),
        ),
    ),
    Form(
        no_ops.remove_no_ops,
        "subtracting zero",
        "(float[N,4] x) => (float[A,B] y) <float z = {0}> { a = Sub(x, z) y = Relu(a) }",
        "Relu",
        (NearMiss("subtracting from zero", {"(x, z)": "(z, x)"}),),
    ),
    Form(
        no_ops.remove_no_ops,
        "multiplying by one",
        "(float[N,4] x) => (float[A,B] y) <float[1,4] o = {1, 1, 1, 1}> { a = Mul(x, o) y = Relu(a) }",
        "Relu",
        (NearMiss("by another number", {"{1, 1, 1, 1}": "{2, 2, 2, 2}"}),),
    ),
    Form(
        no_ops.remove_no_ops,
        "dividing by one",
        "(float[N,4] x) => (float[A,B] y) <float o = {1}> { a = Div(x, o) y = Relu(a) }",
        "Relu",
        (NearMiss("one divided", {"(x, o)": "(o, x)"}),),
    ),
    Form(
        no_ops.remove_no_ops,
        "an all-visible mask computed when the model runs",
        "(float[N,2,5,5] x) => (float[A,B,C,D] y) <bool[1] t = {1}, float zero = {0}, float low = {-inf}>"
        "{ s = Shape(x) e = Expand(t, s) m = Where(e, zero, low) a = Add(x, m) y = Relu(a) }",
        "Relu",
        (
            NearMiss("nothing visible", {"t = {1}": "t = {0}"}),
            NearMiss("a little added", {"zero = {0}": "zero = {0.001}"}),
            NearMiss("two positions, one visible", {"bool[1] t = {1}": "bool[5] t = {1, 1, 0, 1, 1}"}),
            NearMiss("visible where the caller says", {"5] x": "5] x, bool[1] t", "bool[1] t = {1}, ": ""}),
        ),
    ),
    Form(
        no_ops.remove_no_ops,
        "Reshape to the same shape",
        "(float[3,4] x) => (float[A,B] y) <int64[2] s = {-1, 4}> { r = Reshape(x, s) y = Relu(r) }",
        "Relu",
        (
            NearMiss("to another shape", {"{-1, 4}": "{4, -1}"}),
            NearMiss("of an unknown shape", {"[3,4]": "[N,4]"}),
        ),
    ),
)

NAN_GUARDS = (
    Form(
        no_ops.remove_nan_guard,
        "a finite mask is added",
        "(float[N,5,4] q, float[N,4,5] k) => (float[A,B,C] y) <float[5,5] mask, float zero = {0}>"
        "{ s = MatMul(q, k) m = Add(s, mask) p = Softmax(m) n = IsNaN(p) y = Where(n, zero, p) }",
        "MatMul Add Softmax",
        (
            NearMiss("the mask hides", weights={"mask": np.where(np.tri(5), 0, -np.inf).astype(np.float32)}),
            NearMiss("the mask comes from outside", {"5] k": "5] k, float[5,5] mask", "float[5,5] mask, ": ""}),
            NearMiss("the logarithm of a mask", {"m = Add(s, mask)": "l = Log(mask) m = Add(s, l)"}),
            NearMiss(
                "a hiding mask of computed size",
                {"m = Add(s, mask)": "h = Shape(s) low = ConstantOfShape<value = float[1] {-inf}>(h) m = Add(s, low)"},
            ),
            NearMiss("replaced by another value", {"zero = {0}": "zero = {1}"}),
            NearMiss("the test is of another tensor", {"IsNaN(p)": "IsNaN(m)"}),
            NearMiss("the guarded one is another tensor", {"zero, p)": "zero, m)"}),
            NearMiss("no Softmax", {"Softmax": "Sigmoid"}),
        ),
    ),
    Form(
        no_ops.remove_nan_guard,
        "a finite lowest value is chosen",
        "(float[N,5,4] q, float[N,4,5] k) => (float[A,B,C] y) <float[5,5] z, float zero = {0}, float low = {-3e38}>"
        "{ s = MatMul(q, k) c = Greater(s, z) m = Where(c, s, low) p = Softmax(m) n = IsNaN(p) y = Where(n, zero, p) }",
        "MatMul Greater Where Softmax",
        (NearMiss("an infinite one", {"{-3e38}": "{-inf}"}),),
    ),
    Form(
        no_ops.remove_nan_guard,
        "a finite mask of computed size is added, the zero is expanded",
        "(float[N,5,4] q, float[N,4,5] k) => (float[A,B,C] y) <float zero = {0}>"
        "{ s = MatMul(q, k) h = Shape(s) f = ConstantOfShape<value = float[1] {-10000.0}>(h) m = Add(s, f)"
        " p = Softmax(m) n = IsNaN(p) e = Expand(zero, h) y = Where(n, e, p) }",
        "MatMul Shape ConstantOfShape Add Softmax",
    ),
)

HARD_SWISH = (
    "(float[N,4,T,5] x) => (float[A,B,C,D] y) <float three = {3}, float low = {0}, float high = {6}, float six = {6}>"
    "{ a = Add(x, three) c = Clip(a, low, high) g = Mul(x, c) y = Div(g, six) }"
)
HARD_SWISHES = (
    Form(
        activations.fuse_hard_swish,
        "as paddle2onnx writes it",
        HARD_SWISH,
        "HardSigmoid Mul",
        (
            NearMiss("another shift", {"three = {3}": "three = {2}"}),
            NearMiss("another lower end", {"low = {0}": "low = {-1}"}),
            NearMiss("another upper end", {"high = {6}": "high = {1}"}),
            NearMiss("another divisor", {"six = {6}": "six = {3}"}),
            NearMiss("another gate", {"5] x": "5] x, float[N,4,T,5] z", "Mul(x, c)": "Mul(z, c)"}),
            NearMiss("one shift a channel", {"float three = {3}": "float[5] three = {3, 3, 3, 3, 3}"}),
            NearMiss("a shift that adds an axis", {"float three": "float[1,1,1,1,1] three", "C,D]": "C,D,E]"}),
            NearMiss("a divisor that adds an axis", {"float six": "float[1,1,1,1,1] six", "C,D]": "C,D,E]"}),
            NearMiss("the clipped values are read too", {"C,D] y)": "C,D] y, float[E,F,G,H] c)"}),
            NearMiss("the shifted values are read too", {"C,D] y)": "C,D] y, float[E,F,G,H] a)"}),
            NearMiss("the product is read too", {"C,D] y)": "C,D] y, float[E,F,G,H] g)"}),
        ),
        exact=False,
    ),
    Form(
        activations.fuse_hard_swish,
        "in another order, constants in vectors",
        HARD_SWISH.replace("float three", "float[1] three")
        .replace("float six", "float[1] six")
        .replace("(x, three)", "(three, x)")
        .replace("(x, c)", "(c, x)"),
        "HardSigmoid Mul",
        exact=False,
    ),
)
