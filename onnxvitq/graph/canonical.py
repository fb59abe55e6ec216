"""Canonical form: what exporters write in ten ways is brought to one, exactly, before anything is searched or measured.

Each pass is one function ``graph -> number of edits``, idempotent, and equal in float up to rounding. Passes remove waste
from the *written* model too, because the quantized model is made from the canonical graph. The rules of a pass are
numbered in its docstring; the code cites them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx.reference
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.io import infer_shapes
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.symbolic import ShapeValues, resolve_reshape
from onnxvitq.graph.validate import check_graph

Pass = Callable[[gs.Graph], int]

MAX_ROUNDS = 8  # shapes that one pass makes known let another go on; real graphs need two or three rounds
FOLD_LIMIT = 2**24  # elements; a folded Expand must not blow the file up
NEVER_FOLDED = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
LAYOUT_OPS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
MOVES = LAYOUT_OPS | {"Expand", "Gather", "Slice", "Identity", "Cast"}  # the first input's elements, nothing new
KEEPS_FINITE = MOVES | {"Add", "Sub", "Mul", "Div", "Where", "Clip", "Concat"}  # of finite inputs, short of overflow


def canonicalise(graph: gs.Graph) -> dict[str, int]:
    """Run all passes until none finds anything; pass name -> edits. The graph is valid, sorted and shape-inferred after."""
    edits = dict.fromkeys((one.__name__ for one in PASSES), 0)
    for _ in range(MAX_ROUNDS):
        before = sum(edits.values())
        for one in PASSES:
            edits[one.__name__] += run_pass(graph, one)
        if sum(edits.values()) == before:
            break
    return edits


def run_pass(graph: gs.Graph, one: Pass) -> int:
    """Run one pass until it finds nothing more, leaving the graph clean, checked and shape-inferred; its number of edits."""
    total = 0
    for _ in range(MAX_ROUNDS):
        count = one(graph)
        if not count:
            break
        total += count
        graph.cleanup().toposort()
        check_graph(graph, f"pass {one.__name__}")
        if one not in SHAPES_STAY_KNOWN:
            infer_shapes(graph)
    return total


def integers(tensor: gs.Tensor | None) -> list[int] | None:
    """The values of a constant integer tensor as a flat list; None for anything else."""
    if not isinstance(tensor, gs.Constant) or not np.issubdtype(tensor.dtype, np.integer):
        return None
    return [int(value) for value in np.asarray(tensor.values).reshape(-1)]


def is_static(shape: Sequence[object] | None) -> bool:
    """Whether every dimension is a known number."""
    return shape is not None and all(isinstance(size, int) for size in shape)


def only_reader(tensor: gs.Tensor, graph: gs.Graph) -> gs.Node | None:
    """The one node that reads a tensor, once; None when there are more, or the tensor is a graph output."""
    if len(tensor.outputs) != 1 or any(tensor is output for output in graph.outputs):
        return None
    return tensor.outputs[0]


def constant_input(node: gs.Node) -> tuple[int, gs.Constant] | None:
    """(index, constant) of a two-input node with exactly one constant operand."""
    if len(node.inputs) != 2:
        return None
    found = [(index, tensor) for index, tensor in enumerate(node.inputs) if isinstance(tensor, gs.Constant)]
    return found[0] if len(found) == 1 else None


# ---------------------------------------------------------------------------------------------------------- constants


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
    except RuntimeError:
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


# ----------------------------------------------------------------------------------------------------- nothing to do


def remove_no_ops(graph: gs.Graph) -> int:
    """f(x) -> x.

    1. Identity; Dropout (its mask unread, not in training mode); Cast to the type the tensor has.
    2. Transpose with the identity permutation.
    3. x + 0, x - 0, x * 1, x / 1, where the constant, possibly expanded at run time, does not enlarge x.
    4. Reshape of a tensor to the shape it has.
    5. An Identity stays where a graph output needs it: behind a graph input, a constant or another output.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        source = _unchanged_source(node)
        if source is not None and len(node.outputs) >= 1 and not (len(node.outputs) > 1 and node.outputs[1].outputs):
            output = node.outputs[0]
            if node.op == "Identity" and _is_output(output, graph) and (not source.inputs or _is_output(source, graph)):
                continue  # rule 5
            node.outputs.clear()
            edit.redirect(output, source)
            count += 1
    return count


def _is_output(tensor: gs.Tensor, graph: gs.Graph) -> bool:
    return any(tensor is output for output in graph.outputs)


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


