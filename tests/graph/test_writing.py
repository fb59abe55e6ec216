"""Graphs written as models: what is kept, in which order, and the same bytes each time."""

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.defs
from model_files import LINEAR
from textgraph import difference, feeds_of, graph_of, model_of, proto_of, run

from onnxvitq.graph.reading import load_model
from onnxvitq.graph.writing import save_for_session, save_model, to_proto


def test_domains_that_nothing_is_of_are_not_written(saved: Callable[[onnx.ModelProto], Path]) -> None:
    model = model_of(LINEAR)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    proto = to_proto(load_model(saved(model)).graph, {})
    assert [entry.domain for entry in proto.opset_import] == [""]


def test_constants_are_written_smallest_first_those_of_one_size_as_they_are_read() -> None:
    text = (
        "(float[N,4] x) => (float[A,B] y) <float[4,4] W, float[4] b, float[4,6] U, float[4] a, float[4,4] V>"
        "{ c = MatMul(x, V) d = Add(c, a) e = MatMul(d, W) f = Add(e, b) y = MatMul(f, U) }"
    )
    proto = to_proto(graph_of(text), {}, to_load=True)
    assert [one.name for one in proto.graph.initializer] == ["a", "b", "V", "W", "U"]
    assert [one.name for one in to_proto(graph_of(text), {}).graph.initializer] == ["V", "a", "W", "b", "U"]


def test_a_round_trip_keeps_outputs_metadata_and_interface(
    tmp_path: Path, saved: Callable[[onnx.ModelProto], Path]
) -> None:
    model = model_of(LINEAR.replace("{ y = MatMul(x, W) }", "{ p = MatMul(x, W) y = Relu(p) }"))
    onnx.helper.set_model_props(model, {"key": "value"})
    loaded = load_model(saved(model))
    proto = to_proto(loaded.graph, {**loaded.metadata, "another": "one"})
    assert save_model(proto, tmp_path / "again.onnx") == (tmp_path / "again.onnx").stat().st_size
    again = load_model(tmp_path / "again.onnx")
    assert again.metadata == {"another": "one", "key": "value"}
    assert (again.inputs, again.outputs) == (loaded.inputs, loaded.outputs)
    feeds = feeds_of(model)
    assert difference(run(proto_of(again.graph), feeds), run(model, feeds)) == 0.0
    assert proto.producer_name == "onnxvitq"
    assert not proto.graph.value_info


def test_the_same_graph_is_the_same_bytes(saved: Callable[[onnx.ModelProto], Path], tmp_path: Path) -> None:
    path = saved(model_of(LINEAR))
    written = []
    for metadata in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}):
        save_model(to_proto(load_model(path).graph, metadata), tmp_path / "again.onnx")
        written.append((tmp_path / "again.onnx").read_bytes())
    assert written[0] == written[1]


def test_a_model_is_written_as_protobuf_whatever_the_file_is_called(tmp_path: Path) -> None:
    model = model_of(LINEAR)
    save_model(model, tmp_path / "model.json")
    assert (tmp_path / "model.json").read_bytes() == model.SerializeToString()


def test_a_model_for_a_session_has_its_weights_beside_it(tmp_path: Path) -> None:
    model = model_of(LINEAR.replace("4,4", "64,64").replace("N,4", "N,64"))
    feeds = feeds_of(model)
    expected = run(model, feeds)
    save_for_session(model, tmp_path / "observed.onnx")
    assert (tmp_path / "observed.onnx.data").stat().st_size == 64 * 64 * 4
    assert (tmp_path / "observed.onnx").stat().st_size < 1000
    assert difference(run(proto_of(load_model(tmp_path / "observed.onnx").graph), feeds), expected) == 0.0
