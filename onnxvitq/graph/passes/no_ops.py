"""Operators that change nothing are removed."""

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import MOVES, integers, is_output, is_static, uniform_value

KEEPS_FINITE = MOVES | {"Add", "Sub", "Mul", "Div", "Where", "Clip", "Concat"}  # of finite inputs, short of overflow


def remove_no_ops(graph: gs.Graph) -> int:
    """f(x) -> x.

    1. Identity; Dropout (its mask unread, not in training mode); Cast to the type the tensor has.
    2. Transpose with the identity permutation.
    3. x + 0, x - 0, x * 1, x / 1, where the constant, possibly expanded at run time, does not enlarge x.
    4. Reshape of a tensor to the shape it has.
    5. Pad by nothing on every side (a window attention's, where the image fits).
    6. An Identity stays where a graph output needs it: behind a graph input, a constant or another output.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        source = _unchanged_source(node)
        if source is not None and len(node.outputs) >= 1 and not (len(node.outputs) > 1 and node.outputs[1].outputs):
            output = node.outputs[0]
            if node.op == "Identity" and is_output(output, graph) and (not source.inputs or is_output(source, graph)):
                continue  # rule 6
            node.outputs.clear()
            edit.redirect(output, source)
            count += 1
    return count


def _unchanged_source(node: gs.Node) -> gs.Tensor | None:  # noqa: PLR0911 - one return a rule reads best
    if not node.inputs:
        return None
    first = node.inputs[0]
    if node.op == "Identity":
        return first  # rule 1
    if node.op == "Dropout":
        training = node.inputs[2] if len(node.inputs) > 2 else None
        return first if training is None or not training.name or uniform_value(training) == 0.0 else None
    if node.op == "Cast" and first.dtype is not None and node.outputs[0].dtype == first.dtype:
        return first
    if node.op == "Transpose":
        perm = node.attrs.get("perm")
        return first if perm is not None and list(perm) == sorted(perm) else None  # rule 2
    if node.op == "Reshape":
        return first if is_static(first.shape) and list(first.shape) == list(node.outputs[0].shape or ()) else None
    if node.op == "Pad":
        sides = integers(node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("pads")
        return first if sides is not None and not any(sides) else None  # rule 5
    return _neutral_operand(node)


def _neutral_operand(node: gs.Node) -> gs.Tensor | None:
    neutral = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}.get(node.op)
    if neutral is None or len(node.inputs) != 2:
        return None
    for index in (1, 0) if node.op in {"Add", "Mul"} else (1,):
        other, kept = node.inputs[index], node.inputs[1 - index]
        if uniform_value(other) == neutral and not isinstance(kept, gs.Constant) and _keeps_shape(kept, other):
            return kept  # rule 3
    return None


def _keeps_shape(kept: gs.Tensor, other: gs.Tensor) -> bool:
    """Whether broadcasting ``other`` onto ``kept`` leaves the shape of ``kept``."""
    if kept.shape is None or other.shape is None or len(other.shape) > len(kept.shape):
        return False
    return all(theirs in (1, ours) for ours, theirs in zip(reversed(kept.shape), reversed(other.shape), strict=False))


def remove_nan_guard(graph: gs.Graph) -> int:
    """Where(IsNaN(p), 0, p) -> p, for p = Softmax(...).

    The guard exists for rows that are masked entirely with -inf.
    1. p is a Softmax of finite scores: no Add, Where or mask constant above it can bring -inf.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        if node.op != "Where" or uniform_value(node.inputs[1]) != 0.0:
            continue
        probe, guarded = producer(node.inputs[0]), node.inputs[2]
        softmax = producer(guarded)
        if probe is None or probe.op != "IsNaN" or probe.inputs[0] is not guarded:
            continue
        if softmax is None or softmax.op != "Softmax" or may_be_infinite(softmax.inputs[0]):
            continue  # rule 1
        edit.replace(node, guarded)
        count += 1
    return count


def may_be_infinite(tensor: gs.Tensor, depth: int = 12) -> bool:
    """Whether a tensor may hold an infinity, from a mask above it; a graph input may hold one. Looks ``depth`` nodes up."""
    if isinstance(tensor, gs.Constant):
        values = np.asarray(tensor.values)
        return bool(np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all())
    node = producer(tensor)
    if node is None or depth == 0:
        return True
    if node.op in {"MatMul", "Gemm", "Conv"}:
        return False
    if node.op == "ConstantOfShape":
        return not np.isfinite(uniform_value(tensor) or 0.0)
    if node.op not in KEEPS_FINITE:
        return True  # a Log, a Reciprocal...
    sources = node.inputs[1:] if node.op == "Where" else node.inputs[:1] if node.op in MOVES else node.inputs
    return any(may_be_infinite(source, depth - 1) for source in sources)
