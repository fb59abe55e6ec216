"""Residual streams whose channels may be rotated, found by walking from each normalisation's input in both directions.

A walk passes whatever treats all channels alike (sums, joins and picks of tokens, layout, averages over tokens), and ends at
whatever is linear in the channels (a linear layer, a convolution, a constant) or commutes with a rotation (a normalisation
whose scale and shift its linears can take). Whatever else touches the stream is a miss with a reason: a post-norm, a product
of channels, channels joined or cut, a graph input or output.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.blocks.channels import MOVES, axis_after, axis_before
from onnxvitq.core.layers import BlockMap, Norm, Operand, Stream, StreamMiss
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import integers, is_output

SUMS = frozenset({"Add", "Sub"})
SCALES = frozenset({"Mul", "Div"})
SIZES = frozenset({"Shape", "Size"})  # they read no values
NOT_IN_MEANS = frozenset({"ReduceSum", "AveragePool"})  # a norm's shift would be counted more than once, or padded away
NORM_NODES = 12  # a norm of single operators has eight


def find_streams(graph: gs.Graph, blockmap: BlockMap) -> tuple[tuple[Stream, ...], tuple[StreamMiss, ...]]:
    """The residual streams of a canonical graph that may be rotated, and the others with the reason. Nothing is changed."""
    tensors = graph.tensors()
    streams: list[Stream] = []
    misses: list[StreamMiss] = []
    passed: set[str] = set()
    for norm in blockmap.norms:
        if norm.input in passed:
            continue
        walk = _StreamWalk(graph, blockmap, tensors[norm.input])
        found = walk.run()
        passed |= walk.axes.keys()
        if isinstance(found, Stream):
            streams.append(found)
        else:
            misses.append(found)
    return tuple(streams), tuple(misses)


class _StreamWalk:
    """The walk along one stream, from one of its tensors.

    Methods that look at a node return why the stream may not be rotated, or "" where the node does not forbid it.
    """

    def __init__(self, graph: gs.Graph, blockmap: BlockMap, start: gs.Tensor) -> None:
        self._graph, self._start, self._tensors = graph, start, graph.tensors()
        self._nodes = {node.name: node for node in graph.nodes}
        self._norms: dict[str, list[Norm]] = {}
        for norm in blockmap.norms:
            self._norms.setdefault(norm.input, []).append(norm)
        self.axes: dict[str, int] = {}  # of the channels, by tensor; from the front
        self._pending: list[tuple[gs.Tensor, int]] = []
        self._operands: dict[Operand, None] = {}
        self._readers: dict[str, tuple[str, ...]] = {}

    def run(self) -> Stream | StreamMiss:
        """Follow the stream to all its ends."""
        width = self._start.shape[-1] if self._start.shape else None
        if not isinstance(width, int):
            return StreamMiss(name=self._start.name, reason="the number of its channels is not known")
        self._width = width
        self._pending.append((self._start, len(self._start.shape) - 1))
        reason = ""
        while self._pending:  # to all ends, also of a miss: its tensors are no stream of their own
            problem = self._visit(*self._pending.pop())
            reason = reason or problem
        if reason:
            return StreamMiss(name=self._start.name, reason=reason)
        norms = tuple(self._readers.items())
        return Stream(name=self._start.name, width=width, operands=tuple(self._operands), norms=norms)

    def _visit(self, tensor: gs.Tensor, axis: int) -> str:
        if tensor.name in self.axes:
            return "" if self.axes[tensor.name] == axis else f"{tensor.name}: its channels are on two axes"
        self.axes[tensor.name] = axis
        if tensor.shape is None or not 0 <= axis < len(tensor.shape) or tensor.shape[axis] != self._width:
            return f"{tensor.name}: expected {self._width} channels on axis {axis}, got shape {tensor.shape}"
        output = f"{tensor.name} is an output of the graph" if is_output(tensor, self._graph) else ""
        reasons = [output, self._made(producer(tensor), tensor, axis)]
        reasons += [self._read(node, tensor, axis) for node in tensor.outputs]
        return next(filter(None, reasons), "")

    def _made(self, node: gs.Node | None, tensor: gs.Tensor, axis: int) -> str:
        """Look at the node that computes a tensor of the stream."""
        if node is None:
            return f"{tensor.name} is an input of the graph"
        if _is_linear(node) and axis == len(tensor.shape) - 1:
            self._add_operand(node, 1, -1)
            return ""
        if _is_convolution(node) and axis == 1:
            for index in range(1, len(node.inputs)):
                self._add_operand(node, index, -len(node.inputs[index].shape))
            return ""
        return self._passed(node, tensor, axis)

    def _read(self, node: gs.Node, tensor: gs.Tensor, axis: int) -> str:
        """Look at one node that reads a tensor of the stream."""
        if node.op in SIZES:
            return ""
        last = axis == len(tensor.shape) - 1
        for norm in self._norms.get(tensor.name, ()):
            if node.name in _norm_nodes(self._nodes[norm.name], tensor):
                return self._normed(norm) if last else f"{norm.name}: a norm over other axes than the channels"
        if _is_linear(node) and last:
            self._add_operand(node, 1, -2)
            return ""
        if _is_convolution(node) and axis == 1:
            self._add_operand(node, 1, 1 - len(node.inputs[1].shape))
            return ""
        return self._passed(node, tensor, axis)

    def _passed(self, node: gs.Node, tensor: gs.Tensor, axis: int) -> str:
        """Follow the stream through a node, met at one of its tensors; its other tensors are visited next."""
        if node.op in SUMS | SCALES:
            return self._combined(node, axis - len(tensor.shape))
        if node.op == "Concat":
            return self._joined(node, axis)
        reached = any(tensor is output for output in node.outputs)
        if node.op not in MOVES or not (reached or tensor is node.inputs[0]):
            return f"{node.op} {node.name} is not linear in its channels"
        before = axis_before(node, axis) if reached else axis
        after = axis if reached else axis_after(node, axis)
        if before is None or after is None:
            return f"{node.op} {node.name} cuts or mixes its channels"
        self._take(node, 0, before - len(node.inputs[0].shape))
        self._pending += [(output, after) for output in node.outputs]
        return ""

    def _combined(self, node: gs.Node, back: int) -> str:
        """Follow the stream through a sum, or a scale that all channels share; ``back``: axis of the channels, from the end."""
        wide = [index for index, tensor in enumerate(node.inputs) if _size(tensor, back) != 1]
        if any(_size(node.inputs[index], back) != self._width for index in wide):
            return f"{node.op} {node.name}: an operand's channels are not known"
        if node.op in SCALES and wide != [0] and (node.op == "Div" or len(wide) > 1):
            return f"{node.op} {node.name} scales channel by channel"
        for index in wide:
            self._take(node, index, back)
        output = node.outputs[0]
        if output.shape is None:
            return f"{output.name}: its shape is not known"
        self._pending.append((output, len(output.shape) + back))
        return ""

    def _joined(self, node: gs.Node, axis: int) -> str:
        output = node.outputs[0]
        if output.shape is None or node.attrs["axis"] % len(output.shape) == axis:
            return f"Concat {node.name} joins channels"
        for index in range(len(node.inputs)):
            self._take(node, index, axis - len(output.shape))
        self._pending.append((output, axis))
        return ""

    def _take(self, node: gs.Node, index: int, back: int) -> None:
        """Take in an input that belongs to the stream: a constant is an operand, anything else is visited."""
        tensor = node.inputs[index]
        if isinstance(tensor, gs.Constant):
            self._add_operand(node, index, back)
        else:
            self._pending.append((tensor, len(tensor.shape or ()) + back))

    def _add_operand(self, node: gs.Node, index: int, axis: int) -> None:
        self._operands[Operand(node=node.name, index=index, axis=axis)] = None

    def _normed(self, norm: Norm) -> str:
        """Follow the stream through a norm to its readers: linear layers only, for they take over its scale and shift."""
        if norm.name in self._readers:
            return ""
        last = self._nodes[norm.name]
        reason = self._plain(norm, _norm_nodes(last, self._tensors[norm.input]))
        readers: list[str] = []
        pending = [(last.outputs[0], len(last.outputs[0].shape or ()) - 1)]
        while pending and not reason:
            tensor, axis = pending.pop()
            if is_output(tensor, self._graph):
                return f"{tensor.name}, normalised, is an output of the graph"
            for node in (reader for reader in tensor.outputs if reader.op not in SIZES):
                after = axis_after(node, axis) if node.op in MOVES - NOT_IN_MEANS else None
                if _is_linear(node) and tensor.shape is not None and axis == len(tensor.shape) - 1:
                    readers.append(node.name)
                    self._add_operand(node, 1, -2)
                elif after is not None and tensor is node.inputs[0]:
                    pending += [(output, after) for output in node.outputs]
                else:
                    reason = f"{node.op} {node.name} reads the norm {norm.name}, not a linear layer"
        self._readers[norm.name] = tuple(dict.fromkeys(readers))
        return reason

    def _plain(self, norm: Norm, nodes: Mapping[str, gs.Node]) -> str:
        """Check that a norm is one over the channels, with a scale and a shift that can be folded into linear layers."""
        gamma, shift = self._tensors[norm.gamma], self._tensors[norm.beta] if norm.beta else None
        rank = len(self._tensors[norm.input].shape)
        if any(set(_axes(node)) - {-1, rank - 1} for node in nodes.values()):
            return f"{norm.name}: a norm over other axes than the channels"
        if not isinstance(gamma, gs.Constant) or gamma.values.size != self._width or not np.all(gamma.values):
            return f"{norm.name}: its scale is not one number a channel, none of them zero"
        if shift is None and any(len(node.inputs) > 2 for node in nodes.values()):
            return f"{norm.name}: its shift is computed"
        if shift is not None and (not isinstance(shift, gs.Constant) or shift.values.size != self._width):
            return f"{norm.name}: its shift is not one number a channel"
        inside = [tensor for node in nodes.values() if node.name != norm.name for tensor in node.outputs]
        if any(reader.name not in nodes for tensor in inside for reader in tensor.outputs):
            return f"{norm.name}: its insides are read elsewhere"
        return ""


def _is_linear(node: gs.Node) -> bool:
    """Whether a node multiplies by a constant (I, O) on the right."""
    if node.op != "MatMul" or isinstance(node.inputs[0], gs.Constant):
        return False
    return isinstance(node.inputs[1], gs.Constant) and len(node.inputs[1].shape) == 2


def _is_convolution(node: gs.Node) -> bool:
    """Whether a node is a convolution of one group with constant weights."""
    if node.op != "Conv" or node.attrs.get("group", 1) != 1:
        return False
    return all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:])


def _norm_nodes(last: gs.Node, start: gs.Tensor) -> dict[str, gs.Node]:
    """Name -> node of the nodes of a norm, from its last one back to its input."""
    found, level = {last.name: last}, [last]
    while level and len(found) < NORM_NODES:
        made = [producer(tensor) for node in level for tensor in node.inputs if tensor is not start]
        level = [node for node in made if node is not None and node.name not in found]
        found |= {node.name: node for node in level}
    return found


def _axes(node: gs.Node) -> Sequence[int]:
    """The axes that a node of a norm works on; none where it goes element by element."""
    if node.op in {"LayerNormalization", "RMSNormalization"}:
        return [node.attrs.get("axis", -1)]
    if node.op == "ReduceMean":
        axes = node.attrs.get("axes") or (integers(node.inputs[1]) if len(node.inputs) > 1 else None)
        return [0] if axes is None else axes
    return []


def _size(tensor: gs.Tensor, back: int) -> object:
    """The size of an axis counted from the end, 1 where there is none; None where it is not known."""
    if tensor.shape is None:
        return None
    return tensor.shape[back] if len(tensor.shape) >= -back else 1
