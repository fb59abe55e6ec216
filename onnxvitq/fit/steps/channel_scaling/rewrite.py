"""Write channel scalings into a canonical graph: constants change, a Mul may be added, the function stays what it was."""

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.layers import BlockMap, Linear, Norm
from onnxvitq.core.plan import ChannelScaling
from onnxvitq.graph.edit import Editor
from onnxvitq.graph.pattern import producer
from onnxvitq.numerics.transform import fold_into_linear, fold_into_norm, query_to_key, value_to_proj


def apply_scalings(graph: gs.Graph, blockmap: BlockMap, scalings: Sequence[ChannelScaling]) -> gs.Graph:
    """A new graph with the scalings folded in; ``graph`` is left as it was. Find the blocks again afterwards.

    Scalings of different sources are independent of each other, and are applied in turn.
    """
    written = graph.copy()
    writer = _Writer(written, blockmap)
    for scaling in scalings:
        writer.write(scaling)
    return written.cleanup().toposort()


class _Writer:
    def __init__(self, graph: gs.Graph, blockmap: BlockMap) -> None:
        self.edit, self.blockmap = Editor(graph), blockmap
        self.nodes = {node.name: node for node in graph.nodes}
        self.norms = {norm.name: norm for norm in blockmap.norms}

    def write(self, scaling: ChannelScaling) -> None:
        """Fold a scaling into the constants of its source and of its readers."""
        readers = [self.blockmap.linear(name) for name in scaling.readers]
        if scaling.kind == "online":
            self._online(readers, scaling)
            return
        if scaling.kind == "norm":
            self._norm(self.norms[scaling.source], scaling)
            for reader in readers:
                self._replace(reader, fold_into_linear(*self._layer(reader), scaling.shift, scaling.scale))
            return
        source = self.blockmap.linear(scaling.source)
        fold = value_to_proj if scaling.kind == "value" else query_to_key
        layers = fold(self._layer(source), self._layer(readers[0]), scaling.shift, scaling.scale)
        for linear, layer in zip((source, readers[0]), layers, strict=True):
            self._replace(linear, layer)

    def _online(self, readers: Sequence[Linear], scaling: ChannelScaling) -> None:
        """Divide the tensor before the linears read it."""
        tensor = next(tensor for tensor in self.nodes[readers[0].name].inputs if tensor.name == scaling.source)
        inverse = self.edit.constant(
            f"{scaling.source}_inverse", (1.0 / scaling.scale.astype(np.float64)).astype(np.float32)
        )
        scaled = self.edit.node("Mul", f"{scaling.source}_scaled", [tensor, inverse])
        scaled.shape = tensor.shape
        for reader in readers:
            self.nodes[reader.name].inputs[0] = scaled
            self._replace(reader, fold_into_linear(*self._layer(reader), scaling.shift, scaling.scale))

    def _layer(self, linear: Linear) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias as the graph has them now; zeros for a missing bias."""
        weight = np.asarray(self.nodes[linear.name].inputs[1].values)
        if not linear.bias_node:
            return weight, np.zeros(weight.shape[1], np.float32)
        return weight, np.asarray(_constant(self.nodes[linear.bias_node]).values).reshape(-1)

    def _replace(self, linear: Linear, layer: tuple[np.ndarray, np.ndarray]) -> None:
        node = self.nodes[linear.name]
        node.inputs[1] = self.edit.constant(f"{linear.weight}_mapped", np.ascontiguousarray(layer[0]))
        if linear.bias_node:
            add = self.nodes[linear.bias_node]
            old = _constant(add)
            add.inputs[list(add.inputs).index(old)] = self.edit.constant(
                f"{linear.bias}_mapped", layer[1].reshape(old.shape)
            )

    def _norm(self, norm: Norm, scaling: ChannelScaling) -> None:
        """New gamma and beta for the nodes that read them; the last node of a norm, and the one before it."""
        last = self.nodes[norm.name]
        chain = [last, *(node for node in map(producer, last.inputs) if node is not None)]
        tensors = {tensor.name: tensor for node in chain for tensor in node.inputs}
        gamma = np.asarray(tensors[norm.gamma].values)
        beta = np.asarray(tensors[norm.beta].values) if norm.beta else np.zeros(gamma.size, np.float32)
        shapes = (gamma.shape, beta.shape)
        values = fold_into_norm(gamma.reshape(-1), beta.reshape(-1), scaling.shift, scaling.scale)
        for name, value, shape in zip((norm.gamma, norm.beta), values, shapes, strict=True):
            for node in chain:
                for index, tensor in enumerate(node.inputs):
                    if name and tensor.name == name:
                        node.inputs[index] = self.edit.constant(f"{name}_mapped", value.reshape(shape))


def _constant(add: gs.Node) -> gs.Constant:
    return next(tensor for tensor in add.inputs if isinstance(tensor, gs.Constant))
