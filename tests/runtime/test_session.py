"""Sessions: what is pinned, and that every failure of onnxruntime is one line of ours."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from textgraph import model_of

from onnxvitq.core.errors import InvalidGraphError
from onnxvitq.core.tensors import InputSpec
from onnxvitq.runtime.session import Session

LINEAR = (
    "(float[N,4] x) => (float[N,4] y, float[N,4] p) <float[4,4] W, float[4] b>"
    "{ p = MatMul(x, W) i = Identity(p) y = Add(i, b) }"
)


def saved(folder: Path, text: str = LINEAR) -> Path:
    model = model_of(text)
    onnx.helper.set_model_props(model, {"recipe": "{}"})
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_outputs_come_in_the_order_of_the_model_or_the_one_asked_for(tmp_path: Path) -> None:
    session = Session(saved(tmp_path), threads=1)
    feeds = {"x": np.eye(4, dtype=np.float32)}
    y, p = session.run(feeds)
    assert [np.array_equal(a, b) for a, b in zip(session.run(feeds, ["p", "y"]), (p, y), strict=True)] == [True, True]
    assert len(session.run(feeds, ["p"])) == 1
    weight, bias = (onnx.numpy_helper.to_array(w) for w in model_of(LINEAR).graph.initializer)
    assert np.array_equal(y, weight + bias)


def test_what_the_model_says_of_itself(tmp_path: Path) -> None:
    text = "(float[N,3,8,8] image, uint8[2] raw, bool[N] flag) => (float[A,B,C,D] y) { y = Relu(image) }"
    session = Session(saved(tmp_path, text), threads=1)
    assert session.input_specs == (
        InputSpec(name="image", dtype="float32", shape=(None, 3, 8, 8)),
        InputSpec(name="raw", dtype="uint8", shape=(2,)),
        InputSpec(name="flag", dtype="bool", shape=(None,)),
    )
    assert session.metadata == {"recipe": "{}"}


def test_the_optimised_graph_can_be_written_and_is_not_where_nothing_is_optimised(tmp_path: Path) -> None:
    model = saved(tmp_path)
    operators = {}
    for level in ("all", "disabled"):
        written = tmp_path / f"{level}.onnx"
        Session(model, level=level, threads=1, optimized=written)
        operators[level] = [node.op_type for node in onnx.load(written).graph.node]
    assert operators["disabled"] == ["MatMul", "Identity", "Add"]
    assert "Identity" not in operators["all"]


def test_a_sparing_session_gives_the_same_answer(tmp_path: Path) -> None:
    model, feeds = saved(tmp_path), {"x": np.eye(4, dtype=np.float32)}
    ordinary = Session(model, threads=2).run(feeds)
    for spare in ("memory", "cores"):
        sparing = Session(model, threads=2, spare=spare).run(feeds)
        assert all(np.array_equal(a, b) for a, b in zip(sparing, ordinary, strict=True))


def test_external_data_is_found_beside_the_model(tmp_path: Path) -> None:
    model = model_of(LINEAR)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert Session(tmp_path / "model.onnx", threads=1).run({"x": np.zeros((1, 4), np.float32)})[1].shape == (1, 4)


def assert_one_line(error: InvalidGraphError, where: str, problem: str) -> None:
    assert error.where == where
    assert error.problem.startswith(problem)
    assert len(error.problem) > len(problem)  # what onnxruntime said
    assert "\n" not in str(error)
    assert error.__cause__ is not None


@pytest.mark.parametrize("content", [b"", b"no model", None], ids=["empty", "text", "missing"])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidGraphError) as caught:
        Session(path, threads=1)
    assert_one_line(caught.value, str(path), "onnxruntime cannot load it: ")


def test_an_operator_that_onnxruntime_does_not_have(tmp_path: Path) -> None:
    model = model_of("(float[N] x) => (float[A] y) { y = my.domain.Relu(x) }")
    model.opset_import.append(onnx.helper.make_opsetid("my.domain", 1))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InvalidGraphError, match=r"my\.domain") as caught:
        Session(tmp_path / "model.onnx", threads=1)
    assert_one_line(caught.value, str(tmp_path / "model.onnx"), "onnxruntime cannot load it: ")


@pytest.mark.parametrize(
    "feeds",
    [
        {"x": np.zeros((2, 5), np.float32)},
        {"x": np.zeros(4, np.float32)},
        {"x": np.zeros((2, 4), np.float64)},
        {"z": np.zeros((2, 4), np.float32)},
        {},
    ],
    ids=["size", "rank", "type", "name", "nothing"],
)
def test_an_input_that_does_not_fit(tmp_path: Path, feeds: dict[str, np.ndarray]) -> None:
    session = Session(saved(tmp_path), threads=1)
    with pytest.raises(InvalidGraphError) as caught:
        session.run(feeds)
    assert_one_line(caught.value, "onnxruntime", "the model does not run on this input: ")


def test_an_output_that_is_not_there(tmp_path: Path) -> None:
    session = Session(saved(tmp_path), threads=1)
    with pytest.raises(InvalidGraphError, match="absent"):
        session.run({"x": np.zeros((2, 4), np.float32)}, ["absent"])


def test_a_failure_inside_the_graph(tmp_path: Path) -> None:
    text = "(float[N,4] x) => (float[A,B] y) <int64[2] s = {-1, 3}> { y = Reshape(x, s) }"
    session = Session(saved(tmp_path, text), threads=1)
    assert session.run({"x": np.zeros((3, 4), np.float32)})[0].shape == (4, 3)
    with pytest.raises(InvalidGraphError) as caught:
        session.run({"x": np.zeros((2, 4), np.float32)})
    assert_one_line(caught.value, "onnxruntime", "the model does not run on this input: ")
