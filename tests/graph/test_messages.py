"""Questions about models as messages."""

from pathlib import Path

import onnx
from textgraph import model_of

from onnxvitq.graph.messages import all_constants, all_nodes, external_files, opset_of

BODY = (
    "(float[N,4] x, bool c) => (float[A,B] y) <float[4] w>"
    "{ v = Constant<value = float[4] {1, 2, 3, 4}>() s = Add(x, v)"
    " y = If(c) <then_branch = t () => (float[A,B] a) { k = Constant<value = float {2}>() a = Mul(s, k) },"
    " else_branch = e () => (float[A,B] b) { b = Add(s, w) }> }"
)


def test_nodes_of_bodies_are_among_all_nodes() -> None:
    assert [node.op_type for node in all_nodes(model_of(BODY).graph)] == [
        "Constant",
        "Add",
        "If",
        "Constant",
        "Mul",
        "Add",
    ]


def test_constants_are_initializers_and_outputs_of_constant_nodes() -> None:
    assert sorted(name for name, _ in all_constants(model_of(BODY))) == ["k", "v", "w"]


def test_the_opset_is_that_of_the_standard_domain() -> None:
    model = model_of(BODY, opset=17)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 30))
    assert opset_of(model) == 17
    del model.opset_import[:]
    assert opset_of(model) == 0


def test_files_of_weights_lie_beside_the_model(tmp_path: Path) -> None:
    model = model_of(BODY)
    assert external_files(model, tmp_path) == set()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    without = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert external_files(without, tmp_path) == {tmp_path / "weights.bin"}
