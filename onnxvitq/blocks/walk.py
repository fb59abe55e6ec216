"""Walks through a canonical graph: which linear layer a tensor comes from, and which one reads it."""

from collections.abc import Iterator, Mapping

import onnx_graphsurgeon as gs

from onnxvitq.graph.pattern import producer
from onnxvitq.graph.query import reached

MAX_NODES = 64  # looked at in one walk; a rotary embedding has about a dozen, a pooled projection with its norm as many

# Operators that put computed tensors together: products of two of them, and sums or joins.
PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum", "Attention"})
SUMS = frozenset({"Add", "Sum", "Concat"})


def linears_behind(tensor: gs.Tensor, kinds: frozenset[str], by_output: Mapping[str, str]) -> list[str]:
    """Names of the linear layers that a tensor is computed from through nodes of ``kinds``, nearest first.

    Args:
        tensor: where the walk towards the inputs starts.
        kinds: operators to walk through; the walk goes round others.
        by_output: name of the linear by the name of its output tensor.
    """
    found: list[str] = []
    level, seen = [tensor], {tensor.name}
    while level and len(seen) < MAX_NODES:
        following: list[gs.Tensor] = []
        for made in level:
            if made.name in by_output:
                found.append(by_output[made.name])
                continue
            node = producer(made)
            if node is None or node.op not in kinds:
                continue
            for source in node.inputs:
                if not isinstance(source, gs.Constant) and source.name and source.name not in seen:
                    seen.add(source.name)
                    following.append(source)
        level = following
    return list(dict.fromkeys(found))


def linear_ahead(tensor: gs.Tensor, kinds: frozenset[str], by_input: Mapping[str, str]) -> str:
    """Name of the nearest linear layer that reads a tensor through nodes of ``kinds``; "" where there is none.

    Args:
        tensor: where the walk towards the outputs starts.
        kinds: operators to walk through.
        by_input: name of the (first) linear by the name of its input tensor.
    """
    level, seen = [tensor], {tensor.name}
    while level and len(seen) < MAX_NODES:
        for read in level:
            if read.name in by_input:
                return by_input[read.name]
        level = [output for read in level for output in _further(read, kinds) if output.name not in seen]
        seen.update(read.name for read in level)
    return ""


def is_mixed(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether anything between a tensor and the outputs adds another computed tensor to it, or multiplies computed tensors.

    A residual stream or an attention does; after a classification head nothing does.
    """
    made = reached(graph, {tensor.name}, ())
    return any(_mixes(node, made) for node in graph.nodes)


def _mixes(node: gs.Node, made: set[str]) -> bool:
    computed = [tensor.name for tensor in node.inputs if tensor.name and not isinstance(tensor, gs.Constant)]
    if made.isdisjoint(computed):
        return False
    return len(computed) > 1 if node.op in PRODUCTS else node.op in SUMS and not made.issuperset(computed)


def _further(tensor: gs.Tensor, kinds: frozenset[str]) -> Iterator[gs.Tensor]:
    for node in tensor.outputs:
        if node.op in kinds:
            yield from node.outputs


def made_by_layers(graph: gs.Graph, outputs: Mapping[str, str]) -> set[str]:
    """Names of the tensors that depend on a linear layer or a convolution: features, in contrast to coordinates and masks.

    Args:
        graph: sorted.
        outputs: output tensor of each linear layer -> its name.
    """
    made = set(outputs)
    for node in graph.nodes:
        if node.op == "Conv" or (node.op != "Shape" and any(tensor.name in made for tensor in node.inputs)):
            made.update(tensor.name for tensor in node.outputs)
    return made
