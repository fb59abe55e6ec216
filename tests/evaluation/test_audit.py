"""The audit tells what onnxruntime really runs: a layer that lost its codes on the way is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from onnxvitq.blockmap import BlockMap
from onnxvitq.config import QuantConfig
from onnxvitq.evaluation import audit as auditing
from onnxvitq.evaluation.audit import NOT_FUSED, Audit, Count, audit
from onnxvitq.pipeline import Result, inspect, quantize
from onnxvitq.plan import QuantPlan

Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def blockmap(vit_file: Path) -> BlockMap:
    return inspect(vit_file)[1]


@pytest.fixture
def audited(quantized: Result, blockmap: BlockMap, tmp_path: Path) -> Callable[[Edit], Audit]:
    """The audit of the quantized model after an edit of its file."""

    def run(edit: Edit) -> Audit:
        proto = onnx.load(quantized.output)
        edit(proto)
        path = tmp_path / "edited.onnx"
        onnx.save(proto, path)
        return audit(path, blockmap, quantized.plan, 1)

    return run


def without_codes(proto: onnx.ModelProto, node: str, port: int) -> None:
    """Feed an input of a node with what goes into QuantizeLinear, in place of what comes out of DequantizeLinear."""
    producers = {output: producer for producer in proto.graph.node for output in producer.output}
    reader = next(reader for reader in proto.graph.node if reader.name == node)
    dequantize = producers[reader.input[port]]
    assert dequantize.op_type == "DequantizeLinear"
    quantize_node = producers[dequantize.input[0]]
    assert quantize_node.op_type == "QuantizeLinear"
    reader.input[port] = quantize_node.input[0]


def test_an_untouched_model_is_sound(audited: Callable[[Edit], Audit]) -> None:
    result = audited(lambda proto: None)
    assert result.sound
    assert result.linears == Count(found=13, quantized=13, integer_kernels=13, float=())
    assert result.patch_embeddings == Count(found=1, quantized=1, integer_kernels=1, float=())
    assert result.attention_products == Count(found=4, quantized=4, integer_kernels=4, float=())


def test_a_linear_that_lost_its_codes_is_named(audited: Callable[[Edit], Audit], blockmap: BlockMap) -> None:
    lost = next(linear for linear in blockmap.linears if linear.role == "block1.mlp.fc2")
    result = audited(lambda proto: without_codes(proto, f"{lost.name}_int8", 0))
    assert not result.sound
    assert result.linears == Count(found=13, quantized=13, integer_kernels=12, float=((lost.name, NOT_FUSED),))
    assert result.attention_products.sound


def test_the_patch_embedding_is_counted_apart(audited: Callable[[Edit], Audit], blockmap: BlockMap) -> None:
    lost = next(linear for linear in blockmap.linears if linear.kind == "patch_embedding")
    result = audited(lambda proto: without_codes(proto, f"{lost.name}_int8", 0))
    assert not result.sound
    assert result.linears.sound
    assert result.patch_embeddings.float == ((lost.name, NOT_FUSED),)


@pytest.mark.parametrize("port", [0, 1])
def test_an_attention_product_that_lost_its_codes_is_named(
    audited: Callable[[Edit], Audit], blockmap: BlockMap, port: int
) -> None:
    lost = blockmap.attentions[0].context_node
    result = audited(lambda proto: without_codes(proto, lost, port))
    assert not result.sound
    assert result.attention_products == Count(found=4, quantized=4, integer_kernels=3, float=((lost, NOT_FUSED),))
    assert result.linears.sound


def test_a_layer_that_is_gone_from_the_session_is_float(audited: Callable[[Edit], Audit]) -> None:
    def rename(proto: onnx.ModelProto) -> None:
        node = next(node for node in proto.graph.node if node.op_type == "Gemm")
        node.name = "somebody else"

    assert audited(rename).linears.integer_kernels + audited(rename).patch_embeddings.integer_kernels == 13


def test_reasons_come_from_the_plan(quantized: Result, blockmap: BlockMap) -> None:
    head = next(linear for linear in blockmap.linears if linear.role == "head")
    plan = QuantPlan(kept_float={head.name: "excluded by 'head'"})
    result = audit(quantized.output, blockmap, plan, 1)
    # The file's layers all run on integer kernels; a plan that does not speak of them has none to miss.
    assert result.sound
    assert (result.linears.quantized, result.linears.integer_kernels, result.linears.float) == (0, 0, ())


def test_excluded_and_unplanned_layers_are_named(vit_file: Path, blockmap: BlockMap, quantized: Result) -> None:
    head = next(linear for linear in blockmap.linears if linear.role == "head")
    plan = QuantPlan(kept_float={head.name: "excluded by 'head'"})
    result = audit(vit_file, blockmap, plan, 1)  # the float model itself
    assert result.sound
    assert dict(result.linears.float)[head.name] == "excluded by 'head'"
    assert list(dict(result.linears.float).values()).count("not planned") == 12
    # And with the full plan everything is missing.
    assert audit(vit_file, blockmap, quantized.plan, 1).linears.integer_kernels == 0


def test_without_integer_kernels_nothing_is(
    monkeypatch: pytest.MonkeyPatch, quantized: Result, blockmap: BlockMap
) -> None:
    monkeypatch.setattr(auditing, "INTEGER_KERNELS", frozenset())
    result = audit(quantized.output, blockmap, quantized.plan, 1)
    assert not result.sound
    assert [name for name, _ in result.attention_products.float] == [
        node for attention in blockmap.attentions for node in (attention.scores_node, attention.context_node)
    ]


def test_attention_kept_float_is_named_with_its_reason(vit_file: Path, images: Path, tmp_path: Path) -> None:
    result = quantize(vit_file, images, tmp_path / "out.onnx", QuantConfig(attention="float", objective="minmax"))
    assert result.audit.sound
    assert {reason for _, reason in result.audit.attention_products.float} == {"attention kept float"}
    assert len(result.audit.attention_products.float) == 4


def test_soundness_is_of_all_three_kinds() -> None:
    good, bad = (Count(found=2, quantized=2, integer_kernels=kernels, float=()) for kernels in (2, 1))
    sound = Audit(linears=good, patch_embeddings=good, attention_products=good)
    assert sound.sound
    for kind in ("linears", "patch_embeddings", "attention_products"):
        assert not replace(sound, **{kind: bad}).sound


def test_no_temporary_file_is_left(
    monkeypatch: pytest.MonkeyPatch, quantized: Result, blockmap: BlockMap, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    audit(quantized.output, blockmap, quantized.plan, 1)
    assert list(tmp_path.iterdir()) == []
