"""Ways through a canonical graph: which linear makes a tensor, which one reads it."""

from collections.abc import Iterator, Mapping

import onnx_graphsurgeon as gs

from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import reached

MAX_NODES = 64  # looked at on one way; a rotary embedding has about a dozen, a pooled projection with its norm as many

# What puts computed tensors together: products of two of them, and sums or joins.
PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum", "Attention"})
SUMS = frozenset({"Add", "Sum", "Concat"})


def linears_behind(tensor: gs.Tensor, kinds: frozenset[str], by_output: Mapping[str, str]) -> list[str]:
    """Names of the linears that a tensor is made of through nodes of ``kinds``, nearest first.

    Args:
        tensor: where the walk towards the inputs starts.
        kinds: operators to walk through; the walk goes round others.
        by_output: name of the linear by the name of its output tensor.
    """
    found: list[str] = []
    level, seen = [tensor], {tensor.name}
    while level and len(seen) < MAX_NODES:
        following: list[gs.Tensor] = []
        for one in level:
            if one.name in by_output:
                found.append(by_output[one.name])
                continue
            node = producer(one)
            if node is None or node.op not in kinds:
                continue
            for source in node.inputs:
                if not isinstance(source, gs.Constant) and source.name and source.name not in seen:
                    seen.add(source.name)
                    following.append(source)
        level = following
    return list(dict.fromkeys(found))


def linear_ahead(tensor: gs.Tensor, kinds: frozenset[str], by_input: Mapping[str, str]) -> str:
    """Name of the nearest linear that reads a tensor through nodes of ``kinds``; "" when there is none.

    Args:
        tensor: where the walk towards the outputs starts.
        kinds: operators to walk through.
        by_input: name of the (first) linear by the name of its input tensor.
    """
    level, seen = [tensor], {tensor.name}
    while level and len(seen) < MAX_NODES:
        for one in level:
            if one.name in by_input:
                return by_input[one.name]
        level = [out for one in level for out in _further(one, kinds) if out.name not in seen]
        seen.update(one.name for one in level)
    return ""


def is_mixed(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether anything on the ways from a tensor to the outputs adds another computed tensor to it, or multiplies computed
    tensors: a residual stream, an attention. After a head nothing does.
    """
    made = reached(graph, {tensor.name}, ())
    return any(_mixes(node, made) for node in graph.nodes)


def _mixes(node: gs.Node, made: set[str]) -> bool:
    computed = [one.name for one in node.inputs if one.name and not isinstance(one, gs.Constant)]
    if made.isdisjoint(computed):
        return False
    return len(computed) > 1 if node.op in PRODUCTS else node.op in SUMS and not made.issuperset(computed)


def _further(tensor: gs.Tensor, kinds: frozenset[str]) -> Iterator[gs.Tensor]:
    for node in tensor.outputs:
        if node.op in kinds:
            yield from node.outputs


def made_by_layers(graph: gs.Graph, outputs: Mapping[str, str]) -> set[str]:
    """Names of the tensors that depend on a linear layer or a convolution: features, in contrast to coordinates and masks.

    The graph is sorted.
    """
    made = set(outputs)
    for node in graph.nodes:
        if node.op == "Conv" or (node.op != "Shape" and any(tensor.name in made for tensor in node.inputs)):
            made.update(tensor.name for tensor in node.outputs)
    return made
