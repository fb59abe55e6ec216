"""The one place where a graph is cut into subgraphs, in three ways.

- ``SubgraphCutter``: on demand, around nodes that the caller computes itself. Weight reconstruction and the fit of low-rank
  branches run a network this way, with the linear layers left out.
- ``cut_evenly``: a few subgraphs of about equal work, so that a change is seen by running only what lies behind it.
- ``cut_between_blocks``: one subgraph a transformer block, for block-wise learning.

A ``Subgraph`` names what crosses its border. ``as_graph`` makes a graph of its own of it.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxvitq.core.layers import BlockMap
from onnxvitq.graph.shapes import value_info

IR_VERSION = 10  # of a subgraph's model file, which only onnxruntime reads


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subgraph:
    """Some nodes of a graph and the tensors that cross their border.

    Attributes:
        nodes: in the order in which they run; they are the graph's own: read them, do not edit them.
        inputs: names of the tensors that come from other nodes or are inputs of the graph, sorted; constants are not inputs.
        outputs: names of the tensors that other nodes read or that the graph puts out.
    """

    nodes: tuple[gs.Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def as_graph(graph: gs.Graph, subgraph: Subgraph, extra_outputs: Sequence[str] = ()) -> gs.Graph:
    """A subgraph as a graph of its own. Tensors and constants are shared with ``graph``: read it, or edit a copy.

    Args:
        graph: what the subgraph was cut from.
        subgraph: the nodes.
        extra_outputs: names of tensors inside that become outputs behind the subgraph's own.
    """
    tensors = graph.tensors()
    return gs.Graph(
        nodes=list(subgraph.nodes),
        inputs=[tensors[name] for name in subgraph.inputs],
        outputs=[tensors[name] for name in (*subgraph.outputs, *extra_outputs)],
        opset=graph.opset,
        import_domains=graph.import_domains,
        ir_version=graph.ir_version,
        name="subgraph",
    )


def tensors_read(node: gs.Node) -> set[str]:
    """Names of the tensors that a node reads, those read in the bodies of an If, Loop or Scan included.

    Constants of a body belong to the body and are not named.
    """
    names = {tensor.name for tensor in node.inputs if tensor.name}
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            own = {tensor.name for inner in value.nodes for tensor in inner.outputs}
            own |= {tensor.name for tensor in value.inputs}
            own |= {name for name, tensor in value.tensors().items() if isinstance(tensor, gs.Constant)}
            inside = {name for inner in value.nodes for name in tensors_read(inner)}
            names |= (inside | {tensor.name for tensor in value.outputs}) - own
    return names


# ---------------------------------------------------------------------------------------------------- on demand


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideNodes:
    """Consecutive nodes that belong to no subgraph, because the caller computes them: one tensor in, one out.

    Attributes:
        nodes: their names.
        input: name of the tensor that the first of them reads.
        output: name of the tensor that the last of them computes.
    """

    nodes: tuple[str, ...]
    input: str
    output: str


class SubgraphCutter:
    """Cuts a graph, which is never changed, into subgraphs as they are asked for.

    A subgraph is asked for by the tensors that it has to compute. It holds the nodes that these need and that no earlier
    subgraph held, whatever the form of the graph.

    Args:
        graph: sorted, with unique node names.
        outside: the nodes that the caller computes.

    Attributes:
        available: names of the tensors that have been computed so far, and of the graph's inputs.
    """

    def __init__(self, graph: gs.Graph, outside: Sequence[OutsideNodes]) -> None:
        self._graph = graph
        left_out = {name for layer in outside for name in layer.nodes}
        self._waiting = {node.name: node for node in graph.nodes if node.name not in left_out}
        self._producer = {tensor.name: node for node in self._waiting.values() for tensor in node.outputs}
        self._tensors = graph.tensors()
        self._readers: dict[str, int] = {}
        for node in self._waiting.values():
            self._count(tensors_read(node), 1)
        self._count((layer.input for layer in outside), 1)
        self._count((tensor.name for tensor in graph.outputs), 1)
        self.available = {tensor.name for tensor in graph.inputs}

    def provide(self, layer: OutsideNodes) -> None:
        """Note that the caller has computed one of the layers outside: its output is available, its input is read once less."""
        self.available.add(layer.output)
        self._count([layer.input], -1)

    def towards(self, targets: Collection[str]) -> Subgraph | None:
        """The subgraph that computes ``targets``; its outputs are also what later subgraphs read of it.

        None when all of ``targets`` are available.
        """
        names = set(self._needed(targets))
        if not names:
            return None
        nodes = [node for name, node in self._waiting.items() if name in names]
        for name in names:
            self._count(tensors_read(self._waiting.pop(name)), -1)
        made = {tensor.name for node in nodes for tensor in node.outputs if tensor.name}
        read = {name for node in nodes for name in tensors_read(node)}
        inputs = sorted(name for name in read & self.available)
        outputs = sorted(name for name in made if self.is_needed(name) or name in targets)
        self.available |= set(outputs)
        return Subgraph(nodes=tuple(nodes), inputs=tuple(inputs), outputs=tuple(outputs))

    def can_reach(self, tensor: str) -> bool:
        """Whether a tensor can be computed from what is available, without a layer outside that is still to be computed."""
        nodes = set(self._needed([tensor]))
        read = {name for node in nodes for name in tensors_read(self._waiting[node])} | {tensor}
        made = {made.name for node in nodes for made in self._waiting[node].outputs}
        return all(
            name in self.available or name in made or isinstance(self._tensors.get(name), gs.Constant) for name in read
        )

    def is_needed(self, tensor: str) -> bool:
        """Whether anything that has not run yet reads a tensor; a graph's output is always needed."""
        return self._readers.get(tensor, 0) > 0

    def model(self, subgraph: Subgraph) -> onnx.ModelProto:
        """A subgraph as a model, with copies of the constants that it reads. Only the ranks of its tensors are stated."""
        message = onnx.GraphProto(name="subgraph")
        message.node.extend(OnnxExporter.export_node(node) for node in subgraph.nodes)
        used = {name for node in subgraph.nodes for name in tensors_read(node)}
        constants = [self._tensors[name] for name in sorted(used) if isinstance(self._tensors.get(name), gs.Constant)]
        message.initializer.extend(OnnxExporter.export_tensor_proto(constant) for constant in constants)
        for names, field in ((subgraph.inputs, message.input), (subgraph.outputs, message.output)):
            for name in names:
                tensor = self._tensors[name]
                rank = None if tensor.shape is None else [None] * len(tensor.shape)
                field.append(value_info(name, tensor.dtype or np.float32, rank))
        opsets = self._graph.import_domains or [onnx.helper.make_opsetid("", self._graph.opset)]
        return onnx.helper.make_model(message, opset_imports=opsets, ir_version=IR_VERSION)

    def _count(self, names: Iterable[str], step: int) -> None:
        for name in names:
            self._readers[name] = self._readers.get(name, 0) + step

    def _needed(self, targets: Collection[str]) -> Iterator[str]:
        """Names of the nodes that have not run yet and that the targets depend on."""
        visited: set[str] = set()
        pending = [name for name in targets if name not in self.available]
        while pending:
            node = self._producer.get(pending.pop())
            if node is None or node.name in visited or node.name not in self._waiting:
                continue
            visited.add(node.name)
            yield node.name
            pending.extend(name for name in tensors_read(node) if name not in self.available)


