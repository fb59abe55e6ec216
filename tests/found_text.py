"""What is found in text graphs; checks for each that every node that multiplies is accounted for."""

from collections import Counter
from collections.abc import Iterator

import onnx_graphsurgeon as gs
from textgraph import digest, graph_of

from onnxvitq.blocks.find import ACCOUNTED, find_blocks
from onnxvitq.core.layers import BlockMap


def beside(nodes: str = "", *, weights: str = "float unused = {0}", outputs: str = "", inputs: str = "") -> str:
    """A self-attention, and more nodes after it."""
    more_inputs, more_outputs = (f", {values}" if values else "" for values in (inputs, outputs))
    return (
        f"(float[N,2,5,4] q, float[N,2,4,5] k, float[N,2,5,4] v, float[N,5,8] x{more_inputs})"
        f" => (float[A,B,C,D] y{more_outputs}) <{weights}>"
        f" {{ scores = MatMul(q, k) probs = Softmax<axis = -1>(scores) y = MatMul(probs, v) {nodes} }}"
    )


def all_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    for node in graph.nodes:
        yield node
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from all_nodes(value)


def found_in(text: str, opset: int = 17) -> BlockMap:
    """What is found; checks for every graph that the count adds up and that nothing was changed."""
    graph = graph_of(text, opset=opset)
    before = digest(graph)
    blockmap = find_blocks(graph, "test.onnx")
    assert digest(graph) == before
    assert_accounted(graph, blockmap)
    return blockmap


def assert_accounted(graph: gs.Graph, blockmap: BlockMap) -> None:
    multiplying = [node.name for node in all_nodes(graph) if node.op in ACCOUNTED]
    nodes = [
        *(linear.name for linear in blockmap.linears),
        *(name for a in blockmap.attentions for name in (a.scores_node, a.softmax_node, a.context_node)),
        *(product.name for product in blockmap.products),
        *(unmatched.name for unmatched in blockmap.unmatched),
    ]
    assert Counter(nodes) == Counter(multiplying)
