"""Factors and shifts of channels (batch normalisation, LayerScale) are folded into the weights before them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import LAYOUT_OPS, constant_input, is_static, only_reader

Vector = np.ndarray[Any, np.dtype[np.float32]]  # (C,)


@dataclass(frozen=True, slots=True)
class _Source:
    """The node that computes channels, and the constant that is added behind it.

    Attributes:
        node: a convolution, or a product with a constant weight.
        added: (Add node, input index of its constant, number of axes behind the channels in its output), or None.
    """

    node: gs.Node
    added: tuple[gs.Node, int, int] | None

    @property
    def channels(self) -> range:
        """Indices of the channels, from 0."""
        weight = self.node.inputs[1]
        return range(weight.shape[0] if self.node.op == "Conv" else weight.shape[1])


def fold_batch_norm(graph: gs.Graph) -> int:
    """BatchNormalization(f(x)) -> f'(x), where f is a convolution or a linear layer.

    1. Constant parameters, not in training mode; s = gamma / sqrt(variance + epsilon), t = beta - s mean.
    2. f has a constant weight, and only layout operators and one addition of a constant stand between (``_source``).
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        if node.op != "BatchNormalization" or not _is_inference(node):
            continue  # rule 1
        gamma, beta, mean, variance = (np.asarray(tensor.values, np.float64) for tensor in node.inputs[1:5])
        scale = gamma / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        source = _source(node.inputs[0], 1, graph)
        if source is None:
            continue  # rule 2
        _apply(edit, source, scale.astype(np.float32), (beta - scale * mean).astype(np.float32))
        edit.replace(node, node.inputs[0])
        count += 1
    return count


def _is_inference(node: gs.Node) -> bool:
    return (
        len([tensor for tensor in node.outputs if tensor.name]) == 1
        and not node.attrs.get("training_mode", 0)
        and all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:5])
    )


