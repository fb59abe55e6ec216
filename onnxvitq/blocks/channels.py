"""On which axis the channels of a tensor are after a node that only moves, picks or averages elements of its first input."""

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from onnxvitq.graph.query import integers

KEPT = frozenset({"Identity", "Cast", "Dropout"})
REGROUPED = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
REDUCED = frozenset({"ReduceMean", "ReduceSum"})
POOLED = frozenset({"AveragePool", "GlobalAveragePool"})
MOVES = KEPT | REGROUPED | REDUCED | POOLED | {"Slice", "Split", "Expand", "Gather", "Transpose"}


def axis_after(node: gs.Node, axis: int) -> int | None:
    """The axis of the outputs with the same elements, in the same order, as an axis of the first input.

    Args:
        node: its operator is one of ``MOVES``.
        axis: of the first input, counted from the front.

    Returns:
        The axis, counted from the front; None where the axis is cut or averaged, or where a shape is not known.
    """
    source, result = node.inputs[0].shape, node.outputs[0].shape
    if source is None or result is None:
        return None
    after: int | None = axis
    if node.op in POOLED:
        after = axis if axis == 1 else None
    elif node.op == "Expand":
        after = axis + len(result) - len(source) if source[axis] != 1 else None
    elif node.op == "Transpose":
        after = list(node.attrs.get("perm", range(len(source))[::-1])).index(axis)
    elif node.op in REGROUPED:
        after = _regrouped(source, result, axis)
    elif node.op not in KEPT:
        after = _beside(node, axis, len(result) - len(source))
    return after


def axis_before(node: gs.Node, axis: int) -> int | None:
    """The inverse of ``axis_after``: the axis of the first input that becomes axis ``axis`` of the outputs, or None."""
    rank = len(node.inputs[0].shape or ())
    return next((before for before in range(rank) if axis_after(node, before) == axis), None)


def _beside(node: gs.Node, axis: int, added: int) -> int | None:
    """The axis after a Slice, Split, Gather or reduction of other axes, which has ``added`` more axes behind it."""
    touched = _touched(node, len(node.inputs[0].shape))
    if touched is None or axis in touched:
        return None
    if node.op == "Gather":
        return axis if axis < touched[0] else axis + added
    return axis - (sum(other < axis for other in touched) if added else 0)


def _touched(node: gs.Node, rank: int) -> list[int] | None:
    """The axes that a Slice, Split, Gather or reduction works on; None where they are computed."""
    if node.op in {"Split", "Gather"}:
        axes: Sequence[int] | None = [node.attrs.get("axis", 0)]
    elif node.op == "Slice":
        axes = integers(node.inputs[3]) if len(node.inputs) > 3 else list(range(rank))
    elif "axes" in node.attrs:
        axes = node.attrs["axes"]
    else:
        axes = integers(node.inputs[1]) if len(node.inputs) > 1 else list(range(rank))
    return None if axes is None else [axis % rank for axis in axes]


def _regrouped(source: Sequence[object], result: Sequence[object], axis: int) -> int | None:
    """The axis of the same size with as many elements before it, or as many behind it."""
    for index, size in enumerate(result):
        if size == source[axis] and (
            _as_many(source[:axis], result[:index]) or _as_many(source[axis + 1 :], result[index + 1 :])
        ):
            return index
    return None


def _as_many(first: Sequence[object], second: Sequence[object]) -> bool:
    """Whether sizes multiply to the same number; a named size is equal only to itself."""
    products: list[tuple[int, list[str]]] = []
    for sizes in (first, second):
        number, names = 1, []
        for size in sizes:
            if isinstance(size, int):
                number *= size
            else:
                names.append(str(size))
        products.append((number, sorted(names)))
    return products[0] == products[1]
