"""Weights that absorb the error: one linear after the other is solved again against what it really reads.

The float network and the quantized-so-far network run side by side, piece by piece between the linear layers. Each layer
then has its float input (for the target) and its quantized input (what the integer kernel will see, errors of everything
before it included). A ridge regression moves the weight (the bias is its last column: bias correction is the case of
infinite strength), error feedback rounds it with the Hessian of the quantized inputs, and the held-out samples say which of
the results, the old weight among them, is kept (docs/methods.md, "Ridge regression" and
"Error feedback").

A layer whose output is added to a residual stream is solved against the *float* stream: it repairs what the stream carries
of earlier errors as well.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.calibration.subgraphs import SubgraphRunner
from onnxvitq.core.formats import QParams, TensorFormat
from onnxvitq.core.layers import Linear
from onnxvitq.core.parallel import fan_out, one_blas_thread
from onnxvitq.core.plan import Layers, QuantPlan, planned_linear
from onnxvitq.core.tensors import FloatArray
from onnxvitq.fit.quantized_inputs import quantized_input
from onnxvitq.fit.step import LayerGain, layer_gain
from onnxvitq.fit.steps.weight_reconstruction.sums import Rows, summed
from onnxvitq.numerics.affine import fake_quantize, least_squares_params
from onnxvitq.numerics.decibels import sqnr_of_error
from onnxvitq.numerics.fit import times
from onnxvitq.numerics.moments import DoubleArray, Moments, output_error
from onnxvitq.numerics.ridge import Ridge, best_bias
from onnxvitq.numerics.rounding import round_with_feedback
from onnxvitq.runtime.memory import give_back
from onnxvitq.targets.ort_cpu.layout import apply_products

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, in units of the mean diagonal of the inputs' covariance
ENOUGH = 2  # rows an input: with fewer, a regression fits the samples (a head has one row an image)
ROWS_AN_INPUT, FEW_ROWS = 8, 2048  # rows of a layer's inputs that are used, over all samples; at least FEW_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReconstruction:
    """How far the weights are rebuilt.

    ridge: move weights. feedback: round with error feedback. stream: solve layers that write a residual stream against the
    float stream. positions: weight of each token (T,) in every mean, where a tensor has T tokens; None weighs all alike.
    threads: of onnxruntime.
    """

    ridge: bool = True
    feedback: bool = True
    stream: bool = True
    positions: FloatArray | None = None
    threads: int = 0


def reconstruct_weights(
    graph: gs.Graph,
    layers: Layers,
    plan: QuantPlan,
    feeds: Iterable[Mapping[str, np.ndarray]],
    folder: Path,
    options: WeightReconstruction,
) -> tuple[QuantPlan, LayerGain]:
    """New weights, scales and biases for every planned linear, in the order of the network.

    Args:
        graph: canonical; never changed.
        layers: what was found in it.
        plan: with parameters for every site.
        feeds: calibration samples; one in four judges (``step.is_held_out``).
        folder: for files; the caller removes it.
        options: see there.

    Returns:
        The plan, and the mean held-out SQNR in dB of the layers' outputs with the old and the new weights.

    Raises:
        InvalidGraphError: a piece of the graph does not run.
        OSError: no room in ``folder``.
    """
    linears = layers.blockmap.linears
    exact = SubgraphRunner(graph, linears, feeds, folder / "float", options.threads)
    coded = SubgraphRunner(apply_products(graph, layers, plan), linears, feeds, folder / "quantized", options.threads)
    onto = residuals(graph, linears)
    solved: list[tuple[float, float, bool]] = []  # not the layers: their weights are in the plan
    with one_blas_thread():
        for tensor, group in groups(linears).items():
            streams = {one.name: onto.get(one.output, "") for one in group}
            streams = {name: stream for name, stream in streams.items() if stream and exact.can_reach(stream)}
            exact.reach([tensor, *streams.values()])
            coded.reach([tensor, *streams.values()])
            planned = [one for one in group if planned_linear(plan, one)]
            parts = [_Solver(layers, plan, part, options) for part in _formats(plan, planned)]
            found = {one.linear: one for part in parts for one in part.solve(exact, coded, streams)}
            give_back(cycles=False)
            for linear in group:
                weight, bias = layers.weight(linear.name), layers.bias(linear.name)
                exact.compute(linear, affine(weight, bias, None))
                one = found.get(linear.name)
                if one is None:
                    coded.compute(linear, affine(weight, bias, None))
                    continue
                solved.append((one.before, one.after, one.changed))
                plan = plan.with_weights({linear.name: one.weight}).with_biases({linear.name: one.bias})
                plan = plan.with_params({linear.weight: one.params})
                coded.compute(
                    linear,
                    affine(fake_quantize(one.weight, one.params), one.bias, partial(quantized_input, plan, tensor)),
                )
            give_back(cycles=False)
    before, after = [one[0] for one in solved], [one[1] for one in solved]
    return plan, layer_gain(before, after, sum(one[2] for one in solved))


def groups(linears: Sequence[Linear]) -> dict[str, list[Linear]]:
    """Linears by the tensor they read, in the order of the network."""
    groups: dict[str, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(linear.input, []).append(linear)
    return groups


def _formats(plan: QuantPlan, linears: Sequence[Linear]) -> list[list[Linear]]:
    """The linears by the format of their weight."""
    formats: dict[TensorFormat, list[Linear]] = {}
    for linear in linears:
        formats.setdefault(plan.decisions[linear.weight].spec, []).append(linear)
    return list(formats.values())


def residuals(graph: gs.Graph, linears: Sequence[Linear]) -> dict[str, str]:
    """Linear's output -> the tensor of its shape that alone it is added to: a residual stream."""
    tensors, found = graph.tensors(), {}
    for linear in linears:
        output = tensors[linear.output]
        reader = output.outputs[0] if len(output.outputs) == 1 else None
        if reader is None or reader.op != "Add" or any(output is kept for kept in graph.outputs):
            continue
        other = next((tensor for tensor in reader.inputs if tensor is not output), output)
        if not isinstance(other, gs.Constant) and other.shape == output.shape and other is not output:
            found[linear.output] = other.name
    return found


