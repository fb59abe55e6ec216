"""Weights that absorb the error: one linear after the other is solved again against what it really reads.

The float network and the quantized-so-far network run side by side, piece by piece between the linear layers. Each layer
then has its float input (for the target) and its quantized input (what the integer kernel will see, errors of everything
before it included). A ridge regression moves the weight (the bias is its last column: bias correction is the case of
infinite strength), error feedback rounds it with the Hessian of the quantized inputs, and the held-out samples say which of
the results, the old weight among them, is kept (METHODS.md, sections 3.7c, 3.7e and 7).

A layer whose output is added to a residual stream is solved against the *float* stream: it repairs what the stream carries
of earlier errors as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.blockmap import Linear
from onnxvitq.fanout import fan_out
from onnxvitq.numerics.affine import fake_quantize, params_from_weight
from onnxvitq.numerics.fit import times
from onnxvitq.numerics.moments import Moments, add, centred, empty, output_error
from onnxvitq.numerics.ridge import best_bias, ridge_path
from onnxvitq.numerics.rounding import round_with_feedback
from onnxvitq.plan import Problem, QuantPlan
from onnxvitq.rebuild.pieces import Pieces
from onnxvitq.rewrite.qdq import apply_products, planned_linear
from onnxvitq.spec import FloatArray, QParams
from onnxvitq.steps.step import StepOutcome, is_held_out, outcome

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, in units of the mean diagonal of the inputs' covariance
WEIGHT_GRID = (0.8, 0.85, 0.9, 0.95, 1.0)  # multipliers of a channel's largest weight, tried as its scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
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


def rebuild_weights(
    graph: gs.Graph,
    problem: Problem,
    plan: QuantPlan,
    feeds: Iterable[Mapping[str, np.ndarray]],
    folder: Path,
    options: Rebuild,
) -> tuple[QuantPlan, StepOutcome]:
    """New weights, scales and biases for every planned linear, in the order of the network.

    Args:
        graph: canonical; never changed.
        problem: what was found in it.
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
    linears = problem.blockmap.linears
    exact = Pieces(graph, linears, feeds, folder / "float", options.threads)
    coded = Pieces(apply_products(graph, problem, plan), linears, feeds, folder / "quantized", options.threads)
    residuals = _residuals(graph, linears)
    before: list[float] = []
    after: list[float] = []
    kept = 0
    for tensor, group in _groups(linears).items():
        streams = {one.name: residuals.get(one.output, "") for one in group}
        streams = {name: stream for name, stream in streams.items() if stream and exact.can_reach(stream)}
        exact.reach([tensor, *streams.values()])
        coded.reach([tensor, *streams.values()])

        solvers = [
            (_Solver(problem, plan, one, options), streams.get(one.name, "") if options.stream else "")
            if planned_linear(plan, one)
            else None
            for one in group
        ]
        results = fan_out(lambda one: one and one[0].solve(exact, coded, one[1]), solvers, options.threads)
        for linear, solved in zip(group, results, strict=True):
            weight, bias = problem.weight(linear.name), problem.bias(linear.name)
            exact.compute(linear, _affine(weight, bias, None))
            if solved is None:
                coded.compute(linear, _affine(weight, bias, None))
                continue
            before.append(solved.before)
            after.append(solved.after)
            kept += solved.changed
            plan = plan.with_weights({linear.name: solved.weight}).with_biases({linear.name: solved.bias})
            plan = plan.with_params({linear.weight: solved.params})
            coded.compute(
                linear, _affine(fake_quantize(solved.weight, solved.params), solved.bias, plan.params(tensor))
            )
    return plan, outcome("weights", before, after, kept)


