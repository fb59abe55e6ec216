"""Patterns over an ONNX graph, as frozen data, and the one function that matches them.

A pattern is matched against a *tensor*: ``Op`` demands that a node of that kind produced it. Matching walks from outputs
to inputs, never changes the graph and holds no state. It backtracks: of all ways a pattern can fit, the first complete one
wins. When none fits, the result is a ``Miss`` with the reason at the deepest point that was reached, because "why was my
attention not found?" is the question users ask.

Why not ``onnx_graphsurgeon.GraphPattern``: it is positional (``Add(a, b)`` does not match ``Add(b, a)``), knows no
alternatives and no optional nodes, and does not say why it failed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

COMMUTATIVE = frozenset({"Add", "Mul"})


@dataclass(frozen=True, slots=True)
class Var:
    """Any tensor that is computed at run time (an activation).

    Attributes:
        name: under which the match has the tensor; where a name occurs twice, it must be the same tensor.
    """

    name: str


@dataclass(frozen=True, slots=True)
class Const:
    """A constant tensor.

    Attributes:
        name: under which the match has the tensor.
        value: if given, the constant is a scalar equal to it within one part in 10,000: exporters write sqrt(2) with 5 to 10
            digits.
        rank: if given, the constant has so many dimensions.
    """

    name: str
    value: float | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Op:
    """A node that computes the tensor.

    Attributes:
        kinds: its operator, or several of which it has one.
        inputs: patterns of its first inputs; those of Add and Mul match in either order. Further inputs are not looked at.
        name: under which the match has the node; "" for none.
    """

    kinds: str | tuple[str, ...]
    inputs: tuple["Pattern", ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Through:
    """A chain of zero or more nodes between the tensor and another pattern. Every tensor is tried once, nearest first.

    Attributes:
        kinds: operators of the nodes of the chain.
        then: pattern of the tensor at the chain's other end.
        name: under which the match has the nodes of the chain, the last to run first; "" for none.
        mixing: whether products with a constant matrix belong to the chain as well (talking heads).
    """

    kinds: frozenset[str]
    then: "Pattern"
    name: str = ""
    mixing: bool = False


@dataclass(frozen=True, slots=True)
class OneOf:
    """The first of several patterns that leads to a complete match.

    Attributes:
        options: (label, pattern), in the order in which they are tried.
        tag: under which the match has the label.
    """

    options: tuple[tuple[str, "Pattern"], ...]
    tag: str = ""


Pattern = Var | Const | Op | Through | OneOf


@dataclass(frozen=True, slots=True)
class Match:
    """The tensors and nodes that a pattern stands for in a graph, by the names in the pattern.

    Attributes:
        tensors: of ``Var`` and ``Const``.
        nodes: of ``Op``.
        runs: chains of nodes, of ``Through``.
        tags: labels of the alternatives taken, of ``OneOf``.
    """

    tensors: Mapping[str, gs.Tensor] = field(default_factory=dict)
    nodes: Mapping[str, gs.Node] = field(default_factory=dict)
    runs: Mapping[str, tuple[gs.Node, ...]] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a pattern did not match.

    Attributes:
        reason: expected and actual node or tensor at the deepest point that was reached.
        depth: number of nodes matched on the way there.
    """

    reason: str
    depth: int


class _Deepest:
    """Keeps the reason at the deepest point of one search."""

    def __init__(self) -> None:
        self.miss = Miss("nothing to match", -1)

    def note(self, reason: str, depth: int) -> None:
        if depth > self.miss.depth:
            self.miss = Miss(reason, depth)


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes a tensor; None for graph inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def match(pattern: Pattern, tensor: gs.Tensor) -> Match | Miss:
    """The first way in which a pattern fits the subgraph that ends in ``tensor``, or the reason why there is none."""
    deepest = _Deepest()
    found = next(_match(pattern, tensor, Match(), deepest, 0), None)
    return deepest.miss if found is None else found


def _match(pattern: Pattern, tensor: gs.Tensor, so_far: Match, deepest: _Deepest, depth: int) -> Iterator[Match]:
    match pattern:
        case Var():
            yield from _match_var(pattern, tensor, so_far, deepest, depth)
        case Const():
            yield from _match_const(pattern, tensor, so_far, deepest, depth)
        case Op():
            yield from _match_op(pattern, tensor, so_far, deepest, depth)
        case Through():
            yield from _match_through(pattern, tensor, so_far, deepest, depth)
        case OneOf():
            for label, option in pattern.options:
                for found in _match(option, tensor, so_far, deepest, depth):
                    yield Match(found.tensors, found.nodes, found.runs, {**found.tags, pattern.tag: label})


def _bind(so_far: Match, name: str, tensor: gs.Tensor) -> Match | None:
    """``so_far`` with one more tensor; None where the name stands for another tensor already."""
    known = so_far.tensors.get(name)
    if known is not None:
        return so_far if known is tensor else None
    return Match({**so_far.tensors, name: tensor}, so_far.nodes, so_far.runs, so_far.tags)


