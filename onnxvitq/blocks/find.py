"""The search for linear layers, attentions, MLPs and norms; every node that multiplies is accounted for."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from onnxvitq.blocks.patterns import (
    ACTIVATED,
    AFTER_PROJECTION,
    ATTENTION,
    BEFORE_ACTIVATION,
    BEFORE_PROJECTION,
    GATED,
    LAYOUT,
    LEARNED_QUERY,
    LINEAR,
    NORM,
    PATCHES,
    SEPARABLE,
)
from onnxvitq.blocks.walk import is_mixed, linear_ahead, linears_behind, made_by_layers
from onnxvitq.core.errors import NoBlocksFoundError
from onnxvitq.core.layers import Attention, Block, BlockMap, Linear, Mlp, Norm, Product, Unmatched
from onnxvitq.graph.pattern import Match, Miss, match
from onnxvitq.graph.query import is_output

ACCOUNTED = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Softmax", "Attention"})
NORM_ENDS = frozenset({"LayerNormalization", "RMSNormalization", "Add", "Mul"})  # the last nodes of the forms of NORM
NEAREST = 3  # misses that an error about an unrecognised graph lists


def find_blocks(graph: gs.Graph, where: str) -> BlockMap:
    """Every layer of a canonical, sorted graph, which is never changed.

    Args:
        graph: from ``graph.canonical.canonicalise``.
        where: the model's name, for the error.

    Raises:
        NoBlocksFoundError: there is no attention of any kind; the message names the nearest misses.
    """
    linears = {linear.name: linear for linear in _linears(graph)}
    attentions, misses = _attentions(graph)
    in_attentions = {name for attention in attentions for name in (attention.scores_node, attention.context_node)}
    products = tuple(
        product for product in _products(graph, dict(misses), linears) if product.name not in in_attentions
    )
    if not (attentions or any(not product.constant for product in products) or _separable(graph)):
        nearest = sorted(misses, key=lambda item: -item[1].depth)[:NEAREST]
        listing = (
            "; ".join(f"{name}: {miss.reason}" for name, miss in nearest) or "it has no product of two activations"
        )
        raise NoBlocksFoundError(
            where, f"no attention block found; nearest: {listing}", "is it a Vision Transformer, unfused?"
        )
    attentions = _with_linears(graph, attentions, linears)
    order = {node.name: index for index, node in enumerate(graph.nodes)}
    mlps = _mlps(graph, linears, [order[attention.context_node] for attention in attentions], order)
    roles = _roles(attentions, mlps, linears, order)
    found = tuple(replace(linear, role=roles[linear.name]) for linear in linears.values())
    blocks = tuple(
        Block(index=index, attention=attention.name, mlps=tuple(mlp for mlp in mlps if mlp.block == index))
        for index, attention in enumerate(attentions)
    )
    matched = {
        name
        for attention in attentions
        for name in (attention.scores_node, attention.softmax_node, attention.context_node)
    } | {product.name for product in products}
    unmatched = tuple(_unmatched(graph, matched | set(linears), dict(misses)))
    return BlockMap(
        blocks=blocks,
        attentions=tuple(attentions),
        linears=found,
        norms=tuple(_norms(graph, linears)),
        unmatched=unmatched,
        products=products,
    )


def _linears(graph: gs.Graph) -> Iterator[Linear]:
    for node in graph.nodes:
        if node.op != "MatMul" or not isinstance(node.inputs[1], gs.Constant) or len(node.inputs[1].shape) != 2:
            continue
        if isinstance(node.inputs[0], gs.Constant):
            continue
        in_features, out_features = node.inputs[1].shape
        biased = _biased(graph, node)
        yield Linear(
            name=node.name,
            role="",
            kind="patch_embedding" if _reads_patches(graph, node.inputs[0]) else "linear",
            input=node.inputs[0].name,
            weight=node.inputs[1].name,
            bias=biased.tensors["bias"].name if biased else "",
            bias_node=biased.nodes["bias_node"].name if biased else "",
            output=(biased.nodes["bias_node"] if biased else node).outputs[0].name,
            in_features=int(in_features),
            out_features=int(out_features),
        )


def _biased(graph: gs.Graph, node: gs.Node) -> Match | None:
    """The match of a product with its bias; None where anything else reads the product, or there is no bias."""
    end = node.outputs[0]
    if len(end.outputs) != 1 or any(end is output for output in graph.outputs):
        return None
    found = match(LINEAR, end.outputs[0].outputs[0])
    if not isinstance(found, Match) or found.tags["linear_form"] != "bias" or found.nodes["product"] is not node:
        return None
    return found if _is_row(found.tensors["bias"], node.inputs[1].shape[1]) else None


def _is_row(bias: gs.Tensor, out_features: int) -> bool:
    """Whether a constant added to (.., O) holds one value a column: shape (O,) or (1, .., 1, O)."""
    shape = list(bias.shape)
    return bool(shape) and shape[-1] == out_features and all(size == 1 for size in shape[:-1])


def _reads_patches(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether a tensor is the image itself, cut into patches (the form that the pass ``patch_convolution`` writes)."""
    found = match(PATCHES, tensor)
    if not isinstance(found, Match) or len(found.nodes["turn"].attrs.get("perm", ())) != 6:
        return False
    return any(found.tensors["image"] is source for source in graph.inputs)


