"""Activations that exporters write as several operators become the fewest operators that onnxruntime runs."""

import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.pattern import Const, Match, Op, Var, match
from onnxvitq.graph.query import only_reader

X = Var("x")
CLIPPED = Op("Clip", (Op("Add", (X, Const("three", 3.0))), Const("low", 0.0), Const("high", 6.0)), name="clip")
HARD_SWISH = Op("Div", (Op("Mul", (X, CLIPPED), name="gated"), Const("six", 6.0)))


def fuse_hard_swish(graph: gs.Graph) -> int:
    """X clip(x + 3, 0, 6) / 6 -> x HardSigmoid(x), as paddle2onnx writes it.

    1. Nothing else reads the tensors between; the constants add no axis.

    Why not HardSwish: onnxruntime has no kernel for it and runs these two operators; four passes over memory become two.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        found = match(HARD_SWISH, node.outputs[0]) if node.op == "Div" else None
        if not isinstance(found, Match):
            continue
        between = (found.nodes["gated"].outputs[0], found.nodes["clip"].outputs[0], found.nodes["clip"].inputs[0])
        x = found.tensors["x"]
        if any(only_reader(tensor, graph) is None for tensor in between) or x.shape is None:
            continue  # rule 1
        if any(len(found.tensors[name].shape) > len(x.shape) for name in ("three", "six")):
            continue
        gate = edit.node("HardSigmoid", f"{node.name}_gate", [x], alpha=1 / 6, beta=0.5)
        edit.replace(node, edit.node("Mul", f"{node.name}_gated", [x, gate]))
        count += 1
    return count
