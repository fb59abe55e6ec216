"""Attention operators become the operators that they consist of, so that their products can be found."""

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.passes.no_ops import may_be_infinite
from onnxvitq.graph.pattern import Match, Op, Var, match
from onnxvitq.graph.query import only_reader

X = Var("x")
FLAT_SOFTMAX = Op(
    "Reshape",
    (Op("Softmax", (Op("Flatten", (X,), name="flat"),), name="softmax"), Op("Shape", (X,), name="shape")),
)


def open_attention(graph: gs.Graph) -> int:
    """Attention(Q, K, V, mask) of opset 23 -> MatMul, Mul, (mask), Softmax, MatMul.

    1. No past, no second output, no soft cap, not causal; as many key heads as query heads. Others are left as they are.
    2. Three-dimensional inputs (B, T, H D) are split into heads first and joined afterwards.
    3. The scale is the attribute's, or 1 / sqrt(D).
    4. A row whose positions are all hidden gives zeros, where a Softmax alone gives NaN: a guard behind it replaces the NaN.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        if node.op != "Attention" or not _is_plain_attention(node):
            continue  # rule 1
        name, (query, key, value) = node.name, node.inputs[:3]
        flat = len(query.shape) == 3
        if flat:
            heads = int(node.attrs["q_num_heads"])
            query, key, value = (_split_heads(edit, tensor, heads) for tensor in (query, key, value))  # rule 2
        width = query.shape[-1]
        turned = edit.node("Transpose", f"{name}_key", [key], perm=[0, 1, 3, 2])
        scores = edit.node("MatMul", f"{name}_scores", [query, turned])
        scale = np.float32(node.attrs.get("scale", width**-0.5))  # rule 3
        scores = edit.node("Mul", f"{name}_scaled", [scores, edit.constant(f"{name}_scale", scale)])
        mask = node.inputs[3] if len(node.inputs) > 3 and node.inputs[3].name else None
        hidden = False
        if mask is not None:
            scores, hidden = _masked(edit, name, scores, mask)
        weights = edit.node("Softmax", f"{name}_softmax", [scores], axis=-1)
        if hidden:  # rule 4
            probe = edit.node("IsNaN", f"{name}_hidden", [weights], dtype=np.bool_)
            zero = edit.constant(f"{name}_zero", np.float32(0))
            weights = edit.node("Where", f"{name}_guarded", [probe, zero, weights])
        context = edit.node("MatMul", f"{name}_context", [weights, value])
        if flat:
            context = edit.node("Transpose", f"{name}_joined", [context], perm=[0, 2, 1, 3])
            shape = edit.constant(f"{name}_joined_shape", np.array([0, 0, -1], np.int64))
            context = edit.node("Reshape", f"{name}_output", [context, shape])
        edit.replace(node, context)
        count += 1
    return count


def _masked(edit: Editor, name: str, scores: gs.Tensor, mask: gs.Tensor) -> tuple[gs.Tensor, bool]:
    """The masked scores, with a mask of booleans or of floats to add, and whether a whole row may be hidden."""
    if mask.dtype != np.bool_:
        return edit.node("Add", f"{name}_masked", [scores, mask]), may_be_infinite(mask)
    hidden = not isinstance(mask, gs.Constant) or not mask.values.any(axis=-1).all()
    low = edit.constant(f"{name}_low", np.float32(-np.inf if hidden else np.finfo(np.float32).min))
    return edit.node("Where", f"{name}_masked", [mask, scores, low]), hidden


def _is_plain_attention(node: gs.Node) -> bool:
    shapes = [tensor.shape for tensor in node.inputs[:3]]
    if any(shape is None or len(shape) != len(shapes[0]) for shape in shapes):
        return False
    flat = len(shapes[0]) == 3
    heads = [node.attrs.get("q_num_heads"), node.attrs.get("kv_num_heads")] if flat else [s[1] for s in shapes[:2]]
    return (
        len(node.outputs) == 1
        and not any(tensor.name for tensor in node.inputs[4:])
        and not node.attrs.get("is_causal", 0)
        and not node.attrs.get("softcap", 0.0)
        and heads[0] == heads[1]
        and all(isinstance(shape[-1], int) for shape in shapes)
    )


def _split_heads(edit: Editor, tensor: gs.Tensor, heads: int) -> gs.Tensor:
    width = tensor.shape[-1]
    shape = edit.constant(f"{tensor.name}_heads_shape", np.array([0, 0, heads, width // heads], np.int64))
    split = edit.node("Reshape", f"{tensor.name}_heads", [tensor, shape])
    split = edit.node("Transpose", f"{tensor.name}_heads_first", [split], perm=[0, 2, 1, 3])
    split.shape = [tensor.shape[0], heads, tensor.shape[1], width // heads]
    return split


def merge_flat_softmax(graph: gs.Graph) -> int:
    """Reshape(Softmax(Flatten(x, axis k)), Shape(x)) -> Softmax(x): how onnx's version converter raises one of opset 12.

    1. k is the last axis of x, so that the flattened rows are those of x; the Softmax is over the last axis.
    2. Nothing else reads the tensors between.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        found = match(FLAT_SOFTMAX, node.outputs[0]) if node.op == "Reshape" else None
        if not isinstance(found, Match):
            continue
        x, flat, softmax, shape = found.tensors["x"], *(found.nodes[name] for name in ("flat", "softmax", "shape"))
        if softmax.attrs.get("axis", -1) not in (-1, 1) or shape.attrs or x.shape is None:
            continue
        if flat.attrs.get("axis", 1) not in (-1, len(x.shape) - 1):
            continue  # rule 1
        if any(only_reader(tensor, graph) is None for tensor in (flat.outputs[0], softmax.outputs[0])):
            continue  # rule 2
        edit.replace(node, edit.node("Softmax", f"{softmax.name}_rows", [x], axis=-1))
        count += 1
    return count
