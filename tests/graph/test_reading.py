"""Model files that cannot be read, and what loading brings into order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.defs
import pytest
from model_files import LINEAR, assert_refused, with_function
from textgraph import difference, feeds_of, graph_of, model_of, operators, proto_of, run

from onnxvitq.core.errors import InvalidGraphError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.graph.reading import load_model, to_graph


def test_a_missing_file(tmp_path: Path) -> None:
    assert_refused(tmp_path / "absent.onnx", InvalidGraphError, "no such file")


def test_a_folder(tmp_path: Path) -> None:
    assert_refused(tmp_path, InvalidGraphError, "expected an ONNX file, got a folder")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    assert_refused(tmp_path / "model.onnx", InvalidGraphError, "it holds no nodes")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    whole = model_of(LINEAR).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(whole[: int(len(whole) * share)])
    assert_refused(
        tmp_path / "model.onnx", InvalidGraphError, "not an ONNX model, or truncated (is the download complete?)"
    )


@pytest.mark.parametrize("suffix", ["onnx", "txt", "json", "textproto", "onnxtxt"])
def test_a_text_file_whatever_it_is_called(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n")
    assert_refused(path, InvalidGraphError, "not an ONNX model, or truncated")


def save_external(path: Path) -> onnx.ModelProto:
    model = model_of(LINEAR.replace("4,4", "64,64").replace("N,4", "N,64"))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return onnx.load(path)


def test_external_data_is_read_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    expected = save_external(path)
    loaded = load_model(path)
    weight = onnx.numpy_helper.to_array(expected.graph.initializer[0])
    assert np.array_equal(loaded.graph.tensors()["W"].values, weight)
    assert loaded.size == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    feeds = feeds_of(expected)
    assert difference(run(proto_of(loaded.graph), feeds), run(expected, feeds)) == 0.0


def test_missing_external_data(tmp_path: Path) -> None:
    save_external(tmp_path / "model.onnx")
    (tmp_path / "weights.bin").unlink()
    assert_refused(tmp_path / "model.onnx", InvalidGraphError, "weights.bin' (external data must lie beside the model)")


def test_truncated_external_data(tmp_path: Path) -> None:
    save_external(tmp_path / "model.onnx")
    (tmp_path / "weights.bin").write_bytes(b"short")
    assert_refused(tmp_path / "model.onnx", InvalidGraphError, "cannot be read: External data length (16384) exceeds")


def test_what_is_known_of_a_loaded_model(saved: Callable[[onnx.ModelProto], Path]) -> None:
    model = model_of(
        "(float[N,3,8,?] image, uint8[2] raw, int64[0] odd, float[4,4] W) => (float[A,B] y, float[P,Q,R,S] z)"
        "{ y = Relu(W) z = Relu(image) }"
    )
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "W")
    )  # as old exporters did
    onnx.helper.set_model_props(model, {"author": "someone", "preprocessing": "{}"})
    path = saved(model)
    loaded = load_model(path)
    assert loaded.inputs == (
        InputSpec(name="image", dtype="float32", shape=(None, 3, 8, None)),
        InputSpec(name="raw", dtype="uint8", shape=(2,)),
        InputSpec(name="odd", dtype="int64", shape=(None,)),
    )
    assert loaded.outputs == ("y", "z")
    assert loaded.metadata == {"author": "someone", "preprocessing": "{}"}
    assert loaded.path == path
    assert loaded.size == path.stat().st_size


@pytest.mark.parametrize("opset", [11, 12])
def test_an_old_operator_set_is_raised(saved: Callable[[onnx.ModelProto], Path], opset: int) -> None:
    # Softmax meant something else before opset 13, so that raising the number alone would change the outputs.
    text = "(float[N,1,3,4] x) => (float[A,B,C] y) { s = Softmax<axis = 1>(x) y = Squeeze<axes = [1]>(s) }"
    model = model_of(text, opset=opset)
    loaded = load_model(saved(model))
    after = proto_of(loaded.graph)
    assert loaded.graph.opset == 13
    feeds = feeds_of(model)
    assert difference(run(after, feeds), run(model, feeds)) <= 1e-6  # Softmax over joined axes adds up in another order


def test_a_current_operator_set_is_kept(saved: Callable[[onnx.ModelProto], Path]) -> None:
    for opset in (13, 17, 21):
        assert load_model(saved(model_of(LINEAR, opset=opset))).graph.opset == opset


@pytest.mark.parametrize("domain", ["local", "com.microsoft.local"])
def test_functions_are_inlined(saved: Callable[[onnx.ModelProto], Path], domain: str) -> None:
    model = with_function(onnx.helper.make_node("Exp", ["x"], ["y"]), domain)
    loaded = load_model(saved(model))
    assert operators(loaded.graph) == "Exp"
    assert not proto_of(loaded.graph).functions
    feeds = feeds_of(model)
    assert difference(run(proto_of(loaded.graph), feeds), run(model, feeds)) == 0.0


def test_nodes_get_names_of_their_own() -> None:
    model = model_of("(float[N] x) => (float[A] y) { a = Relu(x) b = Relu(a) c = Exp(b) d = Exp(c) y = Exp(d) }")
    for node, name in zip(model.graph.node, ["", "", "again", "again", "Relu_0"], strict=True):
        node.name = name
    names = [node.name for node in to_graph(model).nodes]
    assert names[:3] == ["Relu_0", "Relu_1", "again"]
    assert len(set(names)) == 5


def test_shapes_and_types_are_inferred_whatever_the_file_says() -> None:
    model = model_of(LINEAR.replace("{ y = MatMul(x, W) }", "{ p = MatMul(x, W) q = IsNaN(p) y = Where(q, x, p) }"))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, [7, 9]))
    tensors = to_graph(model).tensors()
    assert tensors["p"].shape == ["N", 4]
    assert tensors["p"].dtype == np.float32
    assert tensors["q"].dtype == np.bool_


def test_shapes_are_inferred_around_large_weights() -> None:
    graph = graph_of(LINEAR.replace("4,4", "64,64").replace("N,4", "N,64"))
    assert graph.outputs[0].shape[1] == 64
    assert isinstance(graph.nodes[0].inputs[1].values, np.ndarray)  # still a constant


def test_nodes_are_sorted() -> None:
    model = model_of("(float[N] x) => (float[A] y) { a = Relu(x) y = Exp(a) }")
    model.graph.node.reverse()
    assert operators(to_graph(model)) == "Relu Exp"
