"""New weights for the linear layers that read one tensor, from moments of what they read.

A ridge regression moves the weight (the bias is its last column: bias correction is the case of infinite strength), error
feedback rounds it with the Hessian of the quantized inputs, and the held-out samples say which of the results, the old weight
among them, is kept (docs/methods.md, "Ridge regression" and "Error feedback").

Shapes: I inputs, O outputs of all layers side by side, B biases that are compared.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxvitq.core.formats import QParams
from onnxvitq.core.layers import Linear
from onnxvitq.core.parallel import fan_out
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.tensors import DoubleArray, FloatArray
from onnxvitq.fit.quantized_inputs import quantized_input
from onnxvitq.fit.steps.weight_reconstruction.rows import Rows, summed, used_rows
from onnxvitq.fit.steps.weight_reconstruction.side_by_side import SideBySide
from onnxvitq.numerics.affine import fake_quantize, least_squares_params
from onnxvitq.numerics.decibels import sqnr_of_error
from onnxvitq.numerics.moments import Moments, output_error
from onnxvitq.numerics.ridge import Ridge, best_bias
from onnxvitq.numerics.rounding import round_with_feedback
from onnxvitq.runtime.memory import give_back
from onnxvitq.targets.registry import DEFAULT_TARGET
from onnxvitq.targets.target import Target

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, in units of the mean diagonal of the inputs' covariance
ENOUGH = 2  # rows an input: with fewer, a regression fits the samples (a head has one row an image)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReconstruction:
    """How far weights are solved again.

    Attributes:
        ridge: move weights by regression.
        feedback: round them with feedback of the error.
        stream: solve layers that write to a residual stream against the float stream.
        positions: (T,) weight of each token in every mean, where a tensor has T tokens; None weighs all alike.
        threads: of onnxruntime and of the solver; 0 takes one a core.
        target: that products are written for.
    """

    ridge: bool = True
    feedback: bool = True
    stream: bool = True
    positions: FloatArray | None = None
    threads: int = 0
    target: Target = DEFAULT_TARGET


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SolvedLayer:
    """What was found for one layer.

    Attributes:
        linear: its name.
        weight: (I, O) real values.
        params: of the weight's codes.
        bias: (O,).
        before: SQNR in dB of its output on held-out samples with the old weight.
        after: with this one.
        changed: whether it is not the old one.
    """

    linear: str
    weight: FloatArray
    params: QParams
    bias: FloatArray
    before: float
    after: float
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Candidate:
    """A weight for all layers side by side, with biases that are compared.

    Attributes:
        weight: (I, O) real values.
        params: of its codes, a scale an output.
        biases: (B, O).
    """

    weight: FloatArray
    params: QParams
    biases: FloatArray


class LayerSolver:
    """Solves linear layers that read one tensor and have one weight format, side by side: they share the inputs' covariance.

    Args:
        layers: what was found in the network.
        plan: with parameters for every site.
        linears: the layers.
        options: see there.
    """

    def __init__(
        self, layers: Layers, plan: QuantPlan, linears: Sequence[Linear], options: WeightReconstruction
    ) -> None:
        self.linears, self.options = linears, options
        self._weight = np.concatenate([layers.weight(linear.name) for linear in linears], axis=1)  # (I, O)
        self._bias = np.concatenate([layers.bias(linear.name) for linear in linears])  # (O,)
        self._old_bias = np.concatenate([plan.biases.get(linear.name, layers.bias(linear.name)) for linear in linears])
        self._tensor = linears[0].input
        self._quantize, self._ranged_at_run_time = (
            partial(quantized_input, plan, self._tensor),
            self._tensor in plan.dynamic,
        )
        params = [known for known in (plan.params(linear.weight) for linear in linears) if known is not None]
        self._params = _with_scales(params[0], np.concatenate([known.scale for known in params]))
        # A plan has one scale a weight tensor: one that several layers share stays what it is.
        readers = Counter(linear.weight for linear in layers.blockmap.linears)
        self._tied = np.concatenate([np.full(linear.out_features, readers[linear.weight] > 1) for linear in linears])
        stops = np.cumsum([0, *(linear.out_features for linear in linears)])
        self._columns = [
            slice(begin, end) for begin, end in itertools.pairwise(stops)
        ]  # of each layer among the outputs

    def solve(self, networks: SideBySide, streams: Mapping[str, str]) -> list[SolvedLayer]:
        """For each layer the candidate with the least error on the held-out samples; the old weight is the first one.

        Args:
            networks: both have reached the layers' input and the streams.
            streams: layer -> residual stream that it writes to.
        """
        fitting, held = self._moments(networks, streams if self.options.stream else {})
        give_back(cycles=False)
        candidates = self._candidates(fitting, held)

        def held_out_error(candidate: _Candidate) -> DoubleArray:
            return output_error(held, fake_quantize(candidate.weight, candidate.params), candidate.biases)

        errors = np.concatenate(fan_out(held_out_error, candidates, self.options.threads))  # (all biases, O)
        choices = [(candidate, bias) for candidate in candidates for bias in candidate.biases]
        signal = np.maximum(held.t2, 0.0)
        return [
            self._best(linear, columns, choices, errors, signal)
            for linear, columns in zip(self.linears, self._columns, strict=True)
        ]

    def _candidates(self, fitting: Moments, held: Moments) -> list[_Candidate]:
        """The old weight with two biases; what the ridge made of it; that rounded with feedback."""
        corrected = best_bias(fitting, fake_quantize(self._weight, self._params))
        biases = np.stack([self._old_bias, corrected])
        candidates = [_Candidate(weight=self._weight, params=self._params, biases=biases)]
        weight = self._weight
        if self.options.ridge and fitting.rows >= ENOUGH * len(self._weight):
            weight = self._regressed(fitting, held)
            give_back(cycles=False)
            candidates.append(_with_best_bias(fitting, weight, self._scales(weight)))
        if self.options.feedback:
            params = self._scales(weight)
            rounded = round_with_feedback(weight, params, fitting.gram)
            candidates.append(_with_best_bias(fitting, rounded, params))
        return candidates

    def _regressed(self, fitting: Moments, held: Moments) -> FloatArray:
        """The weight of the ridge whose strength suits the held-out samples best."""
        ridge = Ridge(fitting, self._weight)

        def regress(strength: float) -> tuple[FloatArray, float]:
            weight, bias = ridge(strength)
            return weight, float(output_error(held, weight, bias).sum())

        return min(fan_out(regress, STRENGTHS, self.options.threads), key=lambda result: result[1])[0]

    def _best(
        self,
        linear: Linear,
        columns: slice,
        choices: Sequence[tuple[_Candidate, FloatArray]],
        errors: DoubleArray,
        signal: DoubleArray,
    ) -> SolvedLayer:
        """Of candidates with one bias (O,) each, and their errors (choices, O), the best for one layer."""
        sums = errors[:, columns].sum(axis=1)
        number = int(sums.argmin())
        candidate, bias = choices[number]
        power = float(signal[columns].sum())
        return SolvedLayer(
            linear=linear.name,
            weight=np.ascontiguousarray(candidate.weight[:, columns]),
            params=_with_scales(candidate.params, candidate.params.scale[columns]),
            bias=bias[columns],
            before=round(sqnr_of_error(float(sums[0]), power), 3),
            after=round(sqnr_of_error(float(sums[number]), power), 3),
            changed=number > 0,
        )

    def _moments(self, networks: SideBySide, streams: Mapping[str, str]) -> tuple[Moments, Moments]:
        """Of the samples that are fitted to, and of those held out."""

        def rows_of(sample: int) -> Rows:
            return self._rows(networks, streams, sample)

        return summed(self._weight.shape, networks.samples, rows_of, self.options.threads)

    def _rows(self, networks: SideBySide, streams: Mapping[str, str], sample: int) -> Rows:
        in_float, quantized = networks.inputs(self._tensor, sample)
        rows, mass = used_rows(quantized.shape, (sample, networks.samples), self.options.positions)
        target = in_float.reshape(-1, in_float.shape[-1])[rows] @ self._weight + self._bias  # (n, I) @ (I, O)
        for linear, columns in zip(self.linears, self._columns, strict=True):
            if linear.name in streams:
                target[:, columns] += networks.stream_error(streams[linear.name], sample, rows)
        flat = quantized.reshape(-1, quantized.shape[-1])
        # A range that is measured at run time is that of all rows.
        inputs = (
            self._quantize(quantized).reshape(flat.shape)[rows]
            if self._ranged_at_run_time
            else self._quantize(flat[rows])
        )
        return Rows(inputs=inputs, targets=target, mass=mass)

    def _scales(self, weight: FloatArray) -> QParams:
        """Per channel, the scale on a grid with the lowest squared error of the weight; of tied weights as it is."""
        params = least_squares_params(weight, self._params.spec)
        return _with_scales(params, np.where(self._tied, self._params.scale, params.scale))


def _with_best_bias(fitting: Moments, weight: FloatArray, params: QParams) -> _Candidate:
    bias = best_bias(fitting, fake_quantize(weight, params))
    return _Candidate(weight=weight, params=params, biases=bias[None])


def _with_scales(params: QParams, scale: FloatArray) -> QParams:
    """The same format with these scales (O,)."""
    return QParams(spec=params.spec, scale=scale, zero_point=np.zeros(scale.shape, np.int64))
