"""Which tensors are quantized, and in what format. Softmax, norms, activations functions and residual adds stay float:
there is no integer kernel for the first, and quantized residual adds ruin accuracy (docs/methods.md,
"What is quantized").

Bits are said of layers, and a tensor has one format: where layers that ask for different bits read one tensor (or share a
weight), it has the most of them.
"""

import difflib
import fnmatch
import re
from collections.abc import Mapping

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import ConfigError
from onnxvitq.core.formats import (
    EIGHT_BITS,
    PAIR_SAFE_BITS,
    BitPair,
    TensorFormat,
    activation_format,
    parse_bits,
)
from onnxvitq.core.layers import BlockMap, Linear, Site, edges, operand_sites, outer_linears
from onnxvitq.core.plan import QuantPlan, SiteDecision
from onnxvitq.core.quantize_options import FLOAT
from onnxvitq.numerics.dynamic import DYNAMIC
from onnxvitq.targets.registry import target_of
from onnxvitq.targets.target import Target

ACTIVATION = activation_format(EIGHT_BITS)
OUTSIDE = "outside the blocks, and accuracy is preferred"


def make_plan(blockmap: BlockMap, config: QuantConfig, target: Target | None = None) -> QuantPlan:
    """A plan of formats without parameters: every linear, both products of every attention, every other product.

    Args:
        blockmap: what was found.
        config: says how many bits there are, and what stays float.
        target: says which formats these are; the one that the options name when None.

    Raises:
        ConfigError: a pattern of ``nodes_to_exclude`` or of ``bit_overrides`` matches nothing.
    """
    target = target or target_of(config)
    bits, excluded = _bits(blockmap, config)
    sites: dict[str, Site] = {}
    for linear in blockmap.linears:
        if linear.name not in excluded:
            _add(sites, linear.input, "activation", f"{linear.role}.input", (linear.name, 0))
            _add(sites, linear.weight, "weight", f"{linear.role}.weight", (linear.name, 1))
    for attention in blockmap.attentions:
        for node, port, tensor, role in operand_sites(attention):
            if config.product_form != "float" and node not in excluded:
                _add(sites, tensor, "activation", f"block{attention.block}.attn.{role}", (node, port))
    for number, product in enumerate(blockmap.products):
        for port, tensor, side in ((0, product.left, "left"), (1, product.right, "right")):
            if config.product_form != "float" and product.name not in excluded:
                _add(sites, tensor, "activation", f"product{number}.{side}", (product.name, port))
    decisions = {name: SiteDecision(site=site, spec=_spec(site, bits, target)) for name, site in sites.items()}
    kept_float = {**excluded}
    if config.product_form == "float":
        nodes = [node for a in blockmap.attentions for node in (a.scores_node, a.context_node)]
        nodes += [product.name for product in blockmap.products]
        kept_float.update(dict.fromkeys(nodes, "attention kept float"))
    dynamic = dynamic_inputs(decisions) if config.input_form in ("dynamic", "token") else frozenset()
    per_token = token_inputs(decisions) if config.input_form == "token" else frozenset()
    return QuantPlan(decisions=decisions, kept_float=kept_float, dynamic=dynamic, per_token=per_token)


def dynamic_inputs(decisions: Mapping[str, SiteDecision]) -> frozenset[str]:
    """Inputs of linears that can be quantized at run time: those of 8 bits, others stay static."""
    return frozenset(
        name
        for name, decision in decisions.items()
        if decision.site.kind == "activation" and decision.site.role.endswith(".input") and decision.spec == DYNAMIC
    )


def token_inputs(decisions: Mapping[str, SiteDecision]) -> frozenset[str]:
    """Dynamic inputs that have many tokens of different size: patches are alike, and a head reads one token."""
    few = ("patch_embed.", "head.")
    return frozenset(name for name in dynamic_inputs(decisions) if not decisions[name].site.role.startswith(few))


def _bits(blockmap: BlockMap, config: QuantConfig) -> tuple[dict[str, BitPair], dict[str, str]]:
    """Bits of every linear and product by its name, and those that stay float, with the reason."""
    names = dict(_names(blockmap))
    default = parse_bits("bits", config.bits)
    bits = dict.fromkeys(names, default)
    if config.edges_at_8_bits:
        # Who asked for 7 bits asked for weights that no processor saturates with.
        weights = PAIR_SAFE_BITS if default.weights == PAIR_SAFE_BITS else EIGHT_BITS
        bits |= dict.fromkeys(edges(blockmap), BitPair(weights, EIGHT_BITS))
    excluded: dict[str, str] = {}
    for pattern in config.nodes_to_exclude:
        hits = _matching(names, pattern, "--nodes-to-exclude")
        excluded.update(dict.fromkeys(hits, f"excluded by {pattern!r}"))
    in_float: dict[str, str] = {}
    if config.outer_in_float:
        heads = [linear for linear in blockmap.linears if linear.role == "head"]
        outer = [linear.name for linear in (*outer_linears(blockmap), *heads)]
        in_float = dict.fromkeys((*edges(blockmap), *outer), OUTSIDE)
    for pattern, asked in config.bit_overrides:
        for node in _matching(names, pattern, "--bits-for"):
            in_float.pop(node, None)
            if asked == FLOAT:
                in_float[node] = f"kept float by {pattern!r}"
            else:
                bits[node] = parse_bits("bit_overrides", asked)
    return bits, {**in_float, **excluded}


def _spec(site: Site, bits: Mapping[str, BitPair], target: Target) -> TensorFormat:
    readers = [bits[node] for node, _ in site.consumers]
    if site.kind == "weight":
        return target.weight_format(max(reader.weights for reader in readers))
    return target.activation_format(max(reader.activations for reader in readers))


def _add(sites: dict[str, Site], tensor: str, kind: str, role: str, consumer: tuple[str, int]) -> None:
    """Add a reader to a tensor's site; a tensor that several layers read keeps the role of the first."""
    known = sites.get(tensor)
    if known is None:
        sites[tensor] = Site(name=tensor, kind=kind, role=role, consumers=(consumer,))  # type: ignore[arg-type]
    else:
        sites[tensor] = Site(name=tensor, kind=known.kind, role=known.role, consumers=(*known.consumers, consumer))


def _matching(names: Mapping[str, tuple[str, ...]], pattern: str, option: str) -> set[str]:
    """The linears and products, each with the names it may be called by, that a pattern names."""
    hits = {node for node, aliases in names.items() if any(fnmatch.fnmatchcase(alias, pattern) for alias in aliases)}
    if not hits:
        known = sorted({alias for aliases in names.values() for alias in aliases})
        near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3)
        raise ConfigError(
            option,
            f"{pattern!r} matches no linear or attention product",
            f"did you mean {' or '.join(near)}?" if near else "",
        )
    return hits


def _names(blockmap: BlockMap) -> "list[tuple[str, tuple[str, ...]]]":
    """(node, names a user may call it by): its name, its role, and the name of the packed node it was split from."""
    named = [(linear.name, _aliases(linear)) for linear in blockmap.linears]
    for attention in blockmap.attentions:
        role = f"block{attention.block}.attn"
        named.append((attention.scores_node, (attention.scores_node, f"{role}.scores", role)))
        named.append((attention.context_node, (attention.context_node, f"{role}.context", role)))
    named += [(product.name, (product.name, f"product{number}")) for number, product in enumerate(blockmap.products)]
    return named


def _aliases(linear: Linear) -> tuple[str, ...]:
    return linear.name, linear.role, re.sub(r"_part\d+$", "", linear.name)
