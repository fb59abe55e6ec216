"""Statistics of a graph after an exact change, from those before it: what is known of the change needs no second sweep.

A map moves the channels of a tensor, u' = (u - shift) / scale: its rows and the bounds of its channels follow, and its range
from these. Attention operands are channels in another layout, which maps do not know: their ranges follow where they were the
range of the linear's output, their matrices are measured again, on the few samples of which they are kept. An attention that
divides late has the powers P / max P by rows. Whatever else a change reaches has to be measured.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxvitq.core.layers import Attention, BlockMap
from onnxvitq.core.plan import ChannelScaling
from onnxvitq.core.statistics import FIELDS, Statistics, StatisticsRequest
from onnxvitq.core.tensors import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """``maps`` of channels, ``late``: names of attentions that divide late; of the graph as it was before."""

    maps: Sequence[ChannelScaling] = ()
    late: Sequence[str] = ()

    def starts_and_stops(self, blockmap: BlockMap) -> Iterator[tuple[set[str], set[str]]]:
        """For each map the tensors whose values it changes first, and the nodes behind which all is as it was."""
        attentions = {one.query_linear: one for one in blockmap.attentions}
        for one in self.maps:
            readers = {blockmap.linear(name).output for name in one.readers}
            if one.kind == "norm":
                yield {_normed(blockmap, one)}, set(one.readers)
            elif one.kind == "value":
                yield {blockmap.linear(one.source).output}, set(one.readers)
            elif one.kind == "scores":
                yield {blockmap.linear(one.source).output} | readers, {attentions[one.source].softmax_node}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Moved:
    """What a tensor of the new graph is: (``source`` - shift) / scale, channel by channel."""

    source: str
    shift: FloatArray
    scale: FloatArray

    def __call__(self, values: FloatArray) -> FloatArray:
        """(.., C) -> (.., C)."""
        moved: FloatArray = ((values - self.shift) / self.scale).astype(np.float32)
        return moved


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Relations:
    """Tensors of the new graph by what they were. moved: see there. layouts: an operand -> the linear's output that it holds
    in another layout. late: powers -> the softmax's output in their place.
    """

    moved: dict[str, _Moved] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)


def propagated(
    stats: Statistics,
    blockmaps: tuple[BlockMap, BlockMap],
    change: Change,
    reached: Collection[str],
    requests: Sequence[StatisticsRequest],
) -> tuple[Statistics, tuple[StatisticsRequest, ...]]:
    """What is known of the changed graph, and what has to be measured.

    Args:
        stats: of the graph before.
        blockmaps: of the graph before and after.
        change: what was done.
        reached: tensors of the graph before whose values may have changed.
        requests: of the graph after.
    """
    before, after = blockmaps
    if len(before.attentions) != len(after.attentions):
        return Statistics(count=stats.count), tuple(requests)
    relations = _relations(before, after, change)
    found: dict[str, Any] = {name: {} for name in FIELDS.values()}
    missing: list[StatisticsRequest] = []
    for request in requests:
        value = _value(stats, relations, reached, request)
        if value is None:
            missing.append(request)
        else:
            found[FIELDS[request.kind]][request.tensor] = value
    return Statistics(count=stats.count, **found), tuple(missing)


def _value(
    stats: Statistics, relations: _Relations, reached: Collection[str], request: StatisticsRequest
) -> FloatArray | tuple[float, float] | tuple[FloatArray, ...] | None:
    """The statistic, or None where it does not follow."""
    tensor, known = request.tensor, getattr(stats, FIELDS[request.kind])
    if tensor in relations.late:
        return _of_powers(stats, relations.late[tensor], request.kind)
    if tensor in relations.moved:
        moved = relations.moved[tensor]
        if request.kind == "range":
            return _whole_range(moved, stats.channels)
        if request.kind in ("rows", "channels") and moved.source in known:
            return moved(known[moved.source])
        return None
    if tensor in reached:
        return _range_of_layout(stats, relations, tensor) if request.kind == "range" else None
    return known.get(tensor)


def _of_powers(stats: Statistics, probs: str, kind: str) -> FloatArray | tuple[float, float] | None:
    """Of exp(S - max S), whose largest of every row is 1; a range holds 0 anyway."""
    if kind == "range":
        return 0.0, 1.0
    if kind == "left" and probs in stats.lefts:
        values = stats.lefts[probs]
        powers: FloatArray = values / values.max(axis=-1, keepdims=True)
        return powers
    return None


def _whole_range(moved: _Moved, channels: Mapping[str, FloatArray]) -> tuple[float, float] | None:
    """(lowest, highest) over all channels; scales are above 0."""
    if moved.source not in channels:
        return None
    low, high = moved(channels[moved.source])
    return float(low.min()), float(high.max())


def _range_of_layout(stats: Statistics, relations: _Relations, tensor: str) -> tuple[float, float] | None:
    """Of an operand that had the range of the linear's output before: nothing was cut off, nothing came in."""
    output = relations.layouts.get(tensor, "")
    if output not in stats.channels or output not in relations.moved:
        return None
    low, high = stats.channels[output]
    if stats.ranges.get(tensor) != (float(low.min()), float(high.max())):
        return None
    return _whole_range(relations.moved[output], stats.channels)


def _relations(before: BlockMap, after: BlockMap, change: Change) -> _Relations:
    relations = _Relations()
    for old, new in zip(before.attentions, after.attentions, strict=True):
        if old.name in change.late and new.probs != old.probs:
            relations.late[new.probs] = old.probs
        relations.layouts.update(_layouts(before, old))
    for one in change.maps:
        none, ones = np.zeros_like(one.shift), np.ones_like(one.scale)
        if one.kind == "norm":
            tensor = _normed(before, one)
            relations.moved[tensor] = _Moved(source=tensor, shift=one.shift, scale=one.scale)
        elif one.kind == "online":
            tensor = after.linear(one.readers[0]).input
            relations.moved[tensor] = _Moved(source=one.source, shift=one.shift, scale=one.scale)
        elif one.kind == "value":
            for tensor in (before.linear(one.source).output, before.linear(one.readers[0]).input):
                relations.moved[tensor] = _Moved(source=tensor, shift=one.shift, scale=one.scale)
        else:
            query, key = (before.linear(name).output for name in (one.source, one.readers[0]))
            relations.moved[query] = _Moved(source=query, shift=none, scale=one.scale)
            relations.moved[key] = _Moved(source=key, shift=one.shift, scale=ones / one.scale)
    return relations


def _layouts(blockmap: BlockMap, attention: Attention) -> Iterator[tuple[str, str]]:
    """(operand, output of the linear that it holds) of an attention with nothing but layout between them."""
    pairs = (
        (attention.query, attention.query_linear),
        (attention.key, attention.key_linear),
        (attention.value, attention.value_linear),
    )
    for operand, linear in pairs:
        if attention.direct and linear:
            yield operand, blockmap.linear(linear).output


def _normed(blockmap: BlockMap, one: ChannelScaling) -> str:
    """The tensor that a norm's map changes."""
    return next(norm.output for norm in blockmap.norms if norm.name == one.source)
