"""Small transformers from recipes: ``build`` writes one, ``samples`` makes what it reads.

Shapes: B batch, 16 tokens (a 4 x 4 grid), width 16, two heads of 8, 32 hidden channels, 5 classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from graph_writer import GraphWriter
from onnx import TensorProto, helper
from recipes import Recipe
from unusual_sizes import scale_weights, unusual_sample

TOKENS, GRID, WIDTH, HEADS, HEAD, HIDDEN, CLASSES, WINDOW = 16, 4, 16, 2, 8, 32, 5, 2
LOWEST = -3.4028234663852886e38


def build(recipe: Recipe, *, fused: bool = True) -> onnx.ModelProto:
    """The model of a recipe.

    Args:
        recipe: what it is made of.
        fused: as the recipe says; False writes the same function with fused attention operators in parts.
    """
    model = _Builder(recipe, fused=fused).model()
    known = onnx.shape_inference.infer_shapes(model)
    found = {one.name: one for one in known.graph.output}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    values: list[Any] = []
    for one in model.graph.output:
        kind = found[one.name].type
        if kind.HasField("tensor_type") and not kind.tensor_type.HasField("shape"):
            if not values:  # nothing is inferred of a fused operator's output: its rank is seen
                session = onnxruntime.InferenceSession(model.SerializeToString(), options)
                values = session.run(None, samples(recipe, 0, 1)[0])
            rank = values[list(found).index(one.name)].ndim
            for axis in range(rank):
                kind.tensor_type.shape.dim.add().dim_param = f"{one.name}_{axis}"
        one.type.CopyFrom(kind)
    onnx.checker.check_model(model)
    return model


def samples(recipe: Recipe, seed: int, count: int) -> list[dict[str, np.ndarray]]:
    """Feeds of one batch each, which share what is typical of the tokens and differ in the rest."""
    rng, common = np.random.default_rng([recipe.seed, seed]), np.random.default_rng(recipe.seed)
    typical = common.normal(size=(TOKENS, WIDTH))
    return [_feed(recipe, rng, typical) for _ in range(count)]


def _feed(recipe: Recipe, rng: np.random.Generator, typical: np.ndarray) -> dict[str, np.ndarray]:
    batch = recipe.batch or 1
    tokens = typical + rng.normal(size=(batch, TOKENS, WIDTH)) * rng.uniform(0.5, 1.5, size=(batch, TOKENS, 1))
    tokens = unusual_sample(recipe.magnitude, tokens)
    feed = {"x": tokens.astype(recipe.dtype)}
    if recipe.layout == "image":  # (B, 16, 16) -> 4 x 4 patches of 2 x 2 pixels with 4 channels
        cells = tokens.reshape(batch, GRID, GRID, 4, 2, 2).transpose(0, 3, 1, 4, 2, 5)
        feed["x"] = cells.reshape(batch, 4, 8, 8).astype(recipe.dtype)
    elif recipe.layout == "channels first":
        feed["x"] = tokens.transpose(0, 2, 1).reshape(batch, WIDTH, GRID, GRID).astype(recipe.dtype)
    if recipe.attention == "cross":
        feed["memory"] = rng.normal(size=(batch, TOKENS, WIDTH)).astype(recipe.dtype)
    if recipe.mask == "bool input":
        keep = rng.uniform(size=(batch, 1, 1, TOKENS)) < 0.8
        keep[..., 0] = True
        feed["keep"] = keep
    return feed


class _Builder:
    """Writes one recipe."""

    def __init__(self, recipe: Recipe, *, fused: bool) -> None:
        self.r, self.fused = recipe, fused
        self.w = GraphWriter(recipe.opset, recipe.dtype, recipe.seed)
        self.first = recipe.layout == "tokens first"
        self.seen: dict[str, str] = {}  # kind of output -> tensor
        self.hidden: list[str] = []
        scale_weights(recipe.magnitude, self.w.scaled)

    def model(self) -> onnx.ModelProto:
        r, w = self.r, self.w
        x = self.embedded()
        for index in range(r.depth):
            x = self.block(x, "b0" if r.shared else f"b{index}")
            self.hidden.append(x)
        x = self.norm(x, "last")
        if r.layout == "channels first":
            x = w.transpose(w.reshape(x, 0, WIDTH, TOKENS), 0, 2, 1)
        if r.subgraph == "if before head":
            x = self.chosen(x)
        self.seen["tokens"] = x
        pooled = w.reduce("ReduceMean", x, [0 if self.first else 1], keepdims=0)
        logits = self.linear(pooled, "head", WIDTH, CLASSES, form="gemm" if r.linear == "gemm" else "matmul")
        for number, kind in enumerate(r.outputs):
            self.output(kind, pooled, logits, f"out{number}")
        if r.subgraph in {"if reads hidden", "loop reads hidden"}:
            w.add_output(self.chosen(x) if r.subgraph.startswith("if") else self.looped(x), "branch")
        return w.model()

    # ------------------------------------------------------------------------------------------------------ embedding

    def embedded(self) -> str:
        """The inputs, and the first hidden tensor."""
        r, w = self.r, self.w
        batch = r.batch or "N"
        if r.layout == "image":
            x = w.add_input("x", [batch, 4, 8, 8])
            x = w.op(
                "Conv",
                x,
                self.kernel("embed", 2, 4),
                w.weight("embed.b", w.values("embed.b", WIDTH, size=0.1)),
                strides=[2, 2],
            )
            x = w.transpose(w.reshape(x, 0, WIDTH, TOKENS), 0, 2, 1)
        elif r.layout == "channels first":
            x = w.add_input("x", [batch, WIDTH, GRID, GRID])
            x = self.linear(x, "embed", WIDTH, WIDTH)
        else:
            x = w.add_input("x", [batch, TOKENS, WIDTH])
            x = w.transpose(x, 1, 0, 2) if self.first else x
            x = self.linear(x, "embed", WIDTH, WIDTH)
        if r.attention == "cross":
            self.memory = w.add_input("memory", [batch, TOKENS, WIDTH])
            if self.first:
                self.memory = w.transpose(self.memory, 1, 0, 2)
        if r.mask == "bool input":
            w.add_input("keep", [batch, 1, 1, TOKENS], TensorProto.BOOL)
        self.seen["input"] = "x"
        return x

    def kernel(self, name: str, size: int, channels: int) -> str:
        flat = self.w.values(f"{name}.w", WIDTH, WIDTH)  # the same numbers as of a linear
        return self.w.weight(f"{name}.w", np.ascontiguousarray(flat.T).reshape(WIDTH, channels, size, size))

    # ---------------------------------------------------------------------------------------------------------- layers

    def linear(self, x: str, name: str, inputs: int, outputs: int, form: str = "", parts: Sequence[str] = ()) -> str:
        """x W + b in the recipe's form; of several linears side by side where ``parts`` names them."""
        w, form = self.w, form or self.r.linear
        each = parts or [name]
        weight = np.concatenate([w.values(f"{one}.w", inputs, outputs // len(each)) for one in each], axis=1)
        bias = np.concatenate([w.values(f"{one}.b", outputs // len(each), size=0.1) for one in each])
        if self.r.layout == "channels first" and name not in {"head", "boxes"}:
            kernel = w.weight(f"{name}.w", np.ascontiguousarray(weight.T).reshape(outputs, inputs, 1, 1))
            return str(w.op("Conv", x, kernel, w.weight(f"{name}.b", bias)))
        if form == "gemm" and not (self.r.batch == 0 and self.first):
            lead = (TOKENS, -1) if self.first else (-1, TOKENS)
            rows = w.reshape(x, -1, inputs)
            stored = w.weight(f"{name}.w", np.ascontiguousarray(weight.T))
            y = w.op("Gemm", rows, stored, w.weight(f"{name}.b", bias), transB=1)
            return str(y) if name == "head" else w.reshape(y, *lead, outputs)
        if form == "conv" and not self.first and name != "head":
            kernel = w.weight(f"{name}.w", np.ascontiguousarray(weight.T).reshape(outputs, inputs, 1))
            y = w.op("Conv", w.transpose(x, 0, 2, 1), kernel, w.weight(f"{name}.b", bias))
            return w.transpose(y, 0, 2, 1)
        if form == "transposed":
            stored = w.transpose(w.weight(f"{name}.w", np.ascontiguousarray(weight.T)), 1, 0)
        else:
            stored = w.weight(f"{name}.w", weight)
        y = w.op("MatMul", x, stored)
        if form == "no bias":
            return str(y)
        b = w.weight(f"{name}.b", bias)
        return str(w.op("Add", b, y) if form == "bias first" else w.op("Add", y, b))

    def norm(self, x: str, name: str) -> str:
        """A normalisation in the recipe's form, over channels."""
        r, w = self.r, self.w
        gamma, beta = w.values(f"{name}.g", WIDTH, size=0.2, about=1.0), w.values(f"{name}.t", WIDTH, size=0.1)
        if r.norm == "batch":
            mean, variance = w.values(f"{name}.m", WIDTH, size=0.2), 1.0 + w.values(f"{name}.v", WIDTH, size=0.2) ** 2
            names = [w.weight(f"{name}.{k}", v) for k, v in zip("gtmv", (gamma, beta, mean, variance), strict=True)]
            if r.layout == "channels first":
                return str(w.op("BatchNormalization", x, *names))
            back = (1, 2, 0) if self.first else (0, 2, 1)
            there = (2, 0, 1) if self.first else (0, 2, 1)
            y = w.op("BatchNormalization", w.transpose(x, *back), *names)
            return w.transpose(y, *there)
        flat = r.layout == "channels first"
        if flat:
            x = w.transpose(x, 0, 2, 3, 1)
        y = self._normalised(x, w.weight(f"{name}.g", gamma), w.weight(f"{name}.t", beta))
        return w.transpose(y, 0, 3, 1, 2) if flat else y

    def _normalised(self, x: str, gamma: str, beta: str) -> str:
        r, w = self.r, self.w
        if r.norm == "layer":
            return str(w.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=1e-5))
        if r.norm == "rms":
            return str(w.op("RMSNormalization", x, gamma, axis=-1, epsilon=1e-5))
        centred = w.op("Sub", x, w.reduce("ReduceMean", x, [-1])) if r.norm == "layer in parts" else x
        square = w.op("Pow", centred, w.constant(2.0))
        root = w.op("Sqrt", w.op("Add", w.reduce("ReduceMean", square, [-1]), w.constant(1e-5)))
        y = w.op("Mul", w.op("Div", centred, root), gamma)
        return str(w.op("Add", y, beta)) if r.norm == "layer in parts" else str(y)

    def activation(self, x: str) -> str:
        """The recipe's activation function."""
        w, kind = self.w, self.r.activation
        if kind == "gelu":
            return str(w.op("Gelu", x))
        if kind == "relu":
            return str(w.op("Relu", x))
        if kind in {"silu", "quick gelu"}:
            gate = x if kind == "silu" else w.op("Mul", x, w.constant(1.702))
            return str(w.op("Mul", x, w.op("Sigmoid", gate)))
        if kind == "hard swish":
            inner = w.op("Add", w.op("Mul", x, w.constant(1 / 6)), w.constant(0.5))
            return str(w.op("Mul", x, w.op("Clip", inner, w.constant(0.0), w.constant(1.0))))
        if kind == "erf gelu":
            inner = w.op("Erf", w.op("Div", x, w.constant(math.sqrt(2))))
        else:
            cube = w.op("Mul", w.op("Mul", w.op("Mul", x, x), x), w.constant(0.044715))
            inner = w.op("Tanh", w.op("Mul", w.op("Add", x, cube), w.constant(math.sqrt(2 / math.pi))))
        return str(w.op("Mul", w.op("Mul", x, w.op("Add", inner, w.constant(1.0))), w.constant(0.5)))

    # ---------------------------------------------------------------------------------------------------------- blocks

    def block(self, x: str, name: str) -> str:
        """Attention and feed-forward part, each with its norm and residual add."""
        w, post = self.w, self.r.post_norm
        for part, branch in (("attention", self.attention), ("ffn", self.ffn)):
            if part == "ffn" and self.r.ffn == "none":
                continue
            norm = f"{name}.norm.{part}"
            x = w.op("Add", x, branch(x if post else self.norm(x, norm), f"{name}.{part}"))
            x = self.norm(x, norm) if post else x
        return x

    def ffn(self, x: str, name: str) -> str:
        """fc1, activation, fc2, or a gated form."""
        w, kind = self.w, self.r.ffn
        if kind == "gated packed" and self.r.layout != "channels first":
            parts = w.split(
                self.linear(x, f"{name}.packed", WIDTH, 2 * HIDDEN, parts=[f"{name}.fc1", f"{name}.gate"]),
                2,
                2 * HIDDEN,
            )
            inner = w.op("Mul", self.activation(parts[0]), parts[1])
        else:
            inner = self.activation(self.linear(x, f"{name}.fc1", WIDTH, HIDDEN))
            if kind == "gated":
                inner = w.op("Mul", inner, self.linear(x, f"{name}.gate", WIDTH, HIDDEN))
        self.seen["ffn hidden"] = inner
        return self.linear(inner, f"{name}.fc2", HIDDEN, WIDTH)

    def attention(self, x: str, name: str) -> str:
        """The recipe's attention, with its projection."""
        r, w = self.r, self.w
        if r.layout == "channels first":
            return self._channels_first(x, name)
        if r.attention.endswith("Attention") and self.fused:
            return self.linear(self._fused(x, name), f"{name}.proj", WIDTH, WIDTH)
        if r.attention == "windows":
            return self._windows(x, name)
        q, k, v = self._qkv(x, name)
        kv_heads = 1 if r.attention == "grouped" else HEADS
        if self.first:
            q, k, v = (
                w.transpose(w.reshape(one, TOKENS, -1, HEADS, HEAD), 1, 2, 0, 3)
                if heads == HEADS
                else w.transpose(w.reshape(one, TOKENS, -1, heads, HEAD), 1, 2, 0, 3)
                for one, heads in ((q, HEADS), (k, kv_heads), (v, kv_heads))
            )
        elif r.attention != "packed":
            q, k, v = (
                w.transpose(w.reshape(one, 0, -1, heads, HEAD), 0, 2, 1, 3)
                for one, heads in ((q, HEADS), (k, kv_heads), (v, kv_heads))
            )
        context = self._linear_attention(q, k, v) if r.attention == "linear" else self._product(q, k, v)
        if self.first:
            joined = w.reshape(w.transpose(context, 2, 0, 1, 3), TOKENS, -1, WIDTH)
        else:
            joined = w.reshape(w.transpose(context, 0, 2, 1, 3), 0, -1, WIDTH)
        self.seen["context"] = joined
        return self.linear(joined, f"{name}.proj", WIDTH, WIDTH)

    def _qkv(self, x: str, name: str) -> Sequence[str]:
        """(B, T, C) each; (B, H, T, D) each where packed."""
        r, w = self.r, self.w
        if r.attention == "packed" and not self.first:
            packed = self.linear(x, f"{name}.qkv", WIDTH, 3 * WIDTH, parts=[f"{name}.{part}" for part in "qkv"])
            packed = w.reshape(packed, 0, -1, 3, HEADS, HEAD)
            packed = w.transpose(packed, 2, 0, 3, 1, 4)
            return [w.op("Gather", packed, w.constant(index, np.int64), axis=0) for index in range(3)]
        if r.attention in {"packed", "packed split"}:
            packed = self.linear(x, f"{name}.qkv", WIDTH, 3 * WIDTH, parts=[f"{name}.{part}" for part in "qkv"])
            return w.split(packed, 3, 3 * WIDTH)
        keys = self.memory if r.attention == "cross" else x
        inner = HEAD if r.attention == "grouped" else WIDTH
        form = "matmul" if r.attention.endswith("Attention") else ""
        if r.attention == "queries":
            learned = w.weight(f"{name}.learned", w.values(f"{name}.learned", 1, TOKENS, WIDTH, size=1.0))
            q = self.linear(learned, f"{name}.q", WIDTH, WIDTH, "matmul" if r.linear in {"gemm", "conv"} else form)
            return q, self.linear(x, f"{name}.k", WIDTH, inner, form), self.linear(x, f"{name}.v", WIDTH, inner, form)
        return (
            self.linear(x, f"{name}.q", WIDTH, WIDTH, form),
            self.linear(keys, f"{name}.k", WIDTH, inner, form),
            self.linear(keys, f"{name}.v", WIDTH, inner, form),
        )

    def _product(self, q: str, k: str, v: str) -> str:
        """softmax(q k^T scale + mask) v of (.., T, D) operands."""
        r, w = self.r, self.w
        scale = 1 / math.sqrt(HEAD)
        key = w.transpose(k, 0, 1, 3, 2)
        if r.scale in {"on q", "on both"}:
            q = w.op("Mul", q, w.constant(math.sqrt(scale) if r.scale == "on both" else scale))
        if r.scale in {"on k", "on both"}:
            key = w.op("Mul", key, w.constant(math.sqrt(scale) if r.scale == "on both" else scale))
        self.seen |= {"query": q, "value": v}
        scores = w.op("MatMul", q, key)
        if r.scale == "after":
            scores = w.op("Mul", scores, w.constant(scale))
        elif r.scale == "double":  # as a scale computed in Python is exported: in double, and cast
            root = w.op("Sqrt", w.constant(float(HEAD), np.float64))
            element = TensorProto.FLOAT if r.dtype == "float32" else TensorProto.FLOAT16
            scores = w.op("Div", scores, w.op("Cast", root, to=element))
        scores = self._masked(scores)
        probs = w.op("Softmax", scores, axis=-1) if r.opset >= 13 else w.op("Softmax", scores, axis=3)
        self.seen |= {"scores": scores, "probs": probs}
        return str(w.op("MatMul", probs, v))

    def _masked(self, scores: str) -> str:
        w, kind = self.w, self.r.mask
        if kind == "none":
            return scores
        if kind == "bias":
            return str(
                w.op("Add", scores, w.weight("bias", w.values("bias", 1, HEADS, self._keys, self._keys, size=1.0)))
            )
        low = -6e4 if self.r.dtype == "float16" else {"-inf": -np.inf, "-1e9": -1e9}.get(kind, LOWEST)
        if kind == "bool input":
            return str(w.op("Where", "keep", scores, w.constant(low)))
        mask = np.triu(np.full((self._keys, self._keys), low), 1)
        if kind == "all of a row":
            mask[1] = low
        return str(w.op("Add", scores, w.constant(mask[None, None])))

    @property
    def _keys(self) -> int:
        return WINDOW * WINDOW if self.r.attention == "windows" else TOKENS

    def _linear_attention(self, q: str, k: str, v: str) -> str:
        """relu(q) (relu(k)^T v) / (relu(q) sum relu(k))."""
        w = self.w
        q, k = w.op("Relu", q), w.op("Relu", k)
        state = w.op("MatMul", w.transpose(k, 0, 1, 3, 2), v)
        mass = w.op("MatMul", q, w.transpose(w.reduce("ReduceSum", k, [2]), 0, 1, 3, 2))
        return str(w.op("Div", w.op("MatMul", q, state), w.op("Add", mass, w.constant(1e-3))))

    def _windows(self, x: str, name: str) -> str:
        """Attention within 2 x 2 windows of the grid; (B, T, C)."""
        w = self.w
        count = GRID // WINDOW
        parts = w.transpose(w.reshape(x, -1, count, WINDOW, count, WINDOW, WIDTH), 0, 1, 3, 2, 4, 5)
        inside = w.reshape(parts, -1, WINDOW * WINDOW, WIDTH)
        form = "matmul" if self.r.linear in {"gemm", "conv"} else ""
        q, k, v = (
            w.transpose(
                w.reshape(self.linear(inside, f"{name}.{part}", WIDTH, WIDTH, form), -1, WINDOW * WINDOW, HEADS, HEAD),
                0, 2, 1, 3,
            )
            for part in "qkv"
        )  # fmt: skip
        context = w.reshape(w.transpose(self._product(q, k, v), 0, 2, 1, 3), -1, WINDOW * WINDOW, WIDTH)
        self.seen["context"] = context
        y = self.linear(context, f"{name}.proj", WIDTH, WIDTH, form)
        back = w.transpose(w.reshape(y, -1, count, count, WINDOW, WINDOW, WIDTH), 0, 1, 3, 2, 4, 5)
        return w.reshape(back, -1, TOKENS, WIDTH)

    def _channels_first(self, x: str, name: str) -> str:
        """(B, C, 4, 4): linears are pointwise convolutions, heads are cut from the channels."""
        r, w = self.r, self.w
        q, k, v = (
            w.transpose(w.reshape(self.linear(x, f"{name}.{part}", WIDTH, WIDTH), 0, HEADS, HEAD, TOKENS), 0, 1, 3, 2)
            for part in "qkv"
        )
        context = self._linear_attention(q, k, v) if r.attention == "linear" else self._product(q, k, v)
        joined = w.reshape(w.transpose(context, 0, 1, 3, 2), 0, WIDTH, GRID, GRID)
        return self.linear(joined, f"{name}.proj", WIDTH, WIDTH)

    def _fused(self, x: str, name: str) -> str:
        """The context of one fused operator, (B, T, C)."""
        r, w = self.r, self.w
        weights = [w.values(f"{name}.{part}.w", WIDTH, WIDTH) for part in "qkv"]
        biases = [w.values(f"{name}.{part}.b", WIDTH, size=0.1) for part in "qkv"]
        ms = "com.microsoft"
        if r.attention == "com.microsoft Attention":
            weight = w.weight(f"{name}.qkv.w", np.concatenate(weights, axis=1))
            bias = w.weight(f"{name}.qkv.b", np.concatenate(biases))
            return str(w.op("Attention", x, weight, bias, domain=ms, num_heads=HEADS))
        q, k, v = (self.linear(x, f"{name}.{part}", WIDTH, WIDTH, form="matmul") for part in "qkv")
        if r.attention == "com.microsoft MultiHeadAttention":
            return str(w.op("MultiHeadAttention", q, k, v, domain=ms, num_heads=HEADS))
        return str(w.op("Attention", q, k, v, q_num_heads=HEADS, kv_num_heads=HEADS))

    # ------------------------------------------------------------------------------------------------------ sub-graphs

    def chosen(self, x: str) -> str:
        """An If whose branches read a hidden tensor from outside."""
        w = self.w
        condition = w.op("Greater", w.op("ReduceMean", "x", keepdims=0), w.constant(0.0))
        element = TensorProto.FLOAT if self.r.dtype == "float32" else TensorProto.FLOAT16
        branches = [
            helper.make_graph(
                [helper.make_node(kind, [x], [f"{kind}_inside"])],
                kind,
                [],
                [helper.make_tensor_value_info(f"{kind}_inside", element, None)],
            )
            for kind in ("Neg", "Identity")
        ]
        return str(w.op("If", condition, then_branch=branches[0], else_branch=branches[1]))

    def looped(self, x: str) -> str:
        """A Loop that adds a hidden tensor from outside, twice."""
        w = self.w
        element = TensorProto.FLOAT if self.r.dtype == "float32" else TensorProto.FLOAT16
        value = helper.make_tensor_value_info
        body = helper.make_graph(
            [
                helper.make_node(
                    "Add", ["state", self.hidden[0] if self.r.layout != "channels first" else x], ["next"]
                ),
                helper.make_node("Identity", ["go"], ["go_on"]),
            ],
            "body",
            [
                value("turn", TensorProto.INT64, []),
                value("go", TensorProto.BOOL, []),
                value("state", element, None),
            ],
            [value("go_on", TensorProto.BOOL, []), value("next", element, None)],
        )
        return str(w.op("Loop", w.constant(2, np.int64), w.constant(True, np.bool_), x, body=body))

    # --------------------------------------------------------------------------------------------------------- outputs

    def output(self, kind: str, pooled: str, logits: str, name: str) -> None:
        """One output of a kind; a kind that the model has no tensor for is its logits."""
        integers = {"label": TensorProto.INT64, "mask": TensorProto.BOOL, "shape": TensorProto.INT64}
        if kind == "sequence":
            self.w.add_sequence([*self.hidden, self.seen["tokens"]], name)
        else:
            self.w.add_output(self._derived(kind, pooled, logits), name, integers.get(kind))

    def _derived(self, kind: str, pooled: str, logits: str) -> str:
        w, tokens = self.w, self.seen["tokens"]
        if kind == "hidden":
            return self.hidden[0]
        makers: dict[str, Callable[[], str]] = {
            "label": lambda: w.op("ArgMax", logits, axis=-1, keepdims=0),
            "mask": lambda: w.op("Greater", tokens, w.constant(0.0)),
            "boxes": lambda: w.op("Sigmoid", self.linear(tokens, "boxes", WIDTH, 4, form="matmul")),
            "constant": lambda: w.op("Identity", w.constant(np.linspace(0, 1, 6).reshape(2, 3))),
            "unit vector": lambda: self._unit_vector(pooled),
            "shape": lambda: w.op("Shape", tokens),
            "probabilities": lambda: w.op("Softmax", logits, axis=-1 if self.r.opset >= 13 else 1),
            "zero rows": lambda: w.op("Slice", tokens, w.ints(0), w.ints(0), w.ints(1)),
        }
        return makers[kind]() if kind in makers else self.seen.get(kind, logits)

    def _unit_vector(self, pooled: str) -> str:
        w = self.w
        length = w.op("Sqrt", w.reduce("ReduceSum", w.op("Mul", pooled, pooled), [-1]))
        return str(w.op("Div", pooled, w.op("Add", length, w.constant(1e-6))))
