"""A quantization problem made by hand: two linears that read one tensor, one that reads its own, one attention."""

from dataclasses import replace

import numpy as np
import pytest

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.layers import Attention, Block, BlockMap, Linear, Mlp, Product
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics
from onnxvitq.fit.initial_plan import make_plan
from onnxvitq.fit.steps.ranges import fit_ranges

SAMPLES, ROWS = 8, 32


def linear(name: str, role: str, tensor: str, sizes: tuple[int, int], *, bias: bool = True) -> Linear:
    return Linear(
        name=name,
        role=role,
        kind="linear",
        input=tensor,
        weight=f"{name}.weight",
        bias=f"{name}.bias" if bias else "",
        bias_node=f"{name}.add" if bias else "",
        output=f"{name}.output",
        in_features=sizes[0],
        out_features=sizes[1],
    )


@pytest.fixture
def blockmap() -> BlockMap:
    linears = (
        linear("/attn/qkv/MatMul_part0", "block0.attn.query", "x", (6, 4)),
        linear("/attn/qkv/MatMul_part1", "block0.attn.key", "x", (6, 5)),
        linear("/mlp/fc1/MatMul", "block0.mlp.fc1", "h", (7, 3), bias=False),
    )
    attention = Attention(
        name="block0.attn",
        block=0,
        query="q",
        key="k",
        probs="p",
        value="v",
        scores_node="/attn/MatMul",
        softmax_node="/attn/Softmax",
        context_node="/attn/MatMul_1",
        probs_first=True,
        heads=2,
        tokens=10,
        width=4,
    )
    mlp = Mlp(block=0, fc1="/mlp/fc1/MatMul", fc2="", activation="op")
    block = Block(index=0, attention="block0.attn", mlps=(mlp,))
    return BlockMap(blocks=(block,), attentions=(attention,), linears=linears, norms=(), unmatched=())


@pytest.fixture
def layers(blockmap: BlockMap) -> Layers:
    rng = np.random.default_rng(0)
    constants = {
        found.weight: rng.standard_normal((found.in_features, found.out_features)) for found in blockmap.linears
    }
    constants |= {found.bias: rng.standard_normal(found.out_features) for found in blockmap.linears if found.bias}
    frozen = {name: values.astype(np.float32) for name, values in constants.items()}
    for values in frozen.values():
        values.setflags(write=False)  # a step that writes into the model fails
    return Layers(blockmap=blockmap, constants=frozen)


@pytest.fixture
def stats() -> Statistics:
    """Ranges reach twice as far as the sampled values, as rare outliers make them: min-max is not the best scale."""
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((SAMPLES, 2, 10, 10))
    rows = {"x": rng.standard_normal((SAMPLES, ROWS, 6)), "h": rng.standard_normal((SAMPLES, ROWS, 7))}
    lefts = {"q": rng.standard_normal((SAMPLES, 2, 10, 4)), "p": np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)}
    rights = {"k": rng.standard_normal((SAMPLES, 2, 4, 10)), "v": rng.standard_normal((SAMPLES, 2, 10, 4))}
    measured = [{name: values.astype(np.float32) for name, values in part.items()} for part in (rows, lefts, rights)]
    ranges = {name: (2 * min(float(v.min()), 0.0), 2 * float(v.max())) for part in measured for name, v in part.items()}
    for part in measured:
        for values in part.values():
            values.setflags(write=False)
    return Statistics(count=SAMPLES, ranges=ranges, rows=measured[0], lefts=measured[1], rights=measured[2])


@pytest.fixture
def plan(layers: Layers, stats: Statistics) -> QuantPlan:
    """Formats and min-max parameters for everything."""
    return fit_ranges(layers, make_plan(layers.blockmap, QuantConfig()), stats)


def product(name: str, left: str, right: str, constant: str = "") -> Product:
    return Product(name=name, left=left, right=right, constant=constant, reason="no attention explains it")


@pytest.fixture
def with_products(layers: Layers) -> Layers:
    """The same problem with three products more: two of computed tensors, of which one is a linear's input, and a table."""
    products = (product("/gram", "a", "h"), product("/sum", "b", "a"), product("/table", "q", "table", "table"))
    table = np.linspace(-0.5, 1.5, 24, dtype=np.float32).reshape(2, 4, 3)
    table.setflags(write=False)
    blockmap = replace(layers.blockmap, products=products)
    return Layers(blockmap=blockmap, constants={**layers.constants, "table": table})


@pytest.fixture
def more_stats(stats: Statistics) -> Statistics:
    """Ranges of the products' operands as well."""
    return replace(stats, ranges={**stats.ranges, "a": (-1.0, 3.0), "b": (0.0, 2.0)})


@pytest.fixture
def hybrid(blockmap: BlockMap) -> BlockMap:
    """A stem of two layers, one of them in an MLP of its own, a patch embedding, a layer after the block, and a head."""

    def like(name: str, role: str) -> Linear:
        return replace(blockmap.linears[-1], name=name, role=role, input=f"{name}.input", weight=f"{name}.weight")

    stem = (like("stem", "linear"), like("gate", "block0.mlp.fc1"))
    patches = replace(like("patches", "patch_embed"), kind="patch_embedding")
    return replace(
        blockmap, linears=(*stem, patches, *blockmap.linears, like("between", "linear"), like("head", "head"))
    )