def _match_var(pattern: Var, tensor: gs.Tensor, so_far: Match, deepest: _Deepest, depth: int) -> Iterator[Match]:
    if isinstance(tensor, gs.Constant):
        deepest.note(f"{tensor.name}: expected a computed tensor, got a constant", depth)
        return
    bound = _bind(so_far, pattern.name, tensor)
    if bound is None:
        deepest.note(f"{tensor.name}: expected the same tensor as {pattern.name!r} elsewhere in the pattern", depth)
        return
    yield bound


def _match_const(pattern: Const, tensor: gs.Tensor, so_far: Match, deepest: _Deepest, depth: int) -> Iterator[Match]:
    if not isinstance(tensor, gs.Constant):
        deepest.note(f"{tensor.name}: expected a constant, got a computed tensor", depth)
        return
    if pattern.rank is not None and len(tensor.shape) != pattern.rank:
        deepest.note(
            f"{tensor.name}: expected a constant of rank {pattern.rank}, got shape {list(tensor.shape)}", depth
        )
        return
    if pattern.value is not None and not _is_scalar(tensor, pattern.value):
        deepest.note(f"{tensor.name}: expected the constant {pattern.value:.5g}", depth)
        return
    bound = _bind(so_far, pattern.name, tensor)
    if bound is not None:
        yield bound


def _is_scalar(tensor: gs.Constant, value: float) -> bool:
    if int(np.prod(tensor.shape)) != 1:
        return False
    return abs(float(tensor.values.reshape(())) - value) <= 1e-4 * abs(value)


def _match_op(pattern: Op, tensor: gs.Tensor, so_far: Match, deepest: _Deepest, depth: int) -> Iterator[Match]:
    kinds = (pattern.kinds,) if isinstance(pattern.kinds, str) else pattern.kinds
    node = producer(tensor)
    if node is None or node.op not in kinds:
        got = "a constant" if isinstance(tensor, gs.Constant) else "a graph input" if node is None else node.op
        deepest.note(f"{tensor.name}: expected {' or '.join(kinds)}, got {got}", depth)
        return
    if len(node.inputs) < len(pattern.inputs):
        deepest.note(f"{node.name or node.op}: expected {len(pattern.inputs)} inputs, got {len(node.inputs)}", depth)
        return
    if pattern.name:
        nodes = {**so_far.nodes, pattern.name: node}
        so_far = Match(so_far.tensors, nodes, so_far.runs, so_far.tags)
    inputs = list(node.inputs)
    orders = [inputs]
    if node.op in COMMUTATIVE and len(pattern.inputs) == 2:
        orders.append(inputs[::-1])
    for order in orders:
        yield from _match_inputs(pattern.inputs, order, so_far, deepest, depth + 1)


def _match_inputs(
    patterns: tuple[Pattern, ...], tensors: list[gs.Tensor], so_far: Match, deepest: _Deepest, depth: int
) -> Iterator[Match]:
    if not patterns:
        yield so_far
        return
    for found in _match(patterns[0], tensors[0], so_far, deepest, depth):
        yield from _match_inputs(patterns[1:], tensors[1:], found, deepest, depth)


def _match_through(
    pattern: Through, tensor: gs.Tensor, so_far: Match, deepest: _Deepest, depth: int
) -> Iterator[Match]:
    for run, end in _runs(pattern, tensor):
        bound = so_far
        if pattern.name:
            bound = Match(so_far.tensors, so_far.nodes, {**so_far.runs, pattern.name: run}, so_far.tags)
        yield from _match(pattern.then, end, bound, deepest, depth + len(run))


def _runs(pattern: Through, tensor: gs.Tensor) -> Iterator[tuple[tuple[gs.Node, ...], gs.Tensor]]:
    """(chain, tensor at its other end) of the shortest chain to every tensor that can be reached, nearest first."""
    level: list[tuple[tuple[gs.Node, ...], gs.Tensor]] = [((), tensor)]
    seen = {tensor.name}
    for _ in range(MAX_RUN + 1):
        following = []
        for run, end in level:
            yield run, end
            node = producer(end)
            if node is None or not _passes(pattern, node):
                continue
            for source in node.inputs:
                if not isinstance(source, gs.Constant) and source.name and source.name not in seen:
                    seen.add(source.name)
                    following.append(((*run, node), source))
        level = following


def _passes(pattern: Through, node: gs.Node) -> bool:
    if node.op in pattern.kinds:
        return True
    return pattern.mixing and node.op == "MatMul" and any(isinstance(tensor, gs.Constant) for tensor in node.inputs)


# A longer run of layout or mask nodes than any exporter writes; it bounds the search on graphs made of Adds.
MAX_RUN = 16
