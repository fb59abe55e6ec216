"""Questions about the tensors and nodes of a graph; nothing is changed."""

from collections.abc import Collection, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.tensors import FloatArray
from onnxvitq.graph.pattern import producer

LAYOUT_OPS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
MOVES = LAYOUT_OPS | {
    "Expand",
    "Gather",
    "Slice",
    "Identity",
    "Cast",
}  # their output holds elements of the first input only


def integers(tensor: gs.Tensor | None) -> list[int] | None:
    """The values of a constant integer tensor as a flat list; None for anything else."""
    if not isinstance(tensor, gs.Constant) or not np.issubdtype(tensor.dtype, np.integer):
        return None
    return [int(value) for value in np.asarray(tensor.values).reshape(-1)]


def is_static(shape: Sequence[object] | None) -> bool:
    """Whether a shape is known and every size is a number."""
    return shape is not None and all(isinstance(size, int) for size in shape)


def only_reader(tensor: gs.Tensor, graph: gs.Graph) -> gs.Node | None:
    """The node that alone reads a tensor, once; None where there are more readers, or the tensor is a graph output."""
    if len(tensor.outputs) != 1 or any(tensor is output for output in graph.outputs):
        return None
    return tensor.outputs[0]


def is_output(tensor: gs.Tensor, graph: gs.Graph) -> bool:
    """Whether a tensor is an output of the graph."""
    return any(tensor is output for output in graph.outputs)


def is_probabilities(tensor: gs.Tensor) -> bool:
    """Whether a tensor is the output of a Softmax over its last axis, reshaped or not."""
    node = producer(tensor)
    while node is not None and node.op in LAYOUT_OPS:
        node = producer(node.inputs[0])
    if node is None or node.op != "Softmax" or not tensor.shape or not node.outputs[0].shape:
        return False
    shape, axis = node.outputs[0].shape, node.attrs.get("axis", -1)
    return axis in (-1, len(shape) - 1) and shape[-1] == tensor.shape[-1]


def constant_input(node: gs.Node) -> tuple[int, gs.Constant] | None:
    """(input index, constant) of a node with two inputs of which exactly one is a constant; None for any other node."""
    if len(node.inputs) != 2:
        return None
    found = [(index, tensor) for index, tensor in enumerate(node.inputs) if isinstance(tensor, gs.Constant)]
    return found[0] if len(found) == 1 else None


def reached(graph: gs.Graph, tensors: Collection[str], stops: Collection[str]) -> set[str]:
    """Names of tensors and of all that are computed from them without passing one of the nodes named in ``stops``."""
    known = graph.tensors()
    names, pending = set[str](), list(tensors)
    while pending:
        name = pending.pop()
        if name in names:
            continue
        names.add(name)
        for node in known[name].outputs:
            if node.name not in stops:
                pending.extend(tensor.name for tensor in node.outputs)
    return names


def is_row(bias: gs.Tensor, width: int) -> bool:
    """Whether a tensor is a constant that adds the same to every row of ``width`` columns: one value, or one a column."""
    if not isinstance(bias, gs.Constant):
        return False
    return bias.values.size == 1 or (bias.values.size == width == bias.values.shape[-1])


def same_lead(shape: Sequence[object], other: Sequence[object]) -> bool:
    """Whether two shapes of equally many elements agree in all sizes but one at most, which then is equal, too."""
    return len(shape) == len(other) and sum(a != b for a, b in zip(shape, other, strict=True)) <= 1


def uniform_value(tensor: gs.Tensor, depth: int = 6) -> float | None:
    """The value that all elements of a tensor have, whatever the input; None where that is not known.

    ``depth`` bounds the number of nodes looked at. Exporters compute an all-visible attention mask at run time:
    Where(Expand(true), 0, -inf).
    """
    if isinstance(tensor, gs.Constant):
        values = np.asarray(tensor.values)
        return float(values.flat[0]) if values.size and (values == values.flat[0]).all() else None
    node = producer(tensor)
    if node is None or depth == 0:
        return None
    if node.op in {"Expand", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Transpose", "Cast", "Tile"}:
        return uniform_value(node.inputs[0], depth - 1)
    if node.op == "Where":
        condition = uniform_value(node.inputs[0], depth - 1)
        return None if condition is None else uniform_value(node.inputs[1 if condition else 2], depth - 1)
    if node.op == "ConstantOfShape":
        fill = node.attrs.get("value")
        return 0.0 if fill is None else float(np.asarray(fill.values).flat[0])
    return None


def row_sums(exponentials: gs.Tensor) -> list[gs.Node]:
    """The ReduceSum nodes over the exponentials of a softmax that is divided late (``fit.steps.late_softmax``)."""
    made = producer(exponentials)
    if made is None or made.op != "Exp":
        return []
    return [node for node in exponentials.outputs if node.op == "ReduceSum"]


def constants(graph: gs.Graph, names: Collection[str]) -> dict[str, FloatArray]:
    """Name -> values, in float32, of those of the named tensors that are constants."""
    tensors = graph.tensors()
    return {
        name: np.asarray(tensors[name].values, np.float32)
        for name in sorted(names)
        if isinstance(tensors[name], gs.Constant)
    }