def _attentions(graph: gs.Graph) -> tuple[list[Attention], list[tuple[str, Miss]]]:
    """Attentions in the order of the graph, and the misses of every product or softmax that is in none."""
    found: list[Attention] = []
    misses: list[tuple[str, Miss]] = []
    taken: set[str] = set()
    for node in graph.nodes:
        if node.op != "MatMul" or any(isinstance(tensor, gs.Constant) for tensor in node.inputs):
            continue
        result = _attention_ending_in(node.outputs[0])
        if isinstance(result, Miss):
            misses.append((node.name, result))
        elif taken & {result.nodes["scores"].name, result.nodes["softmax"].name}:
            misses.append((node.name, Miss("its scores or its Softmax belong to another attention", 3)))
        else:
            found.append(_attention(result, node, len(found)))
            taken |= {found[-1].scores_node, found[-1].softmax_node}
    return found, [(name, miss) for name, miss in misses if name not in taken]


def _attention_ending_in(tensor: gs.Tensor) -> Match | Miss:
    """The attention whose second product is ``tensor``: one with a computed query, else one with a learned query.

    A miss gives the reason why there is none with a computed query.
    """
    results = [_checked(match(pattern, tensor)) for pattern in (ATTENTION, LEARNED_QUERY)]
    return next((result for result in results if isinstance(result, Match)), results[0])


def _checked(result: Match | Miss) -> Match | Miss:
    """The match, or a miss where its Softmax cannot be one over the keys of its scores."""
    if isinstance(result, Miss):
        return result
    if not _same_map(result.nodes["scores"], result.nodes["softmax"]):
        return Miss("the Softmax is not of the product's shape", 3)
    if not _over_keys(result.nodes["softmax"]):
        return Miss("the Softmax is not over the last axis", 3)
    return result


def _over_keys(softmax: gs.Node) -> bool:
    shape, axis = softmax.inputs[0].shape, softmax.attrs.get("axis", -1)
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _same_map(scores: gs.Node, softmax: gs.Node) -> bool:
    """Whether a Softmax can be over the scores: their last two sizes are the same, where they are known.

    It tells scores with heads mixed by a matrix from a router that happens to follow an attention.
    """
    made, read = scores.outputs[0].shape, softmax.inputs[0].shape
    if made is None or read is None or len(made) < 2 or len(read) < 2:
        return True
    return all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(made[-2:], read[-2:], strict=True)
    )


def _attention(found: Match, context: gs.Node, index: int) -> Attention:
    first = found.tags["order"] != "value_first"
    probs = context.inputs[0 if first else 1]
    query, value = found.tensors["query"], found.tensors["value"]
    shape = query.shape or []
    return Attention(
        name=found.nodes["softmax"].name,
        block=index,
        query=query.name,
        key=found.tensors["key"].name,
        probs=probs.name,
        value=value.name,
        scores_node=found.nodes["scores"].name,
        softmax_node=found.nodes["softmax"].name,
        context_node=context.name,
        probs_first=first,
        heads=_size(shape[-3]) if len(shape) >= 4 else None,
        tokens=_size(value.shape[-2 if first else -1]) if value.shape else None,
        width=_size(shape[-1]) if shape else None,
    )


