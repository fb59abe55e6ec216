"""Packed projections of query, key and value are split into three linear layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.query import constant_input, integers, is_static, only_reader, same_lead


@dataclass(frozen=True, slots=True, eq=False)
class _Linear:
    """A linear layer y = x W + b.

    Attributes:
        source: tensor x.
        weight: W, (I, O).
        bias: b, (O,); None where there is none.
        output: tensor y.
    """

    source: gs.Tensor
    weight: np.ndarray
    bias: np.ndarray | None
    output: gs.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _SplitLinear:
    """One of the linear layers into which a packed one is split.

    Attributes:
        columns: indices of the packed weight's columns that it has, (O',).
        target: of the Reshape behind it; None for no Reshape.
        perm: of the Transpose behind that; None for no Transpose.
        replaced: tensor in whose place its result is.
    """

    columns: np.ndarray
    target: list[int] | None
    perm: list[int] | None
    replaced: gs.Tensor


def split_packed_linears(graph: gs.Graph) -> int:
    """pick_i(layout(x W + b)) -> layout_i(x W_i + b_i): a packed q, k, v projection becomes three.

    1. The linear's output is only read by one Reshape that splits its last axis, perhaps a Transpose, and picks of ranges
       along one of the new axes (Gather; Slice or Split, perhaps with Squeeze); or by parts along its last axis.
    2. Each part's columns are the packed weight's, so the result is exact.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        linear = _linear_of(node, graph)
        if linear is None:
            continue
        parts = _picked_parts(linear.output, graph) or _sliced_parts(linear.output, graph)
        if parts:
            _write_parts(edit, node, linear, parts)
            count += 1
    return count


def _linear_of(node: gs.Node, graph: gs.Graph) -> _Linear | None:
    """The linear layer of a MatMul with a constant weight (I, O), with its constant bias; None for any other node."""
    if (
        node.op != "MatMul"
        or not node.outputs
        or not isinstance(node.inputs[1], gs.Constant)
        or len(node.inputs[1].shape) != 2
    ):
        return None
    weight, output = np.asarray(node.inputs[1].values), node.outputs[0]
    reader = only_reader(output, graph)
    if reader is not None and reader.op == "Add":
        bias = constant_input(reader)
        if bias is not None and bias[1].shape and bias[1].values.size == weight.shape[1] == bias[1].shape[-1]:
            return _Linear(node.inputs[0], weight, bias[1].values.reshape(-1), reader.outputs[0])
    return _Linear(node.inputs[0], weight, None, output)


def _picked_parts(output: gs.Tensor, graph: gs.Graph) -> list[_SplitLinear] | None:
    """Parts of ``Reshape [.., 3, H, D] -> (Transpose) -> ranges of one of the new axes``."""
    split = only_reader(output, graph)
    if split is None or split.op != "Reshape" or output.shape is None or split.outputs[0].shape is None:
        return None
    shape, lead = list(split.outputs[0].shape), len(output.shape) - 1
    inner = shape[lead:]
    if len(inner) < 2 or not is_static(inner) or int(np.prod(inner)) != output.shape[-1]:
        return None
    leading = _leading(shape[:lead], output.shape[:-1])
    if leading is None:
        return None
    tensor, perm = split.outputs[0], list(range(len(shape)))
    turn = only_reader(tensor, graph)
    if turn is not None and turn.op == "Transpose":
        tensor, perm = turn.outputs[0], list(turn.attrs["perm"])
    picks = _picks(tensor, graph)
    if not picks or len({pick.axis for pick in picks}) != 1:
        return None
    axis = perm[picks[0].axis]
    if axis < lead:
        return None  # rule 1: the picked axis must come from the weight's columns
    order = np.arange(int(np.prod(inner))).reshape(inner)
    sizes = [*leading, *inner]
    parts: list[_SplitLinear] = []
    for pick in picks:
        columns = np.take(order, range(pick.start, pick.stop), axis - lead).reshape(-1)
        dropped = axis if pick.squeezed else None
        target = [pick.stop - pick.start if i == axis else size for i, size in enumerate(sizes) if i != dropped]
        kept = [i if dropped is None or i < dropped else i - 1 for i in perm if i != dropped]
        parts.append(_SplitLinear(columns, target, None if kept == sorted(kept) else kept, pick.result))
    return parts


def _leading(shape: Sequence[object], other: Sequence[object]) -> list[int] | None:
    """The start of a Reshape target that keeps leading axes: numbers, and -1 for one unknown size or 0 (a copy) for several."""
    if not same_lead(shape, other):
        return None
    unknown = sum(not isinstance(size, int) for size in shape)
    if unknown > 1 and list(shape) != list(other):
        return None
    return [size if isinstance(size, int) else -1 if unknown == 1 else 0 for size in shape]


