"""A graph in pieces: run one after the other, with the linear layers computed in between, they are the whole graph."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from textgraph import difference, feeds_of, graph_of, model_of, run
from transformer_text import transformer

from onnxvitq.blocks.find import find_blocks
from onnxvitq.core.layers import Linear
from onnxvitq.graph.canonical import canonicalise
from onnxvitq.graph.cut import Gap, Segment, Segments, stages
from onnxvitq.graph.io import to_graph

FORMS = [("dynamo", True), ("dynamo", False), ("torchscript", True), ("torchscript", False)]
EXACT = 1e-5  # of the largest output: numpy adds up a product in another order than onnxruntime

IF = (
    "(float[N,8] x, bool flag) => (float[N,6] y) <float[8,8] W, float[8,6] V, float[8] lift>"
    "{ a = Relu(x) h = MatMul(a, W) b = Tanh(h)"
    " c = If(flag) <then_branch = yes () => (float[P,Q] t) { t = Add(b, lift) },"
    " else_branch = no () => (float[R,S] u) { m = Mul(a, h) u = Sub(m, b) }>"
    " y = MatMul(c, V) }"
)


def gap(linear: Linear) -> Gap:
    nodes = (linear.name, linear.bias_node) if linear.bias_node else (linear.name,)
    return Gap(nodes=nodes, input=linear.input, output=linear.output)


def matmul(name: str, x: str) -> Gap:
    return Gap(nodes=(name,), input=x, output=name)


class Walk:
    """Runs a graph by pieces: ``layers`` computes each gap's output from its input."""

    def __init__(
        self, graph: gs.Graph, layers: Mapping[Gap, Callable[[np.ndarray], np.ndarray]], feeds: Mapping[str, np.ndarray]
    ) -> None:
        self.segments, self.layers = Segments(graph, list(layers)), layers
        self.values: dict[str, np.ndarray] = dict(feeds)
        self.ran: list[str] = []

    def reach(self, *targets: str) -> Segment | None:
        segment = self.segments.towards(targets)
        if segment is not None:
            self.ran += [node.name for node in segment.model.graph.node]
            outputs = run(segment.model, {name: self.values[name] for name in segment.inputs})
            self.values |= dict(zip(segment.outputs, outputs, strict=True))
        return segment

    def compute(self, one: Gap) -> None:
        self.values[one.output] = self.layers[one](self.values[one.input])
        self.segments.provide(one)


def walk_linears(graph: gs.Graph, feeds: Mapping[str, np.ndarray]) -> Walk:
    """All pieces of a canonical graph, a piece a linear layer."""
    linears = find_blocks(graph, "the test's graph").linears
    tensors = graph.tensors()

    def layer(linear: Linear) -> Callable[[np.ndarray], np.ndarray]:
        weight = tensors[linear.weight].values
        bias = tensors[linear.bias].values if linear.bias else 0.0
        return lambda x: x @ weight + bias

    walk = Walk(graph, {gap(linear): layer(linear) for linear in linears}, feeds)
    for one in walk.layers:
        walk.reach(one.input)
        walk.compute(one)
    walk.reach(*(tensor.name for tensor in graph.outputs))
    return walk


def assert_each_node_ran_once(walk: Walk, graph: gs.Graph) -> None:
    outside = {name for one in walk.layers for name in one.nodes}
    assert sorted(walk.ran) == sorted(node.name for node in graph.nodes if node.name not in outside)


@pytest.mark.parametrize("tokens", ["T", "5"])
def test_the_pieces_of_a_transformer_are_the_transformer(tokens: str) -> None:
    model = model_of(transformer(tokens=tokens))
    feeds, graph = feeds_of(model), to_graph(model)
    walk = walk_linears(graph, feeds)
    assert len(walk.layers) == 13
    assert difference([walk.values["logits"]], run(model, feeds)) < EXACT
    assert_each_node_ran_once(walk, graph)


