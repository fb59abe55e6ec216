"""Which tokens the model's outputs are computed from, found from what the outputs pick of the last block, not from names."""

from collections.abc import Iterable, Iterator

import onnx_graphsurgeon as gs

from onnxvitq.core.layers import BlockMap
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import integers

FEW = 4  # tokens; a longer range is a crop, not a choice
TOKENS = (1, -2)  # the axis, from either end


def decisive_positions(graph: gs.Graph, blockmap: BlockMap) -> tuple[int, ...]:
    """Positions on the token axis that an output picks by number: a class token, a distillation token.

    The walk goes from the outputs back to the last attention: what is picked before an attention is mixed again by it.

    Returns:
        The positions, sorted; empty where the outputs pool all tokens or keep them all.
    """
    nodes = {node.name: node for node in graph.nodes}
    mixed = _behind([nodes[a.context_node] for a in blockmap.attentions])
    found: set[int] = set()
    pending, seen = list(graph.outputs), set[str]()
    while pending:
        node = producer(pending.pop())
        if node is None or node.name in seen or node.name in mixed:
            continue
        seen.add(node.name)
        picked = list(_picked(node))
        found.update(picked)
        if not picked:
            pending.extend(tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant))
    return tuple(sorted(found))


def _behind(nodes: Iterable[gs.Node]) -> set[str]:
    """Names of these nodes and of all that they depend on."""
    names, pending = set[str](), list(nodes)
    while pending:
        node = pending.pop()
        if node.name not in names:
            names.add(node.name)
            pending.extend(made for made in map(producer, node.inputs) if made is not None)
    return names


def _picked(node: gs.Node) -> Iterator[int]:
    """The positions that a Gather or a Slice takes of axis 1 of a tensor (B, T, C)."""
    if node.op not in {"Gather", "Slice"} or node.inputs[0].shape is None or len(node.inputs[0].shape) != 3:
        return
    fields = [integers(tensor) for tensor in node.inputs[1:]]
    if node.op == "Gather":
        if node.attrs.get("axis", 0) in TOKENS and fields[0] is not None and len(fields[0]) <= FEW:
            yield from (index for index in fields[0] if index >= 0)
        return
    if (
        len(fields) < 3
        or any(field is None or len(field) != 1 for field in fields[:3])
        or fields[2] not in [[axis] for axis in TOKENS]
    ):
        return
    (start,), (stop,) = fields[0] or [0], fields[1] or [0]
    if 0 <= start < stop <= start + FEW:
        yield from range(start, stop)
