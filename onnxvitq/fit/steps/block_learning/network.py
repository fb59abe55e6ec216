"""A canonical graph as units that torch runs: cut where the fewest tensors cross, between one block and the next.

The nodes themselves are executed, whatever architecture they came from; a caller may put something else in the place of a
node, and something in front of any of its inputs.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from onnxvitq.core.layers import BlockMap
from onnxvitq.fit.steps.block_learning.operators import OPERATORS

Values = dict[str, Tensor]
Replacement = Callable[[Values], Tensor]  # values by name -> the output of the node that it stands for
Operand = Callable[[Tensor], Tensor]  # what a node reads -> what it shall read


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unit:
    """Consecutive nodes. ``inputs`` come from before (or from outside), ``outputs`` are what later units read, or the model's.

    ``refused``: the operators that torch has no function for here; a unit that has one is not learned.
    """

    index: int
    nodes: tuple[gs.Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    refused: tuple[str, ...]


def cut(graph: gs.Graph, blockmap: BlockMap) -> tuple[Unit, ...]:
    """The whole graph as units, one a block, and what lies before the first and behind the last.

    Between the last product of a block and the first of the next, the cut is where the fewest tensors are alive, the first
    such place: behind the residual Add that ends a block.
    """
    nodes = _in_order(graph)
    position = {node.name: index for index, node in enumerate(nodes)}
    spans = _spans(blockmap, position)
    alive = _alive(graph, nodes)
    cuts = [0]
    for before, after in zip([(0, -1), *spans], [*spans, (len(nodes), len(nodes))], strict=True):
        places = range(max(before[1] + 1, cuts[-1]), after[0] + 1)
        if places and spans:
            cuts.append(min(places, key=lambda place: len(alive[place])))
    stops = sorted({*cuts, len(nodes)})
    return tuple(
        _unit(graph, index, nodes[start:stop], (alive[start], alive[stop]))
        for index, (start, stop) in enumerate(itertools.pairwise(stops))
    )


def run(
    unit: Unit,
    values: Mapping[str, Tensor],
    replaced: Mapping[str, Replacement] | None = None,
    operands: Mapping[tuple[str, int], Operand] | None = None,
) -> Values:
    """A unit's outputs.

    Args:
        unit: no operator of it is refused.
        values: of its inputs.
        replaced: node name -> what computes its (only) output from all values so far.
        operands: (node name, input index) -> what its input goes through first.
    """
    replaced, operands = replaced or {}, operands or {}
    known: Values = dict(values)
    for node in unit.nodes:
        instead = replaced.get(node.name)
        if instead is not None:
            known[node.outputs[0].name] = instead(known)
            continue
        inputs = [_value(tensor, known) for tensor in node.inputs]
        for index, value in enumerate(inputs):
            change = operands.get((node.name, index))
            if change is not None and value is not None:
                inputs[index] = change(value)
        result = OPERATORS[node.op](node.attrs, inputs)
        results = result if isinstance(result, tuple) else (result,)
        known.update((tensor.name, one) for tensor, one in zip(node.outputs, results, strict=False))
    return {name: known[name] for name in unit.outputs}


def _value(tensor: gs.Tensor, known: Values) -> Tensor | None:
    if isinstance(tensor, gs.Constant):
        if tensor.name not in known:
            known[tensor.name] = torch.from_numpy(np.array(tensor.values))
        return known[tensor.name]
    return known[tensor.name] if tensor.name else None


def _in_order(graph: gs.Graph) -> list[gs.Node]:
    """Topological, each node as late as the first that reads it: nothing is alive for longer than it has to be."""
    made = {id(tensor): node for node in graph.nodes for tensor in node.outputs}
    done: set[int] = set()
    order: list[gs.Node] = []
    for last in graph.nodes:
        pending = [(last, False)]
        while pending:
            node, ready = pending.pop()
            if id(node) in done:
                continue
            if ready:
                done.add(id(node))
                order.append(node)
                continue
            pending.append((node, True))
            pending += [(made[id(tensor)], False) for tensor in reversed(node.inputs) if id(tensor) in made]
    return order


def _spans(blockmap: BlockMap, position: Mapping[str, int]) -> list[tuple[int, int]]:
    """First and last position of what belongs to each block: its attention's products and linears, its MLPs."""
    spans: list[tuple[int, int]] = []
    attentions = {attention.name: attention for attention in blockmap.attentions}
    for block in blockmap.blocks:
        attention = attentions[block.attention]
        linears = {attention.query_linear, attention.key_linear, attention.value_linear, attention.proj_linear}
        linears |= {name for mlp in block.mlps for name in (mlp.fc1, mlp.fc2, mlp.gate)}
        names = {attention.scores_node, attention.context_node}
        names |= {node for one in blockmap.linears if one.name in linears for node in (one.name, one.bias_node)}
        places = [position[name] for name in names if name in position]
        if not spans or min(places) > spans[-1][1]:
            spans.append((min(places), max(places)))
        else:  # blocks that interleave are learned as one
            spans[-1] = (min(*places, spans[-1][0]), max(*places, spans[-1][1]))
    return spans


def _alive(graph: gs.Graph, nodes: Sequence[gs.Node]) -> list[frozenset[str]]:
    """At each place between nodes, the computed tensors that are there and still read; the last entry: the outputs."""
    outputs = {tensor.name for tensor in graph.outputs}
    readers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for tensor in node.inputs:
            readers[tensor.name] = index
    readers |= dict.fromkeys(outputs, len(nodes))
    alive: set[str] = set()
    places = [frozenset[str]()]
    for index, node in enumerate(nodes):
        alive |= {tensor.name for tensor in node.outputs if readers.get(tensor.name, -1) > index}
        alive = {name for name in alive if readers[name] > index}
        places.append(frozenset(alive))
    return places


def _unit(graph: gs.Graph, index: int, nodes: Sequence[gs.Node], alive: Iterable[frozenset[str]]) -> Unit:
    before, after = alive
    own = {tensor.name for node in nodes for tensor in node.outputs}
    read = {tensor.name for node in nodes for tensor in node.inputs if not isinstance(tensor, gs.Constant)}
    outside = {tensor.name for tensor in graph.inputs}
    return Unit(
        index=index,
        nodes=tuple(nodes),
        inputs=tuple(sorted(read & (before | outside))),
        outputs=tuple(sorted(own & after)),
        refused=tuple(sorted({node.op for node in nodes} - OPERATORS.keys())),
    )
