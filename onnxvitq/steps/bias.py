"""Bias correction (Paper A, eqs. 14 to 16): the expected output error of each channel is taken off the bias. Free at run time."""

import numpy as np

from onnxvitq.numerics.affine import fake_quantize
from onnxvitq.plan import Problem, QuantPlan
from onnxvitq.spec import FloatArray, StatRequest, Stats
from onnxvitq.steps.scales import linear_groups
from onnxvitq.steps.step import StepOutcome, outcome, split_samples, sqnr_db


def expected_error(rows: FloatArray, weight: FloatArray, quantized: tuple[FloatArray, FloatArray]) -> FloatArray:
    """E[x^ W^ - x W] over rows, (O,): the left side of eq. 16 as one mean, its three terms together.

    rows (.., I) and weight (I, O) in float; quantized: the same two after fake quantization.
    """
    # The mean of a product with a fixed matrix is the product of the mean: (I,) @ (I, O), twice.
    mean = rows.reshape(-1, rows.shape[-1]).mean(axis=0, dtype=np.float64)
    mean_quantized = quantized[0].reshape(-1, rows.shape[-1]).mean(axis=0, dtype=np.float64)
    return (mean_quantized @ quantized[1] - mean @ weight).astype(np.float32)


class CorrectBias:
    """b <- b - E[x^ W^ - x W], kept for each linear where it lowers the output error on held-out samples."""

    name = "bias"

    def needs(self, problem: Problem, plan: QuantPlan) -> tuple[StatRequest, ...]:
        """Rows of every linear's input."""
        return tuple(StatRequest(tensor=tensor, kind="rows") for tensor in linear_groups(problem, plan))

    def apply(self, problem: Problem, plan: QuantPlan, stats: Stats) -> tuple[QuantPlan, StepOutcome]:
        """New biases for the linears that gain."""
        biases: dict[str, FloatArray] = {}
        before: list[float] = []
        after: list[float] = []
        for tensor, names in linear_groups(problem, plan).items():
            params = plan.params(tensor)
            assert params is not None  # the min-max step ran before
            fitting, held = split_samples(stats.rows[tensor])
            fitting_q, held_q = fake_quantize(fitting, params), fake_quantize(held, params)
            for name in names:
                weight = problem.weight(name)
                weight_params = plan.params(problem.blockmap.linear(name).weight)
                assert weight_params is not None
                weight_q = fake_quantize(weight, weight_params)
                error = expected_error(fitting, weight, (fitting_q, weight_q))
                bias = problem.bias(name)
                reference = held @ weight + bias
                approximation = held_q @ weight_q + bias
                old, new = sqnr_db(reference, approximation), sqnr_db(reference, approximation - error)
                if new > old:
                    biases[name] = bias - error
                before.append(old)
                after.append(max(old, new))
        return plan.with_biases(biases), outcome(self.name, before, after, len(biases))
