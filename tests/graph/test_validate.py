"""Each rule that holds between two passes, broken once."""

from collections.abc import Callable

import onnx_graphsurgeon as gs
import pytest
from textgraph import digest, graph_of

from onnxvitq.core.errors import InvalidGraphError
from onnxvitq.graph.validate import check_graph

TEXT = "(float[N,4] x) => (float[A,B] y) <float[4,4] W> { p = MatMul(x, W) q = Relu(p) y = Exp(q) }"


def test_a_sound_graph_passes_and_is_left_alone() -> None:
    graph = graph_of(TEXT)
    before = digest(graph)
    check_graph(graph, "the test")
    assert digest(graph) == before


def test_an_output_may_be_an_input_or_a_constant() -> None:
    graph = graph_of(TEXT)
    graph.outputs += [graph.inputs[0], graph.tensors()["W"]]
    check_graph(graph, "the test")
    assert len(graph.outputs) == 3


def test_empty_names_mark_optional_tensors_and_unnamed_nodes() -> None:
    graph = graph_of("(float[N] x) => (float[A] y) <float h = {1}> { c = Clip(x, , h) y = Clip(c, , h) }")
    for node in graph.nodes:
        node.name = ""
    check_graph(graph, "the test")
    assert [node.inputs[1].name for node in graph.nodes] == ["", ""]


def same_node_name(graph: gs.Graph) -> None:
    graph.nodes[2].name = "p"


def unsorted(graph: gs.Graph) -> None:
    graph.nodes.reverse()


def not_computed(graph: gs.Graph) -> None:
    graph.nodes[1].inputs[0] = gs.Variable("elsewhere")


def computed_twice(graph: gs.Graph) -> None:
    graph.nodes[1].outputs[0].name = "p"
    graph.nodes[2].inputs[0].name = "p"


def input_computed(graph: gs.Graph) -> None:
    graph.nodes[2].outputs.append(gs.Variable("x"))


def output_not_computed(graph: gs.Graph) -> None:
    graph.outputs.append(gs.Variable("z"))


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (same_node_name, "two nodes are called 'p'"),
        (unsorted, "node 'y' reads 'q' before it is computed"),
        (not_computed, "node 'q' reads 'elsewhere' before it is computed"),
        (computed_twice, "tensor 'p' is computed twice"),
        (input_computed, "tensor 'x' is computed twice"),
        (output_not_computed, "output 'z' is never computed"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_rule_is_named_with_where_it_was_broken(break_it: Callable[[gs.Graph], None], problem: str) -> None:
    graph = graph_of(TEXT)
    break_it(graph)
    with pytest.raises(InvalidGraphError) as caught:
        check_graph(graph, "pass something")
    assert str(caught.value) == f"pass something: {problem}"
