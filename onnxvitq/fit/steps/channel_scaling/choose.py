"""Which channels are shifted and scaled before anything is quantized: exact in float, and easier to quantize.

* A normalisation and the linears that read it: RepQ's shift and scale, or smoothing, whichever strength quantizes best.
* The value channels, taken back by the projection; query against key, which cancels in the scores; the key's mean, which the
  softmax does not see.

What is chosen here is proven exact on the model before it is used (``fit.exact_changes``).
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Literal

import numpy as np

from onnxvitq.calibration.held_out import split_samples
from onnxvitq.core.formats import TensorFormat
from onnxvitq.core.layers import Attention, BlockMap, Linear
from onnxvitq.core.parallel import fan_out
from onnxvitq.core.plan import ChannelScaling, Layers, QuantPlan
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.affine import fake_quantize, params_from_range, params_from_weight
from onnxvitq.numerics.decibels import gain_db
from onnxvitq.numerics.dynamic import fake_quantize_dynamic, fake_quantize_samples, fake_quantize_tokens
from onnxvitq.numerics.fit import some_outputs, times
from onnxvitq.numerics.transform import balance_query_key, channel_shift, fold_into_linear, smoothing_scale

STRENGTHS = (0.25, 0.5, 0.65, 0.8, 1.0)
WEIGHT_EXPONENTS = (0.0, 0.5)  # how much the weight's rows count against the activation's channels
WORTH_DB = 0.2  # a smaller gain on held-out rows is noise, and no change is simpler
FEWEST_ROWS = 64  # fitted to, of an input of linears: a channel that fills its range clips 2 in n + 1 where n were seen
ONLINE_DB = 3.0  # the gain that is worth an operator: about 3 % of a ViT-S's time where every block has one
ATTENUATION = 0.1  # of an error of v on its way through the averaging of an attention


def scaling_requests(blockmap: BlockMap) -> tuple[StatisticsRequest, ...]:
    """Rows of every tensor that may be scaled, and of those that read it; channel ranges, so that later ranges follow."""
    names = [tensor for tensor, _, _ in _normed(blockmap)] + [tensor for tensor, _ in _unfolded(blockmap)]
    for _, query, key in _query_key(blockmap):
        names += [query.output, key.output]
    for _, value, proj in _value_proj(blockmap):
        names += [value.output, proj.input]
    kinds: tuple[Literal["rows", "channels"], ...] = ("rows", "channels")
    return tuple(StatisticsRequest(tensor=name, kind=kind) for name in dict.fromkeys(names) for kind in kinds)


def choose_scalings(layers: Layers, plan: QuantPlan, stats: Statistics, workers: int = 0) -> list[ChannelScaling]:
    """The scalings that quantize better on held-out rows, each of other tensors."""
    blockmap = layers.blockmap
    searches: list[_Search] = [
        partial(_best_norm_scaling, layers, plan, stats.rows[tensor], norm, readers)
        for tensor, norm, readers in _normed(blockmap)
        if all(_planned(plan, reader) for reader in readers)
    ]
    searches += [
        partial(_best_scores_scaling, plan, stats, members)
        for members in _query_key(blockmap)
        if members[0].query in plan.decisions
    ]
    searches += [
        partial(_best_value_scaling, layers, plan, stats, members)
        for members in _value_proj(blockmap)
        if _planned(plan, members[2])
    ]
    return [scaling for found in fan_out(lambda search: search(), searches, workers) for scaling in found]


def choose_online_scalings(
    layers: Layers, plan: QuantPlan, stats: Statistics, workers: int = 0
) -> list[ChannelScaling]:
    """Scales for inputs of linears that nothing can be folded into: behind an activation, or shared with a residual stream."""
    unfolded = [
        (tensor, partial(_best_norm_scaling, layers, plan, stats.rows[tensor], "", readers))
        for tensor, readers in _unfolded(layers.blockmap)
        if all(_planned(plan, reader) for reader in readers)
    ]
    found = fan_out(lambda candidate: (candidate[0], candidate[1]()), unfolded, workers)
    return [
        replace(scaling, kind="online", source=tensor)
        for tensor, scalings in found
        for scaling in scalings
        if scaling.gain_db >= ONLINE_DB
    ]


_Search = Callable[[], list[ChannelScaling]]


def _unfolded(blockmap: BlockMap) -> Iterator[tuple[str, list[Linear]]]:
    """(tensor, linears that read it) where the tensor is made by neither a norm of theirs alone nor an attention."""
    folded = {tensor for tensor, _, _ in _normed(blockmap)} | {proj.input for _, _, proj in _value_proj(blockmap)}
    readers: dict[str, list[Linear]] = {}
    for linear in blockmap.linears:
        if linear.kind == "linear" and linear.input not in folded:
            readers.setdefault(linear.input, []).append(linear)
    yield from readers.items()


def _planned(plan: QuantPlan, linear: Linear) -> bool:
    return linear.input in plan.decisions and linear.weight in plan.decisions


def _normed(blockmap: BlockMap) -> Iterator[tuple[str, str, list[Linear]]]:
    """(tensor, name of the norm that makes it, linears that read it)."""
    norms = {norm.output: norm for norm in blockmap.norms if norm.only_linears}
    readers: dict[str, list[Linear]] = {}
    for linear in blockmap.linears:
        readers.setdefault(linear.input, []).append(linear)
    for tensor, linears in readers.items():
        if tensor in norms:
            yield tensor, norms[tensor].name, linears


def _query_key(blockmap: BlockMap) -> Iterator[tuple[Attention, Linear, Linear]]:
    for attention in blockmap.attentions:
        if attention.direct and attention.query_linear and attention.key_linear not in ("", attention.query_linear):
            yield attention, blockmap.linear(attention.query_linear), blockmap.linear(attention.key_linear)


def _value_proj(blockmap: BlockMap) -> Iterator[tuple[Attention, Linear, Linear]]:
    for attention in blockmap.attentions:
        others = ("", attention.query_linear, attention.key_linear)
        if attention.direct and attention.proj_linear and attention.value_linear not in others:
            yield attention, blockmap.linear(attention.value_linear), blockmap.linear(attention.proj_linear)


Candidate = tuple[FloatArray, FloatArray]  # shift and scale, (C,)


def _best_norm_scaling(
    layers: Layers, plan: QuantPlan, rows: FloatArray, norm: str, readers: Sequence[Linear]
) -> list[ChannelScaling]:
    fitting, held = split_samples(rows)
    if fitting.shape[0] * fitting.shape[1] < FEWEST_ROWS:
        return []
    weight = np.concatenate([layers.weight(reader.name) for reader in readers], axis=1)
    spread, some = np.abs(weight).max(axis=1), some_outputs(weight.shape[1])
    weight = np.ascontiguousarray(weight[:, some])
    bias = np.concatenate([layers.bias(reader.name) for reader in readers])[some]
    read, weight_spec = _reader(plan, readers[0].input), plan.decisions[readers[0].weight].spec
    beta = next((other.beta for other in layers.blockmap.norms if other.name == norm), "")
    may_shift = bool(beta) and all(reader.bias for reader in readers)
    candidates = _candidates(fitting, spread, shifted=may_shift)
    reference = times(held, weight)

    def noise(candidate: Candidate) -> float:
        moved, taken_back = fold_into_linear(weight, bias, *candidate)
        scaled, seen = ((some_rows - candidate[0]) / candidate[1] for some_rows in (held, fitting))
        got = times(read(scaled, seen), _rounded(moved, weight_spec))
        return _error(got + (taken_back - bias), reference)

    return _better("norm", norm, tuple(reader.name for reader in readers), candidates, noise)


def _best_value_scaling(
    layers: Layers, plan: QuantPlan, stats: Statistics, members: tuple[Attention, Linear, Linear]
) -> list[ChannelScaling]:
    attention, value, proj = members
    values, context = split_samples(stats.rows[value.output]), split_samples(stats.rows[proj.input])
    weight, bias = layers.weight(proj.name), layers.bias(proj.name)
    if weight.shape[0] != value.out_features:
        return []
    read, weight_spec = _reader(plan, proj.input), plan.decisions[proj.weight].spec
    quantized = plan.decisions.get(
        attention.value
    )  # None where the product with V stays float: v has no error of its own
    shifted = bool(value.bias) and bool(proj.bias)
    candidates = _candidates(values[0], np.abs(weight).max(axis=1), shifted=shifted)
    some = some_outputs(weight.shape[1])
    weight, bias = np.ascontiguousarray(weight[:, some]), bias[some]
    reference = times(context[1], weight)

    def noise(candidate: Candidate) -> float:
        shift, scale = candidate
        moved, taken_back = fold_into_linear(weight, bias, shift, scale)
        rounded = _rounded(moved, weight_spec)
        seen, scaled = ((some_rows - shift) / scale for some_rows in context)
        got = times(read(scaled, seen), rounded) + (taken_back - bias)
        error = _error(got, reference)
        if quantized is None:
            return error
        seen, scaled = ((some_rows - shift) / scale for some_rows in values)
        of_values = times(_quantized(scaled, quantized.spec, seen), moved) - times(scaled, moved)
        return error + ATTENUATION * _power(of_values) / _least(_power(reference))

    return _better("value", value.name, (proj.name,), candidates, noise)


def _best_scores_scaling(
    plan: QuantPlan, stats: Statistics, members: tuple[Attention, Linear, Linear]
) -> list[ChannelScaling]:
    attention, query, key = members
    width, channels = attention.width, query.out_features
    if width is None or channels % width or key.out_features != channels:
        return []
    queries, keys = split_samples(stats.rows[query.output]), split_samples(stats.rows[key.output])
    spec = plan.decisions[attention.query].spec
    heads = (channels // width, width)
    none, ones = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    shift = channel_shift(*_bounds(keys[0])) if query.bias and key.bias else none
    spreads = [np.abs(rows).reshape(-1, channels).max(axis=0).reshape(heads) for rows in (queries[0], keys[0] - shift)]
    scale = balance_query_key(*spreads).reshape(-1)
    candidates = [(none, ones), (shift, ones), (none, scale), (shift, scale)]
    held_query, held_key = queries[1], keys[1]
    reference = _scores(held_query, held_key, heads)

    def noise(candidate: Candidate) -> float:
        moved, balance = candidate
        q = _quantized(held_query / balance, spec, queries[0] / balance)
        k = _quantized((held_key - moved) * balance, spec, (keys[0] - moved) * balance)
        return _error(_scores(q, k, heads), reference)

    return _better("scores", query.name, (key.name,), candidates, noise)


def _scores(query: FloatArray, key: FloatArray, heads: tuple[int, int]) -> FloatArray:
    """(S, r, H D) twice -> (S, H, r, r) scores of each head, each row about its mean, as the softmax sees it."""
    count = min(query.shape[1], key.shape[1])
    q, k = (rows[:, :count].reshape(len(rows), count, *heads).transpose(0, 2, 1, 3) for rows in (query, key))
    scores = q @ k.transpose(0, 1, 3, 2)
    return scores - scores.mean(axis=-1, keepdims=True)


def _candidates(rows: FloatArray, weight_spread: FloatArray, *, shifted: bool) -> list[Candidate]:
    """No change first, then every strength with and without the shift."""
    low, high = _bounds(rows)
    none = np.zeros(rows.shape[-1], np.float32)
    shifts = [none, channel_shift(low, high)] if shifted else [none]
    candidates: list[Candidate] = [(none, np.ones_like(none))]
    candidates += [(shift, np.ones_like(none)) for shift in shifts[1:]]
    for shift, strength, exponent in product(shifts, STRENGTHS, WEIGHT_EXPONENTS):
        spread = np.maximum(high - shift, shift - low)
        candidates.append((shift, smoothing_scale(np.maximum(spread, 0), weight_spread, strength, exponent)))
    return candidates


def _bounds(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    flat = rows.reshape(-1, rows.shape[-1])
    return flat.min(axis=0), flat.max(axis=0)


def _better(
    kind: Literal["norm", "value", "scores"],
    source: str,
    readers: tuple[str, ...],
    candidates: Sequence[Candidate],
    noise: Callable[[Candidate], float],
) -> list[ChannelScaling]:
    """The candidate with the least noise (its power over the signal's), if it is worth it against the first: no change."""
    with np.errstate(over="ignore", invalid="ignore"):  # of sums near the end of float32: no gain is known then
        powers = [noise(candidate) for candidate in candidates]
    best = int(np.argmin(powers))
    gain = gain_db(powers[0], powers[best])
    if not gain >= WORTH_DB:  # nor where powers are not finite
        return []
    shift, scale = candidates[best]
    return [ChannelScaling(kind=kind, source=source, readers=readers, shift=shift, scale=scale, gain_db=round(gain, 2))]


_Quantizer = Callable[[FloatArray, FloatArray], FloatArray]  # held-out rows, and those that a range is taken from


def _reader(plan: QuantPlan, tensor: str) -> _Quantizer:
    """How linears read rows (S, r, C) of a tensor in any scale: with one range, one a sample, or one a token."""
    spec = plan.decisions[tensor].spec
    if tensor not in plan.dynamic:
        return lambda rows, seen: _quantized(rows, spec, seen)
    quantizer = fake_quantize_tokens if tensor in plan.per_token else fake_quantize_dynamic
    return lambda rows, _: fake_quantize_samples(rows, quantizer)


def _quantized(rows: FloatArray, spec: TensorFormat, seen: FloatArray) -> FloatArray:
    """Held-out rows, with the range of those fitted to: where each channel reaches as far as it can, it clips on others."""
    return fake_quantize(rows, params_from_range(float(seen.min()), float(seen.max()), spec))


def _rounded(weight: FloatArray, spec: TensorFormat) -> FloatArray:
    return fake_quantize(weight, params_from_weight(weight, spec))


def _error(got: FloatArray, reference: FloatArray) -> float:
    """Power of the error over that of the reference."""
    return _power(got - reference) / _least(_power(reference))


def _power(values: FloatArray) -> float:
    """Mean square; in float64, for those of values near 1e-31 or 1e30 there is no float32."""
    return float(np.square(values, dtype=np.float64).mean())


def _least(power: float) -> float:
    """The power itself, or the smallest that can be divided by."""
    return max(power, sys.float_info.min)
