"""Write rotations of residual streams into a canonical graph: constants change, the function stays what it was."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.layers import BlockMap, Norm, Stream
from onnxvitq.core.plan import ChannelScaling
from onnxvitq.fit.steps.channel_scaling.rewrite import apply_scalings
from onnxvitq.graph.edit import Editor
from onnxvitq.numerics.rotation import rotation, turn


def rotate_streams(graph: gs.Graph, blockmap: BlockMap, streams: Sequence[Stream], seed: int) -> gs.Graph:
    """A new graph with each stream turned by a rotation of its own; ``graph`` is left as it was. Find the blocks again
    afterwards.

    First the linears that read a norm take over its scale and shift, as channel scalings do, so that the norm commutes with the
    rotation; it stays where it is, with a scale of one. A linear without a bias gets one where there is a shift to take.
    """
    written = graph.copy()
    scalings = _plain_norms(written, blockmap, streams)
    plain = apply_scalings(written, _with_biases(written, blockmap, scalings), scalings)
    edit, nodes = Editor(plain), {node.name: node for node in plain.nodes}
    for index, stream in enumerate(streams):
        matrix = rotation(stream.width, seed + index)
        for operand in stream.operands:
            node = nodes[operand.node]
            constant = node.inputs[operand.index]
            turned = turn(np.asarray(constant.values), operand.axis, matrix)
            node.inputs[operand.index] = edit.constant(f"{constant.name}_turned", turned)
    return plain.cleanup().toposort()


def _plain_norms(graph: gs.Graph, blockmap: BlockMap, streams: Sequence[Stream]) -> list[ChannelScaling]:
    """The channel scalings after which each norm has a scale of one and a shift of zero."""
    norms, tensors = {norm.name: norm for norm in blockmap.norms}, graph.tensors()

    def values(name: str) -> np.ndarray:
        return np.asarray(tensors[name].values).reshape(-1)

    def plain(norm: Norm, readers: tuple[str, ...]) -> ChannelScaling:
        gamma = values(norm.gamma)
        beta = values(norm.beta) if norm.beta else np.zeros_like(gamma)
        return ChannelScaling(kind="norm", source=norm.name, readers=readers, shift=beta, scale=gamma, gain_db=0.0)

    return [plain(norms[name], readers) for stream in streams for name, readers in stream.norms]


def _with_biases(graph: gs.Graph, blockmap: BlockMap, scalings: Sequence[ChannelScaling]) -> BlockMap:
    """Give each linear that has to take a shift a bias of zeros, if it has none; the linears as they are then."""
    edit, nodes = Editor(graph), {node.name: node for node in graph.nodes}
    shifted = {name for scaling in scalings if scaling.shift.any() for name in scaling.readers}
    linears = []
    for linear in blockmap.linears:
        if linear.name in shifted and not linear.bias:
            product = nodes[linear.name].outputs[0]
            result = gs.Variable(edit.unique(f"{linear.name}_product"), dtype=product.dtype, shape=product.shape)
            nodes[linear.name].outputs[0] = result
            bias = edit.constant(f"{linear.name}_bias", np.zeros(linear.out_features, np.float32))
            add = gs.Node("Add", edit.unique(f"{linear.name}_add"), inputs=[result, bias], outputs=[product])
            graph.nodes.append(add)
            linear = replace(linear, bias=bias.name, bias_node=add.name)
        linears.append(linear)
    return replace(blockmap, linears=tuple(linears))