def _groups(linears: Sequence[Linear]) -> dict[str, list[Linear]]:
    """Linears by the tensor they read, in the order of the network."""
    groups: dict[str, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(linear.input, []).append(linear)
    return groups


def _residuals(graph: gs.Graph, linears: Sequence[Linear]) -> dict[str, str]:
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


def _affine(weight: FloatArray, bias: FloatArray, params: QParams | None):  # type: ignore[no-untyped-def]
    """X -> Q(x) W + b; a params of None leaves x as it is."""
    return lambda x: times(x if params is None else fake_quantize(x, params), weight) + bias


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Solved:
    """A layer's new weight (real values), its parameters and bias; held-out SQNR in dB before and after."""

    weight: FloatArray
    params: QParams
    bias: FloatArray
    before: float
    after: float
    changed: bool


class _Solver:
    """Solves one linear layer."""

    def __init__(self, problem: Problem, plan: QuantPlan, linear: Linear, options: Rebuild) -> None:
        self.linear, self.options = linear, options
        self.weight, self.bias = problem.weight(linear.name), problem.bias(linear.name)
        input_params, weight_params = plan.params(linear.input), plan.params(linear.weight)
        assert input_params is not None  # planned_linear said so
        assert weight_params is not None
        self.input_params, self.weight_params = input_params, weight_params
        self.old_bias = plan.biases.get(linear.name, self.bias)

    def solve(self, exact: Pieces, coded: Pieces, stream: str) -> _Solved:
        """The best of the candidates on the held-out samples."""
        fitting, held = self._moments(exact, coded, stream)
        old = (self.weight, self.weight_params, self.old_bias)
        candidates = [old, (self.weight, self.weight_params, best_bias(fitting, self._rounded(old[0], old[1])))]
        errors = [self._error(held, candidate) for candidate in candidates]
        moved = [self.weight]
        if self.options.ridge:
            path = ridge_path(fitting, self.weight, STRENGTHS)
            best = min(path, key=lambda one: float(output_error(held, *one).sum()))
            moved.append(best[0])
        for weight in moved:
            params = self._scales(weight)
            rounded = self._rounded(weight, params)
            candidates.append((rounded, params, best_bias(fitting, rounded)))
            if self.options.feedback:
                rounded = round_with_feedback(weight, params, centred(fitting).gram)
                candidates.append((rounded, params, best_bias(fitting, rounded)))
        errors += [self._error(held, candidate) for candidate in candidates[2:]]
        choice = int(np.argmin(errors))
        weight, params, bias = candidates[choice]
        signal = float((held.t2 - held.sum_t**2 / held.mass).sum())
        return _Solved(
            weight=weight,
            params=params,
            bias=bias,
            before=_decibel(signal, errors[0]),
            after=_decibel(signal, errors[choice]),
            changed=choice > 0,
        )

    def _moments(self, exact: Pieces, coded: Pieces, stream: str) -> tuple[Moments, Moments]:
        """Of the samples that are fitted to, and of those held out (the same where there are none)."""
        sums = [empty(*self.weight.shape), empty(*self.weight.shape)]
        for sample in range(exact.samples):
            real, seen = (one.values.get(self.linear.input, sample) for one in (exact, coded))
            target = times(real, self.weight) + self.bias
            if stream:
                target = target + (exact.values.get(stream, sample) - coded.values.get(stream, sample))
            rows = fake_quantize(seen, self.input_params).reshape(-1, seen.shape[-1])
            side = int(is_held_out(sample))
            sums[side] = add(sums[side], rows, target.reshape(len(rows), -1), self._mass(seen.shape))
        return (sums[0], sums[1]) if sums[1].mass else (sums[0], sums[0])

    def _mass(self, shape: Sequence[int]) -> FloatArray:
        """The weight of every row of a tensor (.., T, I)."""
        positions = self.options.positions
        rows = int(np.prod(shape[:-1]))
        if positions is None or len(shape) < 3 or shape[-2] != len(positions):
            return np.ones(rows, np.float32)
        return np.tile(positions, rows // len(positions))

    def _scales(self, weight: FloatArray) -> QParams:
        """Per channel, the scale among ``WEIGHT_GRID`` with the lowest squared error of the weight."""
        spec = self.weight_params.spec
        tried = [params_from_weight(weight, spec, multiplier) for multiplier in WEIGHT_GRID]
        errors = np.stack([((weight - fake_quantize(weight, one)) ** 2).sum(axis=0) for one in tried])
        best = errors.argmin(axis=0)
        scale = np.stack([one.scale for one in tried])[best, np.arange(weight.shape[1])]
        return QParams(spec=spec, scale=scale, zero_point=tried[0].zero_point)

    def _rounded(self, weight: FloatArray, params: QParams) -> FloatArray:
        return fake_quantize(weight, params)

    def _error(self, moments: Moments, candidate: tuple[FloatArray, QParams, FloatArray]) -> float:
        weight, params, bias = candidate
        return float(output_error(moments, self._rounded(weight, params), bias).sum())


def _decibel(signal: float, noise: float) -> float:
    return round(-10.0 * float(np.log10(max(noise, 1e-12 * max(signal, 1e-12)) / max(signal, 1e-12))), 3)