# ---------------------------------------------------------------------------------------------------- even shares of the work


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightedSubgraph:
    """A subgraph with its share of the work.

    Attributes:
        subgraph: its outputs are what later subgraphs read, and outputs of the whole graph.
        watched: names of further tensors inside that the caller wants to see.
        share: of the work of the whole graph, 0 to 1.
    """

    subgraph: Subgraph
    watched: tuple[str, ...]
    share: float


def cut_evenly(
    graph: gs.Graph, varied: Mapping[str, int], most: int, watched: Collection[str] = ()
) -> list[WeightedSubgraph]:
    """A graph as subgraphs that run one after the other, cut where at most one tensor depends on the varied inputs.

    A change of a varied input is then seen by running the subgraph that reads it and those behind it: everything computed
    before has the same value. Among the places where a cut is possible, those are taken that share the work most evenly.

    Args:
        graph: sorted.
        varied: name of an input whose value changes from run to run -> the work that reading it stands for, in any unit.
        most: number of subgraphs, at most.
        watched: names of tensors that the caller wants to see.
    """
    work = [sum(varied.get(name, 0) for name in tensors_read(node)) for node in graph.nodes]
    last_reader = _last_readers(graph, graph.nodes)
    bounds = [0, *_even_places(graph, varied, work, last_reader, most), len(graph.nodes)]
    constants = {name for name, tensor in graph.tensors().items() if isinstance(tensor, gs.Constant)}
    subgraphs = []
    for start, stop in itertools.pairwise(bounds):
        nodes = graph.nodes[start:stop]
        made = [tensor.name for node in nodes for tensor in node.outputs]
        inputs = sorted({name for node in nodes for name in tensors_read(node)} - constants - set(made))
        outputs = [name for name in made if last_reader.get(name, -1) >= stop]
        subgraphs.append(
            WeightedSubgraph(
                subgraph=Subgraph(nodes=tuple(nodes), inputs=tuple(inputs), outputs=tuple(outputs)),
                watched=tuple(name for name in made if name in watched and name not in outputs),
                share=sum(work[start:stop]) / sum(work) if any(work) else len(nodes) / len(work),
            )
        )
    return subgraphs


