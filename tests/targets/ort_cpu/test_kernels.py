"""The audit tells what onnxruntime really runs: a layer that lost its codes on the way is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from textgraph import model_of

from onnxvitq.api import Result, inspect, quantize
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import QuantPlan
from onnxvitq.report.model_records import Audit, FloatLayer, LayerCounts
from onnxvitq.targets.ort_cpu import kernels as auditing
from onnxvitq.targets.ort_cpu.draft import integer_name
from onnxvitq.targets.ort_cpu.kernels import BARE, NOT_FUSED, audit

Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def blockmap(vit_file: Path) -> BlockMap:
    return inspect(vit_file).blockmap


@pytest.fixture
def audited(unmapped: Result, blockmap: BlockMap, tmp_path: Path) -> Callable[[Edit], Audit]:
    """The audit of the quantized model after an edit of its file."""

    def run(edit: Edit) -> Audit:
        proto = onnx.load(unmapped.output)
        edit(proto)
        path = tmp_path / "edited.onnx"
        onnx.save(proto, path)
        return audit(path, blockmap, unmapped.plan, 1)

    return run


def without_codes(proto: onnx.ModelProto, node: str, port: int) -> None:
    """Feed an input of a node with what goes into QuantizeLinear, in place of what comes out of DequantizeLinear."""
    producers = {output: producer for producer in proto.graph.node for output in producer.output}
    reader = next(reader for reader in proto.graph.node if reader.name == node)
    dequantize = producers[reader.input[port]]
    assert dequantize.op_type == "DequantizeLinear"
    quantize_node = producers[dequantize.input[0]]
    if quantize_node.op_type == "Transpose":  # of the codes: let it turn what they were made of
        quantize_node.input[0] = producers[quantize_node.input[0]].input[0]
        reader.input[port] = quantize_node.output[0]
        proto.graph.node.remove(dequantize)
        return
    assert quantize_node.op_type == "QuantizeLinear"
    reader.input[port] = quantize_node.input[0]
    read = {name for one in proto.graph.node for name in one.input}
    if dequantize.output[0] not in read:
        proto.graph.node.remove(dequantize)
        if sum(quantize_node.output[0] in one.input for one in proto.graph.node) == 0:
            proto.graph.node.remove(quantize_node)


def test_an_untouched_model_is_sound(audited: Callable[[Edit], Audit]) -> None:
    result = audited(lambda proto: None)
    assert result.sound
    assert result.linears == LayerCounts(found=13, quantized=13, integer_kernels=13)
    assert result.patch_embedding == LayerCounts(found=1, quantized=1, integer_kernels=1)
    assert result.attention_products == LayerCounts(found=4, quantized=4, integer_kernels=4)
    assert result.other_products == LayerCounts(found=0, quantized=0, integer_kernels=0)


def test_a_linear_that_lost_its_codes_is_named(audited: Callable[[Edit], Audit], blockmap: BlockMap) -> None:
    lost = next(linear for linear in blockmap.linears if linear.role == "block1.mlp.fc2")
    result = audited(lambda proto: without_codes(proto, f"{lost.name}_int8", 0))
    assert not result.sound
    assert result.linears == LayerCounts(
        found=13, quantized=13, integer_kernels=12, in_float=(FloatLayer(name=lost.name, reason=NOT_FUSED),)
    )
    assert result.attention_products.sound


def test_the_patch_embedding_is_counted_apart(audited: Callable[[Edit], Audit], blockmap: BlockMap) -> None:
    lost = next(linear for linear in blockmap.linears if linear.kind == "patch_embedding")
    result = audited(lambda proto: without_codes(proto, f"{lost.name}_int8", 0))
    assert not result.sound
    assert result.linears.sound
    assert result.patch_embedding.reasons == {lost.name: NOT_FUSED}


@pytest.mark.parametrize("port", [0, 1])
def test_an_attention_product_that_lost_its_codes_is_named(
    audited: Callable[[Edit], Audit], blockmap: BlockMap, port: int
) -> None:
    lost = blockmap.attentions[0].context_node
    result = audited(lambda proto: without_codes(proto, lost, port))
    assert not result.sound
    assert result.attention_products == LayerCounts(
        found=4, quantized=4, integer_kernels=3, in_float=(FloatLayer(name=lost, reason=NOT_FUSED),)
    )
    assert result.linears.sound


def test_a_layer_that_is_gone_from_the_session_is_float(audited: Callable[[Edit], Audit]) -> None:
    def rename(proto: onnx.ModelProto) -> None:
        node = next(node for node in proto.graph.node if node.op_type == "Gemm")
        node.name = "somebody else"

    assert audited(rename).linears.integer_kernels + audited(rename).patch_embedding.integer_kernels == 13


def test_reasons_come_from_the_plan(unmapped: Result, blockmap: BlockMap) -> None:
    head = next(linear for linear in blockmap.linears if linear.role == "head")
    plan = QuantPlan(kept_float={head.name: "excluded by 'head'"})
    result = audit(unmapped.output, blockmap, plan, 1)
    # The file's layers all run on integer kernels; a plan that does not speak of them has none to miss.
    assert result.sound
    assert (result.linears.quantized, result.linears.integer_kernels, result.linears.in_float) == (0, 0, ())


def test_excluded_and_unplanned_layers_are_named(vit_file: Path, blockmap: BlockMap, unmapped: Result) -> None:
    head = next(linear for linear in blockmap.linears if linear.role == "head")
    plan = QuantPlan(kept_float={head.name: "excluded by 'head'"})
    result = audit(vit_file, blockmap, plan, 1)  # the float model itself
    assert result.sound
    assert result.linears.reasons[head.name] == "excluded by 'head'"
    assert list(result.linears.reasons.values()).count("not planned") == 12
    # And with the full plan everything is missing.
    assert audit(vit_file, blockmap, unmapped.plan, 1).linears.integer_kernels == 0


def test_without_integer_kernels_nothing_is(
    monkeypatch: pytest.MonkeyPatch, unmapped: Result, blockmap: BlockMap
) -> None:
    monkeypatch.setattr(auditing, "INTEGER_KERNELS", frozenset())
    result = audit(unmapped.output, blockmap, unmapped.plan, 1)
    assert not result.sound
    assert list(result.attention_products.reasons) == [
        node for attention in blockmap.attentions for node in (attention.scores_node, attention.context_node)
    ]


def test_attention_kept_float_is_named_with_its_reason(vit_file: Path, images: Path, tmp_path: Path) -> None:
    result = quantize(vit_file, images, tmp_path / "out.onnx", QuantConfig(attention="float", objective="minmax"))
    assert result.audit.sound
    assert set(result.audit.attention_products.reasons.values()) == {"attention kept float"}
    assert len(result.audit.attention_products.in_float) == 4


@pytest.fixture(scope="module")
def dynamic(vit_file: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The small Vision Transformer with the ranges of its linears' inputs measured at run time."""
    config = QuantConfig(activations="dynamic", objective="minmax")
    return quantize(vit_file, images, tmp_path_factory.mktemp("dynamic") / "out.onnx", config)


