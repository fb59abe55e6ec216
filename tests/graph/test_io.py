"""Model files: every refusal, what loading brings into order, and that writing is all or nothing."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.defs
import pytest
from textgraph import difference, digest, feeds_of, graph_of, model_of, operators, proto_of, run

from onnxvitq.core.errors import (
    InvalidGraphError,
    ModelError,
    OutputError,
    RewriteError,
    UnsupportedModelError,
    UnsupportedOpsetError,
)
from onnxvitq.core.tensors import InputSpec
from onnxvitq.graph.io import (
    atomic_file,
    check_written,
    constants,
    load_model,
    refuse_output,
    save_for_session,
    save_model,
    to_graph,
    to_proto,
    with_outputs,
)

LINEAR = "(float[N,4] x) => (float[A,B] y) <float[4,4] W> { y = MatMul(x, W) }"
NAN, INF = np.float32(np.nan), np.float32(np.inf)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    """Writes a model to a file and returns its path."""

    def save(model: onnx.ModelProto) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return save


def refused(path: Path, kind: type[ModelError], problem: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert type(caught.value) is kind
    assert caught.value.where == str(path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ what is no model at all


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.onnx", InvalidGraphError, "no such file")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, InvalidGraphError, "expected an ONNX file, got a folder")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    refused(tmp_path / "model.onnx", InvalidGraphError, "it holds no nodes")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    whole = model_of(LINEAR).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path / "model.onnx", InvalidGraphError, "not an ONNX model, or truncated (is the download complete?)")


@pytest.mark.parametrize("suffix", ["onnx", "txt", "json", "textproto", "onnxtxt"])
def test_a_text_file_whatever_it_is_called(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n")
    refused(path, InvalidGraphError, "not an ONNX model, or truncated")


# ---------------------------------------------------------------------------------------------- what the checker refuses


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("MatMul(x, W)", "MatMul(x, absent)", "input 'absent' of node"),
        ("MatMul(x, W)", "MatMull(x, W)", "No Op registered for MatMull"),
        ("MatMul(x, W)", "my.domain.MatMul(x, W)", "No opset import for domain 'my.domain'"),
        ("MatMul(x, W)", "MatMul(x)", "Node(y) with schema"),
    ],
    ids=["no such tensor", "no such operator", "no such domain", "too few inputs"],
)
def test_an_invalid_graph(saved: Callable[[onnx.ModelProto], Path], old: str, new: str, problem: str) -> None:
    path = saved(model_of(LINEAR.replace(old, new)))
    refused(path, InvalidGraphError, "the ONNX checker refuses it: ")
    refused(path, InvalidGraphError, problem)


@pytest.mark.parametrize("opset", [1, 10, onnx.defs.onnx_opset_version() + 1])
def test_an_operator_set_too_old_or_too_new(saved: Callable[[onnx.ModelProto], Path], opset: int) -> None:
    newest = onnx.defs.onnx_opset_version()
    refused(saved(model_of(LINEAR, opset=opset)), UnsupportedOpsetError, f"expected opset 11 to {newest}, got {opset}")


def test_an_operator_set_that_cannot_be_raised(
    saved: Callable[[onnx.ModelProto], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        raise RuntimeError("\n  no adapter for Upsample\nand a second line")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
    problem = "opset 12 cannot be raised to 13: no adapter for Upsample"
    refused(saved(model_of(LINEAR, opset=12)), UnsupportedOpsetError, problem)


# ---------------------------------------------------------------------------------------- valid, but not a plain float graph

QUANTIZED = (
    "(float[N,4] x) => (float[A,B] y) <float s = {0.1}, uint8 z = {3}>"
    "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
)
BODY = (
    "(float[N,4] x, bool c) => (float[A,B] y) <float s = {0.1}, uint8 z = {3}>"
    "{ y = If(c) <then_branch = t () => (float[A,B] a) { q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z) },"
    " else_branch = e () => (float[A,B] b) { b = Relu(x) }> }"
)


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        (QUANTIZED, "QuantizeLinear"),
        (BODY, "QuantizeLinear"),
        ("(float[N,4] x) => (uint8[A,B] y) { y, s, z = DynamicQuantizeLinear(x) }", "DynamicQuantizeLinear"),
        ("(uint8[N,4] x) => (int32[A,B] y) <uint8[4,4] W> { y = MatMulInteger(x, W) }", "MatMulInteger"),
    ],
    ids=["QDQ", "in a body", "dynamic", "integer operators"],
)
def test_a_quantized_model(saved: Callable[[onnx.ModelProto], Path], text: str, operator: str) -> None:
    weights = {"W": np.eye(4, dtype=np.uint8)} if " W>" in text else None
    refused(saved(model_of(text, weights=weights)), UnsupportedModelError, f"is a {operator} (give the float model)")


def with_function(body: onnx.NodeProto, domain: str = "local") -> onnx.ModelProto:
    """A model that calls a local function "Step" of one node between x and y."""
    model = model_of("(float[N,4] x) => (float[A,B] y) { y = Relu(x) }")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Step", domain
    model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    imports = [onnx.helper.make_opsetid("", 17), *([onnx.helper.make_opsetid(body.domain, 1)] if body.domain else [])]
    model.functions.append(onnx.helper.make_function(domain, "Step", ["x"], ["y"], [body], imports))
    return model


def test_a_quantized_function_body(saved: Callable[[onnx.ModelProto], Path]) -> None:
    body = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "y"])
    refused(saved(with_function(body)), UnsupportedModelError, "is a DynamicQuantizeLinear")


def test_a_model_that_onnxruntime_fused(saved: Callable[[onnx.ModelProto], Path]) -> None:
    model = model_of("(float[N,4] x) => (float[A,B] y) { y = com.microsoft.FusedGelu(x) }")
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    refused(saved(model), UnsupportedModelError, "already fused by onnxruntime: node 'y' is a com.microsoft FusedGelu")


def test_fused_operators_that_can_be_opened_are_accepted(saved: Callable[[onnx.ModelProto], Path]) -> None:
    model = model_of(
        "(float[N,4,6] x) => (float[A,B,C] y) { g = com.microsoft.Gelu(x) y = com.microsoft.FusedMatMul<transB = 1>(g, x) }"
    )
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    assert operators(load_model(saved(model)).graph) == "Gelu FusedMatMul"
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("transBatchA", 1))
    refused(
        saved(model), UnsupportedModelError, "already fused by onnxruntime: node 'y' is a com.microsoft FusedMatMul"
    )


def test_domains_that_nothing_is_of_are_not_written(saved: Callable[[onnx.ModelProto], Path]) -> None:
    model = model_of(LINEAR)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    proto = to_proto(load_model(saved(model)).graph, {})
    assert [entry.domain for entry in proto.opset_import] == [""]


@pytest.mark.parametrize(
    ("dtype", "name"), [(np.float16, "float16"), (np.float64, "double")], ids=["half precision", "double precision"]
)
def test_weights_of_another_type(saved: Callable[[onnx.ModelProto], Path], dtype: type, name: str) -> None:
    text = LINEAR.replace("float[N,4] x", f"{name}[N,4] x").replace("float[A,B]", f"{name}[A,B]")
    path = saved(model_of(text, weights={"W": np.eye(4, dtype=dtype)}))
    refused(path, UnsupportedModelError, f"expected float32 weights, got {name} in 'W'")


def test_a_half_precision_input(saved: Callable[[onnx.ModelProto], Path]) -> None:
    text = LINEAR.replace("float[N,4] x", "float16[N,4] x").replace(
        "{ y = MatMul(x", "{ c = Cast<to = 1>(x) y = MatMul(c"
    )
    refused(saved(model_of(text)), UnsupportedModelError, "input 'x' is half precision")


def test_an_input_that_is_no_tensor(saved: Callable[[onnx.ModelProto], Path]) -> None:
    model = model_of("(float[N] x) => (int64 n) { n = Size(x) }")
    model.graph.node[0].op_type = "SequenceLength"
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_sequence_value_info("x", onnx.TensorProto.FLOAT, None))
    refused(saved(model), UnsupportedModelError, "input 'x' is not a tensor")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_weight_that_is_not_finite(saved: Callable[[onnx.ModelProto], Path], value: np.float32) -> None:
    weight = np.eye(4, dtype=np.float32)
    weight[2, 1] = value
    refused(saved(model_of(LINEAR, weights={"W": weight})), InvalidGraphError, "weight 'W' holds a NaN or an infinity")


def test_a_nan_in_a_constant_node(saved: Callable[[onnx.ModelProto], Path]) -> None:
    text = "(float[N,2] x) => (float[A,B] y) { c = Constant<value = float[2] {nan, 1}>() y = Add(x, c) }"
    refused(saved(model_of(text)), InvalidGraphError, "weight 'c' holds a NaN")


def test_a_mask_may_hide_with_an_infinity(saved: Callable[[onnx.ModelProto], Path]) -> None:
    text = "(float[N,2] x) => (float[A,B] y) <float[2] m = {0, -inf}> { y = Add(x, m) }"
    assert operators(load_model(saved(model_of(text))).graph) == "Add"


# ------------------------------------------------------------------------------------------------------ external data


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
    refused(tmp_path / "model.onnx", InvalidGraphError, "weights.bin' (external data must lie beside the model)")


def test_truncated_external_data(tmp_path: Path) -> None:
    save_external(tmp_path / "model.onnx")
    (tmp_path / "weights.bin").write_bytes(b"short")
    refused(tmp_path / "model.onnx", InvalidGraphError, "cannot be read: External data length (16384) exceeds")


# ------------------------------------------------------------------------------------------- what loading brings into order


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


# ------------------------------------------------------------------------------------------------------------ back again


def test_constants_by_name() -> None:
    graph = graph_of(
        "(float[N,4] x) => (float[A,B] y) <float[4] b = {1, 2, 3, 4}, float[4] c> { p = Add(x, b) y = Add(p, c) }"
    )
    values = constants(graph, {"b"})
    assert list(values) == ["b"]
    assert np.array_equal(values["b"], np.array([1, 2, 3, 4], np.float32))


def test_other_outputs_are_those_of_a_copy() -> None:
    graph = graph_of("(float[N,4] x) => (float[A,B] y) <float[4,4] W> { p = MatMul(x, W) q = Relu(p) y = Exp(q) }")
    before = digest(graph)
    observed = with_outputs(graph, ["q", "p", "q"])
    assert [tensor.name for tensor in observed.outputs] == ["p", "q"]
    assert digest(graph) == before
    proto = to_proto(observed, {})
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "Relu"]  # what is not asked for is not computed
    assert observed.tensors()["W"].values is graph.tensors()["W"].values


def test_an_input_can_be_observed() -> None:
    graph = graph_of(LINEAR)
    proto = to_proto(with_outputs(graph, ["x", "y"]), {})
    feeds = feeds_of(proto)
    assert np.array_equal(run(proto, feeds)[0], feeds["x"])


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


def test_the_written_graph_is_checked(saved: Callable[[onnx.ModelProto], Path]) -> None:
    good = model_of(LINEAR)
    check_written(saved(good), "out.onnx")
    good.graph.node[0].op_type = "Nothing"
    with pytest.raises(
        RewriteError, match=r"^out\.onnx: the ONNX checker refuses the written graph: No Op registered"
    ) as caught:
        check_written(saved(good), "out.onnx")
    assert "\n" not in str(caught.value)


def test_the_check_of_the_written_graph_includes_its_shapes(saved: Callable[[onnx.ModelProto], Path]) -> None:
    wrong = model_of(LINEAR.replace("float[4,4] W", "float[5,4] W"))
    with pytest.raises(RewriteError, match=r"^out\.onnx: the ONNX checker refuses the written graph"):
        check_written(saved(wrong), "out.onnx")


# ------------------------------------------------------------------------------------------------------------- the output


def cannot_write(*arguments: object, **options: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_good_output_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "old.onnx").write_bytes(b"old")
    for name in ("new.onnx", "old.onnx"):
        refuse_output(tmp_path / name, tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "old.onnx"]


def test_an_output_that_is_the_input_is_refused(tmp_path: Path) -> None:
    model, link = tmp_path / "model.onnx", tmp_path / "link.onnx"
    model.write_bytes(b"model")
    link.symlink_to(model)
    for output in (model, tmp_path / "." / "model.onnx", link):
        with pytest.raises(OutputError, match="the output is the input") as caught:
            refuse_output(output, model)
        assert caught.value.where == str(output)


def test_a_folder_is_refused_as_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected a file name, got a folder"):
        refuse_output(tmp_path, tmp_path / "model.onnx")


def test_an_output_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder '.*absent' does not exist"):
        refuse_output(tmp_path / "absent" / "out.onnx", tmp_path / "model.onnx")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="does not exist"):
        refuse_output(tmp_path / "file" / "out.onnx", tmp_path / "model.onnx")


def test_an_output_in_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tempfile, "TemporaryFile", cannot_write
    )  # permissions do not bind the user that runs tests as root
    with pytest.raises(OutputError, match="the folder cannot be written to: Permission denied"):
        refuse_output(tmp_path / "out.onnx", tmp_path / "model.onnx")


def test_an_atomic_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".onnx")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]


def test_an_atomic_file_has_the_permissions_of_an_ordinary_one(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    with atomic_file(tmp_path / "out.onnx") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "out.onnx").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), RewriteError("graph", "wrong")])
@pytest.mark.parametrize("existing", [True, False])
def test_what_goes_wrong_inside_leaves_what_was_there(tmp_path: Path, error: BaseException, existing: bool) -> None:
    path = tmp_path / "out.onnx"
    if existing:
        path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)) as caught:
        write_half()
    assert caught.value is error
    assert [file.name for file in tmp_path.iterdir()] == (["out.onnx"] if existing else [])
    if existing:
        assert path.read_bytes() == b"old"


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="cannot be written: No space left on device") as caught, atomic_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.where == str(path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]


def test_an_atomic_file_needs_a_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(OutputError, match="cannot be written: No such file or directory"),
        atomic_file(tmp_path / "absent" / "out"),
    ):
        pytest.fail("there is nothing to write to")
    monkeypatch.setattr(Path, "open", cannot_write)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"), atomic_file(tmp_path / "out"):
        pytest.fail("there is nothing to write to")
    assert not list(tmp_path.iterdir())