def _size(dimension: object) -> int | None:
    return dimension if isinstance(dimension, int) else None


def _with_linears(graph: gs.Graph, attentions: Sequence[Attention], linears: Mapping[str, Linear]) -> list[Attention]:
    """The attentions with the names of the linear layers that compute Q, K and V, and of the one that reads the result."""
    tensors = graph.tensors()
    nodes = {node.name: node for node in graph.nodes}
    by_output = {linear.output: linear.name for linear in linears.values()}
    by_input = {linear.input: linear.name for linear in reversed(list(linears.values()))}
    return [
        replace(
            attention,
            query_linear=_made_by(tensors[attention.query], by_output),
            key_linear=_made_by(tensors[attention.key], by_output),
            value_linear=_made_by(tensors[attention.value], by_output),
            proj_linear=linear_ahead(nodes[attention.context_node].outputs[0], BEFORE_PROJECTION, by_input),
            direct=_is_direct(attention, nodes, by_output, by_input),
        )
        for attention in attentions
    ]


def _is_direct(
    attention: Attention, nodes: Mapping[str, gs.Node], by_output: Mapping[str, str], by_input: Mapping[str, str]
) -> bool:
    scores, context = nodes[attention.scores_node], nodes[attention.context_node]
    operands = [*scores.inputs, context.inputs[1 if attention.probs_first else 0]]
    made = all(
        not isinstance(operand, gs.Constant) and linears_behind(operand, LAYOUT, by_output) for operand in operands
    )
    plain = attention.probs == nodes[attention.softmax_node].outputs[0].name
    return made and plain and bool(linear_ahead(context.outputs[0], LAYOUT, by_input))


def _made_by(tensor: gs.Tensor, by_output: Mapping[str, str]) -> str:
    """Name of the linear layer that an operand comes from; "" where there is none, or several."""
    found = linears_behind(tensor, AFTER_PROJECTION, by_output)
    return found[0] if len(found) == 1 else ""


def _products(graph: gs.Graph, misses: Mapping[str, Miss], linears: Mapping[str, Linear]) -> Iterator[Product]:
    """Products of two features, and of features with a constant that is not a weight (I, O); those in attentions included."""
    made = made_by_layers(graph, {linear.output: linear.name for linear in linears.values()})
    for node in graph.nodes:
        if node.op != "MatMul" or node.name in linears:
            continue
        constant = next((tensor.name for tensor in node.inputs if isinstance(tensor, gs.Constant)), "")
        computed = [tensor.name for tensor in node.inputs if tensor.name != constant]
        if (constant or node.name in misses) and computed and all(name in made for name in computed):
            left, right = (tensor.name for tensor in node.inputs)
            reason = _reason(node, misses)
            yield Product(name=node.name, left=left, right=right, constant=constant, reason=reason)


def _separable(graph: gs.Graph) -> bool:
    """Whether there is an attention without products: keys weighted by a Softmax and summed (MobileViTv2)."""
    return any(isinstance(match(SEPARABLE, node.outputs[0]), Match) for node in graph.nodes if node.op == "ReduceSum")


def _mlps(
    graph: gs.Graph, linears: Mapping[str, Linear], contexts: Sequence[int], order: Mapping[str, int]
) -> list[Mlp]:
    """Pairs of linear layers with an activation between them, gated or not; each belongs to the last attention before it.

    A pair whose result is not added to or multiplied with anything on its way to the outputs is a head, and left out.
    """
    tensors = graph.tensors()
    by_output = {linear.output: linear.name for linear in linears.values()}
    mlps: list[Mlp] = []
    for linear in linears.values():
        found, gate = match(ACTIVATED, tensors[linear.input]), ""
        if not isinstance(found, Match):
            found = match(GATED, tensors[linear.input])
            if not isinstance(found, Match):
                continue
            gate = next(iter(linears_behind(found.tensors["gate"], BEFORE_ACTIVATION, by_output)), "")
        first = linears_behind(found.tensors["x"], BEFORE_ACTIVATION, by_output)
        if not first or first[0] == linear.name or not is_mixed(graph, tensors[linear.output]):
            continue
        block = max(sum(position < order[linear.name] for position in contexts) - 1, 0)
        gate = "" if gate == first[0] else gate  # packed: one linear layer computes both
        mlps.append(Mlp(block=block, fc1=first[0], fc2=linear.name, activation=found.tags["activation"], gate=gate))
    return mlps


