"""Bias correction (Paper A, eqs. 14 to 16): each channel's expected output error is taken off its bias, free at run time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxvitq.calibration.held_out import split_samples
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.parallel import fan_out
from onnxvitq.core.plan import Layers, QuantPlan, linear_groups
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.core.tensors import FloatArray
from onnxvitq.fit.quantized_inputs import quantized_rows
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, LayerGain, Proposal, layer_gain
from onnxvitq.numerics.affine import fake_quantize
from onnxvitq.numerics.fit import times
from onnxvitq.numerics.objectives import sqnr_db


def expected_error(rows: FloatArray, weight: FloatArray, quantized: tuple[FloatArray, FloatArray]) -> FloatArray:
    """E[x^ W^ - x W] over rows, (O,): the left side of eq. 16 as one mean, its three terms together.

    rows (.., I) and weight (I, O) in float; quantized: the same two after fake quantization.
    """
    # The mean of a product with a fixed matrix is the product of the mean: (I,) @ (I, O), twice.
    mean = rows.reshape(-1, rows.shape[-1]).mean(axis=0, dtype=np.float64)
    mean_quantized = quantized[0].reshape(-1, rows.shape[-1]).mean(axis=0, dtype=np.float64)
    return (mean_quantized @ quantized[1] - mean @ weight).astype(np.float32)


class BiasCorrection:
    """b <- b - E[x^ W^ - x W], kept for each linear layer where it lowers the output error on held-out samples."""

    name = "bias"

    def runs(self, config: QuantConfig) -> bool:
        """Where weights are not solved again, each with its bias."""
        return config.runs("bias")

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """Rows of every linear layer's input."""
        del context
        return row_requests(state.layers, state.plan)

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """The plan with new biases for the layers that gain."""
        plan, gain = correct_biases(state.layers, state.plan, state.statistics, context.config.threads)
        return Proposal(acceptance=Acceptance.EACH_PART, plan=plan, gain=gain)


def row_requests(layers: Layers, plan: QuantPlan) -> tuple[StatisticsRequest, ...]:
    """Rows of every linear layer's input."""
    return tuple(StatisticsRequest(tensor=tensor, kind="rows") for tensor in linear_groups(layers, plan))


def correct_biases(layers: Layers, plan: QuantPlan, stats: Statistics, workers: int = 0) -> tuple[QuantPlan, LayerGain]:
    """New biases for the linear layers that gain; workers: threads, 0 takes one a core."""

    def correct(group: tuple[str, list[str]]) -> list[_Corrected]:
        tensor, names = group
        return [_correct(layers, plan, stats.rows[tensor], name) for name in names]

    groups = fan_out(correct, linear_groups(layers, plan).items(), workers)
    corrected = [layer for group in groups for layer in group]
    biases = {layer.linear: layer.bias for layer in corrected if layer.after > layer.before}
    before = [layer.before for layer in corrected]
    after = [max(layer.before, layer.after) for layer in corrected]
    return plan.with_biases(biases), layer_gain(before, after, len(biases))


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
    error = expected_error(fitting, weight, (quantized_rows(plan, linear.input, fitting), weight_q))
    reference = times(held, weight) + bias
    approximation = times(quantized_rows(plan, linear.input, held), weight_q) + bias
    return _Corrected(
        linear=name,
        bias=bias - error,
        before=sqnr_db(reference, approximation),
        after=sqnr_db(reference, approximation - error),
    )