def test_dynamic_layers_are_counted_with_their_kernels(dynamic: Result) -> None:
    assert dynamic.audit.linears == LayerCounts(found=13, quantized=13, integer_kernels=13, dynamic=13)
    assert dynamic.audit.patch_embedding == LayerCounts(found=1, quantized=1, integer_kernels=1, dynamic=1)
    assert dynamic.audit.attention_products.dynamic == 0
    assert dynamic.report.to_dict()["linears"]["dynamic"] == 13
    assert dynamic.report.to_dict()["config"]["activations"] == "dynamic"


def test_a_dynamic_layer_that_is_not_fused_is_named(dynamic: Result, blockmap: BlockMap, tmp_path: Path) -> None:
    lost = next(linear for linear in blockmap.linears if linear.role == "block1.mlp.fc2")
    proto = onnx.load(dynamic.output)
    sums = next(node for node in proto.graph.node if node.name == integer_name(lost.name)).output[0]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(sums, onnx.TensorProto.INT32, None))
    onnx.save(proto, tmp_path / "edited.onnx")  # somebody wants the sums themselves: they cannot be fused away
    result = audit(tmp_path / "edited.onnx", blockmap, dynamic.plan, 1)
    assert not result.sound
    assert result.linears == LayerCounts(
        found=13, quantized=13, integer_kernels=12, in_float=(FloatLayer(name=lost.name, reason=BARE),), dynamic=12
    )