@dataclass(frozen=True, slots=True)
class _Pick:
    """A range of one axis of a tensor.

    Attributes:
        axis: counted from the front.
        start: first position.
        stop: position behind the last.
        squeezed: whether the axis is dropped.
        result: tensor that holds the range.
    """

    axis: int
    start: int
    stop: int
    squeezed: bool
    result: gs.Tensor


def _picks(tensor: gs.Tensor, graph: gs.Graph) -> list[_Pick] | None:
    """The ranges that the readers of a tensor take, where every reader takes ranges of one axis; None otherwise."""
    if any(tensor is output for output in graph.outputs):
        return None
    picks: list[_Pick] = []
    for node in tensor.outputs:
        found = _picks_of(node, tensor, graph)
        if not found:
            return None
        picks.extend(found)
    return picks


def _picks_of(node: gs.Node, tensor: gs.Tensor, graph: gs.Graph) -> list[_Pick]:
    if tensor.shape is None:
        return []
    rank = len(tensor.shape)
    if node.op == "Gather" and isinstance(node.inputs[1], gs.Constant) and node.inputs[1].values.ndim == 0:
        axis = node.attrs.get("axis", 0) % rank
        size = tensor.shape[axis]
        index = int(node.inputs[1].values)
        if not isinstance(size, int):
            return []
        return [_Pick(axis, index % size, index % size + 1, True, node.outputs[0])]
    found = []
    for axis, start, stop, part in _ranges(node, tensor):
        squeeze = only_reader(part, graph)
        if squeeze is not None and squeeze.op == "Squeeze" and _squeezed(squeeze) in ([axis], [axis - rank]):
            found.append(_Pick(axis, start, stop, True, squeeze.outputs[0]))
        else:
            found.append(_Pick(axis, start, stop, False, part))
    return found


def _squeezed(node: gs.Node) -> list[int] | None:
    return integers(node.inputs[1]) if len(node.inputs) > 1 else list(node.attrs.get("axes", ())) or None


def _ranges(node: gs.Node, tensor: gs.Tensor) -> list[tuple[int, int, int, gs.Tensor]]:
    """(axis, start, stop, part) of a Slice along one axis in steps of one, or of every output of a Split; [] otherwise."""
    rank = len(tensor.shape)
    if node.op == "Split":
        axis = node.attrs.get("axis", 0) % rank
        widths: list[Any] = [part.shape[axis] if part.shape else None for part in node.outputs]
        if not is_static(widths):
            return []
        stops = np.cumsum(widths).tolist()
        return [(axis, stop - width, stop, part) for width, stop, part in zip(widths, stops, node.outputs, strict=True)]
    if node.op != "Slice":
        return []
    fields = [integers(field) or [] for field in node.inputs[1:]]
    if len(fields) < 3 or any(len(field) != 1 for field in fields) or fields[3:] not in ([], [[1]]):
        return []
    (start,), (stop,), (axis,) = fields[0], fields[1], fields[2]
    size = tensor.shape[axis % rank]
    if not isinstance(size, int):
        return []
    start, stop, _ = slice(start, stop).indices(size)
    return [(axis % rank, start, stop, node.outputs[0])]


def _sliced_parts(output: gs.Tensor, graph: gs.Graph) -> list[_SplitLinear] | None:
    """Parts of ``Split`` or ``Slice`` along the last axis of the linear's output."""
    if output.shape is None or any(output is kept for kept in graph.outputs) or not output.outputs:
        return None
    parts: list[_SplitLinear] = []
    for node in output.outputs:
        ranges = _ranges(node, output)
        if not ranges or any(axis != len(output.shape) - 1 for axis, _, _, _ in ranges):
            return None
        parts.extend(_SplitLinear(np.arange(start, stop), None, None, part) for _, start, stop, part in ranges)
    return parts


def _write_parts(edit: Editor, node: gs.Node, linear: _Linear, parts: list[_SplitLinear]) -> None:
    for number, part in enumerate(parts):
        name = f"{node.name}_part{number}"
        matrix = edit.constant(f"{name}_weight", np.ascontiguousarray(linear.weight[:, part.columns]))
        tensor = edit.node("MatMul", name, [linear.source, matrix])
        if linear.bias is not None:
            bias = edit.constant(f"{name}_bias", linear.bias[part.columns])
            tensor = edit.node("Add", f"{name}_add", [tensor, bias])
        if part.target is not None:
            shape = edit.constant(f"{name}_shape", np.array(part.target, np.int64))
            tensor = edit.node("Reshape", f"{name}_reshape", [tensor, shape])
        if part.perm is not None:
            tensor = edit.node("Transpose", f"{name}_transpose", [tensor], perm=part.perm)
        part.replaced.inputs.clear()
        edit.redirect(part.replaced, tensor)
