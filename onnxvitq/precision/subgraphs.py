"""Mixed precision: which layers share a bit-width, what each width costs them, and the plan of a choice.

Bits are those of weights; activations keep the bits that ``QuantConfig.bits`` gives them, as they are free in the file and on
the kernels. Patch embedding and head keep theirs too (``QuantConfig.edges_at_8_bits``), unless that is switched off.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.formats import QParams, parse_bits
from onnxvitq.core.layers import Linear, edges
from onnxvitq.core.plan import Layers, QuantPlan, without_nodes
from onnxvitq.numerics.affine import params_from_weight
from onnxvitq.numerics.allocate import Floats, Whole

FIRST_WIDTH = 5  # bits that units are measured with where no mean is asked for
FLOAT_BITS = 32  # of a weight that stays float
MODULE = re.compile(r"(block\d+\.(?:attn|mlp))\..*")
REASON = "mixed precision leaves it float"


@dataclass(frozen=True, slots=True, kw_only=True)
class BitUnit:
    """Linears that get one bit-width: a module (the attention or the MLP of a block) or a single layer.

    weights: names of the weight tensors; size: their elements.
    """

    name: str
    linears: tuple[str, ...]
    weights: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BitCosts:
    """What each width costs each unit. Shapes: widths (K,), sizes in bits (U, K), errors (U, K) in any one unit."""

    units: tuple[BitUnit, ...]
    widths: tuple[int, ...]
    sizes: Whole
    errors: Floats

    def predicted(self, choice: Sequence[int]) -> float:
        """Sum of the errors of a choice: the number of an option for each unit."""
        return float(self.errors[np.arange(len(choice)), choice].sum())

    def size(self, choice: Sequence[int]) -> int:
        """Bits of all weights of a choice."""
        return int(self.sizes[np.arange(len(choice)), choice].sum())

    def bits(self, choice: Sequence[int]) -> dict[str, int]:
        """Width of each unit, by its name."""
        return {unit.name: self.widths[option] for unit, option in zip(self.units, choice, strict=True)}


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


def find_units(
    layers: Layers, plan: QuantPlan, granularity: Literal["module", "layer"], *, with_edges: bool
) -> tuple[BitUnit, ...]:
    """Units of the planned linears, in the order of the network; layers that share a weight are in one unit."""
    apart = set() if with_edges else set(edges(layers.blockmap))
    grouped: dict[str, list[Linear]] = {}
    owner: dict[str, str] = {}
    for linear in layers.blockmap.linears:
        if linear.name in apart or linear.weight not in plan.decisions or linear.input not in plan.decisions:
            continue
        name = _unit_name(linear, granularity)
        grouped.setdefault(owner.setdefault(linear.weight, name), []).append(linear)
    units = []
    for name, linears in grouped.items():
        weights = tuple(dict.fromkeys(linear.weight for linear in linears))
        size = sum(layers.constants[weight].size for weight in weights)
        units.append(BitUnit(name=name, linears=tuple(one.name for one in linears), weights=weights, size=size))
    return tuple(units)


def _unit_name(linear: Linear, granularity: str) -> str:
    """The module of a layer or its role; outside the blocks, where roles are no names, the layer's name."""
    module = MODULE.fullmatch(linear.role)
    if module is None:
        return linear.name
    return module[1] if granularity == "module" else linear.role


def unit_params(layers: Layers, plan: QuantPlan, unit: BitUnit, width: int) -> dict[str, QParams]:
    """Min-max parameters of a unit's weights with that many bits, limited as the plan has it."""
    return {
        weight: params_from_weight(layers.constants[weight], plan.decisions[weight].spec.with_bits(width))
        for weight in unit.weights
    }


def with_widths(plan: QuantPlan, units: Sequence[BitUnit], bits: Mapping[str, int]) -> QuantPlan:
    """The plan with these formats for the units' weights, not fitted; units of 32 bits stay float."""
    decisions = dict(plan.decisions)
    in_float: list[str] = []
    for unit in units:
        width = bits[unit.name]
        if width >= FLOAT_BITS:
            in_float += unit.linears
            continue
        for weight in unit.weights:
            spec = decisions[weight].spec.with_bits(width)
            decisions[weight] = replace(decisions[weight], spec=spec, params=None)
    return without_nodes(replace(plan, decisions=decisions), dict.fromkeys(in_float, REASON))
