"""The algebra of Reshape and Transpose: how a chain of them orders the elements, however it is written.

A tensor's axes are cut into *atoms*, the finest factors that a chain moves separately. A Transpose moves groups of atoms, a
Reshape groups them anew and may cut one. The whole chain is then the order in which the source's atoms come out, and how
they are grouped; at most Reshape, Transpose, Reshape do the same. Axes of size 1 hold no atom.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Size = int | str  # a name stands for a size that is only known at run time; it is never cut


@dataclass(frozen=True, slots=True)
class Move:
    """One node of the shortest chain.

    Attributes:
        op: "Reshape" or "Transpose".
        values: target of the Reshape (at most one -1; 0 copies a size), or permutation of the Transpose.
    """

    op: str
    values: tuple[int, ...]


class _Atom:
    """A factor of an axis; two atoms of the same size are different atoms."""

    __slots__ = ("size",)

    def __init__(self, size: Size) -> None:
        self.size = size


class AxisMap:
    """Follows one tensor through Reshapes and Transposes.

    Args:
        shape: of the tensor; a string is a size that is only known at run time.
    """

    def __init__(self, shape: Sequence[Size]) -> None:
        self._source: list[list[_Atom]] = [[] if size == 1 else [_Atom(size)] for size in shape]
        self._groups = [list(group) for group in self._source]

    def transpose(self, perm: Sequence[int]) -> bool:
        """Follow a Transpose: axis i of the result is axis perm[i]. False where ``perm`` is no permutation of the axes."""
        if sorted(perm) != list(range(len(self._groups))):
            return False
        self._groups = [self._groups[axis] for axis in perm]
        return True

    def reshape(self, target: Sequence[int]) -> bool:
        """Follow a Reshape to a constant target, in which -1 takes what is left and 0 copies the axis at its place.

        False where the target cannot be followed: it cuts a size that is only known at run time.
        """
        middle = next((index for index, size in enumerate(target) if size == -1), len(target))
        atoms = [atom for group in self._groups for atom in group]
        front: list[list[_Atom]] = []
        for index, size in enumerate(target[:middle]):
            taken = self._copied(index, atoms) if size == 0 else self._take(size, atoms)
            if taken is None:
                return False
            front.append(taken)
        if middle == len(target):
            self._groups = front
            return not atoms
        back: list[list[_Atom]] = []
        for size in reversed(target[middle + 1 :]):
            taken = None if size <= 0 else self._take(size, atoms, from_end=True)
            if taken is None:
                return False
            back.insert(0, taken)
        self._groups = [*front, atoms, *back]
        return True

    def _copied(self, index: int, atoms: list[_Atom]) -> list[_Atom] | None:
        """The atoms of the axis at ``index``, if they are next; they are taken off ``atoms``."""
        group = self._groups[index] if index < len(self._groups) else None
        if group is None or atoms[: len(group)] != group:
            return None
        del atoms[: len(group)]
        return list(group)

    def _take(self, size: int, atoms: list[_Atom], *, from_end: bool = False) -> list[_Atom] | None:
        """Atoms whose product is ``size``, taken off one end of ``atoms``; the last one is cut where it must be."""
        taken: list[_Atom] = []
        while size != 1:
            if not atoms:
                return None
            atom = atoms.pop(-1 if from_end else 0)
            if isinstance(atom.size, str) or atom.size == 0:
                return None
            if size % atom.size:
                if atom.size % size:
                    return None
                inner, outer = self._cut(atom, size, from_end=from_end)
                atoms.insert(len(atoms) if from_end else 0, outer)
                atom = inner
            size //= int(atom.size)
            taken.insert(0 if from_end else len(taken), atom)
        return taken

    def _cut(self, atom: _Atom, size: int, *, from_end: bool) -> tuple[_Atom, _Atom]:
        """Cut an atom in two, wherever it stands: (atom of ``size``, the rest)."""
        assert isinstance(atom.size, int)
        part, rest = _Atom(size), _Atom(atom.size // size)
        pair = [rest, part] if from_end else [part, rest]
        for groups in (self._source, self._groups):
            for group in groups:
                if atom in group:
                    place = group.index(atom)
                    group[place : place + 1] = pair
        return part, rest

    def moves(self) -> list[Move] | None:
        """The shortest chain that does the same; None where one of its Reshapes would leave two sizes open."""
        source = [atom for group in self._source for atom in group]
        order = [atom for group in self._groups for atom in group]
        if order == source:
            return self._reshape(self._source, self._groups)
        chains = (self._by_axes(), self._by_groups(source), self._by_blocks(source, order))
        return min((chain for chain in chains if chain is not None), key=len, default=None)

    def _by_axes(self) -> list[Move] | None:
        """Transpose of the source's own axes, then a Reshape where that is not all."""
        order = [atom for group in self._groups for atom in group]
        place = {atom: index for index, atom in enumerate(order)}
        empty = [axis for axis, group in enumerate(self._source) if not group]
        full = sorted(
            (axis for axis, group in enumerate(self._source) if group), key=lambda a: place[self._source[a][0]]
        )
        if [atom for axis in full for atom in self._source[axis]] != order:
            return None  # an axis of the source is torn apart
        perm: list[int] = []
        ahead = 0  # atoms of axes already placed that belong to later groups
        for group in self._groups:
            if not group and empty:  # axes of size 1 go where the result has some
                perm.append(empty.pop(0))
            while ahead < len(group):
                perm.append(full.pop(0))
                ahead += len(self._source[perm[-1]])
            ahead -= len(group)
        perm += [*full, *empty]
        last = self._reshape([self._source[axis] for axis in perm], self._groups)
        return None if last is None else [Move("Transpose", tuple(perm)), *last]

    def _by_groups(self, source: list[_Atom]) -> list[Move] | None:
        """Reshape to the result's own axes, then a Transpose."""
        place = {atom: index for index, atom in enumerate(source)}
        empty = len(source)  # axes of size 1 go last
        axes = sorted(range(len(self._groups)), key=lambda a: place[self._groups[a][0]] if self._groups[a] else empty)
        before = [self._groups[axis] for axis in axes]
        if [atom for group in before for atom in group] != source:
            return None  # an axis of the result is put together from several places
        first = self._reshape(self._source, before)
        perm = tuple(axes.index(axis) for axis in range(len(axes)))
        return None if first is None else [*first, Move("Transpose", perm)]

    def _by_blocks(self, source: list[_Atom], order: list[_Atom]) -> list[Move] | None:
        """Reshape to the largest blocks that stay together, Transpose, Reshape."""
        place = {atom: index for index, atom in enumerate(source)}
        blocks: list[list[_Atom]] = []
        for atom in order:
            if blocks and place[blocks[-1][-1]] + 1 == place[atom]:
                blocks[-1].append(atom)
            else:
                blocks.append([atom])
        before = sorted(blocks, key=lambda block: place[block[0]])
        perm = tuple(before.index(block) for block in blocks)
        first, last = self._reshape(self._source, before), self._reshape(blocks, self._groups)
        return None if first is None or last is None else [*first, Move("Transpose", perm), *last]

    @staticmethod
    def _reshape(have: list[list[_Atom]], want: list[list[_Atom]]) -> list[Move] | None:
        """The Reshape between two groupings of one order of atoms: no move when they are the same."""
        if have == want:
            return []
        target = [_product(group) for group in want]
        if target.count(None) > 1:
            target = [
                0 if size is None and index < len(have) and have[index] == want[index] else size
                for index, size in enumerate(target)
            ]
        if target.count(None) > 1:
            return None
        return [Move("Reshape", tuple(-1 if size is None else size for size in target))]


def _product(group: Sequence[_Atom]) -> int | None:
    sizes = [atom.size for atom in group]
    return (
        None
        if any(isinstance(size, str) for size in sizes)
        else math.prod(size for size in sizes if isinstance(size, int))
    )
