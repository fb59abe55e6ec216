"""Every form of every pattern fits a graph as exporters write it; changed in one thing, it does not, and says why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx
import pytest
from textgraph import digest, graph_of, proto_of

from onnxvitq.blocks import patterns
from onnxvitq.blocks.patterns import ACTIVATION, ATTENTION, GATED, LEARNED_QUERY, LINEAR, NORM, PATCHES, SEPARABLE
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
        " float c = {0.044715}, float rp = {0.79788456}, float slope = {1.702}, float other = {0.3},"
        " float two = {2}, float six = {6}, float low = {0}, float high = {6}"
    )
    text = f"(float[N,4] x, float[N,4] z) => (float[A,B] y) <{constants}> {{ {nodes} }}"
    return Form(ACTIVATION, tags, text, near_misses, opset)


ERF_DIV = "d = Div(x, root) e = Erf(d) s = Add(e, one)"
ERF_MUL = "d = Mul(rsqrt, x) e = Erf(d) s = Add(one, e)"
TANH = "p = Pow(x, three) k = Mul(p, c) i = Add(x, k) m = Mul(i, rp) t = Tanh(m) s = Add(t, one)"
TANH_MUL = TANH.replace("p = Pow(x, three)", "x2 = Mul(x, x) p = Mul(x2, x)")
CLIPPED = "a = Add(x, three) l = Clip(a, low, high)"
ACTIVATIONS = (
    activation(
        "gelu_op",
        "y = Gelu(x)",
        ("Gelu", "Selu", "y: expected Gelu, got Selu"),
        ("Gelu", "Softplus", "y: expected Gelu, got Softplus"),
        opset=20,
    ),
    activation(
        {"activation": "gelu_half_last", "pre_scale": "div"},
        f"{ERF_DIV} a = Mul(x, s) y = Mul(a, half)",
        ("Erf", "Tanh", "d: expected Mul, got Div"),
        ("Div(x, root)", "Div(x, other)", "other: expected the constant 1.4142"),
        ("Mul(a, half)", "Mul(a, other)", "d: expected Mul, got Div"),
        ("Add(e, one)", "Add(e, half)", "d: expected Mul, got Div"),
        ("Mul(x, s)", "Mul(z, s)", "x: expected the same tensor as 'x' elsewhere in the pattern"),
    ),
    activation(
        {"activation": "gelu_half_last", "pre_scale": "mul"},
        f"{ERF_MUL} a = Mul(s, x) y = Mul(half, a)",
        ("Mul(rsqrt, x)", "Mul(root, x)", "root: expected a computed tensor, got a constant"),
        ("Mul(rsqrt, x)", "Mul(rsqrt, z)", "rsqrt: expected a computed tensor, got a constant"),
    ),
    activation(
        {"activation": "gelu_half_first", "pre_scale": "mul"},
        f"{ERF_MUL} a = Mul(x, half) y = Mul(a, s)",
        ("Mul(x, half)", "Mul(x, one)", "one: expected Add, got a constant"),
        ("Erf", "Sin", "half: expected Add, got a constant"),
    ),
    activation(
        {"activation": "gelu_half_inside", "pre_scale": "div"},
        f"{ERF_DIV} a = Mul(s, half) y = Mul(x, a)",
        ("Mul(s, half)", "Mul(s, other)", "d: expected Mul, got Div"),
        ("y = Mul(x, a)", "y = Mul(z, a)", "x: expected the same tensor as 'x' elsewhere in the pattern"),
    ),
    activation(
        {"activation": "gelu_tanh_half_last", "cubic": "cubic_pow"},
        f"{TANH} a = Mul(x, s) y = Mul(a, half)",
        ("Pow(x, three)", "Pow(x, one)", "one: expected the constant 3"),
        ("Mul(p, c)", "Mul(p, other)", "other: expected the constant 0.044715"),
        ("Mul(i, rp)", "Mul(i, one)", "c: expected Pow, got a constant"),
    ),
    activation(
        {"activation": "gelu_tanh_half_first", "cubic": "cubic_mul"},
        f"{TANH_MUL} a = Mul(x, half) y = Mul(a, s)",
        ("Mul(x2, x)", "Mul(x2, z)", "z: expected the same tensor as 'x' elsewhere in the pattern"),
        ("Tanh", "Sigmoid", "half: expected Add, got a constant"),
    ),
    activation(
        "quick_gelu",
        "m = Mul(x, slope) s = Sigmoid(m) y = Mul(x, s)",
        ("Mul(x, slope)", "Mul(x, one)", "one: expected the constant 1.702"),
        ("Sigmoid", "Tanh", "x: expected Mul, got a graph input"),
    ),
    activation(
        "silu",
        "s = Sigmoid(x) y = Mul(s, x)",
        ("Sigmoid(x)", "Sigmoid(z)", "z: expected Mul, got a graph input"),
        ("Mul(s, x)", "Add(s, x)", "y: expected Gelu, got Add"),
    ),
    activation(
        "relu",
        "y = Relu(x)",
        ("Relu", "ThresholdedRelu", "y: expected Gelu, got ThresholdedRelu"),
        ("Relu(x)", "Max(x, one)", "y: expected Gelu, got Max"),
    ),
    activation(
        "hard_swish",
        "y = HardSwish(x)",
        ("HardSwish", "HardSigmoid", "y: expected Gelu, got HardSigmoid"),
        ("HardSwish", "Softsign", "y: expected Gelu, got Softsign"),
    ),
    activation(
        "hard_swish_sigmoid",
        "h = HardSigmoid(x) y = Mul(h, x)",
        ("HardSigmoid(x)", "HardSigmoid(z)", "z: expected the same tensor as 'x' elsewhere in the pattern"),
        ("Mul(h, x)", "Mul(h, one)", "h: expected Mul, got HardSigmoid"),
    ),
    activation(
        "hard_swish_clip",
        f"{CLIPPED} m = Mul(x, l) y = Div(m, six)",
        ("Add(x, three)", "Add(x, one)", "one: expected the constant 3"),
        ("Div(m, six)", "Div(m, three)", "three: expected a computed tensor, got a constant"),
        ("Mul(x, l)", "Mul(z, l)", "x: expected the same tensor as 'x' elsewhere in the pattern"),
        ("l = Clip(a, low, high)", "l = Relu(a)", "l: expected Clip, got Relu"),
    ),
    activation(
        "mish",
        "y = Mish(x)",
        ("Mish", "Softsign", "y: expected Gelu, got Softsign"),
        ("Mish(x)", "Max(x, one)", "y: expected Gelu, got Max"),
        opset=18,
    ),
    activation(
        "swish_op",
        "y = Swish(x)",
        ("Swish", "Softsign", "y: expected Gelu, got Softsign"),
        ("Swish(x)", "Max(x, one)", "y: expected Gelu, got Max"),
        opset=24,
    ),
    activation(
        "leaky_relu",
        "y = LeakyRelu(x)",
        ("LeakyRelu(x)", "PRelu(x, one)", "y: expected Gelu, got PRelu"),
        ("LeakyRelu", "Celu", "y: expected Gelu, got Celu"),
    ),
    activation(
        "relu_squared",
        "r = Relu(x) y = Pow(r, two)",
        ("Pow(r, two)", "Pow(r, three)", "three: expected the constant 2"),
        ("Relu(x)", "Abs(x)", "r: expected Relu, got Abs"),
    ),
    activation(
        "elu",
        "y = Elu(x)",
        ("Elu", "Celu", "y: expected Gelu, got Celu"),
        ("Elu", "Selu", "y: expected Gelu, got Selu"),
    ),
    activation(
        "tanh",
        "y = Tanh(x)",
        ("Tanh", "Atan", "y: expected Gelu, got Atan"),
        ("Tanh", "Sin", "y: expected Gelu, got Sin"),
    ),
    activation(
        "sigmoid",
        "y = Sigmoid(x)",
        ("Sigmoid", "HardSigmoid", "y: expected Gelu, got HardSigmoid"),
        ("Sigmoid", "Softplus", "y: expected Gelu, got Softplus"),
    ),
)

LINEARS = (
    Form(
        LINEAR,
        {"linear_form": "bias"},
        "(float[N,4] x, float[4,6] Z, float[6] z) => (float[A,B] y) <float[4,6] W, float[6] b>"
        "{ p = MatMul(x, W) y = Add(p, b) }",
        (
            ("Add(p, b)", "Add(p, z)", "z: expected a constant, got a computed tensor"),
            ("MatMul(x, W)", "MatMul(x, Z)", "Z: expected a constant, got a computed tensor"),
            ("Add(p, b)", "Sub(p, b)", "y: expected Add, got Sub"),
        ),
        nodes={"product": "p", "bias_node": "y"},
    ),
    Form(
        LINEAR,
        {"linear_form": "plain"},
        "(float[N,4] x) => (float[A,B] y) <float[4,4] W, float[4,4] U> { y = MatMul(x, W) }",
        (
            ("MatMul(x, W)", "MatMul(W, x)", "W: expected a computed tensor, got a constant"),
            ("MatMul(x, W)", "MatMul(U, W)", "U: expected a computed tensor, got a constant"),
        ),
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
        (
            ("(x, g, b)", "(x, z, b)", "z: expected a constant, got a computed tensor"),
            ("LayerNormalization(x, g, b)", "Add(x, g)", "x: expected Mul, got a graph input"),
        ),
    ),
    Form(
        NORM,
        {"form": "decomposed", "square": "pow"},
        DECOMPOSED,
        (
            ("Sub(x, m)", "Add(x, m)", "d: expected Sub, got Add"),
            ("float two = {2}", "float two = {3}", "two: expected the constant 2"),
            ("Div(d, s)", "Div(x, s)", "x: expected Sub, got a graph input"),
            ("Sub(x, m)", "Sub(z, m)", "x: expected the same tensor as 'x' elsewhere in the pattern"),
            ("e = Add(v, eps)", "e = Abs(v)", "e: expected Add, got Abs"),
            ("y = Add(w, b)", "y = Add(w, z)", "q: expected Mul, got Pow"),
        ),
    ),
    Form(
        NORM,
        {"form": "decomposed", "square": "mul"},
        DECOMPOSED.replace("Pow(d, two)", "Mul(d, d)"),
        (
            ("Mul(d, d)", "Mul(d, x)", "x: expected Sub, got a graph input"),
            ("Sqrt(e)", "Exp(e)", "s: expected Sqrt, got Exp"),
        ),
    ),
)

SQUARES = {"pow": "q = Pow(x, two)", "mul": "q = Mul(x, x)"}


def rms(root: str, square: str, nodes: str, *near_misses: tuple[str, str, str]) -> Form:
    """A root-mean-square norm of x: the mean of its squares, and how the root of that divides it."""
    text = (
        "(float[N,4] x, float[N,4] z, float[4] h) => (float[A,B] y) <float two = {2}, float eps = {1e-6},"
        " float one = {1}, float minus = {-0.5}, float[4] g>"
        f"{{ {SQUARES[square]} v = ReduceMean<axes = [-1]>(q) e = Add(v, eps) {nodes} y = Mul(n, g) }}"
    )
    return Form(NORM, {"form": "rms", "square": square, "root": root}, text, near_misses)


RMS_NORMS = (
    Form(
        NORM,
        {"form": "rms_op"},
        "(float[N,4] x, float[4] z) => (float[A,B] y) <float[4] g> { y = RMSNormalization(x, g) }",
        (
            ("(x, g)", "(x, z)", "z: expected a constant, got a computed tensor"),
            ("RMSNormalization(x, g)", "LpNormalization(x)", "y: expected LayerNormalization, got LpNormalization"),
        ),
        opset=23,
    ),
    rms(
        "div",
        "pow",
        "s = Sqrt(e) n = Div(x, s)",
        ("Div(x, s)", "Div(z, s)", "x: expected the same tensor as 'x' elsewhere in the pattern"),
        ("Pow(x, two)", "Pow(x, one)", "one: expected the constant 2"),
        ("Sqrt(e)", "Exp(e)", "s: expected Sqrt, got Exp"),
        ("y = Mul(n, g)", "y = Mul(n, h)", "q: expected Mul, got Pow"),
        ("e = Add(v, eps)", "e = Abs(v)", "e: expected Add, got Abs"),
    ),
    rms(
        "reciprocal",
        "mul",
        "s = Sqrt(e) r = Reciprocal(s) n = Mul(x, r)",
        ("Mul(x, r)", "Mul(z, r)", "x: expected the same tensor as 'x' elsewhere in the pattern"),
        ("Mul(x, x)", "Mul(x, z)", "z: expected the same tensor as 'x' elsewhere in the pattern"),
        ("Reciprocal(s)", "Neg(s)", "r: expected Reciprocal, got Neg"),
    ),
    rms(
        "one_over",
        "pow",
        "s = Sqrt(e) r = Div(one, s) n = Mul(r, x)",
        ("Div(one, s)", "Div(two, s)", "two: expected the constant 1"),
        ("Div(one, s)", "Div(s, one)", "s: expected a constant, got a computed tensor"),
    ),
    rms(
        "power",
        "pow",
        "r = Pow(e, minus) n = Mul(x, r)",
        ("Pow(e, minus)", "Pow(e, two)", "q: expected Mul, got Pow"),
        ("Mul(x, r)", "Add(x, r)", "n: expected Div, got Add"),
    ),
)

SELF = "(float[N,2,5,4] q, float[N,2,4,5] k, float[N,2,5,4] v, float[5,5] bias) => (float[A,B,C,D] y)"
GIVEN = (
    "<float[5,5] mask, float c = {0.5}, int64[1] i = {1}, float[2,4,5] K, float[2,5,4] V, bool[5] seen = {1, 1, 0, 1, 1},"
    " int64[1,1] place = {0}, float[1,2,5,5] part, float one = {1}, float[2,2] H, float[2] hb,"
    " int64[3] flat = {0, 2, 25}, int64[4] maps = {0, 2, 5, 5}>"
)
ATTENTIONS = (
    Form(
        ATTENTION,
        {"order": "probs_first"},
        f"{SELF} {GIVEN} {{ s = MatMul(q, k) p = Softmax<axis = -1>(s) y = MatMul(p, v) }}",
        (
            ("Softmax<axis = -1>", "Sigmoid", "p: expected Softmax, got Sigmoid"),
            ("MatMul(q, k)", "MatMul(q, K)", "K: expected a computed tensor, got a constant"),
            ("MatMul(q, k)", "MatMul(V, k)", "V: expected a computed tensor, got a constant"),
            ("MatMul(p, v)", "MatMul(p, V)", "V: expected a computed tensor, got a constant"),
            ("s = MatMul(q, k)", "s = Add(bias, mask)", "bias: expected MatMul, got a graph input"),
            ("p = Softmax<axis = -1>(s)", "r = Relu(s) p = Softmax<axis = -1>(r)", "r: expected MatMul, got Relu"),
            ("y = MatMul(p, v)", "t = Tanh(p) y = MatMul(t, v)", "t: expected Softmax, got Tanh"),
        ),
        nodes={"scores": "s", "softmax": "p", "context": "y"},
    ),
)


MIX = (
    "{name}1 = Transpose<perm = [0, 2, 3, 1]>({source}) {name}2 = MatMul({name}1, H) {name}3 = Add({name}2, hb)"
    " {result} = Transpose<perm = [0, 3, 1, 2]>({name}3)"
)


def between(label: str, before: str = "", after: str = "", got: str = "p: expected Softmax, got Sigmoid") -> Form:
    """An attention with something between its product, its Softmax and its second product."""
    form = ATTENTIONS[0]
    text = form.text
    if before:
        text = text.replace("Softmax<axis = -1>(s)", "Softmax<axis = -1>(t)").replace("p = S", f"{before} p = S")
    if after:
        text = text.replace("MatMul(p, v)", "MatMul(r, v)").replace("y = M", f"{after} y = M")
    constant = "K: expected a computed tensor, got a constant"
    misses = (("Softmax<axis = -1>", "Sigmoid", got), ("MatMul(q, k)", "MatMul(q, K)", constant))
    return Form(ATTENTION, form.tags, text, misses, nodes=form.nodes, label=label)


ORDERS = (
    Form(
        ATTENTION,
        {"order": "value_first"},
        f"{SELF} {GIVEN} {{ s = MatMul(q, k) p = Softmax<axis = -1>(s) t = Transpose<perm = [0, 1, 3, 2]>(v)"
        " y = MatMul(t, p) }",
        (
            ("Softmax<axis = -1>", "Sigmoid", "v: expected Softmax, got a graph input"),
            ("MatMul(t, p)", "MatMul(K, p)", "K: expected Softmax, got a constant"),
        ),
        nodes={"scores": "s", "softmax": "p", "context": "y"},
    ),
    Form(
        ATTENTION,
        {"order": "exponentials_first"},
        f"{SELF} {GIVEN} {{ s = MatMul(q, k) m = ReduceMax<axes = [-1]>(s) d = Sub(s, m) p = Exp(d) y = MatMul(p, v) }}",
        (
            ("Exp(d)", "Sigmoid(d)", "p: expected Softmax, got Sigmoid"),
            ("Sub(s, m)", "Add(s, m)", "d: expected Sub, got Add"),
        ),
        nodes={"scores": "s", "softmax": "p", "context": "y"},
        label="divided afterwards",
    ),
    Form(
        LEARNED_QUERY,
        {"order": "probs_first"},
        f"{SELF} {GIVEN} {{ s = MatMul(V, k) p = Softmax<axis = -1>(s) y = MatMul(p, v) }}",
        (
            ("MatMul(V, k)", "MatMul(q, k)", "q: expected a constant, got a computed tensor"),
            ("Softmax<axis = -1>", "Sigmoid", "p: expected Softmax, got Sigmoid"),
        ),
        nodes={"scores": "s", "softmax": "p", "context": "y"},
        label="learned query",
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
    between("a guard", after="h = IsNaN(p) r = Where(h, c, p)", got="h: expected Softmax, got IsNaN"),
    between("a factor", after="r = Mul(p, c)"),
    between("layout", after="o = Transpose<perm = [0, 1, 3, 2]>(p) r = Transpose<perm = [0, 1, 3, 2]>(o)"),
    between("a bias written in place", "t = ScatterND(s, place, part)"),
    between("a gate between two maps", after="g = Mul(p, c) o = Sub(one, c) h = Mul(c, o) r = Add(g, h)"),
    between("heads mixed from the left", "l = Reshape(s, flat) m = MatMul(H, l) t = Reshape(m, maps)"),
    between(
        "talking heads",
        f"{MIX.format(name='b', source='s', result='t')}",
        f"{MIX.format(name='w', source='p', result='r')}",
    ),
    between("casts", "h = Cast<to = 11>(s) t = Cast<to = 1>(h)", "f = Cast<to = 11>(p) r = Cast<to = 1>(f)"),
)

PATCH = (
    Form(
        PATCHES,
        {},
        "(float[N,3,4,4] x) => (float[A,B,C] y) <int64[6] g = {-1, 3, 2, 2, 2, 2}, int64[3] s = {-1, 4, 12}>"
        "{ a = Reshape(x, g) t = Transpose<perm = [0, 2, 4, 1, 3, 5]>(a) y = Reshape(t, s) }",
        (
            ("Transpose<perm = [0, 2, 4, 1, 3, 5]>", "Relu", "t: expected Transpose, got Relu"),
            ("y = Reshape(t, s)", "y = Squeeze(t)", "y: expected Reshape, got Squeeze"),
        ),
        nodes={"turn": "t"},
    ),
)
WEIGHTED = (
    Form(
        SEPARABLE,
        {},
        "(float[N,1,5,8] c, float[N,4,5,8] k) => (float[A,B,C,D] y) <int64[1] last = {-1}, float[1,4,5,8] K>"
        "{ s = Softmax<axis = -1>(c) m = Mul(k, s) y = ReduceSum(m, last) }",
        (
            ("Softmax<axis = -1>(c)", "Sigmoid(c)", "k: expected Softmax, got a graph input"),
            ("Mul(k, s)", "Mul(K, s)", "K: expected Softmax, got a constant"),
            ("Mul(k, s)", "Add(k, s)", "m: expected Mul, got Add"),
            ("y = ReduceSum(m, last)", "y = ReduceMax(m)", "y: expected ReduceSum, got ReduceMax"),
        ),
        nodes={"softmax": "s"},
        label="separable",
    ),
)
GATES = (
    "(float[N,4] x, float[N,4] u, float[N,4] z) => (float[A,B] y) <float one = {1}, float[4] k, float[4] g, float[4] b>"
)
GATED_FORMS = (
    Form(
        GATED,
        {"activation": "silu"},
        f"{GATES} {{ s = Sigmoid(x) a = Mul(x, s) y = Mul(a, u) }}",
        (
            ("Mul(a, u)", "Add(a, u)", "y: expected Mul, got Add"),
            ("Mul(a, u)", "Mul(a, k)", "x: expected Mul, got a graph input"),
            ("Sigmoid(x)", "Softsign(x)", "x: expected Mul, got a graph input"),
        ),
        label="gated",
    ),
    Form(
        GATED,
        {"activation": "gelu_op"},
        f"{GATES} {{ a = Gelu(x) m = Mul(u, a) y = LayerNormalization(m, g, b) }}",
        (
            ("Gelu(x)", "Softsign(x)", "u: expected Gelu, got a graph input"),
            ("LayerNormalization(m, g, b)", "Softplus(m)", "y: expected Mul, got Softplus"),
        ),
        opset=20,
        label="gated, normalised",
    ),
)
FORMS = (*ACTIVATIONS, *LINEARS, *NORMS, *RMS_NORMS, *ATTENTIONS, *ORDERS, *PATCH, *WEIGHTED, *GATED_FORMS)
NEAR_MISSES = [(form, old, new, reason) for form in FORMS for old, new, reason in form.near_misses]


def name_of(form: Form) -> str:
    return " ".join((*form.tags.values(), form.label)).strip() or "patches"


def labels_in(pattern: Pattern) -> Iterator[tuple[str, str]]:
    """Every (tag, label) of the alternatives in a pattern."""
    match pattern:
        case OneOf():
            for label, option in pattern.options:
                yield pattern.tag, label
                yield from labels_in(option)
        case Op():
            for part in pattern.inputs:
                yield from labels_in(part)
        case Through():
            yield from labels_in(pattern.then)


def test_every_alternative_of_every_pattern_has_a_form() -> None:
    searched = [value for value in vars(patterns).values() if isinstance(value, OneOf | Op | Through)]
    assert searched
    wanted = {label for pattern in searched for label in labels_in(pattern)}
    assert wanted == {label for form in FORMS for label in form.tags.items()}


def test_every_form_has_two_near_misses() -> None:
    assert not [name_of(form) for form in FORMS if len(form.near_misses) < 2]


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_a_form_fits(form: Form) -> None:
    graph = graph_of(form.text, opset=form.opset)
    onnx.checker.check_model(proto_of(graph), full_check=True)
    before = digest(graph)
    found = match(form.pattern, graph.tensors()["y"])
    assert isinstance(found, Match), found
    assert found.tags == form.tags
    assert {name: found.nodes[name].name for name in form.nodes} == form.nodes
    assert digest(graph) == before


@pytest.mark.parametrize(
    ("form", "old", "new", "reason"), NEAR_MISSES, ids=[f"{name_of(form)}: {new}" for form, _, new, _ in NEAR_MISSES]
)
def test_a_near_miss_says_why(form: Form, old: str, new: str, reason: str) -> None:
    assert form.text.count(old) == 1
    graph = graph_of(form.text.replace(old, new), opset=form.opset)
    onnx.checker.check_model(proto_of(graph), full_check=True)
    missed = match(form.pattern, graph.tensors()["y"])
    assert isinstance(missed, Miss)
    assert missed.reason == reason
