"""Values of the integer arithmetic that exporters write to compute shapes, with names where a size is only known at run time.

onnx's own data propagation stops at Where, Equal and at a -1 inside a computed target; this does not. It knows the dozen
operators that appear in shape arithmetic; the value of any other is None, for not known.
"""

import math
import operator
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

Values = np.ndarray[Any, np.dtype[np.object_]]  # of int, or str for a size that has only a name
Evaluator = Callable[[gs.Node, list[Values]], Values | None]


class ShapeValues:
    """Evaluates the shape tensors of one graph, each once. The graph is never changed."""

    def __init__(self) -> None:
        self._known: dict[str, Values | None] = {}

    def of(self, tensor: gs.Tensor) -> Values | None:
        """The elements of an integer tensor: numbers, or names of unknown sizes; None where they are not known."""
        if isinstance(tensor, gs.Constant):
            if int(np.prod(tensor.shape)) > 64:
                return None
            return np.asarray(tensor.values).astype(object)
        if tensor.name not in self._known:
            # A cycle cannot occur in a valid graph; this ends the search in a broken one.
            self._known[tensor.name] = None
            self._known[tensor.name] = self._computed(tensor)
        return self._known[tensor.name]

    def _computed(self, tensor: gs.Tensor) -> Values | None:
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None:
            return None
        if node.op == "Shape":
            return _shape(node)
        if node.op not in EVALUATORS:
            return None
        inputs = [value for value in map(self.of, node.inputs) if value is not None]
        return EVALUATORS[node.op](node, inputs) if len(inputs) == len(node.inputs) else None


def _numbers(values: Values) -> bool:
    """Whether every element is a number, none only a name."""
    return all(isinstance(value, int) for value in values.reshape(-1))


def _shape(node: gs.Node) -> Values | None:
    shape = node.inputs[0].shape
    if shape is None:
        return None
    asked = list(shape)[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))]
    return None if any(size is None for size in asked) else np.array(asked, object)


def _gather(node: gs.Node, inputs: list[Values]) -> Values | None:
    data, index = inputs
    if data.ndim != 1 or not _numbers(index) or node.attrs.get("axis", 0) not in (0, -1):
        return None
    return np.array(data[index.astype(int)], object)


def _slice(node: gs.Node, inputs: list[Values]) -> Values | None:
    del node
    if inputs[0].ndim != 1 or not all(map(_numbers, inputs[1:])):
        return None
    bounds = [int(value.reshape(-1)[0]) for value in inputs[1:]]
    step = bounds[3] if len(bounds) > 3 else 1
    return inputs[0][slice(bounds[0], bounds[1] if abs(bounds[1]) < 2**31 else None, step)]


def _concat(node: gs.Node, inputs: list[Values]) -> Values | None:
    del node
    return np.concatenate(inputs) if all(value.ndim == 1 for value in inputs) else None


def _reshaped(node: gs.Node, inputs: list[Values]) -> Values | None:
    """Unsqueeze, Squeeze, Reshape and Cast of a scalar or a vector: the same values, scalar or vector as the rank says."""
    value, rank = inputs[0], node.outputs[0].shape
    if rank is None or len(rank) > 1:
        return value if node.op == "Cast" else None
    return value.reshape(()) if len(rank) == 0 and value.size == 1 else value.reshape(-1)


def _where(node: gs.Node, inputs: list[Values]) -> Values | None:
    del node
    condition, left, right = np.broadcast_arrays(*inputs)
    if not all(isinstance(flag, bool) for flag in condition.reshape(-1)):
        return None
    return np.where(condition.astype(bool), left, right)


def _equal(node: gs.Node, inputs: list[Values]) -> Values | None:
    """A named size is a size, so it differs from any negative number; whether it equals a positive one is unknown."""
    del node
    left, right = np.broadcast_arrays(*inputs)
    flags = [_same(a, b) for a, b in zip(left.reshape(-1), right.reshape(-1), strict=True)]
    return np.array(flags, object).reshape(left.shape)


