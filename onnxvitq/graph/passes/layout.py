"""Reshapes and transposes that follow each other become the shortest chain that does the same."""

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.graph.axes import AxisMap
from onnxvitq.graph.edit import Editor
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import integers, only_reader

RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
CHAINED = RESHAPES | {"Transpose"}


def merge_layout(graph: gs.Graph) -> int:
    """A chain of Reshape, Transpose, Flatten, Squeeze, Unsqueeze -> the shortest chain that does the same.

    1. The tensors between are read by the chain alone.
    2. Every Reshape's target is a constant, or all but one size of its result are known.
    3. The new chain is shorter (``graph.axes``).
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        if node.op not in CHAINED or not node.outputs or _goes_on(node, graph):
            continue
        chain = _chain(node, graph)
        start, output = chain[0].inputs[0], node.outputs[0]
        if len(chain) < 2 or start.shape is None or any(size is None for size in start.shape):
            continue
        axes = AxisMap(start.shape)
        moves = axes.moves() if all(_follow(axes, link) for link in chain) else None
        if moves is None or len(moves) >= len(chain):
            continue  # rules 2, 3
        node.outputs.clear()
        tensor = start
        for move in moves:
            if move.op == "Transpose":
                tensor = edit.node("Transpose", f"{node.name}_turned", [tensor], tensor.dtype, perm=list(move.values))
            else:
                shape = edit.constant(f"{node.name}_shape", np.array(move.values, np.int64))
                tensor = edit.node("Reshape", f"{node.name}_reshaped", [tensor, shape], tensor.dtype)
        edit.redirect(output, tensor)
        count += 1
    return count


def _goes_on(node: gs.Node, graph: gs.Graph) -> bool:
    reader = only_reader(node.outputs[0], graph)
    return reader is not None and reader.op in CHAINED and reader.inputs[0] is node.outputs[0]


def _chain(node: gs.Node, graph: gs.Graph) -> list[gs.Node]:
    """The chain of layout nodes that ends in ``node``, in the order in which they run."""
    chain = [node]
    while True:
        before = producer(chain[0].inputs[0])
        if before is None or before.op not in CHAINED or only_reader(before.outputs[0], graph) is None:  # rule 1
            return chain
        chain.insert(0, before)


def _follow(axes: AxisMap, node: gs.Node) -> bool:
    if node.op == "Transpose":
        return "perm" in node.attrs and axes.transpose(list(node.attrs["perm"]))
    target = integers(node.inputs[1]) if node.op == "Reshape" else None
    if target is None or node.attrs.get("allowzero", 0):
        shape = node.outputs[0].shape
        target = None if shape is None else [size if isinstance(size, int) else -1 for size in shape]
    return target is not None and target.count(-1) <= 1 and axes.reshape(target)


def merge_transposes(graph: gs.Graph) -> int:
    """Transpose(Transpose(x, p), q) -> Transpose(x, p[q]); others may read the tensor between."""
    count = 0
    for node in graph.nodes:
        inner = producer(node.inputs[0]) if node.op == "Transpose" else None
        if inner is None or inner.op != "Transpose" or "perm" not in inner.attrs or "perm" not in node.attrs:
            continue
        node.attrs["perm"] = [list(inner.attrs["perm"])[axis] for axis in node.attrs["perm"]]
        node.inputs[0] = inner.inputs[0]
        count += 1
    return count


def merge_reshapes(graph: gs.Graph) -> int:
    """Reshape(Reshape(x, a), b) -> Reshape(x, b), whatever the shapes; others may read the tensor between.

    1. b is a constant without zeros (a zero copies a size from the inner result).
    """
    count = 0
    for node in graph.nodes:
        inner = producer(node.inputs[0]) if node.op == "Reshape" else None
        target = integers(node.inputs[1]) if node.op == "Reshape" else None
        if inner is None or inner.op != "Reshape" or target is None or 0 in target:
            continue  # rule 1
        node.inputs[0] = inner.inputs[0]
        count += 1
    return count
