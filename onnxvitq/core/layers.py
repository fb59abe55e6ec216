"""The layers found in a canonical graph, as plain records. No graph object is held: tensors and nodes are named by strings."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear layer y = x W + b, with x (.., I), W (I, O) and b (O,).

    Attributes:
        name: of the MatMul node.
        role: what the layer is for ("block3.attn.q", "block0.mlp.fc1", "patch_embed", "head"); "linear" where that is unknown.
        kind: ``patch_embedding`` is a convolution written as a product over patches.
        input: tensor x.
        weight: tensor W, a constant.
        bias: tensor b, a constant; "" where there is none.
        bias_node: name of the Add node; "" where there is none.
        output: tensor y, after the bias.
        in_features: I.
        out_features: O.
    """

    name: str
    role: str
    kind: Literal["linear", "patch_embedding"]
    input: str
    weight: str
    bias: str
    bias_node: str
    output: str
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """A softmax attention P V with P = softmax(Q K): two products of activations with a softmax between them.

    Attributes:
        name: of the attention, as in the report.
        block: index of its transformer block, from 0.
        query: tensor Q, (.., T, D).
        key: tensor K, transposed already: (.., D, T).
        probs: tensor P, (.., T, T).
        value: tensor V, (.., T, D).
        scores_node: name of the MatMul node Q K.
        softmax_node: name of the Softmax node.
        context_node: name of the MatMul node P V.
        probs_first: True for P V, False for V P (everything transposed).
        heads: H, None where the shapes leave it open.
        tokens: T of the keys, None where the shapes leave it open.
        width: D of one head, None where the shapes leave it open.
        query_linear: name of the linear layer that computes Q; "" where there is none, or several. Likewise the next three.
        key_linear: of K.
        value_linear: of V.
        proj_linear: the linear layer that reads the result.
        direct: nothing but layout (Reshape, Transpose and the like) lies between the linear layers and the operands, between
            the softmax and P, and between the result and the projection.
    """

    name: str
    block: int
    query: str
    key: str
    probs: str
    value: str
    scores_node: str
    softmax_node: str
    context_node: str
    probs_first: bool
    heads: int | None
    tokens: int | None
    width: int | None
    query_linear: str = ""
    key_linear: str = ""
    value_linear: str = ""
    proj_linear: str = ""
    direct: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A matrix product that belongs to no softmax attention: linear attention, an outlook, a table of relative positions.

    Attributes:
        name: of the MatMul node.
        left: tensor of the left operand.
        right: tensor of the right operand.
        constant: the operand that is a constant; "" where both are computed.
        reason: why it is not one of an attention's two products.
    """

    name: str
    left: str
    right: str
    constant: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """fc2(activation(fc1(x))), or with a gate fc2(activation(fc1(x)) * gate(x)).

    Attributes:
        block: index of its transformer block, from 0.
        fc1: name of the first linear layer.
        fc2: name of the last linear layer.
        activation: label of the pattern that matched ("gelu", "silu"...).
        gate: name of the linear layer of the gate; "" where there is none.
    """

    block: int
    fc1: str
    fc2: str
    activation: str
    gate: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A layer normalisation or root-mean-square normalisation over the last axis, of C channels.

    Attributes:
        name: of the norm, as in the report.
        form: label of the pattern that matched.
        input: tensor that is normalised, (.., C).
        output: tensor after scale and shift, (.., C).
        gamma: constant scale, (C,).
        beta: constant shift, (C,); "" where there is none.
        only_linears: nothing but linear layers reads the output (no residual stream does).
    """

    name: str
    form: str
    input: str
    output: str
    gamma: str
    beta: str
    only_linears: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A constant that holds the channels of a residual stream.

    Attributes:
        node: name of the node that reads it.
        index: which of the node's inputs it is, from 0.
        axis: the constant's axis of channels, counted from the end (-1 is the last).
    """

    node: str
    index: int
    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A residual stream: the tensors that blocks add their results to, all with the same channels.

    Attributes:
        name: the input of its first norm.
        width: number of channels.
        operands: every constant with an axis of these channels: weights of the linear layers and convolutions that write the
            stream, or read it or one of its norms, and constants that are added to it or joined with it.
        norms: (name of a norm of the stream, names of the nodes of the linear layers that read it), for each norm.
    """

    name: str
    width: int
    operands: tuple[Operand, ...]
    norms: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamMiss:
    """A residual stream whose channels cannot be mixed.

    Attributes:
        name: the input of its first norm.
        reason: what in it is not linear in its channels.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One transformer block: an attention, and the MLPs between it and the next attention.

    Attributes:
        index: from 0, in the order of the network.
        attention: name of its attention.
        mlps: its MLPs, in the order of the network.
    """

    index: int
    attention: str
    mlps: tuple[Mlp, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmatched:
    """A node that could have been quantized or belongs to an attention, but fits no pattern; it stays float.

    Attributes:
        name: of the node.
        op: its operator: MatMul, Gemm, Conv, Einsum, Softmax or Attention.
        reason: why it fits none.
    """

    name: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMap:
    """Every layer that was found. Each node that multiplies is in exactly one of the records.

    Attributes:
        blocks: transformer blocks, in the order of the network.
        attentions: softmax attentions, each with three nodes: two products and a softmax.
        linears: linear layers and patch embeddings, in the order of the network.
        norms: normalisations.
        unmatched: nodes that stay float, with the reason.
        products: matrix products outside attentions.
    """

    blocks: tuple[Block, ...]
    attentions: tuple[Attention, ...]
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    unmatched: tuple[Unmatched, ...]
    products: tuple[Product, ...] = ()

    def linear(self, name: str) -> Linear:
        """The linear layer of that name; the name must be one of ``linears``."""
        return next(linear for linear in self.linears if linear.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The same as dictionaries and lists that JSON can hold, under the names of the report."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A tensor that can be quantized.

    Attributes:
        name: of the tensor in the canonical graph, unique among sites.
        kind: a constant weight, or an activation computed at run time.
        role: what the tensor is for ("block3.attn.q.input").
        consumers: (name of a node, index of its input), for every place that reads the quantized value.
    """

    name: str
    kind: Literal["weight", "activation"]
    role: str
    consumers: tuple[tuple[str, int], ...]


def edges(blockmap: BlockMap) -> tuple[str, ...]:
    """Names of the patch embeddings, and of the first and last linear layer where they are in no block (the head)."""
    ends = {linear.name for linear in (*blockmap.linears[:1], *blockmap.linears[-1:])}
    return tuple(
        linear.name
        for linear in blockmap.linears
        if linear.kind == "patch_embedding" or (linear.name in ends and not linear.role.startswith("block"))
    )


def outer_linears(blockmap: BlockMap) -> tuple[Linear, ...]:
    """Linear layers before the first attention and between the blocks, without patch embedding and head.

    In hybrid networks these are the pointwise convolutions of the convolutional part.
    """
    first = next((index for index, linear in enumerate(blockmap.linears) if ".attn." in linear.role), 0)
    return tuple(
        linear
        for index, linear in enumerate(blockmap.linears)
        if (index < first or linear.role == "linear") and linear.kind == "linear"
    )


def operand_sites(attention: Attention) -> tuple[tuple[str, int, str, str], ...]:
    """(node name, input index, tensor name, role) of each of the four operands of an attention's two products."""
    probs, value = (0, 1) if attention.probs_first else (1, 0)
    return (
        (attention.scores_node, 0, attention.query, "query"),
        (attention.scores_node, 1, attention.key, "key"),
        (attention.context_node, probs, attention.probs, "probs"),
        (attention.context_node, value, attention.value, "value"),
    )


def products(blockmap: BlockMap) -> Iterator[tuple[str, tuple[str, str]]]:
    """(node name, (left tensor, right tensor)) of the two products of every attention, then of every other product."""
    for attention in blockmap.attentions:
        yield attention.scores_node, (attention.query, attention.key)
        first = (attention.probs, attention.value)
        yield attention.context_node, first if attention.probs_first else (attention.value, attention.probs)
    for product in blockmap.products:
        yield product.name, (product.left, product.right)
