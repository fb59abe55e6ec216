"""A graph run piece by piece: the nodes between one linear layer and the next, so that the layers can be changed on the way.

The linear layers themselves belong to no piece: whoever runs the pieces computes them. A piece is asked for by the tensor it
has to yield, and holds the nodes that are needed for that and have not run yet, whatever the graph's form.

Also: a graph in parts that are run one after the other, to see a change without running what is before it (``stages``).
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxvitq.graph.shapes import value_info


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Nodes that are computed outside: one tensor in, one out."""

    nodes: tuple[str, ...]
    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece as a model of its own."""

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Segments:
    """Cuts one canonical graph, never changed, into pieces as they are asked for.

    ``gaps``: the layers computed outside. ``available`` names everything that is known so far.
    """

    def __init__(self, graph: gs.Graph, gaps: Sequence[Gap]) -> None:
        self._graph = graph
        outside = {name for gap in gaps for name in gap.nodes}
        self._waiting = {node.name: node for node in graph.nodes if node.name not in outside}
        self._producer = {tensor.name: node for node in self._waiting.values() for tensor in node.outputs}
        self._tensors = graph.tensors()
        self._readers: dict[str, int] = {}
        for node in self._waiting.values():
            self._count(_reads(node), 1)
        self._count((gap.input for gap in gaps), 1)
        self._count((tensor.name for tensor in graph.outputs), 1)
        self.available = {tensor.name for tensor in graph.inputs}

    def provide(self, gap: Gap) -> None:
        """A gap has been computed: its output is there, its input read once less."""
        self.available.add(gap.output)
        self._count([gap.input], -1)

    def towards(self, targets: Collection[str]) -> Segment | None:
        """The piece that yields ``targets`` (and what later pieces need of its insides); None when all are available."""
        names = set(self._needed(targets))
        if not names:
            return None
        nodes = [node for name, node in self._waiting.items() if name in names]
        for name in names:
            self._count(_reads(self._waiting.pop(name)), -1)
        made = {tensor.name for node in nodes for tensor in node.outputs if tensor.name}
        read = {name for node in nodes for name in _reads(node)}
        inputs = sorted(name for name in read & self.available)
        outputs = sorted(name for name in made if self.is_needed(name) or name in targets)
        self.available |= set(outputs)
        return Segment(model=self._model(nodes, inputs, outputs), inputs=tuple(inputs), outputs=tuple(outputs))

    def can_reach(self, tensor: str) -> bool:
        """Whether a tensor depends on nothing but what is available."""
        nodes = set(self._needed([tensor]))
        read = {name for node in nodes for name in _reads(self._waiting[node])} | {tensor}
        made = {made.name for node in nodes for made in self._waiting[node].outputs}
        return all(
            name in self.available or name in made or isinstance(self._tensors.get(name), gs.Constant) for name in read
        )

    def is_needed(self, tensor: str) -> bool:
        """Whether anything that has not run yet reads a tensor."""
        return self._readers.get(tensor, 0) > 0

    def _count(self, names: Iterable[str], step: int) -> None:
        for name in names:
            self._readers[name] = self._readers.get(name, 0) + step

    def _needed(self, targets: Collection[str]) -> Iterator[str]:
        """Names of the waiting nodes that the targets depend on."""
        seen: set[str] = set()
        pending = [name for name in targets if name not in self.available]
        while pending:
            node = self._producer.get(pending.pop())
            if node is None or node.name in seen or node.name not in self._waiting:
                continue
            seen.add(node.name)
            yield node.name
            pending.extend(name for name in _reads(node) if name not in self.available)

    def _model(self, nodes: list[gs.Node], inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
        message = onnx.GraphProto(name="segment")
        message.node.extend(OnnxExporter.export_node(node) for node in nodes)
        used = {name for node in nodes for name in _reads(node)}
        constants = [self._tensors[name] for name in sorted(used) if isinstance(self._tensors.get(name), gs.Constant)]
        message.initializer.extend(OnnxExporter.export_tensor_proto(constant) for constant in constants)
        for names, field in ((inputs, message.input), (outputs, message.output)):
            for name in names:
                tensor = self._tensors[name]
                rank = None if tensor.shape is None else [None] * len(tensor.shape)
                field.append(value_info(name, tensor.dtype or np.float32, rank))
        opsets = self._graph.import_domains or [onnx.helper.make_opsetid("", self._graph.opset)]
        return onnx.helper.make_model(message, opset_imports=opsets, ir_version=IR_VERSION)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """One of the parts that a graph falls into, to read, not to edit: what it reads of earlier ones and of the graph's inputs,
    what it hands on, what of the other tensors is watched, and its share of the whole's work, 0 to 1.
    """

    graph: gs.Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    watched: tuple[str, ...]
    share: float


def stages(graph: gs.Graph, varied: Mapping[str, int], most: int, watched: Collection[str] = ()) -> list[Stage]:
    """A sorted graph in at most that many parts, one after the other, cut where one tensor at most depends on what varies.

    So whatever is the same up to a cut has the same value there, and a change behind it is seen by running the parts from its
    own on. Of the places where that is so, those are taken that share the work most evenly.

    Args:
        graph: sorted; its outputs are those of the parts, beside what a later part reads.
        varied: inputs that change from run to run, and the work that reading one stands for.
        most: parts.
        watched: tensors that are outputs of their parts as well.
    """
    work = [sum(varied.get(name, 0) for name in _reads(node)) for node in graph.nodes]
    done = np.cumsum(work) / max(sum(work), 1)
    last = {name: index for index, node in enumerate(graph.nodes) for name in _reads(node)}
    last |= dict.fromkeys((tensor.name for tensor in graph.outputs), len(graph.nodes))
    depends, alive, places = set(varied), set[str](), list[int]()
    for index, node in enumerate(graph.nodes[:-1]):
        if depends & _reads(node):
            depends |= {tensor.name for tensor in node.outputs}
            alive |= {tensor.name for tensor in node.outputs}
        alive = {name for name in alive if last.get(name, -1) > index}
        if len(alive) <= 1 and 0 < done[index] < 1:
            places.append(index)
    wanted = np.arange(1, most) / most
    cuts = {places[int(np.abs(done[places] - share).argmin())] + 1 for share in wanted} if places else set[int]()
    bounds = [0, *sorted(cuts), len(graph.nodes)]
    constants = {name for name, tensor in graph.tensors().items() if isinstance(tensor, gs.Constant)}
    found = []
    for start, stop in itertools.pairwise(bounds):
        nodes = graph.nodes[start:stop]
        made = [tensor.name for node in nodes for tensor in node.outputs]
        inputs = sorted({name for node in nodes for name in _reads(node)} - constants - set(made))
        outputs = [name for name in made if last.get(name, -1) >= stop]
        seen = [name for name in made if name in watched and name not in outputs]
        share = sum(work[start:stop]) / sum(work) if any(work) else len(nodes) / len(work)
        part = part_of(graph, nodes, inputs, [*outputs, *seen])
        found.append(Stage(graph=part, inputs=tuple(inputs), outputs=tuple(outputs), watched=tuple(seen), share=share))
    return found


IR_VERSION = 10  # of the pieces, which only onnxruntime reads


def _reads(node: gs.Node) -> set[str]:
    """Names of the tensors that a node reads, in the bodies of an If or a Loop as well; a body carries its own constants."""
    names = {tensor.name for tensor in node.inputs if tensor.name}
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            own = {tensor.name for inner in value.nodes for tensor in inner.outputs}
            own |= {tensor.name for tensor in value.inputs}
            own |= {name for name, tensor in value.tensors().items() if isinstance(tensor, gs.Constant)}
            inside = {name for inner in value.nodes for name in _reads(inner)}
            names |= (inside | {tensor.name for tensor in value.outputs}) - own
    return names


def part_of(graph: gs.Graph, nodes: Sequence[gs.Node], inputs: Sequence[str], outputs: Sequence[str]) -> gs.Graph:
    """Some nodes of a graph as a graph of their own; tensors and constants are shared, not copied.

    Read it, or copy it: an edit would reach the whole. Sizes of the inputs are left unknown where they are not numbers.
    """
    tensors = graph.tensors()
    return gs.Graph(
        nodes=list(nodes),
        inputs=[tensors[name] for name in inputs],
        outputs=[tensors[name] for name in outputs],
        opset=graph.opset,
        import_domains=graph.import_domains,
        ir_version=graph.ir_version,
        name="part",
    )
