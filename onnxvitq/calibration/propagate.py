"""Statistics of a graph after an exact change, computed from those before it, so that no second sweep is needed.

An exact change leaves the model's outputs as they are. A channel scaling moves the channels of a tensor, u' = (u - shift) /
scale: the sampled rows and the bounds of the channels follow, and the tensor's range from these. Operands of attention products
hold the same channels in another layout: where an operand had the range of its linear layer's output, its new range follows;
its matrices are measured again, on the few samples of which they are kept. An attention that divides late (exponentials are
quantized, and the product is divided by their row sums) has the exponentials P / max P, row by row, of its probabilities P.
Whatever else a change reaches has to be measured.
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
    """An exact change, in terms of the graph before it.

    Attributes:
        scalings: channel scalings.
        late: names of the attentions that divide late from now on.
    """

    scalings: Sequence[ChannelScaling] = ()
    late: Sequence[str] = ()

    def starts_and_stops(self, blockmap: BlockMap) -> Iterator[tuple[set[str], set[str]]]:
        """For each channel scaling, where its effect starts and stops.

        Args:
            blockmap: of the graph before.

        Yields:
            (names of the tensors whose values change first, names of the nodes behind which all values are as before).
        """
        attentions = {attention.query_linear: attention for attention in blockmap.attentions}
        for scaling in self.scalings:
            readers = {blockmap.linear(name).output for name in scaling.readers}
            if scaling.kind == "norm":
                yield {_norm_output(blockmap, scaling)}, set(scaling.readers)
            elif scaling.kind == "value":
                yield {blockmap.linear(scaling.source).output}, set(scaling.readers)
            elif scaling.kind == "scores":
                yield {blockmap.linear(scaling.source).output} | readers, {attentions[scaling.source].softmax_node}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Moved:
    """How a tensor of the graph after the change follows from one before it: (source - shift) / scale.

    Attributes:
        source: name of the tensor before.
        shift: (C,).
        scale: (C,), above 0.
    """

    source: str
    shift: FloatArray
    scale: FloatArray

    def __call__(self, values: FloatArray) -> FloatArray:
        """Values of the source (.., C) -> values of the tensor (.., C)."""
        moved: FloatArray = ((values - self.shift) / self.scale).astype(np.float32)
        return moved


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Relations:
    """How tensors of the graph after the change follow from those before it, by name of the tensor after.

    Attributes:
        moved: tensors whose channels were shifted and scaled.
        layouts: operand of an attention -> output of the linear layer whose values it holds in another layout.
        late: exponentials -> the softmax's output in whose place they are.
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
    """The statistics of a changed graph that follow from those before the change.

    Args:
        stats: of the graph before.
        blockmaps: of the graph (before, after).
        change: what was done.
        reached: names of the tensors of the graph before whose values may have changed.
        requests: of the graph after.

    Returns:
        The statistics that follow, and the requests that have to be measured.
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
        return _of_exponentials(stats, relations.late[tensor], request.kind)
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


def _of_exponentials(stats: Statistics, probs: str, kind: str) -> FloatArray | tuple[float, float] | None:
    """Of exponentials exp(S - max S): the largest of every row is 1, and a range always includes 0."""
    if kind == "range":
        return 0.0, 1.0
    if kind == "left" and probs in stats.lefts:
        values = stats.lefts[probs]
        exponentials: FloatArray = values / values.max(axis=-1, keepdims=True)
        return exponentials
    return None


def _whole_range(moved: _Moved, channels: Mapping[str, FloatArray]) -> tuple[float, float] | None:
    """(lowest, highest) over all channels; None where the channels of the source were not measured."""
    if moved.source not in channels:
        return None
    low, high = moved(channels[moved.source])
    return float(low.min()), float(high.max())


def _range_of_layout(stats: Statistics, relations: _Relations, tensor: str) -> tuple[float, float] | None:
    """Of an operand that had the range of its linear layer's output before: the layout neither drops nor adds values."""
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
    for scaling in change.scalings:
        zeros, ones = np.zeros_like(scaling.shift), np.ones_like(scaling.scale)
        if scaling.kind == "norm":
            tensor = _norm_output(before, scaling)
            relations.moved[tensor] = _Moved(source=tensor, shift=scaling.shift, scale=scaling.scale)
        elif scaling.kind == "online":
            tensor = after.linear(scaling.readers[0]).input
            relations.moved[tensor] = _Moved(source=scaling.source, shift=scaling.shift, scale=scaling.scale)
        elif scaling.kind == "value":
            for tensor in (before.linear(scaling.source).output, before.linear(scaling.readers[0]).input):
                relations.moved[tensor] = _Moved(source=tensor, shift=scaling.shift, scale=scaling.scale)
        else:
            query, key = (before.linear(name).output for name in (scaling.source, scaling.readers[0]))
            relations.moved[query] = _Moved(source=query, shift=zeros, scale=scaling.scale)
            relations.moved[key] = _Moved(source=key, shift=scaling.shift, scale=ones / scaling.scale)
    return relations


def _layouts(blockmap: BlockMap, attention: Attention) -> Iterator[tuple[str, str]]:
    """(operand, output of its linear layer) of an attention with nothing but layout between the two."""
    pairs = (
        (attention.query, attention.query_linear),
        (attention.key, attention.key_linear),
        (attention.value, attention.value_linear),
    )
    for operand, linear in pairs:
        if attention.direct and linear:
            yield operand, blockmap.linear(linear).output


def _norm_output(blockmap: BlockMap, scaling: ChannelScaling) -> str:
    """The tensor that the scaling of a norm changes."""
    return next(norm.output for norm in blockmap.norms if norm.name == scaling.source)
