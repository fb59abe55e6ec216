"""Bias correction (Paper A, eqs. 14 to 16): each channel's expected output error is taken off its bias, free at run time."""

from dataclasses import dataclass

import numpy as np

from onnxvitq.calibration.held_out import split_samples
from onnxvitq.core.parallel import fan_out
from onnxvitq.core.plan import Layers, QuantPlan, linear_groups
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.core.tensors import FloatArray
from onnxvitq.fit.outcome import StepOutcome, outcome, sqnr_db
from onnxvitq.fit.quantized_inputs import seen_rows
from onnxvitq.numerics.affine import fake_quantize
from onnxvitq.numerics.fit import times


def expected_error(rows: FloatArray, weight: FloatArray, quantized: tuple[FloatArray, FloatArray]) -> FloatArray:
    """E[x^ W^ - x W] over rows, (O,): the left side of eq. 16 as one mean, its three terms together.

    rows (.., I) and weight (I, O) in float; quantized: the same two after fake quantization.
    """
    # The mean of a product with a fixed matrix is the product of the mean: (I,) @ (I, O), twice.
    mean = rows.reshape(-1, rows.shape[-1]).mean(axis=0, dtype=np.float64)
    mean_quantized = quantized[0].reshape(-1, rows.shape[-1]).mean(axis=0, dtype=np.float64)
    return (mean_quantized @ quantized[1] - mean @ weight).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectBias:
    """b <- b - E[x^ W^ - x W], kept for each linear where it lowers the output error on held-out samples."""

    workers: int = 0
    name: str = "bias"

    def needs(self, layers: Layers, plan: QuantPlan) -> tuple[StatisticsRequest, ...]:
        """Rows of every linear's input."""
        return tuple(StatisticsRequest(tensor=tensor, kind="rows") for tensor in linear_groups(layers, plan))

    def apply(self, layers: Layers, plan: QuantPlan, stats: Statistics) -> tuple[QuantPlan, StepOutcome]:
        """New biases for the linears that gain."""

        def correct(group: tuple[str, list[str]]) -> list[_Corrected]:
            tensor, names = group
            return [_correct(layers, plan, stats.rows[tensor], name) for name in names]

        groups = fan_out(correct, linear_groups(layers, plan).items(), self.workers)
        corrected = [one for group in groups for one in group]
        biases = {one.linear: one.bias for one in corrected if one.after > one.before}
        before, after = [one.before for one in corrected], [max(one.before, one.after) for one in corrected]
        return plan.with_biases(biases), outcome(self.name, before, after, len(biases))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Corrected:
    """A corrected bias (O,) and the held-out output SQNR without and with it, in dB."""

    linear: str
    bias: FloatArray
    before: float
    after: float


def _correct(layers: Layers, plan: QuantPlan, rows: FloatArray, name: str) -> _Corrected:
    linear = layers.blockmap.linear(name)
    weight_params = plan.params(linear.weight)
    assert weight_params is not None  # the min-max step ran before
    fitting, held = split_samples(rows)
    weight, bias = layers.weight(name), layers.bias(name)
    weight_q = fake_quantize(weight, weight_params)
    error = expected_error(fitting, weight, (seen_rows(plan, linear.input, fitting), weight_q))
    reference = times(held, weight) + bias
    approximation = times(seen_rows(plan, linear.input, held), weight_q) + bias
    return _Corrected(
        linear=name,
        bias=bias - error,
        before=sqnr_db(reference, approximation),
        after=sqnr_db(reference, approximation - error),
    )
