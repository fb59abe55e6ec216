"""Every way of writing a linear layer becomes MatMul(x, W[I, O]) + b."""

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.query import is_row, is_static, only_reader


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


def patch_convolution(graph: gs.Graph) -> int:
    """Transpose(Reshape(Conv(x), (B, O, T)), (0, 2, 1)) -> MatMul(patches(x), W') + b: a patch embedding is a linear layer.

    1. Kernel equals stride, no padding, no dilation, one group; the image size is known and a multiple of the kernel.
    2. What follows flattens the grid and brings the channels last.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        if node.op != "Conv" or not _is_patchify(node):
            continue
        flat = only_reader(node.outputs[0], graph)
        if flat is None or flat.op not in {"Reshape", "Flatten"}:
            continue  # rule 2
        last = only_reader(flat.outputs[0], graph)
        if last is None or last.op != "Transpose" or list(last.attrs.get("perm", ())) != [0, 2, 1]:
            continue  # rule 2
        image, weight = node.inputs[0], np.asarray(node.inputs[1].values)
        channels, height, width = image.shape[1:]
        outputs, _, kh, kw = weight.shape
        rows, columns = height // kh, width // kw
        if list(flat.outputs[0].shape or ())[1:] != [outputs, rows * columns]:
            continue  # rule 2
        name = node.name
        shape = edit.constant(f"{name}_grid", np.array([-1, channels, rows, kh, columns, kw], np.int64))
        grid = edit.node("Reshape", f"{name}_patches", [image, shape])
        grid = edit.node("Transpose", f"{name}_patches_last", [grid], perm=[0, 2, 4, 1, 3, 5])
        flat_shape = edit.constant(f"{name}_tokens", np.array([-1, rows * columns, channels * kh * kw], np.int64))
        tokens = edit.node("Reshape", f"{name}_flat", [grid, flat_shape])
        matrix = np.ascontiguousarray(weight.reshape(outputs, -1).T)  # (C kh kw, O)
        product = edit.node("MatMul", f"{name}_matmul", [tokens, edit.constant(f"{name}_weight", matrix)])
        output = last.outputs[0]
        last.outputs.clear()
        if len(node.inputs) > 2:
            inputs = [product, edit.constant(f"{name}_bias", np.asarray(node.inputs[2].values))]
            graph.nodes.append(gs.Node("Add", edit.unique(f"{name}_add"), inputs=inputs, outputs=[output]))
        else:
            edit.redirect(output, product)
        count += 1
    return count


def _is_patchify(node: gs.Node) -> bool:
    weight, image = node.inputs[1], node.inputs[0]
    if (
        not isinstance(weight, gs.Constant)
        or len(weight.shape) != 4
        or image.shape is None
        or not is_static(image.shape[1:])
    ):
        return False
    if any(not isinstance(tensor, gs.Constant) for tensor in node.inputs[1:]):
        return False
    kernel = list(weight.shape[2:])
    return (
        list(node.attrs.get("strides", [1, 1])) == kernel
        and kernel != [1, 1]
        and not any(node.attrs.get("pads", [0]))
        and node.attrs.get("auto_pad", "NOTSET") in {"NOTSET", "VALID"}
        and all(step == 1 for step in node.attrs.get("dilations", [1]))
        and node.attrs.get("group", 1) == 1
        and all(size % k == 0 for size, k in zip(image.shape[2:], kernel, strict=True))
    )