def uniform_value(tensor: gs.Tensor, depth: int = 6) -> float | None:
    """The one value that all elements of a tensor have, whatever the input; None when that cannot be told.

    Exporters compute an all-visible attention mask at run time: Where(Expand(true), 0, -inf).
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
        if softmax is None or softmax.op != "Softmax" or _may_be_infinite(softmax.inputs[0]):
            continue  # rule 1
        output = node.outputs[0]
        node.outputs.clear()
        edit.redirect(output, guarded)
        count += 1
    return count


def _may_be_infinite(tensor: gs.Tensor, depth: int = 12) -> bool:
    """Whether a mask with an infinity can reach a tensor. A graph input added as a mask may hold one."""
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
    return any(_may_be_infinite(source, depth - 1) for source in sources)


# ------------------------------------------------------------------------------------------------------------- linears


def gemm_to_matmul(graph: gs.Graph) -> int:
    """Gemm(x, W, b) -> MatMul(x, alpha W') + beta b, with W' (I, O).

    1. W is a constant and x is not transposed.
    2. b is absent, or a constant that broadcasts along rows.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        if node.op != "Gemm" or node.attrs.get("transA", 0) or not isinstance(node.inputs[1], gs.Constant):
            continue  # rule 1
        bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        weight = np.asarray(node.inputs[1].values)
        weight = np.ascontiguousarray(weight.T if node.attrs.get("transB", 0) else weight)  # (I, O)
        outputs = weight.shape[1]
        if bias is not None and not _is_row(bias, outputs):
            continue  # rule 2
        alpha, beta = np.float32(node.attrs.get("alpha", 1.0)), np.float32(node.attrs.get("beta", 1.0))
        if alpha != 1:
            weight = weight * alpha
        output = node.outputs[0]
        product = edit.node(
            "MatMul", f"{node.name}_matmul", [node.inputs[0], edit.constant(f"{node.name}_weight", weight)]
        )
        product.shape = output.shape
        node.outputs.clear()
        if bias is not None:
            row = np.broadcast_to(bias.values.reshape(-1), (outputs,)) * beta
            inputs = [product, edit.constant(f"{node.name}_bias", row.astype(np.float32))]
            graph.nodes.append(gs.Node("Add", edit.unique(f"{node.name}_add"), inputs=inputs, outputs=[output]))
        else:
            edit.redirect(output, product)
        count += 1
    return count


def _is_row(bias: gs.Tensor, width: int) -> bool:
    """Whether a constant adds the same to every row: one value, or one a column."""
    if not isinstance(bias, gs.Constant):
        return False
    return bias.values.size == 1 or (bias.values.size == width == bias.values.shape[-1])


def patch_convolution(graph: gs.Graph) -> int:
    """Transpose(Reshape(Conv(x), (B, O, T)), (0, 2, 1)) -> MatMul(patches(x), W') + b: a patch embedding is a linear layer.

    1. Kernel equals stride, no padding, no dilation, one group; the image size is known and a multiple of the kernel.
    2. What follows flattens the grid and brings the channels last.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        if node.op != "Conv" or not _is_patchify(node):
            continue
        flat = only_reader(node.outputs[0], graph)
        if flat is None or flat.op not in {"Reshape", "Flatten"}:
            continue  # rule 2
        last = only_reader(flat.outputs[0], graph)
        if last is None or last.op != "Transpose" or list(last.attrs.get("perm", ())) != [0, 2, 1]:
            continue  # rule 2
        image, weight = node.inputs[0], np.asarray(node.inputs[1].values)
        channels, height, width = image.shape[1:]
        outputs, _, kh, kw = weight.shape
        rows, columns = height // kh, width // kw
        if list(flat.outputs[0].shape or ())[1:] != [outputs, rows * columns]:
            continue  # rule 2
        name = node.name
        shape = edit.constant(f"{name}_grid", np.array([-1, channels, rows, kh, columns, kw], np.int64))
        grid = edit.node("Reshape", f"{name}_patches", [image, shape])
        grid = edit.node("Transpose", f"{name}_patches_last", [grid], perm=[0, 2, 4, 1, 3, 5])
        flat_shape = edit.constant(f"{name}_tokens", np.array([-1, rows * columns, channels * kh * kw], np.int64))
        tokens = edit.node("Reshape", f"{name}_flat", [grid, flat_shape])
        matrix = np.ascontiguousarray(weight.reshape(outputs, -1).T)  # (C kh kw, O)
        product = edit.node("MatMul", f"{name}_matmul", [tokens, edit.constant(f"{name}_weight", matrix)])
        output = last.outputs[0]
        last.outputs.clear()
        if len(node.inputs) > 2:
            inputs = [product, edit.constant(f"{name}_bias", np.asarray(node.inputs[2].values))]
            graph.nodes.append(gs.Node("Add", edit.unique(f"{name}_add"), inputs=inputs, outputs=[output]))
        else:
            edit.redirect(output, product)
        count += 1
    return count


def _is_patchify(node: gs.Node) -> bool:
    weight, image = node.inputs[1], node.inputs[0]
    if (
        not isinstance(weight, gs.Constant)
        or len(weight.shape) != 4
        or image.shape is None
        or not is_static(image.shape[1:])
    ):
        return False
    if any(not isinstance(tensor, gs.Constant) for tensor in node.inputs[1:]):
        return False
    kernel = list(weight.shape[2:])
    return (
        list(node.attrs.get("strides", [1, 1])) == kernel
        and kernel != [1, 1]
        and not any(node.attrs.get("pads", [0]))
        and node.attrs.get("auto_pad", "NOTSET") in {"NOTSET", "VALID"}
        and all(step == 1 for step in node.attrs.get("dilations", [1]))
        and node.attrs.get("group", 1) == 1
        and all(size % k == 0 for size, k in zip(image.shape[2:], kernel, strict=True))
    )


def split_packed_linears(graph: gs.Graph) -> int:
    """pick_i(layout(x W + b)) -> layout_i(x W_i + b_i): a packed q, k, v projection becomes three.

    1. The linear's output is only read by one Reshape that splits its last axis, perhaps a Transpose, and picks of one
       index each along one of the new axes (Gather; Slice and Squeeze; Split and Squeeze); or by parts along its last axis.
    2. Each part's columns are the packed weight's, so the result is exact.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        linear = _linear_of(node, graph)
        if linear is None:
            continue
        parts = _picked_parts(linear[3], graph) or _sliced_parts(linear[3], graph)
        if parts:
            _write_parts(edit, node, linear, parts)
            count += 1
    return count


_Linear = tuple[gs.Tensor, np.ndarray, np.ndarray | None, gs.Tensor]  # x, W (I, O), b (O,), output
_Part = tuple[
    np.ndarray, list[int] | None, list[int] | None, gs.Tensor
]  # columns, reshape, permutation, replaced tensor


def _linear_of(node: gs.Node, graph: gs.Graph) -> _Linear | None:
    """MatMul with a constant (I, O) weight, together with the constant bias that follows it."""
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
            return node.inputs[0], weight, bias[1].values.reshape(-1), reader.outputs[0]
    return node.inputs[0], weight, None, output


def _picked_parts(output: gs.Tensor, graph: gs.Graph) -> list[_Part] | None:
    """Parts of ``Reshape [.., 3, H, D] -> (Transpose) -> one index of the axis of 3``."""
    split = only_reader(output, graph)
    if split is None or split.op != "Reshape" or output.shape is None or split.outputs[0].shape is None:
        return None
    shape, lead = list(split.outputs[0].shape), len(output.shape) - 1
    inner = shape[lead:]
    if len(inner) < 2 or not is_static(inner) or int(np.prod(inner)) != output.shape[-1]:
        return None
    if sum(not isinstance(size, int) for size in shape[:lead]) > 1 or not _same_lead(shape[:lead], output.shape[:-1]):
        return None
    tensor, perm = split.outputs[0], list(range(len(shape)))
    turn = only_reader(tensor, graph)
    if turn is not None and turn.op == "Transpose":
        tensor, perm = turn.outputs[0], list(turn.attrs["perm"])
    picks = _picks(tensor, graph)
    if not picks or len({axis for axis, _, _ in picks}) != 1:
        return None
    axis = perm[picks[0][0]]
    if axis < lead:
        return None  # rule 1: the picked axis must come from the weight's columns
    order = np.arange(int(np.prod(inner))).reshape(inner)
    target = [size if isinstance(size, int) else -1 for index, size in enumerate(shape) if index != axis]
    kept = [index - (index > axis) for index in perm if index != axis]
    return [
        (np.take(order, index, axis - lead).reshape(-1), target, None if kept == sorted(kept) else kept, picked)
        for _, index, picked in picks
    ]


def _same_lead(shape: Sequence[object], other: Sequence[object]) -> bool:
    """Whether leading dimensions agree; one unknown may hide behind another name, as the element count is the same."""
    return len(shape) == len(other) and sum(a != b for a, b in zip(shape, other, strict=True)) <= 1


def _picks(tensor: gs.Tensor, graph: gs.Graph) -> list[tuple[int, int, gs.Tensor]] | None:
    """(axis, index, result) of every reader of a tensor, when each takes one index of one axis; None otherwise."""
    if any(tensor is output for output in graph.outputs):
        return None
    picks: list[tuple[int, int, gs.Tensor]] = []
    for node in tensor.outputs:
        found = _picks_of(node, tensor, graph)
        if not found:
            return None
        picks.extend(found)
    return picks


def _picks_of(node: gs.Node, tensor: gs.Tensor, graph: gs.Graph) -> list[tuple[int, int, gs.Tensor]]:
    if tensor.shape is None:
        return []
    rank = len(tensor.shape)
    if node.op == "Gather" and isinstance(node.inputs[1], gs.Constant) and node.inputs[1].values.ndim == 0:
        axis = node.attrs.get("axis", 0) % rank
        size = tensor.shape[axis]
        index = int(node.inputs[1].values)
        return [(axis, index % size, node.outputs[0])] if isinstance(size, int) else []
    if node.op in {"Slice", "Split"}:
        found = []
        for axis, index, stop, part in _ranges(node, tensor):
            if stop - index != 1:
                return []
            squeeze = only_reader(part, graph)
            if squeeze is None or squeeze.op != "Squeeze" or _squeezed(squeeze) not in ([axis], [axis - rank]):
                return []
            found.append((axis, index, squeeze.outputs[0]))
        return found
    return []


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


def _sliced_parts(output: gs.Tensor, graph: gs.Graph) -> list[_Part] | None:
    """Parts of ``Split`` or ``Slice`` along the last axis of the linear's output."""
    if output.shape is None or any(output is kept for kept in graph.outputs) or not output.outputs:
        return None
    parts: list[_Part] = []
    for node in output.outputs:
        ranges = _ranges(node, output)
        if not ranges or any(axis != len(output.shape) - 1 for axis, _, _, _ in ranges):
            return None
        parts.extend((np.arange(start, stop), None, None, part) for _, start, stop, part in ranges)
    return parts


def _write_parts(edit: Editor, node: gs.Node, linear: _Linear, parts: list[_Part]) -> None:
    source, weight, bias, _ = linear
    for number, (columns, target, perm, replaced) in enumerate(parts):
        name = f"{node.name}_part{number}"
        matrix = edit.constant(f"{name}_weight", np.ascontiguousarray(weight[:, columns]))
        tensor = edit.node("MatMul", name, [source, matrix])
        if bias is not None:
            tensor = edit.node("Add", f"{name}_add", [tensor, edit.constant(f"{name}_bias", bias[columns])])
        if target is not None:
            shape = edit.constant(f"{name}_shape", np.array(target, np.int64))
            tensor = edit.node("Reshape", f"{name}_reshape", [tensor, shape])
        if perm is not None:
            tensor = edit.node("Transpose", f"{name}_transpose", [tensor], perm=perm)
        replaced.inputs.clear()
        edit.redirect(replaced, tensor)


# ----------------------------------------------------------------------------------------------------------- attention


def open_attention(graph: gs.Graph) -> int:
    """Attention(Q, K, V, mask) of opset 23 -> MatMul, Mul, (mask), Softmax, MatMul.

    1. No past, no second output, no soft cap, not causal; as many key heads as query heads. Others are left as they are.
    2. Three-dimensional inputs (B, T, H D) are split into heads first and joined afterwards.
    3. The scale is the attribute's, or 1 / sqrt(D).
    4. A row whose positions are all hidden gives zeros, where a Softmax alone gives NaN: a guard behind it sees to that.
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
        output = node.outputs[0]
        node.outputs.clear()
        edit.redirect(output, context)
        count += 1
    return count


def _masked(edit: Editor, name: str, scores: gs.Tensor, mask: gs.Tensor) -> tuple[gs.Tensor, bool]:
    """The scores behind a mask of booleans or of floats to add, and whether a whole row may be hidden."""
    if mask.dtype != np.bool_:
        return edit.node("Add", f"{name}_masked", [scores, mask]), _may_be_infinite(mask)
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
        if not _same_lead(list(before[:-2]), list(after[:-2])):
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
        output = node.outputs[0]
        node.outputs.clear()
        edit.redirect(output, source)
        count += 1
    return count


def _scalable(tensor: gs.Tensor, graph: gs.Graph, products: int) -> list[tuple[gs.Node, int]] | None:
    """The (node, input index) of the constants that scale ``tensor`` when they are scaled; None when there are none."""
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


PASSES: tuple[Pass, ...] = (
    fold_constants,
    static_reshapes,
    open_attention,
    remove_no_ops,
    remove_nan_guard,
    gemm_to_matmul,
    patch_convolution,
    split_packed_linears,
    merge_key_transpose,
    merge_transposes,
    merge_reshapes,
    fold_scalar_scales,
)
# Passes that make no tensor of unknown shape and change none: inference again would find what is there.
SHAPES_STAY_KNOWN = frozenset({remove_nan_guard, gemm_to_matmul, merge_transposes, merge_reshapes, fold_scalar_scales})
