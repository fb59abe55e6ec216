"""Reasons to refuse a model: on the way in, whatever is not a plain float model; on the way out, an invalid graph.

``graph.validate`` holds the rules that a graph obeys in between, from pass to pass.
"""

from pathlib import Path

import numpy as np
import onnx

from onnxvitq.core.errors import (
    InvalidGraphError,
    RewriteError,
    UnsupportedModelError,
    UnsupportedOpsetError,
    first_line,
)
from onnxvitq.graph.messages import all_constants, all_nodes, opset_of
from onnxvitq.graph.passes.fused import FUSED_DOMAIN, OPENED

OLDEST_OPSET = 11
QUANTIZED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "ConvInteger",
        "QLinearMatMul",
        "QLinearConv",
    }
)
WEIGHT_READERS = frozenset({"MatMul", "Gemm", "Conv", "LayerNormalization", "BatchNormalization"})


def refuse_opset(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse a model whose standard operator set the installed onnx cannot raise or does not know.

    Raises:
        UnsupportedOpsetError: older than ``OLDEST_OPSET`` or newer than the installed onnx.
    """
    opset, newest = opset_of(proto), onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UnsupportedOpsetError(
            str(path),
            f"expected opset {OLDEST_OPSET} to {newest}, got {opset}",
            "export it again with opset_version=17",
        )


def refuse_unsupported(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse a model that is quantized already, or that onnxruntime has fused into operators that are not standard.

    Raises:
        UnsupportedModelError: with the name of the first such node.
    """
    local = {(function.domain, function.name) for function in proto.functions}
    for node in all_nodes(proto.graph):
        if node.op_type in QUANTIZED_OPS or node.op_type.startswith("QLinear"):
            raise UnsupportedModelError(
                str(path), f"already quantized: node {node.name!r} is a {node.op_type}", "give the float model"
            )
        if (
            node.domain.startswith(FUSED_DOMAIN)
            and (node.domain, node.op_type) not in local
            and not _can_be_opened(node)
        ):
            raise UnsupportedModelError(
                str(path),
                f"already fused by onnxruntime: node {node.name!r} is a {node.domain} {node.op_type}",
                "give the model as exported, before optimisation",
            )


def _can_be_opened(node: onnx.NodeProto) -> bool:
    """Whether a fused operator is one that ``passes.fused`` writes in standard operators again."""
    batched = any(field.name.startswith("transBatch") and field.i for field in node.attribute)
    return node.domain == FUSED_DOMAIN and node.op_type in OPENED and not batched


def check_file(path: Path) -> None:
    """Run ``onnx.checker`` on a model file.

    Raises:
        InvalidGraphError: the checker refuses it.
    """
    try:
        onnx.checker.check_model(str(path))  # the file: the message would be serialised first, every weight of it
    except onnx.checker.ValidationError as error:
        raise InvalidGraphError(str(path), f"the ONNX checker refuses it: {first_line(error)}") from error


def refuse_weights(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse a model whose weights are not float32 or not finite.

    Raises:
        UnsupportedModelError: an initializer is float16, bfloat16 or double.
        InvalidGraphError: a constant holds a NaN, or a weight an infinity.
    """
    for tensor in proto.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE):
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            raise UnsupportedModelError(
                str(path), f"expected float32 weights, got {kind} in {tensor.name!r}", "export the model in float32"
            )
    for name, tensor in all_constants(proto):
        values = onnx.numpy_helper.to_array(tensor) if tensor.data_type == onnx.TensorProto.FLOAT else np.zeros(0)
        if np.isfinite(values).all():
            continue
        # Masks legitimately hold -inf; a weight of a MatMul, Gemm, Conv or normalisation never does.
        if np.isnan(values).any() or _is_weight(proto, name):
            raise InvalidGraphError(str(path), f"weight {name!r} holds a NaN or an infinity", "did training diverge?")


def _is_weight(proto: onnx.ModelProto, name: str) -> bool:
    return any(name in node.input for node in all_nodes(proto.graph) if node.op_type in WEIGHT_READERS)


def check_written(path: Path, where: str) -> None:
    """Run the full check of ``onnx.checker``, with shape inference, on a written model.

    Args:
        path: where the model is, in a temporary place.
        where: what to call it in the error.

    Raises:
        RewriteError: the checker refuses it.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)  # as a message it would end at 2 GB
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RewriteError(where, f"the ONNX checker refuses the written graph: {first_line(error)}") from error
