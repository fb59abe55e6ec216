"""Nodes between two linear layers that work on each row alone stay on rows (N, C), the shape of integer linear layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.graph.edit import Editor
from onnxvitq.graph.passes.selection import BROADCAST, UNARY
from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import integers, is_output, is_row, only_reader

# Element by element, like those of UNARY.
ACTIVATIONS = frozenset({"Celu", "Elu", "Selu", "Softsign", "ThresholdedRelu"})
BY_ROW = UNARY | BROADCAST | ACTIVATIONS | {"LayerNormalization"}

Sizes = tuple[int | str | None, ...]  # a name, or None: not known


def join_rows(graph: gs.Graph, kept_apart: frozenset[str] = frozenset()) -> int:
    """Nodes that work row by row, between Reshapes to (N, C) and back -> the same nodes on (N, C), with fewer Reshapes.

    The residual stream of a transformer is one such region: twelve blocks of it need one Reshape in and one out. (DeiT-T has 67
    of 136 Reshapes less, and loads in three quarters of the time.)

    1. All inputs that vary have the same leading sizes, at most one of them unknown; constants are the same for every row.
    2. The region takes fewer Reshapes on rows than it does now.
    3. None of its tensors is an output of the graph.
    4. A node that a runtime would merge with the Gemm before it stays behind its Reshape.

    Args:
        graph: edited in place.
        kept_apart: operators of which rule 4 speaks.
    """
    writer, count = _ReshapeWriter(Editor(graph)), 0
    leads = {id(node): lead for node in graph.nodes if (lead := _lead(node, graph, kept_apart)) is not None}
    for node in list(graph.nodes):
        if id(node) not in leads:
            continue
        lead = leads[id(node)]
        region = _Region(writer, lead, _connected(node, lead, leads))
        if region.saved() > 0:  # rule 2
            region.join()
            count += len(region.nodes)
    return count


def _lead(node: gs.Node, graph: gs.Graph, kept_apart: frozenset[str]) -> Sizes | None:
    """The leading sizes of a node that works row by row and is not on rows yet (rules 1, 3, 4); None for any other node."""
    output = node.outputs[0] if node.op in BY_ROW and len(node.outputs) == 1 else None
    shape = None if output is None or is_output(output, graph) else output.shape
    if shape is None or len(shape) < 3 or not isinstance(shape[-1], int):
        return None
    lead = tuple(shape[:-1])
    one_unknown = None not in lead and sum(isinstance(size, str) for size in lead) <= 1
    last = node.op != "LayerNormalization" or node.attrs.get("axis", -1) in (-1, len(lead))
    fits = all(_fits(tensor, lead, shape[-1]) for tensor in node.inputs if tensor.name)
    return (
        lead if one_unknown and last and fits and not (node.op in kept_apart and _behind_reshape(node, graph)) else None
    )


def _behind_reshape(node: gs.Node, graph: gs.Graph) -> bool:
    """Whether a node alone reads a Reshape (rule 4)."""
    before = producer(node.inputs[0])
    return before is not None and before.op == "Reshape" and only_reader(node.inputs[0], graph) is not None


def _fits(tensor: gs.Tensor, lead: Sizes, width: int) -> bool:
    if isinstance(tensor, gs.Constant):
        return is_row(tensor, width)
    return tensor.shape is not None and tuple(tensor.shape[:-1]) == lead and tensor.shape[-1] in (1, width)


def _connected(start: gs.Node, lead: Sizes, leads: dict[int, Sizes]) -> list[gs.Node]:
    """The nodes of the same leading sizes that are connected with ``start`` by tensors; they are taken out of ``leads``."""
    found, pending = [], [start]
    while pending:
        node = pending.pop()
        if leads.get(id(node)) != lead:
            continue
        del leads[id(node)]
        found.append(node)
        for tensor in (*_varying(node), *node.outputs):
            pending += [*tensor.inputs, *tensor.outputs]
    return found


def _varying(node: gs.Node) -> list[gs.Variable]:
    return [tensor for tensor in node.inputs if tensor.name and not isinstance(tensor, gs.Constant)]


class _ReshapeWriter:
    """Writes Reshapes; equal targets share one constant."""

    def __init__(self, edit: Editor) -> None:
        self.edit = edit
        self._targets: dict[Sizes, gs.Constant] = {}

    def reshape(self, name: str, tensor: gs.Tensor, sizes: Sizes) -> gs.Variable:
        """The tensor reshaped to these sizes, of which at most one is unknown."""
        target = tuple(size if isinstance(size, int) else -1 for size in sizes)
        if target not in self._targets:
            label = "sizes_" + "_".join(str(size).replace("-", "m") for size in target)
            self._targets[target] = self.edit.constant(label, np.array(target, np.int64))
        result = self.edit.node("Reshape", name, [tensor, self._targets[target]], tensor.dtype)
        result.shape = list(sizes)
        return result


@dataclass(frozen=True, slots=True)
class _Region:
    """Connected nodes that work row by row on tensors of the same leading sizes.

    Attributes:
        writer: of Reshapes.
        lead: the leading sizes.
        nodes: those of the region.
    """

    writer: _ReshapeWriter
    lead: Sizes
    nodes: Sequence[gs.Node]

    def saved(self) -> int:
        """Number of Reshapes that the region needs now, less the number that it needs on rows."""
        now = after = 0
        for tensor in self._entering():
            before = producer(tensor)
            now += len(_to_rows(tensor))
            now += before is not None and before.op == "Reshape" and not self._elsewhere(tensor)
            after += _rows_behind(tensor) is None
        for tensor in self._made():
            now += len(_to_rows(tensor))
            after += bool(self._elsewhere(tensor))
        return now - after

    def join(self) -> None:
        """Rewrite the region to work on rows."""
        for tensor in self._entering():
            self._enter(tensor)
        for tensor in self._made():
            self._leave(tensor)
        for node in self.nodes:
            if node.op == "LayerNormalization":
                node.attrs["axis"] = -1
            for index, tensor in enumerate(node.inputs):
                if isinstance(tensor, gs.Constant) and tensor.values.ndim > 1:
                    node.inputs[index] = self.writer.edit.constant(f"{tensor.name}_row", tensor.values.reshape(-1))

    def _entering(self) -> list[gs.Variable]:
        """The computed tensors that the region reads and does not compute itself."""
        made = {id(tensor) for tensor in self._made()}
        read = {id(tensor): tensor for node in self.nodes for tensor in _varying(node)}
        return [tensor for key, tensor in read.items() if key not in made]

    def _made(self) -> list[gs.Variable]:
        return [node.outputs[0] for node in self.nodes]

    def _elsewhere(self, tensor: gs.Tensor) -> list[gs.Node]:
        """Readers outside the region that need the tensor's present shape: any but a Reshape that states all its sizes."""
        own = {id(node) for node in self.nodes}
        return [node for node in tensor.outputs if id(node) not in own and not _states_all_sizes(node, tensor)]

    def _enter(self, tensor: gs.Variable) -> None:
        rows, joined = _rows_behind(tensor), _to_rows(tensor)
        if rows is None and joined:
            rows = joined.pop().outputs[0]
        elif rows is None:
            rows = self.writer.reshape(f"{tensor.name}_joined", tensor, (None, tensor.shape[-1]))
        for reshape in joined:
            self.writer.edit.replace(reshape, rows)
        _read_instead(self.nodes, tensor, rows)

    def _leave(self, tensor: gs.Variable) -> None:
        readers, width = self._elsewhere(tensor), tensor.shape[-1]
        for reshape in _to_rows(tensor):
            self.writer.edit.replace(reshape, tensor)
        tensor.shape = [None, width]
        if readers:
            _read_instead(readers, tensor, self.writer.reshape(f"{tensor.name}_apart", tensor, (*self.lead, width)))


def _rows_behind(tensor: gs.Tensor) -> gs.Tensor | None:
    """The rows (N, C) of which a tensor (.., C) is a Reshape; None where it is none."""
    before = producer(tensor)
    source = before.inputs[0] if before is not None and before.op == "Reshape" else None
    if source is None or source.shape is None or len(source.shape) != 2 or source.shape[-1] != tensor.shape[-1]:
        return None
    return source


def _to_rows(tensor: gs.Tensor) -> list[gs.Node]:
    """The Reshapes of a tensor (.., C) to (N, C)."""
    target = [-1, tensor.shape[-1]]
    return [node for node in tensor.outputs if _states_all_sizes(node, tensor) and integers(node.inputs[1]) == target]


def _states_all_sizes(node: gs.Node, tensor: gs.Tensor) -> bool:
    """Whether a node is a Reshape of the tensor whose result does not depend on the shape that it has now."""
    target = integers(node.inputs[1]) if node.op == "Reshape" and node.inputs[0] is tensor else None
    return target is not None and 0 not in target


def _read_instead(readers: Sequence[gs.Node], old: gs.Tensor, new: gs.Tensor) -> None:
    for node in readers:
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new
