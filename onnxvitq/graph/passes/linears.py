"""Every form of a linear layer becomes MatMul(x, W[I, O]) + b."""

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.query import is_row


def gemm_to_matmul(graph: gs.Graph) -> int:
    """Gemm(x, W, b) -> MatMul(x, alpha W') + beta b, with W' (I, O).

    1. W is a constant and x is not transposed.
    2. b is absent, or a constant that broadcasts along rows.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        if node.op != "Gemm" or node.attrs.get("transA", 0) or not isinstance(node.inputs[1], gs.Constant):
            continue  # rule 1
        bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        weight = np.asarray(node.inputs[1].values)
        weight = np.ascontiguousarray(weight.T if node.attrs.get("transB", 0) else weight)  # (I, O)
        outputs = weight.shape[1]
        if bias is not None and not is_row(bias, outputs):
            continue  # rule 2
        alpha, beta = np.float32(node.attrs.get("alpha", 1.0)), np.float32(node.attrs.get("beta", 1.0))
        if alpha != 1:
            weight = weight * alpha
        output = node.outputs[0]
        product = edit.node(
            "MatMul", f"{node.name}_matmul", [node.inputs[0], edit.constant(f"{node.name}_weight", weight)]
        )
        product.shape = output.shape
        node.outputs.clear()
        if bias is not None:
            row = np.broadcast_to(bias.values.reshape(-1), (outputs,)) * beta
            inputs = [product, edit.constant(f"{node.name}_bias", row.astype(np.float32))]
            graph.nodes.append(gs.Node("Add", edit.unique(f"{node.name}_add"), inputs=inputs, outputs=[output]))
        else:
            edit.redirect(output, product)
        count += 1
    return count
