"""What was found in a graph, as plain records: no graph object is held, tensors and nodes are named.

Glossary: I inputs and O outputs of a linear layer, H heads, T tokens, D width of a head.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """y = x W + b. ``bias_node`` and ``bias`` are empty when there is none.

    ``output`` is the tensor after the bias. ``kind`` tells a patch embedding (a convolution, written as a product over
    patches) from the linear layers proper.
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
    """softmax(Q K) V. ``query``, ``key``, ``probs``, ``value`` are the four operands of its two products.

    heads, tokens (keys) and width are None where the shape does not tell. The linears are names of ``Linear``; empty
    where there is none, or several. ``probs_first`` tells P V from V P. ``direct``: nothing but layout lies between the
    linears and the operands, between the softmax and P, and between the result and the projection.
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
    """left right, outside a softmax attention: linear attention, an outlook, a table of relative positions.

    ``constant`` is the operand that is a constant, "" when both are computed. ``reason``: why no attention explains it.
    """

    name: str
    left: str
    right: str
    constant: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """fc2(activation(fc1(x))), or fc2(activation(fc1(x)) gate(x)); names of ``Linear``, and the activation that matched."""

    block: int
    fc1: str
    fc2: str
    activation: str
    gate: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """One layer or root-mean-square normalisation; ``form`` is the label of the pattern that matched.

    ``gamma`` and ``beta`` are constants of the width of the last axis; ``beta`` is "" where there is none.
    ``only_linears``: nothing but linear layers reads the result (no residual stream does).
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
    """A constant that holds the channels of a residual stream: input ``index`` of a node, on its axis ``axis`` (below 0)."""

    node: str
    index: int
    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Everything that writes or reads one residual stream of ``width`` channels; ``name`` is the first norm's input.

    ``operands``: weights of the linears and convolutions that write it or read it or one of its norms, and constants that
    are added to it or joined with it. ``norms``: each norm of it by name, with the nodes of the linears that read the norm.
    """

    name: str
    width: int
    operands: tuple[Operand, ...]
    norms: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamMiss:
    """A stream with something in it that is not linear in its channels, and what that is."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One transformer block: an attention, and the MLPs between it and the next attention."""

    index: int
    attention: str
    mlps: tuple[Mlp, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmatched:
    """A MatMul, Gemm, Conv, Einsum, Softmax or Attention node that stays float, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMap:
    """Everything that was found.

    linears + 3 nodes an attention + products + unmatched account for every node that multiplies.
    """

    blocks: tuple[Block, ...]
    attentions: tuple[Attention, ...]
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    unmatched: tuple[Unmatched, ...]
    products: tuple[Product, ...] = ()

    def linear(self, name: str) -> Linear:
        """The linear layer of that name."""
        return next(linear for linear in self.linears if linear.name == name)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the report's names."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One quantizable tensor, found by ``blocks``.

    ``name`` is the tensor's name in the canonical graph, unique among sites; ``consumers`` are the (node name, input
    index) pairs that will read the quantized value.
    """

    name: str
    kind: Literal["weight", "activation"]
    role: str
    consumers: tuple[tuple[str, int], ...]


def edges(blockmap: BlockMap) -> tuple[str, ...]:
    """Names of the patch embeddings, and of the first and the last linear where they lie outside the blocks (the head)."""
    ends = {linear.name for linear in (*blockmap.linears[:1], *blockmap.linears[-1:])}
    return tuple(
        linear.name
        for linear in blockmap.linears
        if linear.kind == "patch_embedding" or (linear.name in ends and not linear.role.startswith("block"))
    )


def outer_linears(blockmap: BlockMap) -> tuple[Linear, ...]:
    """Linear layers before the first attention and between the blocks; patch embedding and head are not among them.

    In hybrids these are the pointwise convolutions of a convolutional part.
    """
    first = next((index for index, one in enumerate(blockmap.linears) if ".attn." in one.role), 0)
    return tuple(
        one
        for index, one in enumerate(blockmap.linears)
        if (index < first or one.role == "linear") and one.kind == "linear"
    )


def operand_sites(attention: Attention) -> tuple[tuple[str, int, str, str], ...]:
    """(node, input index, tensor, role) of the four operands of an attention's two products."""
    probs, value = (0, 1) if attention.probs_first else (1, 0)
    return (
        (attention.scores_node, 0, attention.query, "query"),
        (attention.scores_node, 1, attention.key, "key"),
        (attention.context_node, probs, attention.probs, "probs"),
        (attention.context_node, value, attention.value, "value"),
    )


def products(blockmap: BlockMap) -> Iterator[tuple[str, tuple[str, str]]]:
    """(node name, its operands in order) of the two products of every attention, and of every other product."""
    for attention in blockmap.attentions:
        yield attention.scores_node, (attention.query, attention.key)
        first = (attention.probs, attention.value)
        yield attention.context_node, first if attention.probs_first else (attention.value, attention.probs)
    for product in blockmap.products:
        yield product.name, (product.left, product.right)
