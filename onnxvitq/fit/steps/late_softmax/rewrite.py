"""Write late divisions into a canonical graph: exponentials are multiplied with V, and the product is divided by their sums."""

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.layers import BlockMap
from onnxvitq.graph.edit import Editor, largest_of_rows


def divide_late(graph: gs.Graph, blockmap: BlockMap, names: Sequence[str]) -> gs.Graph:
    """A new graph in which the named attentions compute exp(S - max S) V / sum exp(S - max S) in place of softmax(S) V.

    The exponentials fill the range [0, 1] row by row, where probabilities are small, so their codes are finer (docs/methods.md,
    "Late division");
    the writer lets the row sums read the codes as well. Only attentions without anything between softmax and product.
    """
    written = graph.copy()
    edit, nodes = Editor(written), {node.name: node for node in written.nodes}
    for attention in blockmap.attentions:
        softmax, context = nodes[attention.softmax_node], nodes[attention.context_node]
        if attention.name not in names or softmax.op != "Softmax" or context.inputs[0] is not softmax.outputs[0]:
            continue
        scores, probs, result = softmax.inputs[0], softmax.outputs[0], context.outputs[0]
        last = edit.constant(f"{attention.name}_last", np.array([-1], np.int64))
        largest = largest_of_rows(edit, attention.name, scores)
        shifted = edit.node("Sub", f"{attention.name}_shifted", [scores, largest])
        exponentials = edit.node("Exp", f"{attention.name}_powers", [shifted])
        total = edit.node("ReduceSum", f"{attention.name}_total", [exponentials, last], keepdims=1)
        exponentials.shape = shifted.shape = probs.shape
        softmax.outputs.clear()
        edit.redirect(probs, exponentials)
        product = gs.Variable(edit.unique(f"{context.name}_undivided"), dtype=np.float32, shape=result.shape)
        context.outputs.clear()
        context.outputs.append(product)
        written.nodes.append(
            gs.Node("Div", edit.unique(f"{context.name}_divided"), inputs=[product, total], outputs=[result])
        )
    return written.cleanup().toposort()
