"""How much of the output's error each kind of site brings in: one at a time, everything else float.

Needs no labels, and no class scores: it is the error of the model's evaluated output, logits or features.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from onnxvitq.core.plan import Layers, QuantPlan, only
from onnxvitq.numerics.decibels import error_power
from onnxvitq.report.records import SiteSensitivity

IN_BLOCK = re.compile(r"block(\d+)\.(.*)")


class Difference(Protocol):
    """The difference of the model's output from the float model's."""

    @property
    def sqnr_db(self) -> float:
        """Signal over error power in dB."""
        ...

    @property
    def agreement(self) -> float | None:
        """Share of the samples with the same decision; None where nothing is decided."""
        ...


Measure = Callable[[QuantPlan], Difference]  # of a plan some of whose sites have no parameters: these are float


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteGroup:
    """The sites of one kind in one block.

    Attributes:
        block: number of the block; None outside all blocks.
        kind: of the sites, such as ``mlp.fc1.weight``.
        tensors: names of their tensors.
        bits: the most that one of them has.
    """

    block: int | None
    kind: str
    tensors: tuple[str, ...]
    bits: int


def site_groups(layers: Layers, plan: QuantPlan) -> tuple[SiteGroup, ...]:
    """Every site of a plan in exactly one group: those outside all blocks, then block after block."""
    roles = {linear.name: linear.role for linear in layers.blockmap.linears}
    members: dict[tuple[int | None, str], list[str]] = {}
    for tensor, decision in plan.decisions.items():
        nodes = [node for node, _ in decision.site.consumers]
        readers = sorted({roles[node] for node in nodes if node in roles}, key=_in_order)
        members.setdefault(_block_and_kind(decision.site.role, readers), []).append(tensor)
    groups = [
        SiteGroup(
            block=block, kind=kind, tensors=tuple(tensors), bits=max(plan.decisions[name].spec.bits for name in tensors)
        )
        for (block, kind), tensors in members.items()
    ]
    return tuple(sorted(groups, key=lambda group: (group.block is not None, group.block or 0)))


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


def one_at_a_time(layers: Layers, plan: QuantPlan, measure: Measure) -> tuple[SiteSensitivity, ...]:
    """The output's error with one group of sites of a fitted plan quantized, for every group."""
    groups = site_groups(layers, plan)
    differences = [measure(only(plan, group.tensors)) for group in groups]
    powers = [error_power(difference.sqnr_db) for difference in differences]
    total = sum(powers) or 1.0
    return tuple(
        SiteSensitivity(
            block=group.block,
            kind=group.kind,
            tensors=group.tensors,
            bits=group.bits,
            sqnr_db=round(difference.sqnr_db, 2),
            agreement=difference.agreement,
            share=round(power / total, 5),
        )
        for group, difference, power in zip(groups, differences, powers, strict=True)
    )
