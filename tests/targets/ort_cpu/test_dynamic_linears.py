"""Linears whose input is quantized at run time: what is written, what onnxruntime makes of it, and what it computes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from layout_cases import FLOAT_PRODUCTS, ONE_LINEAR, ROUNDING, Case, case_of, counts, initializers, node_of, optimised
from textgraph import difference, graph_of, proto_of, run
from transformer_text import transformer

from onnxvitq.core.errors import PlanError
from onnxvitq.graph.reading import load_model
from onnxvitq.numerics.affine import fake_quantize
from onnxvitq.numerics.dynamic import fake_quantize_dynamic, fake_quantize_tokens
from onnxvitq.targets.ort_cpu.draft import integer_name


def assert_fused(case: Case, folder: Path) -> None:
    """Every linear on a kernel that has its bias, the codes of a tensor made once, nothing left of the plain form."""
    ran = counts(optimised(case.written(), folder))
    linears, products = case.blockmap.linears, 2 * len(case.blockmap.attentions)
    inputs = [node.input[0] for node in case.written().graph.node if node.op_type == "MatMulInteger"]
    assert len(inputs) == len(linears)
    alone = sum(inputs.count(tensor) == 1 for tensor in inputs)
    assert ran["DynamicQuantizeMatMul"] == alone
    assert ran["MatMulIntegerToFloat"] + ran["QLinearMatMul"] == len(linears) - alone + products
    assert ran["DynamicQuantizeLinear"] == len(set(inputs)) - alone
    assert not ran.keys() & (FLOAT_PRODUCTS | {"QGemm", "MatMulInteger", "Cast"})
    float_model = proto_of(case.graph)
    adds = {node.name for node in optimised(case.written(), folder).graph.node if node.op_type == "Add"}
    assert not adds & {f"{linear.name}_biased" for linear in linears}
    for level in ("disabled", "all"):
        assert difference(run(case.written(), case.feeds, level), run(float_model, case.feeds)) < 0.15


@pytest.mark.parametrize(
    ("batch", "tokens"), [("N", "T"), ("N", "17"), ("2", "17"), ("1", "T")], ids=["both", "batch", "nothing", "tokens"]
)
def test_a_transformer_is_fused_whatever_shape_is_dynamic(tmp_path: Path, batch: str, tokens: str) -> None:
    assert_fused(case_of(graph_of(transformer(batch=batch, tokens=tokens)), activations="dynamic"), tmp_path)


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
def test_an_exported_vit_is_fused(
    export_vit: Callable[[str, bool], onnx.ModelProto], tmp_path: Path, dynamic: bool
) -> None:
    onnx.save(export_vit("torchscript", dynamic), tmp_path / "vit.onnx")
    case = case_of(load_model(tmp_path / "vit.onnx").graph, activations="dynamic")
    assert any(linear.kind == "patch_embedding" for linear in case.blockmap.linears)
    assert_fused(case, tmp_path)


@pytest.mark.parametrize("level", ["disabled", "all"])
def test_a_linear_computes_what_fake_quantization_says(level: str) -> None:
    case = case_of(graph_of(ONE_LINEAR), bits="w7a8", activations="dynamic")
    weight = case.plan.params("W")
    assert weight is not None
    for scale in (1.0, 1e-3, 50.0):  # whatever was calibrated: the range follows the input
        feeds = {**case.feeds, "x": scale * case.feeds["x"]}
        seen = fake_quantize_dynamic(feeds["x"]).astype(np.float64)
        expected = seen @ fake_quantize(case.layers.weight("p"), weight) + case.layers.bias("p")
        assert difference([run(case.written(), feeds, level)[0]], [expected]) <= ROUNDING


def test_static_and_dynamic_linears_live_in_one_graph(tmp_path: Path) -> None:
    case = case_of(graph_of(transformer(tokens="17")))
    linear = next(one for one in case.blockmap.linears if one.name == "b0_fc2")
    written = case.written(replace(case.plan, dynamic=frozenset({linear.input})))
    assert node_of(written, integer_name(linear.name)).op_type == "MatMulInteger"
    ran = counts(optimised(written, tmp_path))
    assert (ran["DynamicQuantizeMatMul"], ran["QGemm"]) == (1, len(case.blockmap.linears) - 1)
    assert "b0_fc2_bias_codes" not in initializers(written)


def test_a_tensor_that_a_product_reads_too_keeps_its_static_codes(tmp_path: Path) -> None:
    case = case_of(
        graph_of(
            "(float[N,2,5,8] x) => (float[A,B,C,D] y, float[E,F,G,H] z) <float[8,8] W>"
            "{ k = Transpose<perm = [0, 1, 3, 2]>(x) s = MatMul(x, k) p = Softmax<axis = -1>(s) y = MatMul(p, x)"
            " z = MatMul(x, W) }"
        ),
        activations="dynamic",
    )
    assert case.plan.dynamic == {"x"}
    ran = counts(optimised(case.written(), tmp_path))
    assert (ran["DynamicQuantizeMatMul"], ran["MatMulIntegerToFloat"]) == (1, 2)


def test_a_plan_for_another_graph_is_refused() -> None:
    case = case_of(graph_of(ONE_LINEAR))
    with pytest.raises(PlanError, match="the plan names a tensor that the graph does not have"):
        case.written(replace(case.plan, dynamic=frozenset({"nowhere"})))


# -------------------------------------------------------------------------------------------------------- per token


def per_token(text: str, **options: object) -> Case:
    case = case_of(graph_of(text), activations="token", **options)
    assert case.plan.per_token
    return case


@pytest.mark.parametrize("level", ["disabled", "all"])
def test_tokens_are_divided_by_their_largest_value(level: str) -> None:
    case = per_token(ONE_LINEAR, bits="w7a8")
    case = replace(case, plan=replace(case.plan, per_token=frozenset({"x"})))
    weight = case.plan.params("W")
    assert weight is not None
    x = case.feeds["x"] * np.array([1e-3, 1, 1e3, 0, 1], np.float32)[:, None]
    expected = fake_quantize_tokens(x).astype(np.float64) @ fake_quantize(case.layers.weight("p"), weight)
    got = run(case.written(), {**case.feeds, "x": x}, level)[0] - case.layers.bias("p")
    # Row by row: each has its own size; the bias that was taken off again leaves its rounding behind.
    rounding = ROUNDING * (np.abs(expected).max(axis=-1) + np.abs(case.layers.bias("p")).max())
    assert (np.abs(got - expected).max(axis=-1) <= rounding).all()


@pytest.mark.parametrize("opset", [17, 18])
def test_divided_tokens_run_on_integers(tmp_path: Path, opset: int) -> None:
    case = case_of(graph_of(transformer(tokens="17"), opset=opset), activations="token")
    ran = counts(optimised(case.written(), tmp_path))
    assert not ran.keys() & (FLOAT_PRODUCTS | {"QGemm", "MatMulInteger", "Cast"})
    assert (
        ran["Abs"] == ran["ReduceMax"] == len(case.plan.per_token) + 1
    )  # once a tensor; the last query's is one token
    for level in ("disabled", "all"):
        assert difference(run(case.written(), case.feeds, level), run(proto_of(case.graph), case.feeds)) < 0.15
