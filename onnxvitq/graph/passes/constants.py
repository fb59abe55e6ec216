"""Tensors that do not depend on the input become constants."""

import logging

import numpy as np
import onnx.reference
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxvitq.core.errors import first_line
from onnxvitq.graph.edit import Editor
from onnxvitq.graph.query import is_static
from onnxvitq.graph.symbolic import ShapeValues, resolve_reshape

logger = logging.getLogger(__name__)

FOLD_LIMIT = 2**24  # elements; a folded Expand must not blow the file up
NEVER_FOLDED = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def fold_constants(graph: gs.Graph) -> int:
    """op(constants) -> constant, and shape arithmetic whose result is known -> constant.

    1. Every input is a constant, the node has no sub-graph, and it is not random.
    2. The result is at most ``FOLD_LIMIT`` elements.
    3. Integer arithmetic on shapes: all elements are numbers, none only a name (``symbolic.ShapeValues``).
    4. onnx's reference implementation has the operator, and its results are tensors. Others are left to the runtime.
    """
    edit, shapes, count = Editor(graph), ShapeValues(), 0
    for node in list(graph.nodes):
        values = _evaluate(node)
        if values is None:
            values = _known_shape(node, shapes)
        if values is None or any(output is kept for kept in graph.outputs for output in node.outputs):
            continue
        for output, value in zip(list(node.outputs), values, strict=True):
            constant = edit.constant(f"{output.name}_folded", value)
            for reader in list(output.outputs):
                for index, tensor in enumerate(reader.inputs):
                    if tensor is output:
                        reader.inputs[index] = constant
        node.outputs.clear()
        count += 1
    return count


def _known_shape(node: gs.Node, shapes: ShapeValues) -> list[np.ndarray] | None:
    if len(node.outputs) != 1 or node.outputs[0].dtype != np.int64 or node.op == "Constant":
        return None
    value = shapes.of(node.outputs[0])
    if value is None or any(not isinstance(size, int) for size in value.reshape(-1)):
        return None  # rule 3
    return [value.astype(np.int64)]


def _evaluate(node: gs.Node) -> list[np.ndarray] | None:
    if node.op in NEVER_FOLDED or node.domain not in (None, "", "ai.onnx") or not node.outputs:
        return None
    present = [tensor for tensor in node.inputs if tensor.name]
    if not all(isinstance(tensor, gs.Constant) for tensor in present):
        return None
    if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
        return None  # rule 1
    if node.op in {"Expand", "Tile", "ConstantOfShape"}:
        shape = node.outputs[0].shape
        if not is_static(shape) or int(np.prod(shape)) > FOLD_LIMIT:
            return None  # rule 2
    try:
        with np.errstate(all="ignore"):  # an infinity or a NaN is the constant's own business
            evaluator = onnx.reference.ReferenceEvaluator(OnnxExporter.export_node(node))
            values = list(evaluator.run(None, {tensor.name: tensor.values for tensor in present}))
    except Exception as error:  # noqa: BLE001 - a few hundred operators, each of which raises what numpy raises in it
        # Nothing is lost: the node stays, and onnxruntime computes it, or refuses the model with a reason.
        logger.debug("%s %r is not folded: %s: %s", node.op, node.name, type(error).__name__, first_line(error))
        return None  # rule 4
    return values if all(isinstance(value, (np.ndarray, np.generic)) for value in values) else None


def static_reshapes(graph: gs.Graph) -> int:
    """Reshape(x, computed shape) -> Reshape(x, constant) where at most one dimension is unknown, which becomes -1.

    1. The computed shape is known but for names (``symbolic.ShapeValues``), and resolves (``symbolic.resolve_reshape``).

    This ends the Shape / Gather / Concat chains that exporters write for a dynamic batch.
    """
    edit, values, count = Editor(graph), ShapeValues(), 0
    for node in graph.nodes:
        if node.op != "Reshape" or isinstance(node.inputs[1], gs.Constant) or node.inputs[0].shape is None:
            continue
        computed = values.of(node.inputs[1])
        if computed is None:
            continue
        target = resolve_reshape(computed, list(node.inputs[0].shape))
        if target is None:
            continue
        node.inputs[1] = edit.constant(f"{node.name}_shape", np.array(target, np.int64))
        node.attrs.pop("allowzero", None)
        count += 1
    return count
