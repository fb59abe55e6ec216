"""The branches of the linear layers that read one tensor, fitted in closed form to what their products lack.

Shapes: I inputs, O outputs of all layers side by side, r ranks, n rows of a sample.
"""

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnxvitq.calibration.held_out import is_held_out
from onnxvitq.core.formats import EIGHT_BITS, INT8, QParams, TensorFormat, activation_format, weight_format
from onnxvitq.core.layers import Linear
from onnxvitq.core.plan import Branch, Layers, QuantPlan
from onnxvitq.core.tensors import DoubleArray, FloatArray
from onnxvitq.fit.quantized_inputs import quantized_input
from onnxvitq.fit.steps.low_rank.ranks import FittedBranches
from onnxvitq.fit.steps.weight_reconstruction.rows import Rows, summed, used_rows
from onnxvitq.fit.steps.weight_reconstruction.side_by_side import SideBySide, affine
from onnxvitq.fit.steps.weight_reconstruction.solve import ENOUGH
from onnxvitq.numerics.affine import fake_quantize, params_from_range, params_from_weight
from onnxvitq.numerics.decibels import sqnr_of_error
from onnxvitq.numerics.fit import times
from onnxvitq.numerics.lowrank import LowRank, errors_by_rank, low_rank
from onnxvitq.numerics.moments import Moments, output_error
from onnxvitq.numerics.ridge import best_bias

FACTOR_A = weight_format(EIGHT_BITS, saturation_free=True)
# One scale for all of B: one a column would take as many bytes as four ranks, and a correction needs no more digits.
FACTOR_B = TensorFormat(INT8, saturation_free=True)
INNER = activation_format(EIGHT_BITS)
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)  # of the regression; the held-out rows choose


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Targets:
    """What the branches are fitted to.

    Attributes:
        fitting: moments of the samples that are fitted to.
        held: of those held out.
        signal: power of the layers' float outputs about their means, summed over the held-out rows and the outputs.
        rows: of a sample, the mean over samples.
    """

    fitting: Moments
    held: Moments
    signal: float
    rows: float


