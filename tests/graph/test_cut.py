"""A graph cut into subgraphs: run one after the other, with the linear layers computed in between, they are the whole graph."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from textgraph import difference, feeds_of, graph_of, model_of, run
from transformer_text import transformer

from onnxvitq.blocks.find import find_blocks
from onnxvitq.core.layers import BlockMap, Linear
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.cut import (
    OutsideNodes,
    Subgraph,
    SubgraphCutter,
    as_graph,
    cut_between_blocks,
    cut_evenly,
    tensors_read,
)
from onnxvitq.graph.reading import to_graph

FORMS = [("dynamo", True), ("dynamo", False), ("torchscript", True), ("torchscript", False)]
EXACT = 1e-5  # of the largest output: numpy adds up a product in another order than onnxruntime

IF = (
    "(float[N,8] x, bool flag) => (float[N,6] y) <float[8,8] W, float[8,6] V, float[8] lift>"
    "{ a = Relu(x) h = MatMul(a, W) b = Tanh(h)"
    " c = If(flag) <then_branch = yes () => (float[P,Q] t) { t = Add(b, lift) },"
    " else_branch = no () => (float[R,S] u) { m = Mul(a, h) u = Sub(m, b) }>"
    " y = MatMul(c, V) }"
)


def outside(linear: Linear) -> OutsideNodes:
    nodes = (linear.name, linear.bias_node) if linear.bias_node else (linear.name,)
    return OutsideNodes(nodes=nodes, input=linear.input, output=linear.output)


def matmul(name: str, x: str) -> OutsideNodes:
    return OutsideNodes(nodes=(name,), input=x, output=name)


class Walk:
    """Runs a graph subgraph by subgraph: ``layers`` computes the output of each layer outside from its input."""

    def __init__(
        self,
        graph: gs.Graph,
        layers: Mapping[OutsideNodes, Callable[[np.ndarray], np.ndarray]],
        feeds: Mapping[str, np.ndarray],
    ) -> None:
        self.cutter, self.layers = SubgraphCutter(graph, list(layers)), layers
        self.values: dict[str, np.ndarray] = dict(feeds)
        self.ran: list[str] = []

    def reach(self, *targets: str) -> Subgraph | None:
        subgraph = self.cutter.towards(targets)
        if subgraph is not None:
            model = self.cutter.model(subgraph)
            self.ran += [node.name for node in model.graph.node]
            outputs = run(model, {name: self.values[name] for name in subgraph.inputs})
            self.values |= dict(zip(subgraph.outputs, outputs, strict=True))
        return subgraph

    def compute(self, layer: OutsideNodes) -> None:
        self.values[layer.output] = self.layers[layer](self.values[layer.input])
        self.cutter.provide(layer)


def walk_linears(graph: gs.Graph, feeds: Mapping[str, np.ndarray]) -> Walk:
    """All subgraphs of a canonical graph, one before each linear layer."""
    linears = find_blocks(graph, "the test's graph").linears
    tensors = graph.tensors()

    def layer(linear: Linear) -> Callable[[np.ndarray], np.ndarray]:
        weight = tensors[linear.weight].values
        bias = tensors[linear.bias].values if linear.bias else 0.0
        return lambda x: x @ weight + bias

    walk = Walk(graph, {outside(linear): layer(linear) for linear in linears}, feeds)
    for layer_outside in walk.layers:
        walk.reach(layer_outside.input)
        walk.compute(layer_outside)
    walk.reach(*(tensor.name for tensor in graph.outputs))
    return walk


def assert_each_node_ran_once(walk: Walk, graph: gs.Graph) -> None:
    left_out = {name for layer in walk.layers for name in layer.nodes}
    assert sorted(walk.ran) == sorted(node.name for node in graph.nodes if node.name not in left_out)


@pytest.mark.parametrize("tokens", ["T", "5"])
def test_the_subgraphs_of_a_transformer_are_the_transformer(tokens: str) -> None:
    model = model_of(transformer(tokens=tokens))
    feeds, graph = feeds_of(model), to_graph(model)
    walk = walk_linears(graph, feeds)
    assert len(walk.layers) == 13
    assert difference([walk.values["logits"]], run(model, feeds)) < EXACT
    assert_each_node_ran_once(walk, graph)


@pytest.mark.parametrize(("exporter", "dynamic"), FORMS)
def test_the_subgraphs_of_an_exported_model_are_the_model(
    export_vit: Callable[[str, bool], onnx.ModelProto], exporter: str, dynamic: bool
) -> None:
    model = export_vit(exporter, dynamic)
    graph = to_graph(model)
    canonicalise(graph)
    feeds = {"image": np.random.default_rng(0).normal(size=(2 if dynamic else 1, 3, 16, 16)).astype(np.float32)}
    walk = walk_linears(graph, feeds)
    assert len(walk.layers) == 14
    assert difference([walk.values[graph.outputs[0].name]], run(model, feeds)) < EXACT
    assert_each_node_ran_once(walk, graph)


@pytest.mark.parametrize("flag", [True, False])
def test_what_the_branches_of_an_if_read_is_kept_for_them(flag: bool) -> None:
    model = model_of(IF)
    feeds = {**feeds_of(model), "flag": np.array(flag)}
    graph = to_graph(model)
    tensors = graph.tensors()
    first, last = matmul("h", "a"), matmul("y", "c")
    layers = {first: lambda x: x @ tensors["W"].values, last: lambda x: x @ tensors["V"].values}
    walk = Walk(graph, layers, feeds)
    walk.reach("a")
    assert walk.cutter.is_needed("a")
    walk.compute(first)
    assert walk.cutter.is_needed("a")  # by the else branch
    assert walk.cutter.is_needed("h")
    assert walk.cutter.can_reach("c")
    subgraph = walk.reach("c")
    assert subgraph is not None
    assert subgraph.inputs == ("a", "flag", "h")
    walk.compute(last)
    assert difference([walk.values["y"]], run(model, feeds)) < EXACT
    assert not any(walk.cutter.is_needed(name) for name in ("a", "b", "c", "h", "flag"))


CHAIN = (
    "(float[N,4] x) => (float[N,4] y, float[N,4] d) <float[4,4] W, float[4] s, float[4] g>"
    "{ a = Relu(x) b = Mul(a, s) h = MatMul(b, W) c = Tanh(h) d = Add(c, a) e = Exp(d) y = Mul(e, g) }"
)


@pytest.fixture
def chain() -> Walk:
    graph = graph_of(CHAIN)
    weight = graph.tensors()["W"].values
    return Walk(graph, {matmul("h", "b"): lambda x: x @ weight}, feeds_of(model_of(CHAIN)))


def test_a_subgraph_hands_out_what_is_read_later_and_nothing_else(chain: Walk) -> None:
    subgraph = chain.reach("b")
    assert subgraph is not None
    assert subgraph.inputs == ("x",)
    assert subgraph.outputs == ("a", "b")  # a for the Add behind the layer
    assert [chain.cutter.is_needed(name) for name in ("x", "a", "b")] == [False, True, True]
    chain.compute(matmul("h", "b"))
    assert [chain.cutter.is_needed(name) for name in ("b", "h")] == [False, True]
    rest = chain.reach("y")
    assert rest is not None
    assert rest.inputs == ("a", "h")
    assert rest.outputs == ("d", "y")  # d is an output of the graph; c and e are nobody's business
    assert [initializer.name for initializer in chain.cutter.model(rest).graph.initializer] == ["g"]
    assert not chain.cutter.is_needed("a")


def test_a_target_that_nobody_reads_later_is_handed_out(chain: Walk) -> None:
    chain.reach("b")
    chain.compute(matmul("h", "b"))
    subgraph = chain.reach("c")
    assert subgraph is not None
    assert subgraph.outputs == ("c",)
    assert chain.cutter.is_needed("c")


def test_nothing_is_left_to_run_for_what_is_there(chain: Walk) -> None:
    assert chain.reach("x") is None
    chain.reach("b")
    assert chain.reach("a") is None
    assert chain.reach("a", "b") is None
    assert chain.ran == ["a", "b"]


def test_what_lies_behind_a_layer_outside_cannot_be_reached_before_it_is_computed(chain: Walk) -> None:
    assert [chain.cutter.can_reach(name) for name in ("x", "a", "b", "h", "c", "d", "y")] == [True] * 3 + [False] * 4
    chain.reach("b")
    assert not chain.cutter.can_reach("d")
    chain.compute(matmul("h", "b"))
    assert all(chain.cutter.can_reach(name) for name in ("h", "c", "d", "y"))


def test_constants_can_be_reached(chain: Walk) -> None:
    assert chain.cutter.can_reach("s")


def test_a_layer_whose_output_is_the_graphs() -> None:
    text = "(float[N,4] x) => (float[N,6] y) <float[4,6] W> { a = Relu(x) y = MatMul(a, W) }"
    graph = graph_of(text)
    weight = graph.tensors()["W"].values
    last = matmul("y", "a")
    walk = Walk(graph, {last: lambda x: x @ weight}, feeds_of(model_of(text)))
    walk.reach("a")
    walk.compute(last)
    assert walk.cutter.is_needed("y")  # whoever asks for the outputs finds it
    assert walk.reach("y") is None
    assert difference([walk.values["y"]], run(model_of(text), feeds_of(model_of(text)))) < EXACT


def test_a_layer_with_two_readers_of_its_input_frees_it_after_both() -> None:
    text = (
        "(float[N,4] x) => (float[N,4] y) <float[4,4] W, float[4,4] V>"
        "{ a = Relu(x) h = MatMul(a, W) k = MatMul(a, V) y = Mul(h, k) }"
    )
    cutter = SubgraphCutter(graph_of(text), [matmul("h", "a"), matmul("k", "a")])
    cutter.towards(["a"])
    cutter.provide(matmul("h", "a"))
    assert cutter.is_needed("a")
    cutter.provide(matmul("k", "a"))
    assert not cutter.is_needed("a")


def test_a_subgraph_with_integers_and_a_scalar() -> None:
    text = (
        "(float[N,T,4] x) => (float[A,B] y) <int64 axis0 = {0}, float[4,4] W>"
        "{ s = Shape(x) n = Gather<axis = 0>(s, axis0) f = Cast<to = 1>(n) h = MatMul(x, W)"
        " i = Cast<to = 7>(f) m = Cast<to = 1>(i) q = Mul(h, m) y = ReduceSum<keepdims = 0>(q) }"
    )
    model = model_of(text)
    graph, feeds = to_graph(model), feeds_of(model)
    weight = graph.tensors()["W"].values
    first = matmul("h", "x")
    walk = Walk(graph, {first: lambda x: x @ weight}, feeds)
    walk.reach("i", "n")
    assert (walk.values["i"].dtype, walk.values["i"].shape) == (np.dtype(np.int64), ())
    walk.compute(first)
    walk.reach("y")
    assert difference([walk.values["y"]], run(model, feeds)) < EXACT


def test_the_graph_is_left_as_it_was(chain: Walk) -> None:
    graph = graph_of(CHAIN)
    names = [node.name for node in graph.nodes]
    cutter = SubgraphCutter(graph, [matmul("h", "b")])
    cutter.towards(["b"])
    assert [node.name for node in graph.nodes] == names
    assert [tensor.name for tensor in graph.outputs] == ["y", "d"]


STAGED = (
    "(float[N,8] x, float[8,8] A, float[8,8] B, float[8,6] C, float[6,6] D) => (float[N,6] y)"
    "{ n = Neg(x) a = MatMul(x, A) s = Sigmoid(n) m = Mul(a, s) b = MatMul(m, B) t = Add(b, m) u = Mul(t, s)"
    " c = MatMul(u, C) r = Relu(c) y = MatMul(r, D) }"
)
SIZES = {"A": 64, "B": 64, "C": 48, "D": 36}


@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_even_subgraphs_one_after_the_other_are_the_whole(most: int) -> None:
    model = model_of(STAGED)
    graph = to_graph(model)
    graph.toposort()
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(3, 8)).astype(np.float32)}
    feeds |= {
        n: rng.normal(size=s).astype(np.float32)
        for n, s in {"A": (8, 8), "B": (8, 8), "C": (8, 6), "D": (6, 6)}.items()
    }
    values, found = dict(feeds), cut_evenly(graph, SIZES, most, ["r"])
    for part in found:
        part_graph = as_graph(graph, part.subgraph, part.watched).copy()
        outputs = run(gs.export_onnx(part_graph, do_type_check=False), {n: values[n] for n in part.subgraph.inputs})
        values |= dict(zip((*part.subgraph.outputs, *part.watched), outputs, strict=True))
    expected = run(model, feeds)[0]
    np.testing.assert_allclose(values["y"], expected, rtol=1e-5)
    assert "r" in values
    assert sum(part.share for part in found) == pytest.approx(1)
    assert 1 <= len(found) <= most
    assert most == 1 or len(found) > 1


def test_even_subgraphs_hand_on_one_tensor_that_depends_on_what_varies() -> None:
    graph = to_graph(model_of(STAGED))
    graph.toposort()
    found = cut_evenly(graph, SIZES, 8)
    depends = {"a", "m", "b", "t", "u", "c", "r", "y"}
    for before, after in itertools.pairwise(found):
        assert len(depends & set(before.subgraph.outputs)) == 1  # none where a sum passes a product by
        assert "b" not in before.subgraph.outputs
        assert depends & set(after.subgraph.inputs) <= set(before.subgraph.outputs)


def test_a_graph_without_a_place_to_cut_is_one_subgraph() -> None:
    text = "(float[N,4] x, float[4,4] A, float[4,4] B) => (float[N,4] y) { a = MatMul(x, A) b = MatMul(x, B) y = Add(a, b) }"
    graph = to_graph(model_of(text))
    graph.toposort()
    (only,) = cut_evenly(graph, {"A": 16, "B": 16}, 4)[-1:]
    assert "y" in only.subgraph.outputs
    assert only.share >= 0.5


@pytest.mark.parametrize("depth", [1, 3])
def test_one_subgraph_a_block_cut_at_the_residual_stream(depth: int) -> None:
    graph = graph_of(transformer(depth=depth))
    canonicalise(graph)
    blockmap = find_blocks(graph, "test")
    subgraphs = cut_between_blocks(graph, blockmap)
    assert [block.outputs for block in subgraphs] == [*((f"b{index}_end",) for index in range(depth)), ("logits",)]
    assert [block.inputs for block in subgraphs] == [("tokens",), *((f"b{index}_end",) for index in range(depth))]
    assert sum(len(block.nodes) for block in subgraphs) == len(graph.nodes)
    linears = [
        {linear.name for linear in blockmap.linears} & {node.name for node in block.nodes} for block in subgraphs
    ]
    assert [len(names) for names in linears] == [*[6] * depth, 1]


NO_BLOCKS = BlockMap(blocks=(), attentions=(), linears=(), norms=(), unmatched=())


def test_a_graph_without_blocks_is_one_subgraph() -> None:
    graph = graph_of(CHAIN)
    (whole,) = cut_between_blocks(graph, NO_BLOCKS)
    assert {node.name for node in whole.nodes} == {node.name for node in graph.nodes}
    assert (whole.inputs, whole.outputs) == (("x",), ("d", "y"))


def test_what_the_branches_of_an_if_read_crosses_the_border() -> None:
    graph = graph_of(IF)
    (branch,) = (node for node in graph.nodes if node.op == "If")
    assert tensors_read(branch) == {
        "flag",
        "a",
        "b",
        "h",
    }  # `lift` is a constant of the graph, which has to be there too