def _same(a: int | str, b: int | str) -> bool | None:
    if isinstance(a, str) == isinstance(b, str):
        return a == b if isinstance(a, int) or a == b else None
    number = a if isinstance(a, int) else b
    return False if isinstance(number, int) and number < 0 else None


def _arithmetic(node: gs.Node, inputs: list[Values]) -> Values | None:
    a, b = inputs
    integers = np.issubdtype(node.outputs[0].dtype, np.integer) and _numbers(a) and _numbers(b)
    if not integers or (node.op == "Div" and 0 in b):
        return None
    return np.asarray(ARITHMETIC[node.op](a, b), object)


def _divided(a: Values, b: Values) -> Values:
    """Integer division as ONNX has it, towards zero; Python's goes down."""
    quotient = abs(a) // abs(b)
    return np.where((a < 0) == (b < 0), quotient, -quotient)


def _filled(node: gs.Node, inputs: list[Values]) -> Values | None:
    fill = node.attrs.get("value")
    if not _numbers(inputs[0]) or fill is None or not np.issubdtype(fill.dtype, np.integer):
        return None
    return np.full([int(size) for size in inputs[0]], int(fill.values.reshape(-1)[0]), object)


ARITHMETIC: dict[str, Callable[[Values, Values], Values]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": _divided,
}
EVALUATORS: dict[str, Evaluator] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _reshaped,
    "Squeeze": _reshaped,
    "Reshape": _reshaped,
    "Cast": _reshaped,
    "Where": _where,
    "Equal": _equal,
    **dict.fromkeys(ARITHMETIC, _arithmetic),
    "ConstantOfShape": _filled,
}


def computed_shapes(graph: gs.Graph, known: Collection[str]) -> dict[str, list[int | str]]:
    """Shapes of the results of Reshapes whose target is computed, as far as the target's values are known.

    Args:
        graph: sorted.
        known: names of the tensors whose shapes need not be found.

    Returns:
        Tensor name -> shape. A -1, or an element that is not known, becomes a size with a name of its own.
    """
    values, found = ShapeValues(), {}
    for node in graph.nodes:
        if node.op != "Reshape" or node.outputs[0].name in known:
            continue
        name, target, source = node.outputs[0].name, values.of(node.inputs[1]), node.inputs[0].shape or []
        if target is not None and target.ndim == 1:
            copied = [source[i] if size == 0 and i < len(source) else size for i, size in enumerate(target)]
            found[name] = [
                f"{name}.{axis}" if not isinstance(size, int | str) or size in (0, -1) else size
                for axis, size in enumerate(copied)
            ]
    return found


TIMES = " times "  # of no exporter's own names
BROADCAST_OPS = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Pow", "MatMul"})


def unify_names(graph: gs.Graph) -> None:
    """Give one unknown size one name throughout a sorted graph, where shape inference invented a new name for it.

    1. Reshape to a constant target with one -1, of a tensor with one unknown size: the same size when the known sizes have
       the same product; else that many times the size, where rows are joined, and the size again where they are split.
    2. Expand of a size of 1 to a computed shape: that shape's name.
    3. Tile of a size once, or of a size of 1: the size, or the number of times.
    4. Broadcasting: an unknown size whose operands' sizes all have one name (or are 1).

    Only shape annotations change.
    """
    renamed: dict[str, int | str] = {}
    values = ShapeValues()
    for node in graph.nodes:
        output = node.outputs[0] if node.outputs else None
        if output is None or output.shape is None or not isinstance(output, gs.Variable):
            continue
        output.shape = [renamed.get(size, size) if isinstance(size, str) else size for size in output.shape]
        for position, size in enumerate(output.shape):
            known = _known_name(node, position, values) if isinstance(size, str) else None
            if known is not None and known != size:
                output.shape[position] = renamed[size] = known