class BranchFitter:
    """Fits the branches of layers that read one tensor, side by side along O: they share A.

    Args:
        layers: what was found in the network.
        plan: with parameters for every site; branches in it are left out.
        linears: the layers.
        worth_db: what the branches have to gain on held-out samples.
        positions: (T,) weight of each token in every mean; None weighs all alike.
        threads: 0 takes one a core.
    """

    def __init__(
        self,
        layers: Layers,
        plan: QuantPlan,
        linears: Sequence[Linear],
        *,
        worth_db: float,
        positions: FloatArray | None,
        threads: int,
    ) -> None:
        self._layers, self._linears, self._worth_db = layers, linears, worth_db
        self._positions, self._threads = positions, threads
        self._plan, self._tensor = replace(plan, branches={}), linears[0].input
        params = plan.params(self._tensor)
        assert params is not None  # the caller's ``planned_linear`` said so
        self._params = params
        stops = np.cumsum([0, *(linear.out_features for linear in linears)])
        self._outputs = int(stops[-1])
        self._columns = [
            slice(begin, end) for begin, end in itertools.pairwise(stops)
        ]  # of each layer among the outputs

    def fit(self, networks: SideBySide, streams: Mapping[str, str], rank: int) -> FittedBranches:
        """The best branches of that rank, kept if the held-out error says so.

        Args:
            networks: both have reached the layers' input and the streams.
            streams: layer -> residual stream that it writes to.
            rank: of the branches, at most.
        """
        targets = self._targets(networks, streams)
        fitting, held = targets.fitting, targets.held
        fits = low_rank(fitting, rank if fitting.rows >= ENOUGH * len(fitting.gram) else 0, DAMPINGS)
        left = [errors_by_rank(held, fitting, fit) for fit in fits]
        best = int(np.argmin([errors[-1] for errors in left]))
        nothing = np.zeros(held.cross.shape, np.float32)
        before = float(output_error(held, nothing, np.zeros(self._outputs, np.float32)).sum())
        branches: dict[str, Branch] = {}
        biases: dict[str, FloatArray] = {}
        after = before
        if fits[best].energy.size:
            made, shift, after = self._quantized(networks, fits[best], targets)
            if round(sqnr_of_error(after, before), 3) > self._worth_db:
                branches = made
                biases = {
                    linear.name: _bias(self._layers, self._plan, linear.name) + shift[columns]
                    for linear, columns in zip(self._linears, self._columns, strict=True)
                }
        return FittedBranches(
            tensor=self._tensor,
            gains=_gains(fits[best], np.array([before, *left[best][1:]])) / max(targets.signal, sys.float_info.min),
            inputs=fitting.cross.shape[0],
            outputs=self._outputs,
            rows=targets.rows,
            before=round(sqnr_of_error(before, targets.signal), 3),
            after=round(sqnr_of_error(min(after, before), targets.signal), 3),
            branches=branches,
            biases=biases,
        )

    def _quantized(
        self, networks: SideBySide, fit: LowRank, targets: _Targets
    ) -> tuple[dict[str, Branch], FloatArray, float]:
        """A branch for each layer as it will be written, the biases' change (O,), and the held-out error with both."""
        a_params = params_from_weight(fit.a, FACTOR_A)
        a = fake_quantize(fit.a, a_params)
        inner = self._inner(networks, a)
        factors = [params_from_weight(fit.b[:, columns], FACTOR_B) for columns in self._columns]
        b = np.concatenate(
            [fake_quantize(fit.b[:, columns], params) for columns, params in zip(self._columns, factors, strict=True)],
            axis=1,
        )
        shift = best_bias(targets.fitting, times(a, b))
        after = float(output_error(targets.held, times(a, b), shift).sum())
        branches = {
            linear.name: Branch(a=fit.a, b=fit.b[:, columns], a_params=a_params, b_params=b_params, inner=inner)
            for linear, columns, b_params in zip(self._linears, self._columns, factors, strict=True)
        }
        return branches, shift, after

    def _inner(self, networks: SideBySide, a: FloatArray) -> QParams:
        """Parameters of the codes of z A, over its whole range; a is (I, r)."""
        low, high = 0.0, 0.0
        for sample in range(networks.samples):
            product = times(fake_quantize(networks.quantized.values.get(self._tensor, sample), self._params), a)
            low, high = min(low, float(product.min())), max(high, float(product.max()))
        return params_from_range(low, high, INNER)

    def _targets(self, networks: SideBySide, streams: Mapping[str, str]) -> _Targets:
        """What the branch reads and what it should put out, on the samples fitted to and on those held out."""
        products = [quantized_linear(self._layers, self._plan, linear) for linear in self._linears]
        weights = [(self._layers.weight(linear.name), self._layers.bias(linear.name)) for linear in self._linears]
        outputs = [affine(weight, bias, None) for weight, bias in weights]
        powers: dict[int, DoubleArray] = {}  # of a sample, sums of w, w t and w t^2: (3, O)
        counts: dict[int, int] = {}

        def rows_of(sample: int) -> Rows:
            in_float, quantized = networks.inputs(self._tensor, sample)
            shape = quantized.shape
            rows, mass = used_rows(shape, (sample, networks.samples), self._positions)
            in_float, quantized = (value.reshape(-1, value.shape[-1])[rows] for value in (in_float, quantized))
            wanted = np.concatenate([output(in_float) for output in outputs], axis=1)
            lacking = wanted - np.concatenate([product(quantized) for product in products], axis=1)
            for linear, columns in zip(self._linears, self._columns, strict=True):
                if linear.name in streams:
                    lacking[:, columns] += networks.stream_error(streams[linear.name], sample, rows)
            counts[sample] = math.prod(shape[:-1])
            powers[sample] = np.stack(
                [mass.astype(np.float64) @ wanted.astype(np.float64) ** power for power in range(3)]
            )
            return Rows(inputs=fake_quantize(quantized, self._params), targets=lacking, mass=mass)

        shape = (self._linears[0].in_features, self._outputs)
        fitting, held = summed(shape, networks.samples, rows_of, self._threads)
        held_out = [sample for sample in range(networks.samples) if is_held_out(sample)] or range(networks.samples)
        total, first, second = np.sum([powers[sample] for sample in held_out], axis=0)
        signal = float((second - first**2 / total).sum())
        return _Targets(fitting=fitting, held=held, signal=signal, rows=sum(counts.values()) / networks.samples)


def quantized_linear(layers: Layers, plan: QuantPlan, linear: Linear) -> Callable[[FloatArray], FloatArray]:
    """X (.., I) -> what the plan's codes put out for a linear layer, its branch included: (.., O)."""
    weight_params = plan.params(linear.weight)
    assert weight_params is not None  # the caller's ``planned_linear`` said so
    weight = fake_quantize(plan.weights.get(linear.name, layers.weight(linear.name)), weight_params)
    quantize = partial(quantized_input, plan, linear.input)
    product = affine(weight, _bias(layers, plan, linear.name), quantize)
    branch = plan.branches.get(linear.name)
    if branch is None:
        return product
    a, b = fake_quantize(branch.a, branch.a_params), fake_quantize(branch.b, branch.b_params)

    def with_branch(x: FloatArray) -> FloatArray:
        return product(x) + times(fake_quantize(times(quantize(x), a), branch.inner), b)

    return with_branch


def _gains(fit: LowRank, left: DoubleArray) -> DoubleArray:
    """What each rank takes off the held-out error: the fit's own figures, lowered to what the best rank proves there.

    left: the error that 0, 1, .. ranks leave.
    """
    reached = left[0] - left
    best = int(np.argmax(reached))
    energy = fit.energy[:best]
    return energy * (reached[best] / max(float(energy.sum()), 1e-300))


def _bias(layers: Layers, plan: QuantPlan, linear: str) -> FloatArray:
    return plan.biases.get(linear, layers.bias(linear))
