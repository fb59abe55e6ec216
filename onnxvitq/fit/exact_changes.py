"""Exact changes of the float model that quantize better, and what each would change in a graph: chosen, not judged yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from onnxvitq.blocks.streams import find_streams
from onnxvitq.calibration.propagate import Change
from onnxvitq.core.config import QuantConfig, StepName
from onnxvitq.core.plan import ChannelScaling, Layers, QuantPlan
from onnxvitq.core.statistics import Statistics
from onnxvitq.fit.steps.channel_scaling.choose import choose_online_scalings, choose_scalings
from onnxvitq.fit.steps.channel_scaling.rewrite import apply_scalings, divide_late
from onnxvitq.fit.steps.late_softmax.choose import attentions_to_divide_late
from onnxvitq.fit.steps.rotation.rewrite import rotate_streams

# First what folds into constants, then what costs time.
EXACT_STEPS: tuple[StepName, ...] = ("rotation", "channels", "online-channels", "softmax")
MISSED = "reason"  # of a part that cannot be changed, why


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proposal:
    """parts: what is to change, for the report. graph: changed. change: None where no statistics can follow it."""

    parts: list[dict[str, Any]]
    graph: gs.Graph
    change: Change | None

    @property
    def changed(self) -> int:
        """How many parts change."""
        return sum(MISSED not in part for part in self.parts)


def rounds_of_changes(config: QuantConfig) -> list[tuple[StepName, ...]]:
    """The steps that are asked for, by what is tried together.

    With little time those that change different tensors are one round: they are judged once in place of three times.
    """
    wanted: list[StepName] = [name for name in EXACT_STEPS if config.runs(name)]
    if config.effort != "fast":
        return [(name,) for name in wanted]
    together = tuple(name for name in wanted if name != "rotation")
    return [one for one in ((("rotation",) if "rotation" in wanted else ()), together) if one]


def propose(
    graph: gs.Graph, layers: Layers, plan: QuantPlan, stats: Statistics, steps: Sequence[StepName], config: QuantConfig
) -> Proposal:
    """What a round would change; maps and late divisions are chosen from the same statistics, and are of different tensors.

    Args:
        graph: canonical; never changed.
        layers: what was found in it.
        plan: with parameters for every site.
        stats: of the graph as it is.
        steps: a round.
        config: options.
    """
    if "rotation" in steps:
        return _rotated(graph, layers, config.seed)
    maps: list[ChannelScaling] = []
    if "channels" in steps:
        maps += choose_scalings(layers, plan, stats, config.threads)
    if "online-channels" in steps:
        maps += choose_online_scalings(layers, plan, stats, config.threads)
    late: dict[str, float] = {}
    if "softmax" in steps and config.product_form != "mixed":  # there a product in float is as fast, and exact
        late = attentions_to_divide_late(layers, plan, stats)
    parts = [{"part": f"{one.kind} {one.source}", "gain_db": one.gain_db} for one in maps]
    parts += [{"part": f"softmax {name}", "gain_db": gain} for name, gain in late.items()]
    if maps:
        graph = apply_scalings(graph, layers.blockmap, maps)
    if late:
        graph = divide_late(graph, layers.blockmap, list(late))
    return Proposal(parts=parts, graph=graph, change=Change(scalings=maps, late=tuple(late)))


def _rotated(graph: gs.Graph, layers: Layers, seed: int) -> Proposal:
    streams, misses = find_streams(graph, layers.blockmap)
    parts: list[dict[str, Any]] = []
    parts += [{"part": f"stream {one.name}", "channels": one.width, "norms": len(one.norms)} for one in streams]
    parts += [{"part": f"stream {one.name}", MISSED: one.reason} for one in misses]
    return Proposal(parts=parts, graph=rotate_streams(graph, layers.blockmap, streams, seed), change=None)
