"""Reshapes and transposes that follow each other become one."""

import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import integers, is_static, same_lead


def merge_key_transpose(graph: gs.Graph) -> int:
    """Reshape(Transpose(Reshape(x, (-1, T, D)), (0, 2, 1)), (B, H, D, T)) -> Transpose(x, (0, 1, 3, 2)).

    1. The inner reshape only joins the leading axes, the outer one only splits them again.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        turn = producer(node.inputs[0]) if node.op == "Reshape" else None
        if turn is None or turn.op != "Transpose" or list(turn.attrs.get("perm", ())) != [0, 2, 1]:
            continue
        join = producer(turn.inputs[0])
        if join is None or join.op != "Reshape":
            continue
        before, middle, after = join.inputs[0].shape, join.outputs[0].shape, node.outputs[0].shape
        if before is None or middle is None or after is None or len(before) != len(after) or not is_static(before[-2:]):
            continue
        if list(before[-2:]) != list(middle[-2:]) or list(after[-2:]) != list(before[-2:])[::-1]:
            continue
        if not same_lead(list(before[:-2]), list(after[:-2])):
            continue  # rule 1
        rank = len(before)
        perm = [*range(rank - 2), rank - 1, rank - 2]
        output = node.outputs[0]
        node.outputs.clear()
        edit.redirect(output, edit.node("Transpose", f"{node.name}_swapped", [join.inputs[0]], perm=perm))
        count += 1
    return count


def merge_transposes(graph: gs.Graph) -> int:
    """Transpose(Transpose(x, p), q) -> Transpose(x, p[q])."""
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
    """Reshape(Reshape(x, a), b) -> Reshape(x, b).

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
