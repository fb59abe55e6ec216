"""Einsum of two operands becomes a matrix product between transposes and reshapes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor


@dataclass(frozen=True, slots=True)
class _Equation:
    """The labels of an Einsum of two operands, one letter an axis.

    Attributes:
        left: labels of the first operand.
        right: labels of the second operand.
        result: labels of the result.
    """

    left: str
    right: str
    result: str

    @property
    def batch(self) -> str:
        """Labels in both operands and in the result, in the result's order."""
        return "".join(label for label in self.result if label in self.left and label in self.right)

    @property
    def summed(self) -> str:
        """Labels in both operands but not in the result, in the order of the left one."""
        return "".join(label for label in self.left if label in self.right and label not in self.result)

    def free(self, side: str) -> str:
        """Labels in only one operand, ``side``, and in the result, in the result's order."""
        other = self.right if side is self.left else self.left
        return "".join(label for label in self.result if label in side and label not in other)


@dataclass(frozen=True, slots=True)
class _Move:
    """A Transpose and a Reshape.

    Attributes:
        perm: of the Transpose; sorted means none.
        shape: target of the Reshape; empty means none.
        transpose_first: which of the two comes first.
    """

    perm: list[int]
    shape: list[int]
    transpose_first: bool


def open_einsum(graph: gs.Graph) -> int:
    """Einsum(x, y) -> Transpose, Reshape, MatMul, Reshape, Transpose; a constant operand comes to the right.

    1. Two operands of known rank; no label twice in one; every label of an operand is in the other or in the result, and
       something is summed over, not everything. An ellipsis stands for leading axes.
    2. Labels that are joined have sizes that a Reshape can state: at most one axis of a result is unknown. None is broadcast.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        if node.op != "Einsum" or len(node.inputs) != 2 or any(tensor.shape is None for tensor in node.inputs):
            continue
        equation = _parse(str(node.attrs["equation"]), [len(tensor.shape) for tensor in node.inputs])
        if equation is None:
            continue  # rule 1
        operands = list(node.inputs)
        if isinstance(operands[0], gs.Constant):
            operands.reverse()
            equation = _Equation(equation.right, equation.left, equation.result)
        moves = _moves(equation, operands)
        if moves is None:
            continue  # rule 2
        product = edit.node(
            "MatMul", f"{node.name}_product", [_moved(edit, x, m) for x, m in zip(operands, moves, strict=False)]
        )
        edit.replace(node, _moved(edit, product, moves[2]))
        count += 1
    return count


def _moves(equation: _Equation, operands: Sequence[gs.Tensor]) -> list[_Move] | None:
    """How the two operands become matrices, and their product the result; None where a Reshape would leave two sizes open."""
    lefts, rights = (
        dict(zip(labels, tensor.shape, strict=True))
        for labels, tensor in zip((equation.left, equation.right), operands, strict=True)
    )
    if any((lefts[label] == 1) != (rights[label] == 1) for label in lefts.keys() & rights.keys()):
        return None  # an operand is broadcast
    sizes = {**lefts, **rights}
    batch, summed = list(equation.batch), equation.summed
    rows, columns = equation.free(equation.left), equation.free(equation.right)
    # A product with a matrix of weights takes any number of row axes as they are.
    joined_rows = list(rows) if isinstance(operands[1], gs.Constant) and not batch else [rows]
    left, right, out = [*batch, *joined_rows, summed], [*batch, summed, columns], [*batch, *joined_rows, columns]
    shapes = [_target(sizes, parts) for parts in (left, right)]
    kept = next((index for index, part in enumerate(out) if len(part) != 1), len(out))  # axes that no join touches
    split = [] if kept == len(out) else _target(sizes, [*batch, *rows, *columns], kept)
    if split is None or shapes[0] is None or shapes[1] is None:
        return None
    order = [*batch, *rows, *columns]
    return [
        _Move(_perm(equation.left, "".join(left)), shapes[0], transpose_first=True),
        _Move(_perm(equation.right, "".join(right)), shapes[1], transpose_first=True),
        _Move(_perm("".join(order), equation.result), split, transpose_first=False),
    ]


def _perm(have: str, want: str) -> list[int]:
    return [have.index(label) for label in want]


def _moved(edit: Editor, tensor: gs.Tensor, move: _Move) -> gs.Tensor:
    """A tensor transposed and reshaped, in the order of the move."""
    for turn in (True, False) if move.transpose_first else (False, True):
        if turn and move.perm != sorted(move.perm):
            tensor = edit.node("Transpose", f"{tensor.name}_turned", [tensor], perm=move.perm)
        elif not turn and move.shape:
            shape = edit.constant(f"{tensor.name}_shape", np.array(move.shape, np.int64))
            tensor = edit.node("Reshape", f"{tensor.name}_joined", [tensor, shape])
    return tensor


def _parse(equation: str, ranks: Sequence[int]) -> _Equation | None:
    text = equation.replace(" ", "")
    operands, arrow, result = text.partition("->")
    sides = operands.split(",")
    if len(sides) != 2:
        return None
    if not arrow:  # implicit: the labels that appear once, in alphabetical order
        result = "".join(sorted(label for label in set(operands) - {",", "."} if operands.count(label) == 1))
        result = f"...{result}" if "..." in operands else result
    spare = [letter for letter in map(chr, range(0x391, 0x3A9)) if letter.isalpha()]  # no equation uses Greek letters
    width = max(
        (rank - len(side.replace("...", "")) for side, rank in zip(sides, ranks, strict=True) if "..." in side),
        default=0,
    )
    if width > len(spare):
        return None
    full = "".join(spare[:width])
    left, right = (
        side.replace("...", full[width - (rank - len(side.replace("...", ""))) :]) if "..." in side else side
        for side, rank in zip(sides, ranks, strict=True)
    )
    found = _Equation(left, right, result.replace("...", full))
    return found if _is_product(found, ranks) else None


def _is_product(equation: _Equation, ranks: Sequence[int]) -> bool:
    left, right, result = equation.left, equation.right, equation.result
    return (
        [len(left), len(right)] == list(ranks)
        and all(len(set(side)) == len(side) for side in (left, right, result))
        and set(result) <= set(left) | set(right)
        and set(left) <= set(right) | set(result)
        and set(right) <= set(left) | set(result)
        and bool(equation.summed)
        and bool(result)
    )


def _target(sizes: Mapping[str, object], parts: Sequence[str], kept: int | None = None) -> list[int] | None:
    """The Reshape target for axes that each join some labels; [] where no Reshape is needed; None where two sizes are open.

    The first axes, up to the first that joins (or ``kept``), stay where they are: an unknown size of theirs is copied.
    """
    joined = next((index for index, part in enumerate(parts) if len(part) != 1), len(parts))
    if kept is None and joined == len(parts):
        return []
    target = [_size([sizes.get(label) for label in part]) for part in parts]
    target = [
        0 if size == -1 and index < (joined if kept is None else kept) else size for index, size in enumerate(target)
    ]
    return target if target.count(-1) <= 1 else None


def _size(sizes: Sequence[object]) -> int:
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else -1
