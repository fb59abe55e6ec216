"""The verbs of ``Editor``: names stay unique, outputs keep their names and places, nothing else moves."""

import numpy as np
import pytest
from textgraph import difference, digest, feeds_of, graph_of, operators, proto_of, run

from onnxvitq.graph.edit import Editor, with_outputs

TEXT = "(float[N,4] x) => (float[A,B] y) <float[4,4] W> { p = MatMul(x, W) q = Relu(p) y = Exp(q) }"


def test_names_are_unique_among_tensors_nodes_and_each_other() -> None:
    graph = graph_of(TEXT)
    graph.nodes[1].name = "relu"
    edit = Editor(graph)
    assert [edit.unique("new"), edit.unique("new"), edit.unique("new")] == ["new", "new_1", "new_2"]
    assert [edit.unique(name) for name in ("x", "W", "p", "relu", "y")] == ["x_1", "W_1", "p_1", "relu_1", "y_1"]


def test_a_new_constant_does_not_share_a_name() -> None:
    edit = Editor(graph_of(TEXT))
    constant, other = edit.constant("W", [1.0, 2.0]), edit.constant("W", np.float32(3))
    assert (constant.name, other.name) == ("W_1", "W_2")
    assert np.array_equal(constant.values, [1.0, 2.0])
    assert other.values.shape == ()


def test_a_new_node_has_one_output_of_its_name() -> None:
    graph = graph_of(TEXT)
    edit = Editor(graph)
    output = edit.node("Transpose", "p", [graph.tensors()["q"]], perm=[1, 0])
    node = graph.nodes[-1]
    assert (node.op, node.name, node.attrs) == ("Transpose", "p_1", {"perm": [1, 0]})
    assert (output.name, output.dtype) == ("p_1", np.float32)
    assert (node.inputs, node.outputs) == ([graph.tensors()["q"]], [output])
    assert edit.node("Shape", "shape", [output], dtype=np.int64).dtype == np.int64


def test_readers_of_the_old_tensor_read_the_new_one() -> None:
    graph = graph_of("(float[N] x) => (float[A] y) { p = Relu(x) q = Add(p, p) r = Exp(p) y = Add(q, r) }")
    edit = Editor(graph)
    p = graph.tensors()["p"]
    edit.redirect(p, edit.node("Sin", "s", [graph.inputs[0]]))
    assert not p.outputs
    assert [[tensor.name for tensor in node.inputs] for node in graph.nodes[1:3]] == [["s", "s"], ["s"]]


def test_a_graph_output_keeps_its_name_place_and_type() -> None:
    graph = graph_of("(float[N,4] x) => (float[A,B] y, float[C,D] z) { y = Relu(x) z = Exp(x) }")
    edit = Editor(graph)
    old = graph.outputs[0]
    edit.redirect(old, edit.node("Sin", "s", [graph.inputs[0]]))
    assert [tensor.name for tensor in graph.outputs] == ["y", "z"]
    assert graph.outputs[0].inputs[0].op == "Sin"
    assert graph.outputs[0].shape == old.shape
    assert old.name == "y_replaced"
    feeds = feeds_of(proto_of(graph))
    assert (
        difference(run(proto_of(graph), feeds), [np.sin(feeds["x"]), np.exp(feeds["x"])]) <= 1e-6
    )  # another library's sine


@pytest.mark.parametrize("new", ["input", "constant", "output"])
def test_an_identity_stands_in_for_an_output_that_cannot_be_renamed(new: str) -> None:
    graph = graph_of("(float[N,4] x) => (float[A,B] y, float[C,D] z) <float[4] c> { y = Relu(x) z = Add(x, c) }")
    edit, constant = Editor(graph), graph.tensors()["c"]
    edit.redirect(graph.outputs[0], {"input": graph.inputs[0], "constant": constant, "output": graph.outputs[1]}[new])
    graph.cleanup().toposort()
    assert [tensor.name for tensor in graph.outputs] == ["y", "z"]
    assert sorted(operators(graph).split()) == ["Add", "Identity"]
    feeds = feeds_of(proto_of(graph))
    y, z = run(proto_of(graph), feeds)
    assert np.array_equal(y, {"input": feeds["x"], "constant": constant.values, "output": z}[new])


def test_an_output_that_is_read_inside_is_redirected_for_its_readers_too() -> None:
    graph = graph_of("(float[N,4] x) => (float[A,B] y, float[C,D] z) { y = Relu(x) z = Exp(y) }")
    edit = Editor(graph)
    edit.redirect(graph.outputs[0], edit.node("Sin", "s", [graph.inputs[0]]))
    graph.cleanup().toposort()
    assert operators(graph) == "Sin Exp"
    assert [tensor.name for tensor in graph.nodes[1].inputs] == ["y"]


def test_a_name_that_was_given_up_is_not_given_again() -> None:
    graph = graph_of(TEXT)
    edit = Editor(graph)
    edit.redirect(graph.outputs[0], edit.node("Sin", "s", [graph.inputs[0]]))
    assert edit.unique("s") == "s_1"
    assert edit.unique("y") == "y_1"


def test_values_of_constants_are_never_written() -> None:
    graph = graph_of(TEXT)
    weight = graph.tensors()["W"].values
    weight.setflags(write=False)
    edit = Editor(graph)
    edit.redirect(graph.tensors()["q"], edit.node("Sin", "s", [graph.tensors()["p"]]))
    edit.constant("W", weight)
    assert graph.tensors()["W"].values is weight


def test_a_tensor_takes_the_place_of_a_node() -> None:
    graph = graph_of("(float[N,4] x) => (float[A,B] y) { r = Relu(x) e = Exp(r) y = Neg(e) }")
    edit, (relu, exp, neg) = Editor(graph), graph.nodes
    edit.replace(exp, relu.outputs[0])
    assert neg.inputs[0] is relu.outputs[0]
    assert not exp.outputs
    assert [node.op for node in graph.cleanup().nodes] == ["Relu", "Neg"]


def test_other_outputs_are_those_of_a_copy() -> None:
    graph = graph_of(TEXT)
    before = digest(graph)
    observed = with_outputs(graph, ["q", "p", "q"])
    assert [tensor.name for tensor in observed.outputs] == ["p", "q"]
    assert digest(graph) == before
    proto = proto_of(observed)
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "Relu"]  # what is not asked for is not computed
    assert observed.tensors()["W"].values is graph.tensors()["W"].values


def test_an_input_can_be_observed() -> None:
    graph = graph_of(TEXT)
    proto = proto_of(with_outputs(graph, ["x", "y"]))
    feeds = feeds_of(proto)
    assert np.array_equal(run(proto, feeds)[0], feeds["x"])