def test_soundness_is_of_all_four_kinds() -> None:
    good, bad = (LayerCounts(found=2, quantized=2, integer_kernels=kernels) for kernels in (2, 1))
    sound = Audit(linears=good, patch_embedding=good, attention_products=good, other_products=good)
    assert not replace(sound, unpacked_at_run_time=("onnxvitq_packed4x64_0_codes",)).sound
    assert sound.sound
    for kind in ("linears", "patch_embedding", "attention_products", "other_products"):
        changes: dict[str, Any] = {kind: bad}
        assert not replace(sound, **changes).sound


# A linear attention: kv and c are products outside a softmax attention, the table is one with a constant.
LINEAR_ATTENTION = (
    "(float[N,5,8] x) => (float[N,5,6] y) <float[8,8] Wq, float[8,8] Wk, float[8,8] Wv, float[8,6] Wo, float[1,5,5] table>"
    "{ q0 = MatMul(x, Wq) q = Relu(q0) k0 = MatMul(x, Wk) k = Relu(k0) v0 = MatMul(x, Wv) v = MatMul(table, v0)"
    " kt = Transpose<perm = [0, 2, 1]>(k) kv = MatMul(kt, v) c = MatMul(q, kv) y = MatMul(c, Wo) }"
)


@pytest.fixture(scope="module")
def without_softmax(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("linear_attention")
    onnx.save(model_of(LINEAR_ATTENTION), folder / "float.onnx")
    data = np.random.default_rng(0).normal(size=(8, 5, 8)).astype(np.float32)
    return quantize(folder / "float.onnx", data, folder / "int8.onnx", QuantConfig(objective="minmax"))


def test_other_products_are_counted_apart(without_softmax: Result) -> None:
    report = without_softmax.report.to_dict()
    expected = {"found": 3, "quantized": 3, "integer_kernels": 3, "dynamic": 0, "simulated": 0, "float": []}
    assert report["other_products"] == expected
    assert report["attention_products"]["found"] == report["attention"] == report["blocks"] == 0
    assert [(product["name"], product["constant"]) for product in report["products"]] == [
        ("v", "table"),
        ("kv", ""),
        ("c", ""),
    ]
    assert report["audit_passed"] is True
    assert report["compare"]["sqnr_db"] > 25


@pytest.mark.parametrize("lost", ["v", "kv", "c"])
def test_another_product_that_lost_its_codes_is_named(without_softmax: Result, tmp_path: Path, lost: str) -> None:
    proto = onnx.load(without_softmax.output)
    without_codes(proto, lost, 1)
    onnx.save(proto, tmp_path / "edited.onnx")
    result = audit(tmp_path / "edited.onnx", inspect_again(without_softmax), without_softmax.plan, 1)
    assert not result.sound
    assert result.other_products == LayerCounts(
        found=3, quantized=3, integer_kernels=2, in_float=(FloatLayer(name=lost, reason=NOT_FUSED),)
    )
    assert result.linears.sound


def test_a_product_kept_float_is_named_with_its_reason(without_softmax: Result) -> None:
    plan = replace(
        without_softmax.plan,
        decisions={
            name: decision
            for name, decision in without_softmax.plan.decisions.items()
            if decision.site.role != "product0.left"
        },
        kept_float={"v": "as integers it costs 9.0 dB of the output's SQNR"},
    )
    float_file = without_softmax.output.with_name("float.onnx")
    result = audit(float_file, inspect_again(without_softmax), plan, 1)
    assert (result.other_products.found, result.other_products.quantized) == (3, 2)
    assert result.other_products.reasons == {"v": plan.kept_float["v"], "kv": NOT_FUSED, "c": NOT_FUSED}


def inspect_again(result: Result) -> BlockMap:
    return inspect(result.output.with_name("float.onnx")).blockmap


def test_no_temporary_file_is_left(
    monkeypatch: pytest.MonkeyPatch, unmapped: Result, blockmap: BlockMap, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    audit(unmapped.output, blockmap, unmapped.plan, 1)
    assert list(tmp_path.iterdir()) == []