_Quantizer = Callable[[FloatArray], FloatArray]


def affine(weight: FloatArray, bias: FloatArray, seen: _Quantizer | None) -> _Quantizer:
    """X (.., I) -> Q(x) W + b (.., O); without a quantizer Q, x is left as it is."""
    return lambda x: times(x if seen is None else seen(x), weight) + bias


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Solved:
    """A layer's new weight (real values), its parameters and bias; held-out SQNR in dB before and after."""

    linear: str
    weight: FloatArray
    params: QParams
    bias: FloatArray
    before: float
    after: float
    changed: bool


_Candidate = tuple[FloatArray, QParams, FloatArray]  # weight (I, O), its parameters, bias (O,), or some biases (B, O)


class _Solver:
    """Solves the linear layers that read one tensor, side by side along O: they share the inputs' covariance."""

    def __init__(
        self, layers: Layers, plan: QuantPlan, linears: Sequence[Linear], options: WeightReconstruction
    ) -> None:
        self.linears, self.options = linears, options
        self.weight = np.concatenate([layers.weight(one.name) for one in linears], axis=1)  # (I, sum of O)
        self.bias = np.concatenate([layers.bias(one.name) for one in linears])
        self.old_bias = np.concatenate([plan.biases.get(one.name, layers.bias(one.name)) for one in linears])
        params = [plan.params(one.weight) for one in linears]
        known = [one for one in params if one is not None]
        self.seen, self.ranged = partial(quantized_input, plan, linears[0].input), linears[0].input in plan.dynamic
        self.weight_params = _columns(known[0], np.concatenate([one.scale for one in known]))
        # A plan has one scale a weight tensor: one that several layers share stays what it is.
        readers = Counter(one.weight for one in layers.blockmap.linears)
        self.tied = np.concatenate([np.full(one.out_features, readers[one.weight] > 1) for one in linears])
        stops = np.cumsum([0, *(one.out_features for one in linears)])
        self.slices = [slice(begin, end) for begin, end in itertools.pairwise(stops)]

    def solve(self, exact: SubgraphRunner, coded: SubgraphRunner, streams: Mapping[str, str]) -> list[_Solved]:
        """For each layer the candidate with the least error on the held-out samples; the old weight is the first one."""
        fitting, held = self._moments(exact, coded, streams if self.options.stream else {})
        give_back(cycles=False)
        corrected = best_bias(fitting, fake_quantize(self.weight, self.weight_params))
        candidates: list[_Candidate] = [(self.weight, self.weight_params, np.stack([self.old_bias, corrected]))]
        weight = self.weight
        if self.options.ridge and fitting.rows >= ENOUGH * len(self.weight):
            weight = self._regressed(fitting, held)
            give_back(cycles=False)
            candidates.append(self._with_bias(fitting, weight, self._scales(weight)))
        if self.options.feedback:
            params = self._scales(weight)
            rounded = round_with_feedback(weight, params, fitting.gram)
            candidates.append(self._with_bias(fitting, rounded, params))

        def judge(one: _Candidate) -> DoubleArray:
            return output_error(held, fake_quantize(one[0], one[1]), one[2])

        errors = np.concatenate(fan_out(judge, candidates, self.options.threads))  # (all biases, O)
        each = [(weight, params, bias) for weight, params, biases in candidates for bias in biases]
        signal = np.maximum(held.t2, 0.0)
        return [
            self._chosen(linear, part, each, errors, signal)
            for linear, part in zip(self.linears, self.slices, strict=True)
        ]

    def _regressed(self, fitting: Moments, held: Moments) -> FloatArray:
        """The weight of the ridge whose strength suits the held-out samples best."""
        ridge = Ridge(fitting, self.weight)

        def regress(strength: float) -> tuple[FloatArray, float]:
            weight, bias = ridge(strength)
            return weight, float(output_error(held, weight, bias).sum())

        return min(fan_out(regress, STRENGTHS, self.options.threads), key=lambda one: one[1])[0]

    def _chosen(
        self, linear: Linear, part: slice, candidates: Sequence[_Candidate], errors: DoubleArray, signal: DoubleArray
    ) -> _Solved:
        sums = errors[:, part].sum(axis=1)
        choice = int(sums.argmin())
        weight, params, bias = candidates[choice]
        power = float(signal[part].sum())
        return _Solved(
            linear=linear.name,
            weight=np.ascontiguousarray(weight[:, part]),
            params=_columns(params, params.scale[part]),
            bias=bias[part],
            before=round(sqnr_of_error(float(sums[0]), power), 3),
            after=round(sqnr_of_error(float(sums[choice]), power), 3),
            changed=choice > 0,
        )

    def _with_bias(self, fitting: Moments, weight: FloatArray, params: QParams) -> _Candidate:
        return weight, params, best_bias(fitting, fake_quantize(weight, params))[None]

    def _moments(
        self, exact: SubgraphRunner, coded: SubgraphRunner, streams: Mapping[str, str]
    ) -> tuple[Moments, Moments]:
        """Of the samples that are fitted to, and of those held out."""
        return summed(
            self.weight.shape,
            exact.samples,
            lambda sample: self._sampled(exact, coded, streams, sample),
            self.options.threads,
        )

    def _sampled(self, exact: SubgraphRunner, coded: SubgraphRunner, streams: Mapping[str, str], sample: int) -> Rows:
        tensor = self.linears[0].input
        real, seen = (one.values.get(tensor, sample) for one in (exact, coded))
        rows, mass = used_rows(seen.shape, (sample, exact.samples), self.options.positions)
        target = real.reshape(-1, real.shape[-1])[rows] @ self.weight + self.bias
        for linear, part in zip(self.linears, self.slices, strict=True):
            if linear.name in streams:
                float_stream, own = (one.values.get(streams[linear.name], sample) for one in (exact, coded))
                target[:, part] += (float_stream - own).reshape(-1, target[:, part].shape[1])[rows]
        flat = seen.reshape(-1, seen.shape[-1])
        # A range that is measured at run time is that of all rows.
        quantized = self.seen(seen).reshape(flat.shape)[rows] if self.ranged else self.seen(flat[rows])
        return Rows(inputs=quantized, targets=target, mass=mass)

    def _scales(self, weight: FloatArray) -> QParams:
        """Per channel, the scale on a grid with the lowest squared error of the weight; of tied weights as it is."""
        params = least_squares_params(weight, self.weight_params.spec)
        return _columns(params, np.where(self.tied, self.weight_params.scale, params.scale))


def used_rows(
    shape: Sequence[int], sample: tuple[int, int], positions: FloatArray | None
) -> tuple[np.ndarray, FloatArray]:
    """Which rows of a sample's tensor (.., T, I) are used, and their weights.

    Every n-th, so that all samples together give a few rows an input; rows that weigh more than others all. sample: its
    number, and how many there are. positions: as in ``Rebuild``.
    """
    count = int(np.prod(shape[:-1]))
    weights = np.ones(count, np.float32)
    if positions is not None and len(shape) >= 3 and shape[-2] == len(positions):
        weights = np.tile(positions, count // len(positions))
    step = max(1, count * sample[1] // max(FEW_ROWS, ROWS_AN_INPUT * shape[-1]))
    used = np.zeros(count, bool)
    used[sample[0] % step :: step] = True
    weights = np.where(weights > 1, weights, step)  # a row stands for those left out
    used |= weights > step
    rows = np.flatnonzero(used)
    return rows, weights[rows].astype(np.float32)


def _columns(params: QParams, scale: FloatArray) -> QParams:
    """The parameters of these columns."""
    return QParams(spec=params.spec, scale=scale, zero_point=np.zeros(scale.shape, np.int64))
