"""A frozen batch: every dimension of its name, and refusals."""

from collections.abc import Iterable

import onnx
import pytest
from textgraph import model_of

from onnxvitq.core.errors import UnsupportedModelError
from onnxvitq.graph.batch import freeze_batch

TEXT = "(float[N,3,T] x, float[N,T] m, float[4,4] w) => (float[N,3,T] y, float[A,B] z) { y = Relu(x) z = Relu(w) }"


def sizes(values: Iterable[onnx.ValueInfoProto]) -> list[list[object]]:
    return [[dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in values]


def test_every_dimension_of_the_name_is_frozen() -> None:
    proto = model_of(TEXT.replace(", float[4,4] w", "").replace("Relu(w)", "Relu(m)"))
    freeze_batch("model", proto, 4)
    assert sizes(proto.graph.input) == [[4, 3, "T"], [4, "T"]]
    assert sizes(proto.graph.output) == [[4, 3, "T"], ["A", "B"]]
    onnx.checker.check_model(proto, full_check=True)


def test_a_batch_of_that_size_stays() -> None:
    proto = model_of(TEXT)
    freeze_batch("model", proto, 4)
    assert sizes(proto.graph.input)[2] == [4, 4]


def test_a_batch_without_a_name_is_frozen() -> None:
    proto = model_of("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    proto.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    freeze_batch("model", proto, 4)
    assert sizes(proto.graph.input) == [[4, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT, "expected a batch of 2 or a dynamic one, got 4 in input 'w'"),
        (TEXT.replace("[4,4]", ""), "'w' has no batch"),
    ],
)
def test_another_static_batch_is_refused(text: str, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        freeze_batch("model", model_of(text), 2)
