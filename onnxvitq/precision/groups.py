"""Mixed precision: which layers share a bit width, and the plan of a choice of widths.

Bits are those of weights; activations keep the bits that ``QuantConfig.bits`` gives them, as they are free in the file and on
the kernels. Patch embedding and head keep theirs too (``QuantConfig.edges_at_8_bits``), unless that is switched off.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.formats import QParams, parse_bits
from onnxvitq.core.layers import Linear, edges
from onnxvitq.core.plan import Layers, QuantPlan, without_nodes
from onnxvitq.numerics.affine import params_from_weight

FIRST_WIDTH = 5  # bits that groups are measured with where no mean is asked for
FLOAT_BITS = 32  # of a weight that stays float
MODULE = re.compile(r"(block\d+\.(?:attn|mlp))\..*")
REASON = "mixed precision leaves it float"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Linear layers whose weights get one bit width: a module (the attention or the MLP of a block) or a single layer.

    Attributes:
        name: the module's or the layer's role, ``block3.attn``; outside the blocks the layer's name.
        linears: names of the layers.
        weights: names of their weight tensors; fewer than layers where some share one.
        size: elements of these tensors.
    """

    name: str
    linears: tuple[str, ...]
    weights: tuple[str, ...]
    size: int


def starting_formats(config: QuantConfig, layers: Layers) -> QuantConfig:
    """The options with bits near the budget's mean, where bits are to be chosen.

    What is done to the graph before that is kept or not by the output's error: changes that were accepted with weights of
    8 bits lost 1.2 dB with 4 (bundled model) against those that were accepted with 4.
    """
    if not config.mixed:
        return config
    weights, activations = parse_bits("bits", config.bits)
    mean = config.average_bits
    if not config.sized:
        mean = FIRST_WIDTH
    elif mean is None:
        assert config.target_size is not None  # config.sized said so
        total = sum(layers.constants[name].size for name in {linear.weight for linear in layers.blockmap.linears})
        mean = config.target_size * 8e6 / total
    near = min((2, 3, 4, 5, 6, weights), key=lambda width: abs(width - mean))  # 7 would say that 8 saturates
    return replace(config, bits=f"w{min(near, weights)}a{activations}")


def find_groups(
    layers: Layers, plan: QuantPlan, granularity: Literal["module", "layer"], *, with_edges: bool
) -> tuple[LayerGroup, ...]:
    """Groups of the planned linear layers, in the order of the network; layers that share a weight are in one group."""
    apart = set() if with_edges else set(edges(layers.blockmap))
    grouped: dict[str, list[Linear]] = {}
    owner: dict[str, str] = {}
    for linear in layers.blockmap.linears:
        if linear.name in apart or linear.weight not in plan.decisions or linear.input not in plan.decisions:
            continue
        name = _group_name(linear, granularity)
        grouped.setdefault(owner.setdefault(linear.weight, name), []).append(linear)
    groups = []
    for name, linears in grouped.items():
        weights = tuple(dict.fromkeys(linear.weight for linear in linears))
        size = sum(layers.constants[weight].size for weight in weights)
        names = tuple(linear.name for linear in linears)
        groups.append(LayerGroup(name=name, linears=names, weights=weights, size=size))
    return tuple(groups)


def _group_name(linear: Linear, granularity: str) -> str:
    """The module of a layer or its role; outside the blocks, where roles are no names, the layer's name."""
    module = MODULE.fullmatch(linear.role)
    if module is None:
        return linear.name
    return module[1] if granularity == "module" else linear.role


def group_params(layers: Layers, plan: QuantPlan, group: LayerGroup, width: int) -> dict[str, QParams]:
    """Min-max parameters of a group's weights with that many bits, limited as the plan has it."""
    return {
        weight: params_from_weight(layers.constants[weight], plan.decisions[weight].spec.with_bits(width))
        for weight in group.weights
    }


def with_widths(plan: QuantPlan, groups: Sequence[LayerGroup], bits: Mapping[str, int]) -> QuantPlan:
    """The plan with these formats for the groups' weights, not fitted; groups of 32 bits stay float."""
    decisions = dict(plan.decisions)
    in_float: list[str] = []
    for group in groups:
        width = bits[group.name]
        if width >= FLOAT_BITS:
            in_float += group.linears
            continue
        for weight in group.weights:
            spec = decisions[weight].spec.with_bits(width)
            decisions[weight] = replace(decisions[weight], spec=spec, params=None)
    return without_nodes(replace(plan, decisions=decisions), dict.fromkeys(in_float, REASON))


def with_fitted_widths(
    layers: Layers, plan: QuantPlan, groups: Sequence[LayerGroup], bits: Mapping[str, int]
) -> QuantPlan:
    """The plan with these formats and their min-max parameters; groups of 32 bits stay float."""
    chosen = with_widths(plan, groups, bits)
    for group in groups:
        if bits[group.name] < FLOAT_BITS:
            chosen = chosen.with_params(group_params(layers, chosen, group, bits[group.name]))
    return chosen
