"""The comparators that other tests rely on notice what they are there to notice."""

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from textgraph import difference, digest, feeds_of, graph_of, model_of, operators, run

TEXT = (
    "(float[N,4] x) => (float[A,B] y) <float[4,4] W, float[4] b>"
    "{ p = MatMul(x, W) t = Transpose<perm = [0, 1]>(p) y = Add(t, b) }"
)


def rename_node(graph: gs.Graph) -> None:
    graph.nodes[0].name = "other"


def change_operator(graph: gs.Graph) -> None:
    graph.nodes[2].op = "Mul"


def change_attribute(graph: gs.Graph) -> None:
    graph.nodes[1].attrs["perm"] = [1, 0]


def move_edge(graph: gs.Graph) -> None:
    graph.nodes[2].inputs[0] = graph.nodes[0].outputs[0]


def change_one_weight(graph: gs.Graph) -> None:
    weight = graph.nodes[0].inputs[1]
    weight.values = weight.values + np.eye(4, dtype=np.float32) * np.float32(1e-6)


def change_a_shape(graph: gs.Graph) -> None:
    graph.nodes[1].outputs[0].shape = ["N", 5]


def add_an_output(graph: gs.Graph) -> None:
    graph.outputs.append(graph.nodes[1].outputs[0])


CHANGES = [rename_node, change_operator, change_attribute, move_edge, change_one_weight, change_a_shape, add_an_output]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_digest_notices(change: Callable[[gs.Graph], None]) -> None:
    graph = graph_of(TEXT)
    assert digest(graph) == digest(graph) == digest(graph_of(TEXT))
    before = digest(graph)
    change(graph)
    assert digest(graph) != before


def test_difference_is_relative_to_the_largest_expected_value() -> None:
    expected = [np.array([8.0, -16.0], np.float32), np.zeros(2, np.float32)]
    assert difference(expected, expected) == 0.0
    assert difference([np.array([8.5, -16.0]), np.zeros(2)], expected) == 0.5 / 16
    assert difference([expected[0], np.array([0.25, 0.0])], expected) == 0.25  # nothing to be relative to


@pytest.mark.parametrize("got", [[np.nan, 1.0], [1.0], [[1.0, 1.0]], [np.inf, 1.0]])
def test_difference_is_never_small_for_another_shape_or_another_kind_of_number(got: list[float]) -> None:
    assert difference([np.array(got)], [np.array([1.0, 1.0])]) > 1e30


def test_a_nan_in_the_same_place_is_no_difference() -> None:
    both = np.array([np.nan, 1.0])
    assert difference([both], [both.copy()]) == 0.0


def test_difference_wants_as_many_outputs() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        difference([], [np.zeros(1)])


def test_weights_are_drawn_alike_every_time_and_can_be_given() -> None:
    one, other = model_of(TEXT), model_of(TEXT)
    assert one.SerializeToString() == other.SerializeToString()
    given = model_of(TEXT, weights={"b": np.arange(4, dtype=np.float32)})
    assert given.graph.initializer[1].name == "b"
    assert given.SerializeToString() != one.SerializeToString()
    with pytest.raises(AssertionError, match="no such weight"):
        model_of(TEXT, weights={"c": np.zeros(4, np.float32)})


def test_nodes_are_called_after_their_outputs_and_run() -> None:
    model = model_of(TEXT)
    assert [node.name for node in model.graph.node] == ["p", "t", "y"]
    assert operators(graph_of(TEXT)) == "MatMul Transpose Add"
    feeds = feeds_of(model, N=7)
    assert feeds["x"].shape == (7, 4)
    assert run(model, feeds)[0].shape == run(model, feeds, "all")[0].shape == (7, 4)
