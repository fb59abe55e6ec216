"""Every reason to refuse a model, on the way in and on the way out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.defs
import pytest
from model_files import LINEAR, assert_refused, with_function
from textgraph import model_of, operators

from onnxvitq.core.errors import InvalidGraphError, RewriteError, UnsupportedModelError, UnsupportedOpsetError
from onnxvitq.graph.checking import check_written
from onnxvitq.graph.reading import load_model

QUANTIZED = (
    "(float[N,4] x) => (float[A,B] y) <float s = {0.1}, uint8 z = {3}>"
    "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
)
BODY = (
    "(float[N,4] x, bool c) => (float[A,B] y) <float s = {0.1}, uint8 z = {3}>"
    "{ y = If(c) <then_branch = t () => (float[A,B] a) { q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z) },"
    " else_branch = e () => (float[A,B] b) { b = Relu(x) }> }"
)
NAN, INF = np.float32(np.nan), np.float32(np.inf)


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
    assert_refused(path, InvalidGraphError, "the ONNX checker refuses it: ")
    assert_refused(path, InvalidGraphError, problem)


@pytest.mark.parametrize("opset", [1, 10, onnx.defs.onnx_opset_version() + 1])
def test_an_operator_set_too_old_or_too_new(saved: Callable[[onnx.ModelProto], Path], opset: int) -> None:
    newest = onnx.defs.onnx_opset_version()
    assert_refused(
        saved(model_of(LINEAR, opset=opset)), UnsupportedOpsetError, f"expected opset 11 to {newest}, got {opset}"
    )


def test_an_operator_set_that_cannot_be_raised(
    saved: Callable[[onnx.ModelProto], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        raise RuntimeError("\n  no adapter for Upsample\nand a second line")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
    problem = "opset 12 cannot be raised to 13: no adapter for Upsample"
    assert_refused(saved(model_of(LINEAR, opset=12)), UnsupportedOpsetError, problem)


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
    assert_refused(
        saved(model_of(text, weights=weights)), UnsupportedModelError, f"is a {operator} (give the float model)"
    )


def test_a_quantized_function_body(saved: Callable[[onnx.ModelProto], Path]) -> None:
    body = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "y"])
    assert_refused(saved(with_function(body)), UnsupportedModelError, "is a DynamicQuantizeLinear")


def test_a_model_that_onnxruntime_fused(saved: Callable[[onnx.ModelProto], Path]) -> None:
    model = model_of("(float[N,4] x) => (float[A,B] y) { y = com.microsoft.FusedGelu(x) }")
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    assert_refused(
        saved(model), UnsupportedModelError, "already fused by onnxruntime: node 'y' is a com.microsoft FusedGelu"
    )


def test_fused_operators_that_can_be_opened_are_accepted(saved: Callable[[onnx.ModelProto], Path]) -> None:
    model = model_of(
        "(float[N,4,6] x) => (float[A,B,C] y) { g = com.microsoft.Gelu(x) y = com.microsoft.FusedMatMul<transB = 1>(g, x) }"
    )
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    assert operators(load_model(saved(model)).graph) == "Gelu FusedMatMul"
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("transBatchA", 1))
    assert_refused(
        saved(model), UnsupportedModelError, "already fused by onnxruntime: node 'y' is a com.microsoft FusedMatMul"
    )


@pytest.mark.parametrize(
    ("dtype", "name"), [(np.float16, "float16"), (np.float64, "double")], ids=["half precision", "double precision"]
)
def test_weights_of_another_type(saved: Callable[[onnx.ModelProto], Path], dtype: type, name: str) -> None:
    text = LINEAR.replace("float[N,4] x", f"{name}[N,4] x").replace("float[A,B]", f"{name}[A,B]")
    path = saved(model_of(text, weights={"W": np.eye(4, dtype=dtype)}))
    assert_refused(path, UnsupportedModelError, f"expected float32 weights, got {name} in 'W'")


def test_a_half_precision_input(saved: Callable[[onnx.ModelProto], Path]) -> None:
    text = LINEAR.replace("float[N,4] x", "float16[N,4] x").replace(
        "{ y = MatMul(x", "{ c = Cast<to = 1>(x) y = MatMul(c"
    )
    assert_refused(saved(model_of(text)), UnsupportedModelError, "input 'x' is half precision")


def test_an_input_that_is_no_tensor(saved: Callable[[onnx.ModelProto], Path]) -> None:
    model = model_of("(float[N] x) => (int64 n) { n = Size(x) }")
    model.graph.node[0].op_type = "SequenceLength"
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_sequence_value_info("x", onnx.TensorProto.FLOAT, None))
    assert_refused(saved(model), UnsupportedModelError, "input 'x' is not a tensor")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_weight_that_is_not_finite(saved: Callable[[onnx.ModelProto], Path], value: np.float32) -> None:
    weight = np.eye(4, dtype=np.float32)
    weight[2, 1] = value
    assert_refused(
        saved(model_of(LINEAR, weights={"W": weight})), InvalidGraphError, "weight 'W' holds a NaN or an infinity"
    )


def test_a_nan_in_a_constant_node(saved: Callable[[onnx.ModelProto], Path]) -> None:
    text = "(float[N,2] x) => (float[A,B] y) { c = Constant<value = float[2] {nan, 1}>() y = Add(x, c) }"
    assert_refused(saved(model_of(text)), InvalidGraphError, "weight 'c' holds a NaN")


def test_a_mask_may_hide_with_an_infinity(saved: Callable[[onnx.ModelProto], Path]) -> None:
    text = "(float[N,2] x) => (float[A,B] y) <float[2] m = {0, -inf}> { y = Add(x, m) }"
    assert operators(load_model(saved(model_of(text))).graph) == "Add"


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
