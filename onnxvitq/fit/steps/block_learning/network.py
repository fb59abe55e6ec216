"""A canonical graph block by block, each block run by torch.

The nodes themselves are executed, whatever architecture they came from; a caller may put something else in the place of a
node, and something in front of any of its inputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from onnxvitq.core.layers import BlockMap
from onnxvitq.fit.steps.block_learning.operators import OPERATORS
from onnxvitq.graph.cut import Subgraph, cut_between_blocks

Values = dict[str, Tensor]
Replacement = Callable[[Values], Tensor]  # values by name -> the output of the node that it stands for
Operand = Callable[[Tensor], Tensor]  # what a node reads -> what it shall read


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockSubgraph(Subgraph):
    """One block of the network, or what lies before the first or behind the last.

    Attributes:
        index: number in the order of execution, from 0.
        refused: operators that torch has no function for here, sorted; a block that has one is not learned.
    """

    index: int
    refused: tuple[str, ...]


def cut(graph: gs.Graph, blockmap: BlockMap) -> tuple[BlockSubgraph, ...]:
    """The whole graph, block by block (``graph.cut.cut_between_blocks``), with what torch cannot run of it."""
    return tuple(
        BlockSubgraph(
            index=index,
            nodes=subgraph.nodes,
            inputs=subgraph.inputs,
            outputs=subgraph.outputs,
            refused=tuple(sorted({node.op for node in subgraph.nodes} - OPERATORS.keys())),
        )
        for index, subgraph in enumerate(cut_between_blocks(graph, blockmap))
    )


def run(
    block: BlockSubgraph,
    values: Mapping[str, Tensor],
    replaced: Mapping[str, Replacement] | None = None,
    operands: Mapping[tuple[str, int], Operand] | None = None,
) -> Values:
    """A block's outputs.

    Args:
        block: no operator of it is refused.
        values: of its inputs.
        replaced: node name -> what computes its (only) output from all values so far.
        operands: (node name, input index) -> what its input goes through first.
    """
    replaced, operands = replaced or {}, operands or {}
    known: Values = dict(values)
    for node in block.nodes:
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
        known.update((tensor.name, value) for tensor, value in zip(node.outputs, results, strict=False))
    return {name: known[name] for name in block.outputs}


def _value(tensor: gs.Tensor, known: Values) -> Tensor | None:
    if isinstance(tensor, gs.Constant):
        if tensor.name not in known:
            known[tensor.name] = torch.from_numpy(np.array(tensor.values))
        return known[tensor.name]
    return known[tensor.name] if tensor.name else None
