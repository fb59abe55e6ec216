"""Which tokens decide: found from what the outputs pick of the last block, not from names."""

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from onnxvitq.blockmap import BlockMap
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import integers

FEW = 4  # tokens; a longer range is a crop, not a choice


def decisive_positions(graph: gs.Graph, blockmap: BlockMap) -> tuple[int, ...]:
    """Positions on the token axis that an output picks by number: a class token, a distillation token.

    The walk goes from the outputs back to the last attention on every way. Pooled and dense outputs pick none.
    """
    stops = {name for a in blockmap.attentions for name in (a.scores_node, a.softmax_node, a.context_node)}
    found: set[int] = set()
    pending, seen = list(graph.outputs), set[str]()
    while pending:
        node = producer(pending.pop())
        if node is None or node.name in seen or node.name in stops:
            continue
        seen.add(node.name)
        picked = list(_picked(node))
        found.update(picked)
        if not picked:
            pending.extend(tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant))
    return tuple(sorted(found))


def _picked(node: gs.Node) -> Iterator[int]:
    """The positions that a Gather or a Slice takes of axis 1 of a tensor (B, T, C)."""
    if node.op not in {"Gather", "Slice"} or node.inputs[0].shape is None or len(node.inputs[0].shape) != 3:
        return
    fields = [integers(tensor) for tensor in node.inputs[1:]]
    if node.op == "Gather":
        if node.attrs.get("axis", 0) == 1 and fields[0] is not None and len(fields[0]) <= FEW:
            yield from (index for index in fields[0] if index >= 0)
        return
    if len(fields) < 3 or any(field is None or len(field) != 1 for field in fields[:3]) or fields[2] != [1]:
        return
    (start,), (stop,) = fields[0] or [0], fields[1] or [0]
    if 0 <= start < stop <= start + FEW:
        yield from range(start, stop)
