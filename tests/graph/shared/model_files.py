"""Models that tests write to files, and the assertion that loading one is refused."""

from pathlib import Path

import onnx
import pytest
from textgraph import model_of

from onnxvitq.core.errors import ModelError
from onnxvitq.graph.reading import load_model

LINEAR = "(float[N,4] x) => (float[A,B] y) <float[4,4] W> { y = MatMul(x, W) }"


def assert_refused(path: Path, kind: type[ModelError], problem: str) -> None:
    """Assert that loading raises exactly that kind of error, about that file, in one line that says so."""
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert type(caught.value) is kind
    assert caught.value.where == str(path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def with_function(body: onnx.NodeProto, domain: str = "local") -> onnx.ModelProto:
    """A model that calls a local function "Step" of one node between x and y."""
    model = model_of("(float[N,4] x) => (float[A,B] y) { y = Relu(x) }")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Step", domain
    model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    imports = [onnx.helper.make_opsetid("", 17), *([onnx.helper.make_opsetid(body.domain, 1)] if body.domain else [])]
    model.functions.append(onnx.helper.make_function(domain, "Step", ["x"], ["y"], [body], imports))
    return model
