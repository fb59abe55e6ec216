"""Convolutions over patches or over single pixels are linear layers, and become MatMul(x, W[I, O]) + b."""

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.query import is_static

END = np.iinfo(np.int64).max  # of an axis, whatever its size


def patch_convolution(graph: gs.Graph) -> int:
    """Conv(x) -> channels_first(MatMul(patches(x), W') + b): a patch embedding is a linear layer.

    1. Kernel equals stride and is more than a pixel, no padding, no dilation, one group; constant weights.
    2. The image size is known and a multiple of the kernel.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        if node.op != "Conv" or not _is_patchify(node):
            continue
        image, name = node.inputs[0], node.name
        outputs, channels, *kernel = node.inputs[1].shape
        grid = [size // k for size, k in zip(image.shape[2:], kernel, strict=True)]
        axes = range(len(kernel))
        cut = [size for pair in zip(grid, kernel, strict=True) for size in pair]
        tokens = edit.node("Reshape", f"{name}_patches", [image, _shape(edit, name, -1, channels, *cut)])
        perm = [0, *(2 + 2 * axis for axis in axes), 1, *(3 + 2 * axis for axis in axes)]
        tokens = edit.node("Transpose", f"{name}_patches_last", [tokens], perm=perm)
        width = int(np.prod([channels, *kernel]))
        tokens = edit.node("Reshape", f"{name}_flat", [tokens, _shape(edit, name, -1, int(np.prod(grid)), width)])
        rows = _linear(edit, node, tokens)
        rows = edit.node("Reshape", f"{name}_grid", [rows, _shape(edit, name, -1, *grid, outputs)])
        _channels_first(edit, node, rows, rank=2 + len(kernel))
        count += 1
    return count


def pointwise_convolution(graph: gs.Graph) -> int:
    """Conv(x) -> channels_first(MatMul(channels_last(x), W') + b): a convolution over single pixels is a linear layer.

    1. A kernel of one pixel, no padding, one group; constant weights.
    2. A stride takes every s-th pixel first.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        if node.op != "Conv" or not _is_pointwise(node):
            continue
        x, name, rank = node.inputs[0], node.name, len(node.inputs[1].shape)
        strides = list(node.attrs.get("strides", [1] * (rank - 2)))
        if any(step != 1 for step in strides):  # rule 2
            axes = list(range(2, rank))
            bounds = [
                edit.constant(f"{name}_{field}", np.array(values, np.int64))
                for field, values in (
                    ("from", [0] * len(axes)),
                    ("to", [END] * len(axes)),
                    ("axes", axes),
                    ("steps", strides),
                )
            ]
            x = edit.node("Slice", f"{name}_strided", [x, *bounds])
        last = edit.node("Transpose", f"{name}_channels_last", [x], perm=[0, *range(2, rank), 1])
        _channels_first(edit, node, _linear(edit, node, last), rank)
        count += 1
    return count


def _shape(edit: Editor, name: str, *sizes: int) -> gs.Constant:
    return edit.constant(f"{name}_shape", np.array(sizes, np.int64))


def _linear(edit: Editor, node: gs.Node, tokens: gs.Tensor) -> gs.Tensor:
    """Tokens (.., I) times the convolution's weight (O, I..) as (I, O), plus its bias."""
    weight = np.asarray(node.inputs[1].values)
    matrix = np.ascontiguousarray(weight.reshape(len(weight), -1).T)
    rows = edit.node("MatMul", f"{node.name}_matmul", [tokens, edit.constant(f"{node.name}_weight", matrix)])
    if len(node.inputs) > 2 and node.inputs[2].name:
        bias = edit.constant(f"{node.name}_bias", np.asarray(node.inputs[2].values))
        rows = edit.node("Add", f"{node.name}_add", [rows, bias])
    return rows


def _channels_first(edit: Editor, node: gs.Node, rows: gs.Tensor, rank: int) -> None:
    """(N, .., O) -> (N, O, ..) in place of the convolution's output."""
    output = node.outputs[0]
    first = edit.node("Transpose", f"{node.name}_channels_first", [rows], perm=[0, rank - 1, *range(1, rank - 1)])
    first.shape = output.shape
    node.outputs.clear()
    edit.redirect(output, first)


def _is_plain(node: gs.Node) -> bool:
    """Whether a convolution has constant weights, one group and no padding."""
    given = [tensor for tensor in node.inputs[1:] if tensor.name]
    return (
        all(isinstance(tensor, gs.Constant) for tensor in given)
        and node.attrs.get("group", 1) == 1
        and not any(node.attrs.get("pads", [0]))
        and node.attrs.get("auto_pad", "NOTSET") in {"NOTSET", "VALID"}
    )


def _is_patchify(node: gs.Node) -> bool:
    image, weight = node.inputs[0], node.inputs[1]
    if not _is_plain(node) or image.shape is None or not is_static(image.shape[2:]):
        return False  # the number of channels is known from the weight
    kernel = list(weight.shape[2:])
    return (
        list(node.attrs.get("strides", [1] * len(kernel))) == kernel
        and any(k != 1 for k in kernel)
        and all(step == 1 for step in node.attrs.get("dilations", [1]))
        and all(size % k == 0 for size, k in zip(image.shape[2:], kernel, strict=True))
    )


def _is_pointwise(node: gs.Node) -> bool:
    return _is_plain(node) and all(k == 1 for k in node.inputs[1].shape[2:])
