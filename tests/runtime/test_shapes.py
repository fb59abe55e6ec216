"""Shapes that two runs tell: what is equal in both is a size, what differs gets a name."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from textgraph import model_of

from onnxvitq.core.errors import InvalidGraphError
from onnxvitq.runtime.shapes import observe_shapes


def saved(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(model_of(text), path)
    return path


def feed(batch: int, tokens: int = 5) -> dict[str, np.ndarray]:
    return {"x": np.ones((batch, tokens, 4), np.float32)}


def test_what_differs_between_the_runs_is_free(tmp_path: Path) -> None:
    text = (
        "(float[N,T,4] x) => (float[A,B,C] y, int64[D] s, bool[E,F,G] b, float[H,I] m)"
        "{ y = Relu(x) s = Shape(x) b = Equal(x, y) m = ReduceSum<keepdims = 0>(x) }"
    ).replace("float[H,I] m", "float m")
    observed = observe_shapes(saved(tmp_path, text), feed(1), feed(2), 1)
    assert observed == {
        "y": (["y.0", 5, 4], np.dtype(np.float32)),
        "s": ([3], np.dtype(np.int64)),
        "b": (["b.0", 5, 4], np.dtype(bool)),
        "m": ([], np.dtype(np.float32)),
    }


def test_every_free_size_has_a_name_of_its_own(tmp_path: Path) -> None:
    text = "(float[N,T,4] x) => (float[A,B,C] y, float[D,E] z) <int64[2] flat = {-1, 4}> { y = Relu(x) z = Reshape(x, flat) }"
    observed = observe_shapes(saved(tmp_path, text), feed(1), feed(2, 7), 1)
    assert {name: shape for name, (shape, _) in observed.items()} == {"y": ["y.0", "y.1", 4], "z": ["z.0", 4]}


def test_a_tensor_whose_rank_depends_on_the_input_is_left_out(tmp_path: Path) -> None:
    text = (
        "(float[N,T,4] x) => (float[A,B,C] y, float z) <int64[1] axis = {0}, int64 one = {1}>"
        "{ y = Relu(x) s = Shape<end = 1>(x) n = Squeeze(s, axis) more = Greater(n, one)"
        " z = If(more) <then_branch = yes () => (float[P,Q,R] t) { t = Relu(x) },"
        " else_branch = no () => (float[S,T] u) { u = ReduceMean<axes = [0], keepdims = 0>(x) }> }"
    )
    assert set(observe_shapes(saved(tmp_path, text), feed(1), feed(2), 1)) == {"y"}


def test_a_sequence_is_left_out(tmp_path: Path) -> None:
    proto = model_of("(float[N,T,4] x) => (float[A,B,C] y) { y = Relu(x) }")
    proto.graph.node.append(onnx.helper.make_node("SequenceConstruct", ["y", "y"], ["q"], "q"))
    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    proto.graph.output.append(onnx.helper.make_value_info("q", onnx.helper.make_sequence_type_proto(kind)))
    onnx.save(proto, tmp_path / "model.onnx")
    assert set(observe_shapes(tmp_path / "model.onnx", feed(1), feed(2), 1)) == {"y"}


def test_a_feed_that_does_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path, "(float[N,5,4] x) => (float[A,B,C] y) { y = Relu(x) }")
    with pytest.raises(InvalidGraphError, match="does not run on this input"):
        observe_shapes(path, feed(1), feed(2, 6), 1)