def _known_name(node: gs.Node, position: int, values: ShapeValues) -> str | int | None:
    """The name or number of the size at ``position`` of a node's output; None where it is not known by another name."""
    if node.op == "Reshape":
        return _kept_name(node, position, values)
    if node.op == "Expand":
        return _expanded_name(node, position, values)
    if node.op == "Tile":
        return _tiled_name(node, position, values)
    return _shared_name(node, position) if node.op in BROADCAST_OPS else None


def _kept_name(node: gs.Node, position: int, values: ShapeValues) -> str | None:
    source, target = node.inputs[0].shape, values.of(node.inputs[1])
    if source is None or target is None or target.size <= position or target[position] != -1:
        return None
    unknown = [size for size in source if isinstance(size, str)]
    known = [size for size in target.reshape(-1) if isinstance(size, int) and size != -1]
    others = [size for size in source if isinstance(size, int)]
    if len(unknown) != 1 or len(others) != len(source) - 1 or len(known) != target.size - 1 or 0 in known:
        return None
    size, times = multiple(unknown[0])
    have, asked = times * math.prod(others), math.prod(known)
    if have % asked:
        return None
    return size if have == asked else f"{size}{TIMES}{have // asked}"


def multiple(name: str) -> tuple[str, int]:
    """(size, times) of a name that ``unify_names`` gave to joined rows; (name, 1) of any other name."""
    size, _, times = name.rpartition(TIMES)
    return (size, int(times)) if size and times.isdigit() else (name, 1)


def _expanded_name(node: gs.Node, position: int, values: ShapeValues) -> str | int | None:
    source, target, rank = node.inputs[0].shape, values.of(node.inputs[1]), len(node.outputs[0].shape)
    if source is None or target is None or target.size != rank:
        return None
    behind = [1] * (rank - len(source)) + list(source)  # the shape before, with the rank of the result
    return target[position] if behind[position] == 1 else None


def _tiled_name(node: gs.Node, position: int, values: ShapeValues) -> str | int | None:
    source, repeats = node.inputs[0].shape, values.of(node.inputs[1])
    if source is None or repeats is None or repeats.size != len(source):
        return None
    if repeats[position] == 1:
        return source[position]
    return repeats[position] if source[position] == 1 else None


def _shared_name(node: gs.Node, position: int) -> str | int | None:
    from_end = len(node.outputs[0].shape) - position
    if node.op == "MatMul" and from_end <= 2:
        return None
    shapes = [list(tensor.shape) for tensor in node.inputs if tensor.shape is not None]
    sizes = {shape[-from_end] for shape in shapes if len(shape) >= from_end} - {1}
    return sizes.pop() if len(sizes) == 1 and len(shapes) == len(node.inputs) else None


def resolve_reshape(target: Values, source: list[int | str | None]) -> list[int] | None:
    """A constant Reshape target with at most one -1 that does the same as a computed target; None where there is none.

    1. Known sizes stay, a zero copies the source's size, one unknown becomes -1.
    2. With a literal -1 beside one named size, the literal is computed from the element count when the source has exactly
       that one unknown size.
    """
    sizes: list[int | str | None] = [
        source[index] if size == 0 and index < len(source) else size for index, size in enumerate(target.reshape(-1))
    ]
    named = [index for index, size in enumerate(sizes) if not isinstance(size, int)]
    literal = [index for index, size in enumerate(sizes) if size == -1]
    if len(named) + len(literal) <= 1:
        return [size if isinstance(size, int) else -1 for size in sizes]  # rule 1
    unknown = [size for size in source if not isinstance(size, int)]
    if len(named) != 1 or len(literal) != 1 or unknown != [sizes[named[0]]] or unknown == [None]:
        return None
    have = int(np.prod([size for size in source if isinstance(size, int)]))
    asked = int(np.prod([size for size in sizes if isinstance(size, int) and size != -1]))
    if asked == 0 or have % asked:
        return None
    sizes[literal[0]] = have // asked  # rule 2
    return [size if isinstance(size, int) else -1 for size in sizes]
