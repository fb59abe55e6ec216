"""The algebra of Reshape and Transpose, against numpy: random chains, and what can and cannot be followed."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from onnxvitq.graph.axes import AxisMap, Move, Size

Array = np.ndarray[Any, np.dtype[np.int64]]
SIZES = {"N": 7, "T": 5}  # primes that no known size has as a factor
OTHER_SIZES = {"N": 1, "T": 3}
CHAINS = 600


def numbered(shape: Sequence[Size], sizes: dict[str, int]) -> Array:
    """A tensor whose elements all differ: where each comes from can be read off."""
    known = [sizes[size] if isinstance(size, str) else size for size in shape]
    return np.arange(math.prod(known)).reshape(known)


def run_moves(moves: Sequence[Move], array: Array) -> Array:
    for move in moves:
        if move.op == "Transpose":
            array = array.transpose(move.values)
        else:
            assert sum(size == -1 for size in move.values) <= 1
            array = array.reshape([array.shape[i] if size == 0 else size for i, size in enumerate(move.values)])
    return array


def follow(axes: AxisMap, chain: Sequence[Move]) -> bool:
    return all(axes.transpose(m.values) if m.op == "Transpose" else axes.reshape(m.values) for m in chain)


def regrouped(shape: Sequence[Size], rng: np.random.Generator) -> tuple[list[Size], Move] | None:
    """A random step from a shape to another of the same elements in the same order, with its target; None: not to be said."""
    parts: list[tuple[Size, int | None]] = [(size, index) for index, size in enumerate(shape)]  # (size, axis it was)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(parts))) if parts else 0
        size = parts[at][0] if parts else 1
        match rng.integers(4):
            case 0:
                parts.insert(at, (1, None))
            case 1 if size == 1 and parts:
                del parts[at]
            case 2 if at + 1 < len(parts):
                joined = [parts[at][0], parts[at + 1][0]]
                numbers = [one for one in joined if isinstance(one, int)]
                # A name that stands for more than one size alone: none of the shapes' own, so never copied or cut.
                size = math.prod(numbers) if len(numbers) == 2 else "*".join(map(str, joined))
                parts[at : at + 2] = [(size, None)]
            case 3 if isinstance(size, int) and size > 1:
                factor = int(rng.choice([n for n in range(1, size + 1) if size % n == 0]))
                parts[at : at + 1] = [(factor, None), (size // factor, None)]
    target = [
        0 if was == index and rng.random() < 0.3 else -1 if isinstance(size, str) else size
        for index, (size, was) in enumerate(parts)
    ]
    if target.count(-1) > 1:
        return None
    if -1 not in target and 0 not in target and target and rng.random() < 0.3:
        target[int(rng.integers(len(target)))] = -1
    return [size for size, _ in parts], Move("Reshape", tuple(target))


def random_chain(start: Sequence[Size], rng: np.random.Generator) -> list[Move]:
    shape, chain = list(start), []
    for _ in range(rng.integers(1, 9)):
        if rng.random() < 0.5:
            perm = [int(axis) for axis in rng.permutation(len(shape))]
            shape = [shape[axis] for axis in perm]
            chain.append(Move("Transpose", tuple(perm)))
        elif (found := regrouped(shape, rng)) is not None:
            shape = found[0]
            chain.append(found[1])
    return chain


def random_shape(rng: np.random.Generator, names: Sequence[str]) -> list[Size]:
    shape: list[Size] = [int(size) for size in rng.choice([1, 2, 3, 4, 6, 8, 12], rng.integers(1, 5))]
    for name in names:
        shape.insert(int(rng.integers(len(shape) + 1)), name)
    return shape


def fewest(source: Array, result: Array) -> int:
    """How many moves the shortest chain needs, by trying all of one and two; a Reshape keeps the order of the elements."""

    def turned(array: Array, other: Array) -> bool:
        return any(
            np.array_equal(array.transpose(perm).reshape(-1), other.reshape(-1))
            for perm in itertools.permutations(range(array.ndim))
        )

    if source.shape == result.shape and np.array_equal(source, result):
        return 0
    same_order = np.array_equal(source.reshape(-1), result.reshape(-1))
    perms = itertools.permutations(range(source.ndim)) if source.ndim == result.ndim else ()
    if same_order or any(np.array_equal(source.transpose(perm), result) for perm in perms):
        return 1
    return 2 if turned(source, result) or turned(result, source) else 3


@pytest.mark.parametrize("names", [(), ("N",), ("N", "T")], ids=["known sizes", "one name", "two names"])
def test_a_random_chain_and_its_shortest_do_the_same(names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(len(names))
    lengths = []
    for _ in range(CHAINS):
        start = random_shape(rng, names)
        chain, axes = random_chain(start, rng), AxisMap(start)
        if not follow(axes, chain):
            continue
        moves = axes.moves()
        if moves is None:
            assert len(names) == 2
            continue
        lengths.append(len(moves))
        assert len(moves) <= min(3, len(chain)), (start, chain)
        for sizes in (SIZES, OTHER_SIZES):
            array = numbered(start, sizes)
            expected = run_moves(chain, array)
            got = run_moves(moves, array)
            assert got.shape == expected.shape, (start, chain, moves)
            assert np.array_equal(got, expected), (start, chain, moves)
    assert len(lengths) > CHAINS / 4
    assert set(lengths) == {0, 1, 2, 3}


def test_no_shorter_chain_does_the_same() -> None:
    rng = np.random.default_rng(3)
    for _ in range(CHAINS):
        start = random_shape(rng, ())
        chain, axes = random_chain(start, rng), AxisMap(start)
        if follow(axes, chain):
            moves = axes.moves()
            assert moves is not None
            array = numbered(start, {})
            assert len(moves) == fewest(array, run_moves(chain, array)), (start, chain, moves)


def moved(start: Sequence[Size], *chain: Move) -> list[Move] | None:
    axes = AxisMap(start)
    assert follow(axes, chain)
    return axes.moves()


def turn(*perm: int) -> Move:
    return Move("Transpose", perm)


def shape(*target: int) -> Move:
    return Move("Reshape", target)


@pytest.mark.parametrize(
    ("start", "chain", "expected"),
    [
        ([2, 3], [], []),
        ([2, 3], [turn(1, 0), turn(1, 0)], []),
        (["N", 6], [shape(0, 2, 3), shape(-1, 6)], []),
        (["N", 2, 5, 4], [shape(-1, 5, 4), turn(0, 2, 1), shape(-1, 2, 4, 5)], [turn(0, 1, 3, 2)]),
        (["N", 8, 3, 4], [turn(0, 2, 3, 1), shape(-1, 12, 8), turn(0, 2, 1)], [shape(-1, 8, 12)]),
        (["N", "T", 8], [shape(0, 0, 2, 4), turn(0, 2, 1, 3), turn(0, 2, 1, 3)], [shape(0, 0, 2, 4)]),
        ([2, 4, "N", "T"], [turn(2, 3, 0, 1), shape(0, 0, 8), turn(0, 2, 1)], [turn(2, 0, 1, 3), shape(0, 8, -1)]),
        ([1, 6], [turn(1, 0)], [shape(6, 1)]),
        ([8], [shape(2, 2, 2), turn(2, 0, 1), shape(4, 2), shape(2, 2, 2)], [shape(2, 2, 2), turn(2, 0, 1)]),
        ([2, "N"], [shape(2, -1, 1), turn(1, 2, 0)], [turn(1, 0), shape(-1, 1, 2)]),
        (
            ["N", 4, 4, 6],
            [shape(-1, 2, 2, 2, 2, 6), turn(0, 1, 3, 2, 4, 5), shape(-1, 2, 2, 6)],
            [shape(-1, 2, 2, 12), turn(0, 2, 1, 3), shape(-1, 2, 2, 6)],
        ),
    ],
)
def test_shortest_chains(start: list[Size], chain: list[Move], expected: list[Move]) -> None:
    assert moved(start, *chain) == expected


@pytest.mark.parametrize(
    ("start", "target"),
    [
        ([4, 6], [3, 8]),  # 3 tears the 4
        ([4, 6], [-1, 9]),
        (["N", 4], [2, -1]),  # a name is never cut
        (["N", 4], [-1, 8]),
        (["N", 4], [6, 4]),  # nor taken for a number
        (["N", 6, 4], [-1, 0, 4]),  # a copied size behind -1 is not looked for
        ([4, 6], [2, 0, 2]),  # copied, but not next
        ([4, 6], [4, 6, 0]),  # copied from nowhere
        ([4, 6], [4, 3]),  # elements are left
        ([4, 6], [4, 6, 2]),  # and missing
        ([0, 6], [2, -1]),  # nothing to cut
    ],
)
def test_a_target_that_cannot_be_followed(start: list[Size], target: list[int]) -> None:
    assert not AxisMap(start).reshape(target)


@pytest.mark.parametrize("perm", [(0,), (0, 0), (0, 2), (0, 1, 2)])
def test_an_order_of_other_axes_cannot_be_followed(perm: tuple[int, ...]) -> None:
    assert not AxisMap([2, "N"]).transpose(perm)


def test_axes_of_one_stand_anywhere() -> None:
    assert AxisMap([4, 1, 6]).reshape([1, 4, 6, 1])
    assert moved([4, 1, 6], turn(1, 0, 2), shape(4, 6)) == [shape(4, 6)]


def test_two_sizes_that_would_be_left_open_make_no_chain() -> None:
    # (2, 4, N, T) -> (8, N, T): neither N nor T is at its place, so neither can be copied.
    assert moved([2, 4, "N", "T"], turn(2, 3, 0, 1), shape(0, 0, 8), turn(2, 0, 1)) is None
