"""Every operator against onnxruntime on random inputs."""

import re

import numpy as np
import pytest
import torch
from textgraph import feeds_of, graph_of, proto_of, run

from onnxvitq.core.layers import BlockMap
from onnxvitq.fit.steps.block_learning.network import cut
from onnxvitq.fit.steps.block_learning.network import run as run_block
from onnxvitq.fit.steps.block_learning.operators import OPERATORS

NOTHING = BlockMap(blocks=(), attentions=(), linears=(), norms=(), unmatched=())

UNARY = (
    "Abs",
    "Cos",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "Identity",
    "Neg",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Sin",
    "Tanh",
)
BINARY = ("Add", "Div", "Max", "Min", "Mul", "Sub")
# name -> (inputs, constants, body); x (2, 3, 4) and w (2, 3, 4) where they are named
BODIES = {
    "Softmax": "y = Softmax<axis = 1>(x)",
    "LayerNormalization": "y = LayerNormalization<epsilon = 0.01>(x, gamma, beta)",
    "LayerNormalization-no-beta": "y = LayerNormalization(x, gamma)",
    "Transpose": "y = Transpose<perm = [2, 0, 1]>(x)",
    "Transpose-reversed": "y = Transpose(x)",
    "Flatten": "y = Flatten<axis = 2>(x)",
    "Reshape": "y = Reshape(x, target)",
    "Concat": "y = Concat<axis = -1>(x, w)",
    "Slice": "y = Slice(x, from, to, axes, steps)",
    "Gather": "y = Gather<axis = 1>(x, index)",
    "Squeeze": "u = Unsqueeze(x, two) y = Squeeze(u, two)",
    "Unsqueeze": "y = Unsqueeze(x, two)",
    "Expand": "u = Unsqueeze(x, two) y = Expand(u, wide)",
    "Tile": "y = Tile(x, repeats)",
    "ReduceMean": "y = ReduceMean<axes = [-1]>(x)",
    "ReduceMax": "y = ReduceMax<axes = [1], keepdims = 0>(x)",
    "ReduceSum": "y = ReduceSum(x, two)",
    "ReduceL2": "y = ReduceL2<axes = [-1]>(x)",
    "MatMul": "t = Transpose<perm = [0, 2, 1]>(w) y = MatMul(x, t)",
    "Gemm": "f = Flatten<axis = 2>(x) g = Flatten<axis = 2>(w) y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(f, g, six)",
    "Pow": "a = Abs(x) y = Pow(a, w)",
    "Sqrt": "a = Abs(x) y = Sqrt(a)",
    "Log": "a = Abs(x) y = Log(a)",
    "Clip": "y = Clip(x, low, high)",
    "Where": "c = Greater(x, w) y = Where(c, x, w)",
    "Less": "c = Less(x, w) n = Not(c) y = Where(n, x, w)",
    "Equal": "c = Equal(x, x) d = Less(x, w) e = And(c, d) y = Where(e, x, w)",
    "Or": "c = IsNaN(x) d = Less(x, w) e = Or(c, d) y = Where(e, x, w)",
    "Split": "a, b = Split<axis = 2>(x, halves) y = Sub(a, b)",
    "Shape": "s = Shape(x) c = Cast<to = 1>(s) t = ReduceSum<keepdims = 0>(c) y = Add(x, t)",
    "ConstantOfShape": "s = Shape(x) z = ConstantOfShape(s) y = Add(x, z)",
    "Range": "r = Range(zero, four, one) c = Cast<to = 1>(r) y = Add(x, c)",
    "Mod": "r = Range(zero, four, one) m = Mod(r, three) c = Cast<to = 1>(m) y = Add(x, c)",
}
CONSTANTS = (
    "int64[3] target = {0, -1, 2}, int64[2] from = {1, -1}, int64[2] to = {3, -4}, int64[2] axes = {1, 2},"
    " int64[2] steps = {1, -2}, int64[3] index = {2, -1, 0}, int64[1] two = {2}, int64[4] wide = {2, 3, 5, 4},"
    " int64[3] repeats = {1, 2, 1}, float low = {-0.5}, float high = {0.25}, int64[2] halves = {2, 2},"
    " int64 zero = {0}, int64 four = {4}, int64 one = {1}, int64 three = {3}, float[4] gamma, float[4] beta, float[6] six"
)


def assert_same(body: str, opset: int = 17) -> None:
    text = f"(float[2,3,4] x, float[2,3,4] w) => (float[A] y) <{CONSTANTS}> {{ {body} }}"
    graph = graph_of(text, opset=opset)
    graph.outputs[0].shape = None
    proto = proto_of(graph)
    feeds = feeds_of(proto, seed=3)
    expected = run(proto, feeds)[0]
    (block,) = cut(graph, NOTHING)
    assert block.refused == ()
    found = run_block(block, {name: torch.from_numpy(value) for name, value in feeds.items()})["y"].numpy()
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # float32, other orders of summation


@pytest.mark.parametrize("op", UNARY)
def test_of_one_input(op: str) -> None:
    assert_same(f"y = {op}(x)", opset=20 if op == "Gelu" else 17)


@pytest.mark.parametrize("op", BINARY)
def test_of_two_inputs(op: str) -> None:
    assert_same(f"y = {op}(x, w)")


@pytest.mark.parametrize("name", BODIES)
def test_of_any_form(name: str) -> None:
    assert_same(BODIES[name])


def test_the_table_is_covered() -> None:
    tested = {*UNARY, *BINARY, *re.findall(r"(\w+)(?:<[^>]*>)?\(", " ".join(BODIES.values()))}
    assert OPERATORS.keys() - tested == {"RMSNormalization"}  # of an opset that onnxruntime runs as a function