@pytest.mark.parametrize(("exporter", "dynamic"), FORMS)
def test_the_pieces_of_an_exported_model_are_the_model(
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
    assert walk.segments.is_needed("a")
    walk.compute(first)
    assert walk.segments.is_needed("a")  # by the else branch
    assert walk.segments.is_needed("h")
    assert walk.segments.can_reach("c")
    segment = walk.reach("c")
    assert segment is not None
    assert segment.inputs == ("a", "flag", "h")
    walk.compute(last)
    assert difference([walk.values["y"]], run(model, feeds)) < EXACT
    assert not any(walk.segments.is_needed(name) for name in ("a", "b", "c", "h", "flag"))


CHAIN = (
    "(float[N,4] x) => (float[N,4] y, float[N,4] d) <float[4,4] W, float[4] s, float[4] g>"
    "{ a = Relu(x) b = Mul(a, s) h = MatMul(b, W) c = Tanh(h) d = Add(c, a) e = Exp(d) y = Mul(e, g) }"
)


@pytest.fixture
def chain() -> Walk:
    graph = graph_of(CHAIN)
    weight = graph.tensors()["W"].values
    return Walk(graph, {matmul("h", "b"): lambda x: x @ weight}, feeds_of(model_of(CHAIN)))


def test_a_piece_hands_out_what_is_read_later_and_nothing_else(chain: Walk) -> None:
    segment = chain.reach("b")
    assert segment is not None
    assert segment.inputs == ("x",)
    assert segment.outputs == ("a", "b")  # a for the Add behind the gap
    assert [chain.segments.is_needed(name) for name in ("x", "a", "b")] == [False, True, True]
    chain.compute(matmul("h", "b"))
    assert [chain.segments.is_needed(name) for name in ("b", "h")] == [False, True]
    rest = chain.reach("y")
    assert rest is not None
    assert rest.inputs == ("a", "h")
    assert rest.outputs == ("d", "y")  # d is an output of the graph; c and e are nobody's business
    assert [initializer.name for initializer in rest.model.graph.initializer] == ["g"]
    assert not chain.segments.is_needed("a")


def test_a_target_that_nobody_reads_later_is_handed_out(chain: Walk) -> None:
    chain.reach("b")
    chain.compute(matmul("h", "b"))
    segment = chain.reach("c")
    assert segment is not None
    assert segment.outputs == ("c",)
    assert chain.segments.is_needed("c")


def test_nothing_is_left_to_run_for_what_is_there(chain: Walk) -> None:
    assert chain.reach("x") is None
    chain.reach("b")
    assert chain.reach("a") is None
    assert chain.reach("a", "b") is None
    assert chain.ran == ["a", "b"]


def test_what_lies_behind_a_gap_cannot_be_reached_before_it_is_computed(chain: Walk) -> None:
    assert [chain.segments.can_reach(name) for name in ("x", "a", "b", "h", "c", "d", "y")] == [True] * 3 + [False] * 4
    chain.reach("b")
    assert not chain.segments.can_reach("d")
    chain.compute(matmul("h", "b"))
    assert all(chain.segments.can_reach(name) for name in ("h", "c", "d", "y"))


def test_constants_can_be_reached(chain: Walk) -> None:
    assert chain.segments.can_reach("s")


def test_a_layer_whose_output_is_the_graphs() -> None:
    text = "(float[N,4] x) => (float[N,6] y) <float[4,6] W> { a = Relu(x) y = MatMul(a, W) }"
    graph = graph_of(text)
    weight = graph.tensors()["W"].values
    last = matmul("y", "a")
    walk = Walk(graph, {last: lambda x: x @ weight}, feeds_of(model_of(text)))
    walk.reach("a")
    walk.compute(last)
    assert walk.segments.is_needed("y")  # whoever asks for the outputs finds it
    assert walk.reach("y") is None
    assert difference([walk.values["y"]], run(model_of(text), feeds_of(model_of(text)))) < EXACT


def test_a_layer_with_two_readers_of_its_input_frees_it_after_both() -> None:
    text = (
        "(float[N,4] x) => (float[N,4] y) <float[4,4] W, float[4,4] V>"
        "{ a = Relu(x) h = MatMul(a, W) k = MatMul(a, V) y = Mul(h, k) }"
    )
    segments = Segments(graph_of(text), [matmul("h", "a"), matmul("k", "a")])
    segments.towards(["a"])
    segments.provide(matmul("h", "a"))
    assert segments.is_needed("a")
    segments.provide(matmul("k", "a"))
    assert not segments.is_needed("a")


def test_a_piece_with_integers_and_a_scalar() -> None:
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
    assert (walk.values["i"].dtype, walk.values["i"].shape) == (np.int64, ())
    walk.compute(first)
    walk.reach("y")
    assert difference([walk.values["y"]], run(model, feeds)) < EXACT


def test_the_graph_is_left_as_it_was(chain: Walk) -> None:
    graph = graph_of(CHAIN)
    names = [node.name for node in graph.nodes]
    segments = Segments(graph, [matmul("h", "b")])
    segments.towards(["b"])
    assert [node.name for node in graph.nodes] == names
    assert [tensor.name for tensor in graph.outputs] == ["y", "d"]


STAGED = (
    "(float[N,8] x, float[8,8] A, float[8,8] B, float[8,6] C, float[6,6] D) => (float[N,6] y)"
    "{ n = Neg(x) a = MatMul(x, A) s = Sigmoid(n) m = Mul(a, s) b = MatMul(m, B) t = Add(b, m) u = Mul(t, s)"
    " c = MatMul(u, C) r = Relu(c) y = MatMul(r, D) }"
)
SIZES = {"A": 64, "B": 64, "C": 48, "D": 36}


@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_stages_one_after_the_other_are_the_whole(most: int) -> None:
    model = model_of(STAGED)
    graph = to_graph(model)
    graph.toposort()
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(3, 8)).astype(np.float32)}
    feeds |= {
        n: rng.normal(size=s).astype(np.float32)
        for n, s in {"A": (8, 8), "B": (8, 8), "C": (8, 6), "D": (6, 6)}.items()
    }
    values, found = dict(feeds), stages(graph, SIZES, most, ["r"])
    for stage in found:
        model_of_stage = gs.export_onnx(stage.graph.copy(), do_type_check=False)
        outputs = run(model_of_stage, {name: values[name] for name in stage.inputs})
        values |= dict(zip((*stage.outputs, *stage.watched), outputs, strict=True))
    expected = run(model, feeds)[0]
    np.testing.assert_allclose(values["y"], expected, rtol=1e-5)
    assert "r" in values
    assert sum(stage.share for stage in found) == pytest.approx(1)
    assert 1 <= len(found) <= most
    assert most == 1 or len(found) > 1


def test_stages_hand_on_one_tensor_that_depends_on_what_varies() -> None:
    graph = to_graph(model_of(STAGED))
    graph.toposort()
    found = stages(graph, SIZES, 8)
    depends = {"a", "m", "b", "t", "u", "c", "r", "y"}
    for before, after in itertools.pairwise(found):
        assert len(depends & set(before.outputs)) == 1  # none where a sum passes a product by
        assert "b" not in before.outputs
        assert depends & set(after.inputs) <= set(before.outputs)


def test_a_graph_without_a_place_to_cut_is_one_stage() -> None:
    text = "(float[N,4] x, float[4,4] A, float[4,4] B) => (float[N,4] y) { a = MatMul(x, A) b = MatMul(x, B) y = Add(a, b) }"
    graph = to_graph(model_of(text))
    graph.toposort()
    (only,) = stages(graph, {"A": 16, "B": 16}, 4)[-1:]
    assert "y" in only.outputs
    assert only.share >= 0.5