def _roles(
    attentions: Sequence[Attention], mlps: Sequence[Mlp], linears: Mapping[str, Linear], order: Mapping[str, int]
) -> dict[str, str]:
    """Name of each linear layer -> its role: block3.attn.q, block3.mlp.fc1, patch_embed, head, linear."""
    roles: dict[str, str] = {}
    for attention in attentions:
        parts = {"q": attention.query_linear, "k": attention.key_linear, "v": attention.value_linear}
        if len(set(parts.values())) == 1:
            parts = {"qkv": attention.query_linear}
        for part, name in {**parts, "proj": attention.proj_linear}.items():
            if name:
                roles.setdefault(name, f"block{attention.block}.attn.{part}")
    for mlp in mlps:
        for part, name in (("fc1", mlp.fc1), ("gate", mlp.gate), ("fc2", mlp.fc2)):
            if name:
                roles.setdefault(name, f"block{mlp.block}.mlp.{part}")
    last = max((order[name] for name in (*roles, *(a.context_node for a in attentions))), default=len(order))
    for linear in linears.values():
        if linear.name not in roles:
            after = order[linear.name] > last
            roles[linear.name] = "patch_embed" if linear.kind == "patch_embedding" else "head" if after else "linear"
    return roles


def _only_linears(tensor: gs.Tensor, graph: gs.Graph, linears: Collection[str]) -> bool:
    return not is_output(tensor, graph) and all(node.name in linears for node in tensor.outputs)


def _norms(graph: gs.Graph, linears: Collection[str]) -> Iterator[Norm]:
    norms: dict[str, Norm] = {}
    for node in graph.nodes:
        if node.op not in NORM_ENDS:
            continue
        found = match(NORM, node.outputs[0])
        if isinstance(found, Match):
            beta = found.tensors.get("beta") or (node.inputs[2] if len(node.inputs) > 2 else None)
            norms[node.name] = Norm(
                name=node.name,
                form=found.tags["form"],
                input=found.tensors["x"].name,
                output=node.outputs[0].name,
                gamma=found.tensors["gamma"].name,
                beta=beta.name if isinstance(beta, gs.Constant) else "",
                only_linears=_only_linears(node.outputs[0], graph, linears),
            )
            if "scaled" in found.nodes:  # alone, it is the root-mean-square norm of what was centred
                norms.pop(found.nodes["scaled"].name, None)
    yield from norms.values()


def _unmatched(graph: gs.Graph, matched: set[str], misses: Mapping[str, Miss]) -> Iterator[Unmatched]:
    for node in graph.nodes:
        yield from (
            Unmatched(name=inner.name, op=inner.op, reason=f"inside the body of {node.op} {node.name!r}")
            for inner in _nodes_inside(node)
            if inner.op in ACCOUNTED
        )
        if node.op in ACCOUNTED and node.name not in matched:
            yield Unmatched(name=node.name, op=node.op, reason=_reason(node, misses))


def _nodes_inside(node: gs.Node) -> Iterator[gs.Node]:
    """The nodes of the bodies of an If, Loop or Scan, and of the bodies inside these."""
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            for inner in value.nodes:
                yield inner
                yield from _nodes_inside(inner)


def _reason(node: gs.Node, misses: Mapping[str, Miss]) -> str:
    """Why a node that multiplies stays float, for the report."""
    if node.name in misses:
        return f"product of two activations, not part of an attention: {misses[node.name].reason}"
    if node.op == "MatMul":
        constant = next((tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)), None)
        side = "left" if constant is node.inputs[0] else "right"
        shape = list(constant.shape) if constant is not None else "?"
        return f"constant operand of shape {shape} on the {side}; expected an (I, O) weight on the right"
    return {
        "Gemm": "its weight or bias is computed, or its input is transposed",
        "Conv": "a convolution over neighbouring pixels: no patch embedding (kernel = stride), not pointwise",
        "ConvTranspose": "a transposed convolution",
        "Einsum": "an Einsum that is no product of two matrices, or of unknown shape",
        "Softmax": "a Softmax outside an attention",
        "Attention": "causal, grouped-query, soft-capped, or with a cache: not opened up",
    }[node.op]
