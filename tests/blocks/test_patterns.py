"""Every form of every pattern fits a graph as exporters write it; changed in one thing, it does not, and says why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest
from textgraph import digest, graph_of

from onnxvitq.blocks import patterns
from onnxvitq.blocks.patterns import ACTIVATION, ATTENTION, LINEAR, NORM, PATCHES
from onnxvitq.graph.pattern import Match, Miss, OneOf, Op, Pattern, Through, match

Changes = Mapping[str, str]


@dataclass(frozen=True)
class Form:
    """A graph whose tensor ``y`` a pattern fits with these tags; one change each, and the reason for the miss."""

    pattern: Pattern
    tags: Mapping[str, str]
    text: str
    near_misses: tuple[tuple[str, str, str], ...]
    opset: int = 17
    nodes: Mapping[str, str] = field(default_factory=dict)
    label: str = ""


def activation(tags: Mapping[str, str] | str, nodes: str, *near_misses: tuple[str, str, str], opset: int = 17) -> Form:
    tags = {"activation": tags} if isinstance(tags, str) else tags
    constants = (
        "float root = {1.41421356}, float rsqrt = {0.70710678}, float one = {1}, float half = {0.5}, float three = {3},"
        " float c = {0.044715}, float rp = {0.79788456}, float slope = {1.702}, float other = {0.3}"
    )
    text = f"(float[N,4] x, float[N,4] z) => (float[A,B] y) <{constants}> {{ {nodes} }}"
    return Form(ACTIVATION, tags, text, near_misses, opset)


ERF_DIV = "d = Div(x, root) e = Erf(d) s = Add(e, one)"
ERF_MUL = "d = Mul(rsqrt, x) e = Erf(d) s = Add(one, e)"
TANH = "p = Pow(x, three) k = Mul(p, c) i = Add(x, k) m = Mul(i, rp) t = Tanh(m) s = Add(t, one)"
TANH_MUL = TANH.replace("p = Pow(x, three)", "x2 = Mul(x, x) p = Mul(x2, x)")
ACTIVATIONS = (
    activation(
        "gelu_op",
        "y = Gelu(x)",
        ("Gelu", "Elu", "y: expected Gelu, got Elu"),
        ("Gelu(x)", "Gelu(one)", "one: expected a computed tensor, got a constant"),
        opset=20,
    ),
    activation(
        {"activation": "gelu_half_last", "pre_scale": "div"},
        f"{ERF_DIV} a = Mul(x, s) y = Mul(a, half)",
        ("Erf", "Tanh", ""),
        ("Div(x, root)", "Div(x, other)", ""),
        ("Mul(a, half)", "Mul(a, other)", ""),
        ("Add(e, one)", "Add(e, half)", ""),
        ("Mul(x, s)", "Mul(z, s)", ""),
    ),
    activation(
        {"activation": "gelu_half_last", "pre_scale": "mul"},
        f"{ERF_MUL} a = Mul(s, x) y = Mul(half, a)",
        ("Mul(rsqrt, x)", "Mul(root, x)", ""),
        ("Mul(rsqrt, x)", "Mul(rsqrt, z)", ""),
    ),
    activation(
        {"activation": "gelu_half_first", "pre_scale": "mul"},
        f"{ERF_MUL} a = Mul(x, half) y = Mul(a, s)",
        ("Mul(x, half)", "Mul(x, one)", ""),
        ("Erf", "Sin", ""),
    ),
    activation(
        {"activation": "gelu_half_inside", "pre_scale": "div"},
        f"{ERF_DIV} a = Mul(s, half) y = Mul(x, a)",
        ("Mul(s, half)", "Mul(s, other)", ""),
        ("y = Mul(x, a)", "y = Mul(z, a)", ""),
    ),
    activation(
        {"activation": "gelu_tanh_half_last", "cubic": "cubic_pow"},
        f"{TANH} a = Mul(x, s) y = Mul(a, half)",
        ("Pow(x, three)", "Pow(x, one)", ""),
        ("Mul(p, c)", "Mul(p, other)", ""),
        ("Mul(i, rp)", "Mul(i, one)", ""),
    ),
    activation(
        {"activation": "gelu_tanh_half_first", "cubic": "cubic_mul"},
        f"{TANH_MUL} a = Mul(x, half) y = Mul(a, s)",
        ("Mul(x2, x)", "Mul(x2, z)", ""),
        ("Tanh", "Sigmoid", ""),
    ),
    activation(
        "quick_gelu",
        "m = Mul(x, slope) s = Sigmoid(m) y = Mul(x, s)",
        ("Mul(x, slope)", "Mul(x, one)", ""),
        ("Sigmoid", "Tanh", ""),
    ),
    activation(
        "silu",
        "s = Sigmoid(x) y = Mul(s, x)",
        ("Sigmoid(x)", "Sigmoid(z)", ""),
        ("Mul(s, x)", "Add(s, x)", ""),
    ),
    activation("relu", "y = Relu(x)", ("Relu", "LeakyRelu", ""), ("Relu(x)", "Relu(one)", "")),
    activation("hard_swish", "y = HardSwish(x)", ("HardSwish", "HardSigmoid", ""), ("(x)", "(one)", "")),
)

LINEARS = (
    Form(
        LINEAR,
        {"linear_form": "bias"},
        "(float[N,4] x, float[4,6] Z, float[6] z) => (float[A,B] y) <float[4,6] W, float[6] b, float[2,4,6] U>"
        "{ p = MatMul(x, W) y = Add(p, b) }",
        (
            ("Add(p, b)", "Add(p, z)", ""),
            ("MatMul(x, W)", "MatMul(x, Z)", ""),
            ("MatMul(x, W)", "MatMul(x, U)", ""),
            ("Add(p, b)", "Sub(p, b)", ""),
        ),
        nodes={"product": "p", "bias_node": "y"},
    ),
    Form(
        LINEAR,
        {"linear_form": "plain"},
        "(float[N,4] x) => (float[A,B] y) <float[4,4] W, float[4,4] U> { y = MatMul(x, W) }",
        (("MatMul(x, W)", "MatMul(W, x)", ""), ("MatMul(x, W)", "MatMul(U, W)", "")),
        nodes={"product": "y"},
    ),
)

CENTRED = "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m)"
DECOMPOSED = (
    "(float[N,4] x, float[N,4] z) => (float[A,B] y) <float two = {2}, float eps = {1e-6}, float[4] g, float[4] b>"
    f"{{ {CENTRED} q = Pow(d, two) v = ReduceMean<axes = [-1]>(q) e = Add(v, eps) s = Sqrt(e) n = Div(d, s)"
    " w = Mul(n, g) y = Add(w, b) }"
)
NORMS = (
    Form(
        NORM,
        {"form": "op"},
        "(float[N,4] x, float[4] z) => (float[A,B] y) <float[4] g, float[4] b> { y = LayerNormalization(x, g, b) }",
        (("(x, g, b)", "(x, z, b)", ""), ("(x, g, b)", "(g, g, b)", "")),
    ),
    Form(
        NORM,
        {"form": "decomposed", "square": "pow"},
        DECOMPOSED,
        (
            ("Sub(x, m)", "Add(x, m)", ""),
            ("float two = {2}", "float two = {3}", ""),
            ("Div(d, s)", "Div(x, s)", ""),
            ("Sub(x, m)", "Sub(z, m)", ""),
            ("e = Add(v, eps)", "e = Abs(v)", ""),
            ("y = Add(w, b)", "y = Add(w, z)", ""),
        ),
    ),
    Form(
        NORM,
        {"form": "decomposed", "square": "mul"},
        DECOMPOSED.replace("Pow(d, two)", "Mul(d, d)"),
        (("Mul(d, d)", "Mul(d, x)", ""), ("Sqrt(e)", "Exp(e)", "")),
    ),
)

SELF = "(float[N,2,5,4] q, float[N,2,4,5] k, float[N,2,5,4] v, float[5,5] bias) => (float[A,B,C,D] y)"
GIVEN = "<float[5,5] mask, float c = {0.5}, float[2,4,5] K, float[2,5,4] V, bool[5,5] seen>"
ATTENTIONS = (
    Form(
        ATTENTION,
        {"order": "probs_first"},
        f"{SELF} {GIVEN} {{ s = MatMul(q, k) p = Softmax<axis = -1>(s) y = MatMul(p, v) }}",
        (
            ("Softmax", "Sigmoid", ""),
            ("MatMul(q, k)", "MatMul(q, K)", ""),
            ("MatMul(q, k)", "MatMul(V, k)", ""),
            ("MatMul(p, v)", "MatMul(p, V)", ""),
            ("s = MatMul(q, k)", "s = Add(bias, mask)", ""),
            ("p = Softmax<axis = -1>(s)", "r = Relu(s) p = Softmax<axis = -1>(r)", ""),
            ("y = MatMul(p, v)", "t = Tanh(p) y = MatMul(t, v)", ""),
        ),
        nodes={"scores": "s", "softmax": "p", "context": "y"},
    ),
)


def between(label: str, before: str = "", after: str = "") -> Form:
    """An attention with something between its product, its Softmax and its second product."""
    form = ATTENTIONS[0]
    text = form.text
    if before:
        text = text.replace("Softmax<axis = -1>(s)", "Softmax<axis = -1>(t)").replace("p = S", f"{before} p = S")
    if after:
        text = text.replace("MatMul(p, v)", "MatMul(r, v)").replace("y = M", f"{after} y = M")
    misses = (("Softmax", "HardSigmoid", ""), ("MatMul(q, k)", "MatMul(q, K)", ""))
    return Form(ATTENTION, form.tags, text, misses, nodes=form.nodes, label=label)


ORDERS = (
    Form(
        ATTENTION,
        {"order": "value_first"},
        f"{SELF} {GIVEN} {{ s = MatMul(q, k) p = Softmax<axis = -1>(s) t = Transpose<perm = [0, 1, 3, 2]>(v) y = MatMul(t, p) }}",
        (("Softmax", "Sigmoid", ""), ("MatMul(t, p)", "MatMul(K, p)", "")),
        nodes={"scores": "s", "softmax": "p", "context": "y"},
    ),
    between("a mask", "t = Add(s, mask)"),
    between("a mask in front", "t = Add(mask, s)"),
    between("a computed bias", "t = Add(s, bias)"),
    between("a scale, a bias and a mask", "m = Mul(s, c) a = Add(m, bias) t = Add(a, mask)"),
    between("a mask by subtraction", "t = Sub(s, mask)"),
    between("a scale by division", "t = Div(s, c)"),
    between("a choice", "t = Where(seen, s, c)"),
    between("limits", "t = Clip(s, c)"),
    between("windows", "u = Unsqueeze(s, i) a = Add(u, mask) t = Squeeze(a, i)"),
    between("dropout", after="r = Dropout(p)"),
    between("a guard", after="i = IsNaN(p) r = Where(i, c, p)"),
    between("a factor", after="r = Mul(p, c)"),
    between("layout", after="o = Transpose<perm = [0, 1, 3, 2]>(p) r = Transpose<perm = [0, 1, 3, 2]>(o)"),
    between("casts", "h = Cast<to = 11>(s) t = Cast<to = 1>(h)", "f = Cast<to = 11>(p) r = Cast<to = 1>(f)"),
)

PATCH = (
    Form(
        PATCHES,
        {},
        "(float[N,3,4,4] x) => (float[A,B,C] y) <int64[6] g = {-1, 3, 2, 2, 2, 2}, int64[3] s = {-1, 4, 12}>"
        "{ a = Reshape(x, g) t = Transpose<perm = [0, 2, 4, 1, 3, 5]>(a) y = Reshape(t, s) }",
        (("Transpose<perm = [0, 2, 4, 1, 3, 5]>", "Relu", ""), ("a = Reshape(x, g)", "a = Abs(x)", "")),
        nodes={"turn": "t"},
    ),
)
FORMS = (*ACTIVATIONS, *LINEARS, *NORMS, *ATTENTIONS, *ORDERS, *PATCH)
