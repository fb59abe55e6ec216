"""A loaded graph in canonical form: shapes behind an If are observed in a run, and canonicalising goes on with them."""

from pathlib import Path

import onnx
import pytest
from textgraph import difference, feeds_of, model_of, operators, proto_of, run

from onnxvitq.graph.reading import LoadedModel, load_model
from onnxvitq.runtime.canonical_form import bring_to_canonical_form

PLAIN = "(float[N,4] x) => (float[A,B] y) <float[4,6] W, float[6] b> { g = Gemm(x, W, b) y = Identity(g) }"
# The branches differ in rank, so inference knows none; with any batch the first branch runs.
HIDDEN = (
    "(float[N,4] x) => (float[A,B] y) <float[4,6] W, int64[1] axis = {0}, int64 zero = {0}>"
    "{ h = MatMul(x, W) s = Shape<end = 1>(h) n = Squeeze(s, axis) any = Greater(n, zero)"
    " c = If(any) <then_branch = yes () => (float[P,Q] t) { t = Relu(h) },"
    " else_branch = no () => (float[R] u) { u = ReduceMean<axes = [0], keepdims = 0>(h) }>"
    " y = Tanh(c) }"
)


def loaded(folder: Path, text: str) -> LoadedModel:
    path = folder / "model.onnx"
    onnx.save(model_of(text), path)
    return load_model(path)


def test_a_graph_whose_shapes_are_inferred_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        pytest.fail("a model was run")

    monkeypatch.setattr("onnxvitq.runtime.canonical_form.observe_shapes", never)
    model = loaded(tmp_path, PLAIN)
    edits = bring_to_canonical_form(model, 1)
    assert operators(model.graph) == "MatMul Add"
    assert {name: count for name, count in edits.items() if count} == {"gemm_to_matmul": 1, "remove_no_ops": 1}


def test_shapes_behind_an_if_are_observed(tmp_path: Path) -> None:
    model = loaded(tmp_path, HIDDEN)
    before = proto_of(model.graph)
    feeds = feeds_of(before)
    expected = run(before, feeds)
    assert model.graph.tensors()["c"].shape is None
    bring_to_canonical_form(model, 1)
    rows, columns = model.graph.tensors()["c"].shape
    assert isinstance(rows, str)
    assert columns == 6
    assert difference(run(proto_of(model.graph), feeds), expected) == 0.0


def test_a_graph_that_does_not_run_on_noise_keeps_unknown_shapes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    three_rows = HIDDEN.replace("h = MatMul(x, W)", "r = Reshape(x, rows) h = MatMul(r, W)")
    model = loaded(tmp_path, three_rows.replace("zero = {0}", "zero = {0}, int64[2] rows = {3, 4}"))
    bring_to_canonical_form(model, 1)
    assert model.graph.tensors()["c"].shape is None
    assert "stay unknown" in caplog.text
