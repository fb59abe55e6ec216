"""Scalar factors are folded into the weights before them."""

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import LAYOUT_OPS, constant_input, only_reader


def fold_scalar_scales(graph: gs.Graph) -> int:
    """C * layout(x W + b) -> layout(x (c W) + c b), and c * (Q K) -> (c Q) K: the attention scale moves into a projection.

    1. c is a scalar constant; Div by c counts as Mul by 1 / c.
    2. Everything between is read once: layout operators, the bias, one product of two activations.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        if node.op not in {"Mul", "Div"}:
            continue
        found = constant_input(node)
        if found is None or found[1].values.size != 1 or (node.op == "Div" and found[0] == 0):
            continue  # rule 1
        factor, source = float(found[1].values.reshape(())), node.inputs[1 - found[0]]
        if (
            len(found[1].shape) > len(source.shape or ())
            or not np.isfinite(factor)
            or (node.op == "Div" and factor == 0)
        ):
            continue
        scale = factor if node.op == "Mul" else 1 / factor
        target = _scalable(source, graph, products=1)
        if target is None:
            continue
        for reader, index in target:
            constant = reader.inputs[index]
            reader.inputs[index] = edit.constant(f"{constant.name}_scaled", constant.values * np.float32(scale))
        edit.replace(node, source)
        count += 1
    return count


def _scalable(tensor: gs.Tensor, graph: gs.Graph, products: int) -> list[tuple[gs.Node, int]] | None:
    """(node, input index) of each constant that has to be scaled to scale ``tensor``; None where that is not possible."""
    node = producer(tensor)
    if node is None or only_reader(tensor, graph) is None:
        return None  # rule 2
    if node.op in LAYOUT_OPS:
        return _scalable(node.inputs[0], graph, products)
    found = constant_input(node)
    if node.op == "Add" and found is not None:
        inner = producer(node.inputs[1 - found[0]])
        inside = _scalable(node.inputs[1 - found[0]], graph, 0) if inner is not None and inner.op == "MatMul" else None
        return None if inside is None else [*inside, (node, found[0])]
    if node.op == "MatMul" and found is not None:
        return [(node, found[0])]
    if node.op == "MatMul" and products:
        return _scalable(node.inputs[0], graph, 0) or _scalable(node.inputs[1], graph, 0)
    return None