def fold_channel_scales(graph: gs.Graph) -> int:
    """Gamma * f(x) -> f'(x): LayerScale, where f is a convolution or a linear layer.

    1. gamma is a constant with one value a channel, or one for all channels of a convolution.
    2. As rule 2 of ``fold_batch_norm``.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        found = constant_input(node) if node.op == "Mul" else None
        if found is None:
            continue
        x, gamma = node.inputs[1 - found[0]], np.asarray(found[1].values)
        axis = _channel_axis(x, gamma)
        source = None if axis is None else _source(x, axis, graph)
        if source is None or not np.isfinite(gamma).all():
            continue
        _apply(edit, source, gamma.reshape(-1).astype(np.float32) * np.ones(len(source.channels), np.float32), None)
        edit.replace(node, x)
        count += 1
    return count


def fold_channel_shifts(graph: gs.Graph) -> int:
    """f(x) + c -> f'(x), where f is a convolution, or a linear layer that has a bias.

    1. c is a constant with one value a channel, or one for all channels of a convolution.
    2. As rule 2 of ``fold_batch_norm``.
    """
    edit, count = Editor(graph), 0
    for node in list(graph.nodes):
        found = constant_input(node) if node.op == "Add" else None
        if found is None:
            continue
        x, constant = node.inputs[1 - found[0]], np.asarray(found[1].values)
        axis = _channel_axis(x, constant)
        source = None if axis is None else _source(x, axis, graph)
        if source is None or (source.node.op == "MatMul" and source.added is None):
            continue  # the bias itself
        shift = constant.reshape(-1).astype(np.float32)
        ones = np.ones(len(source.channels), np.float32)
        _apply(edit, source, ones, shift * ones)
        edit.replace(node, x)
        count += 1
    return count


def _channel_axis(x: gs.Tensor, gamma: np.ndarray) -> int | None:
    """The axis of x along which gamma has one value a position; None where it has not.

    One value for everything belongs to the channels of a convolution, axis 1.
    """
    long = [axis for axis, size in enumerate(gamma.shape) if size != 1]
    if x.shape is None or gamma.ndim > len(x.shape):
        return None
    if not long and len(x.shape) > 2:
        return 1
    if len(long) != 1:
        return None
    axis = len(x.shape) - gamma.ndim + long[0]
    return axis if x.shape[axis] == gamma.size else None


def _source(tensor: gs.Tensor, axis: int, graph: gs.Graph) -> _Source | None:
    """The node that computes the channels on ``axis`` of a tensor; None where a tensor on the way is read elsewhere, too."""
    added: tuple[gs.Node, int, int] | None = None
    while True:
        node = producer(tensor)
        if node is None or tensor.shape is None or only_reader(tensor, graph) is None:
            return None
        found = constant_input(node)
        if (
            node.op == "Conv"
            and axis == 1
            and all(isinstance(weight, gs.Constant) for weight in node.inputs[1:] if weight.name)
        ):
            return _Source(node, added)
        if node.op == "MatMul":
            plain = found is not None and found[0] == 1 and found[1].values.ndim == 2
            return _Source(node, added) if plain and axis == len(tensor.shape) - 1 else None
        if node.op == "Add" and found is not None and added is None:
            inner = node.inputs[1 - found[0]]
            if inner.shape is None or len(inner.shape) != len(tensor.shape):
                return None  # the constant adds axes
            added = (node, found[0], len(tensor.shape) - 1 - axis)
            tensor = inner
            continue
        before = _axis_before(node, axis)
        if before is None:
            return None
        tensor, axis = node.inputs[0], before


def _axis_before(node: gs.Node, axis: int) -> int | None:
    """The axis of a layout operator's input that holds all the channels on ``axis`` of its output; else None."""
    if node.op not in LAYOUT_OPS:
        return None
    if node.op == "Transpose":
        return int(node.attrs["perm"][axis]) if "perm" in node.attrs else None
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if before is None or not is_static(after[axis:]):
        return None
    behind = int(np.prod(after[axis + 1 :], dtype=int))
    for index, size in enumerate(before):
        if size == after[axis] and is_static(before[index:]) and int(np.prod(before[index + 1 :], dtype=int)) == behind:
            return index
    return None


def _apply(edit: Editor, source: _Source, scale: Vector, shift: Vector | None) -> None:
    """Fold channels times ``scale`` plus ``shift`` (both (C,)) into the weight, and into the bias or the constant added."""
    node = source.node
    weight = np.asarray(node.inputs[1].values)
    factor = scale.reshape(-1, *[1] * (weight.ndim - 1)) if node.op == "Conv" else scale  # (O, I, ..) or (I, O)
    node.inputs[1] = edit.constant(f"{node.inputs[1].name}_scaled", weight * factor)
    if node.op == "Conv" and len(node.inputs) > 2 and node.inputs[2].name:
        own = np.asarray(node.inputs[2].values) * scale
        node.inputs[2] = edit.constant(f"{node.inputs[2].name}_scaled", own)
    if source.added is not None:
        add, index, behind = source.added
        vector = (-1, *[1] * behind)
        values = np.asarray(add.inputs[index].values) * scale.reshape(vector)
        values = values if shift is None else values + shift.reshape(vector)
        add.inputs[index] = edit.constant(f"{add.inputs[index].name}_scaled", values)
    elif shift is not None and node.op == "Conv":
        if len(node.inputs) > 2:
            own = node.inputs.pop(2)
            shift = shift + np.asarray(own.values) if own.name else shift
        node.inputs.append(edit.constant(f"{node.name}_shift", shift))
    elif shift is not None:
        output = node.outputs[0]
        node.outputs.clear()
        product = gs.Variable(edit.unique(f"{node.name}_product"), dtype=output.dtype, shape=output.shape)
        node.outputs.append(product)
        inputs = [product, edit.constant(f"{node.name}_shift", shift)]
        edit.graph.nodes.append(gs.Node("Add", edit.unique(f"{node.name}_add"), inputs=inputs, outputs=[output]))