def _last_readers(graph: gs.Graph, nodes: Sequence[gs.Node]) -> dict[str, int]:
    """Tensor name -> index of the last node that reads it; of an output of the graph the number of nodes."""
    last = {name: index for index, node in enumerate(nodes) for name in tensors_read(node)}
    return last | dict.fromkeys((tensor.name for tensor in graph.outputs), len(nodes))


def _even_places(
    graph: gs.Graph, varied: Iterable[str], work: Sequence[int], last_reader: Mapping[str, int], most: int
) -> list[int]:
    """Indices of the nodes before which to cut, sorted, at most ``most - 1``."""
    done = np.cumsum(work) / max(sum(work), 1)
    depends, alive, places = set(varied), set[str](), list[int]()
    for index, node in enumerate(graph.nodes[:-1]):
        if depends & tensors_read(node):
            depends |= {tensor.name for tensor in node.outputs}
            alive |= {tensor.name for tensor in node.outputs}
        alive = {name for name in alive if last_reader.get(name, -1) > index}
        if len(alive) <= 1 and 0 < done[index] < 1:
            places.append(index)
    wanted = np.arange(1, most) / most
    return sorted({places[int(np.abs(done[places] - share).argmin())] + 1 for share in wanted}) if places else []


# ---------------------------------------------------------------------------------------------------- between blocks


def cut_between_blocks(graph: gs.Graph, blockmap: BlockMap) -> tuple[Subgraph, ...]:
    """The whole graph as subgraphs: one a block, and what lies before the first block and behind the last.

    Between the last product of a block and the first of the next, the cut is where the fewest tensors are still to be read,
    the first such place: usually behind the residual Add that ends a block. Blocks that interleave are one subgraph.
    """
    nodes = _late_order(graph)
    position = {node.name: index for index, node in enumerate(nodes)}
    spans = _block_spans(blockmap, position)
    alive = _alive_tensors(graph, nodes)
    cuts = [0]
    for before, after in zip([(0, -1), *spans], [*spans, (len(nodes), len(nodes))], strict=True):
        places = range(max(before[1] + 1, cuts[-1]), after[0] + 1)
        if places and spans:
            cuts.append(min(places, key=lambda place: len(alive[place])))
    stops = sorted({*cuts, len(nodes)})
    outside = {tensor.name for tensor in graph.inputs}
    subgraphs = []
    for start, stop in itertools.pairwise(stops):
        span = nodes[start:stop]
        made = {tensor.name for node in span for tensor in node.outputs}
        read = {name for node in span for name in tensors_read(node)}
        inputs, outputs = sorted(read & (alive[start] | outside)), sorted(made & alive[stop])
        subgraphs.append(Subgraph(nodes=tuple(span), inputs=tuple(inputs), outputs=tuple(outputs)))
    return tuple(subgraphs)


def _late_order(graph: gs.Graph) -> list[gs.Node]:
    """The nodes sorted, each as late as the first that reads it, so that no tensor is alive for longer than it has to be."""
    producer = {id(tensor): node for node in graph.nodes for tensor in node.outputs}
    done: set[int] = set()
    order: list[gs.Node] = []
    for last in graph.nodes:
        pending = [(last, False)]
        while pending:
            node, ready = pending.pop()
            if id(node) in done:
                continue
            if ready:
                done.add(id(node))
                order.append(node)
                continue
            pending.append((node, True))
            pending += [(producer[id(tensor)], False) for tensor in reversed(node.inputs) if id(tensor) in producer]
    return order


def _block_spans(blockmap: BlockMap, position: Mapping[str, int]) -> list[tuple[int, int]]:
    """First and last position of what belongs to each block: its attention's products and linears, its MLPs."""
    spans: list[tuple[int, int]] = []
    attentions = {attention.name: attention for attention in blockmap.attentions}
    for block in blockmap.blocks:
        attention = attentions[block.attention]
        linears = {attention.query_linear, attention.key_linear, attention.value_linear, attention.proj_linear}
        linears |= {name for mlp in block.mlps for name in (mlp.fc1, mlp.fc2, mlp.gate)}
        names = {attention.scores_node, attention.context_node}
        for linear in blockmap.linears:
            if linear.name in linears:
                names |= {linear.name, linear.bias_node}
        places = [position[name] for name in names if name in position]
        if not spans or min(places) > spans[-1][1]:
            spans.append((min(places), max(places)))
        else:
            spans[-1] = (min(*places, spans[-1][0]), max(*places, spans[-1][1]))
    return spans


def _alive_tensors(graph: gs.Graph, nodes: Sequence[gs.Node]) -> list[frozenset[str]]:
    """At each of the N + 1 places between N nodes, the computed tensors that are still read; at the last, the outputs."""
    last_reader = _last_readers(graph, nodes)
    alive: set[str] = set()
    places = [frozenset[str]()]
    for index, node in enumerate(nodes):
        alive |= {tensor.name for tensor in node.outputs}
        alive = {name for name in alive if last_reader.get(name, -1) > index}
        places.append(frozenset(alive))
    return places
