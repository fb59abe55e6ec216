"""A position that is picked of an axis is picked before it is computed.

A classifier that reads the class token needs one row of the last block, not all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import integers, is_output

UNARY = frozenset(
    {
        "Abs",
        "Cast",
        "Clip",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Neg",
        "Reciprocal",
        "Relu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Tanh",
    }
)
BROADCAST = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where"})
REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax"})

Read = tuple[gs.Node, int, int]  # a reader, which of its inputs, the axis that it needs one position of


def pick_early(graph: gs.Graph) -> int:
    """Gather(f(x), [i]) -> f(Gather(x, [i])) for every f that treats the positions of the axis alike.

    The tensors between keep their names; their size along the axis is 1.

    1. One position is gathered, of an axis whose size is known and more than 1.
    2. The tensors between are read by picked nodes alone, and are no outputs of the graph.
    3. At least one product or normalisation is between: else nothing is saved.
    """
    return sum(_PickWalk(graph, node).apply() for node in list(graph.nodes) if _picks(node))


def _picks(node: gs.Node) -> bool:
    """Rule 1."""
    if node.op != "Gather" or node.inputs[0].shape is None or isinstance(node.inputs[0], gs.Constant):
        return False
    size, found = node.inputs[0].shape[_axis(node, node.inputs[0], 0)], integers(node.inputs[1])
    return isinstance(size, int) and size > 1 and found is not None and len(found) == 1


def _axis(node: gs.Node, tensor: gs.Tensor, default: int) -> int:
    return int(node.attrs.get("axis", default)) % len(tensor.shape)


@dataclass(frozen=True, slots=True)
class _PickWalk:
    """The walk from one Gather towards the inputs, over the nodes that can work on one position.

    Attributes:
        graph: sorted.
        gather: picks one position of an axis.
    """

    graph: gs.Graph
    gather: gs.Node

    def apply(self) -> int:
        """Rewrite the nodes, and return the number of those that work on one position now."""
        gather, source = self.gather, self.gather.inputs[0]
        narrowed: dict[int, tuple[gs.Node, int]] = {}
        reads: dict[int, list[Read]] = {id(source): [(gather, 0, _axis(gather, source, 0))]}
        tensors: dict[int, gs.Tensor] = {id(source): source}
        for node in reversed(self.graph.nodes):  # sorted: every reader comes before what it reads
            output = node.outputs[0] if len(node.outputs) == 1 else None
            if output is None or id(output) not in reads:
                continue
            axes = {axis for _, _, axis in reads[id(output)]}
            if len(axes) > 1 or len(reads[id(output)]) != len(output.outputs) or is_output(output, self.graph):
                continue  # rule 2
            sources = _sources(node, next(iter(axes)))
            if sources is None:
                continue
            narrowed[id(output)] = (node, next(iter(axes)))
            for index, axis in sources:
                tensors[id(node.inputs[index])] = node.inputs[index]
                reads.setdefault(id(node.inputs[index]), []).append((node, index, axis))
        if not any(node.op in {"MatMul", "LayerNormalization"} for node, _ in narrowed.values()):
            return 0  # rule 3
        self._write(narrowed, {key: (tensors[key], found) for key, found in reads.items() if key not in narrowed})
        return len(narrowed)

    def _write(self, narrowed: dict[int, tuple[gs.Node, int]], cut: dict[int, tuple[gs.Tensor, list[Read]]]) -> None:
        edit, taken = Editor(self.graph), integers(self.gather.inputs[1])
        assert taken is not None  # rule 1
        for node, axis in narrowed.values():
            if node.op == "Reshape":
                target = integers(node.inputs[1])
                assert target is not None  # _same_place said so
                target[axis] = 1
                node.inputs[1] = edit.constant(f"{node.name}_picked_shape", np.array(target, np.int64))
            shape = list(node.outputs[0].shape)
            shape[axis] = 1
            node.outputs[0].shape = shape
        for tensor, found in cut.values():
            for axis in sorted({axis for _, _, axis in found}):
                picked = self._picked(edit, tensor, axis, taken[0])
                for reader, index, _ in (read for read in found if read[2] == axis):
                    reader.inputs[index] = picked
        kept = self.gather.inputs[1]
        self.gather.inputs[1] = edit.constant(f"{self.gather.name}_only", np.zeros(kept.shape, np.int64))

    def _picked(self, edit: Editor, tensor: gs.Tensor, axis: int, index: int) -> gs.Tensor:
        """One position of a tensor, the axis kept."""
        if isinstance(tensor, gs.Constant):
            return edit.constant(f"{tensor.name}_picked", np.take(tensor.values, [index], axis))
        position = edit.constant(f"{tensor.name}_position", np.array([index], np.int64))
        picked = edit.node("Gather", f"{tensor.name}_picked", [tensor, position], tensor.dtype, axis=axis)
        picked.shape = [1 if place == axis else size for place, size in enumerate(tensor.shape)]
        return picked


def _sources(node: gs.Node, axis: int) -> list[tuple[int, int]] | None:
    """(input index, its axis) from which one position of the output along ``axis`` is computed; None where more is needed."""
    output = node.outputs[0]
    if output.shape is None or any(tensor.shape is None for tensor in node.inputs if tensor.name):
        return None
    if node.op in BROADCAST:
        return _broadcast(node, axis)
    own = _first_input_axis(node, axis)
    return None if own is None else [(0, own)]


def _first_input_axis(node: gs.Node, axis: int) -> int | None:
    """The axis of the first input that corresponds to an axis of the output, position by position; None where none does."""
    rank = len(node.outputs[0].shape)
    if node.op == "Transpose":
        return node.attrs["perm"][axis] if "perm" in node.attrs else None
    if node.op == "MatMul":
        ranks = [len(tensor.shape) for tensor in node.inputs]
        return ranks[0] - 2 if axis == rank - 2 and min(ranks) >= 2 else None
    kept = (
        node.op in UNARY
        or (node.op == "Softmax" and axis != _axis(node, node.outputs[0], -1))
        or (node.op == "LayerNormalization" and axis < _axis(node, node.outputs[0], -1))
        or (node.op in REDUCTIONS and axis not in set(_reduced(node)) and bool(node.attrs.get("keepdims", 1)))
        or (node.op == "Reshape" and _same_place(node, axis))
    )
    return axis if kept else None


def _broadcast(node: gs.Node, axis: int) -> list[tuple[int, int]] | None:
    """(input index, its axis) of the operands that vary along the axis; None where a size is not known."""
    shape, found = node.outputs[0].shape, []
    for index, tensor in enumerate(node.inputs):
        own = axis - len(shape) + len(tensor.shape)
        if own < 0 or tensor.shape[own] == 1:
            continue
        if tensor.shape[own] != shape[axis]:
            return None
        found.append((index, own))
    return found


def _reduced(node: gs.Node) -> Iterator[int]:
    """The axes of a reduction; all of them where none are stated."""
    rank = len(node.inputs[0].shape)
    axes = integers(node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("axes")
    yield from range(rank) if axes is None else (axis % rank for axis in axes)


def _same_place(node: gs.Node, axis: int) -> bool:
    """Whether a Reshape with a constant target leaves the axis, and all before it, as they are."""
    before, after, target = node.inputs[0].shape, node.outputs[0].shape, integers(node.inputs[1])
    leads = list(before[: axis + 1]) == list(after[: axis + 1]) and all(size is not None for size in before[:axis])
    return target is not None and leads and producer(node.inputs[1]) is None and 0 not in target[axis + 1 :]
