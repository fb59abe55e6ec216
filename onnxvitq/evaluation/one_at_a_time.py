"""How much of the output's error each kind of site brings in: one at a time, everything else float.

Needs no labels, and no class scores: it is the error of the model's first output, logits or features.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from onnxvitq.core.plan import Layers, QuantPlan, only
from onnxvitq.numerics.decibels import error_power

IN_BLOCK = re.compile(r"block(\d+)\.(.*)")


class Reading(Protocol):
    """The difference of the model's output from the float model's."""

    @property
    def sqnr_db(self) -> float:
        """Signal over error power in dB."""
        ...

    @property
    def agreement(self) -> float | None:
        """Share of the samples with the same decision; None where the output is no class scores."""
        ...


Measure = Callable[[QuantPlan], Reading]  # of a plan some of whose sites have no parameters: these are float


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePart:
    """The sites of one kind in one block (None outside all blocks), and the most bits one of them has."""

    block: int | None
    kind: str
    tensors: tuple[str, ...]
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """A part, the output with only this part quantized, and its share of the sum of all parts' error powers."""

    part: SitePart
    sqnr_db: float
    agreement: float | None
    share: float


def site_parts(layers: Layers, plan: QuantPlan) -> tuple[SitePart, ...]:
    """Every site of a plan in exactly one part: those outside all blocks, then block after block."""
    roles = {linear.name: linear.role for linear in layers.blockmap.linears}
    found: dict[tuple[int | None, str], list[str]] = {}
    for tensor, decision in plan.decisions.items():
        nodes = [node for node, _ in decision.site.consumers]
        readers = sorted({roles[node] for node in nodes if node in roles}, key=_in_order)
        found.setdefault(_block_and_kind(decision.site.role, readers), []).append(tensor)
    parts = [
        SitePart(
            block=block, kind=kind, tensors=tuple(tensors), bits=max(plan.decisions[one].spec.bits for one in tensors)
        )
        for (block, kind), tensors in found.items()
    ]
    return tuple(sorted(parts, key=lambda part: (part.block is not None, part.block or 0)))


def _in_order(role: str) -> tuple[int, str]:
    """q, k, v, as they are called in one breath, and the rest by name."""
    last = role.rpartition(".")[2]
    return ("q", "k", "v").index(last) if last in ("q", "k", "v") else 3, role


def _block_and_kind(role: str, readers: Sequence[str]) -> tuple[int | None, str]:
    """block3.mlp.fc1.weight -> (3, "mlp.fc1.weight"); the input of several layers -> (3, "attn.q+k+v.input")."""
    if role.endswith(".input") and len(readers) > 1:
        first, last = readers[0], [reader.rpartition(".")[2] for reader in readers]
        role = f"{first.removesuffix(last[0])}{'+'.join(dict.fromkeys(last))}.input"
    found = IN_BLOCK.fullmatch(role)
    return (int(found[1]), found[2]) if found else (None, role)


def one_at_a_time(layers: Layers, plan: QuantPlan, measure: Measure) -> tuple[Sensitivity, ...]:
    """The output's error with one part of a fitted plan quantized, for every part."""
    parts = site_parts(layers, plan)
    readings = [measure(only(plan, part.tensors)) for part in parts]
    powers = [error_power(reading.sqnr_db) for reading in readings]
    total = sum(powers) or 1.0
    return tuple(
        Sensitivity(part=part, sqnr_db=reading.sqnr_db, agreement=reading.agreement, share=power / total)
        for part, reading, power in zip(parts, readings, powers, strict=True)
    )
