"""Branches of low rank for every planned linear layer, in closed form: ranks by what they gain within a budget of bytes.

The float network and the quantized-so-far network run side by side, as for the weights (``rebuild.weights``), twice: the
first run tells what each rank of each layer would gain, the second fits the branches of the ranks chosen, each against what
the layers before it, their branches included, really put out. Layers that read one tensor share A: one small Gemm more for
all of them.

A branch reads the codes that the product reads. Codes of eight bits of its own were tried beside narrow activations: what
the narrow ones lost is rounding noise, which hardly depends on the input linearly, so a regression on finer codes explains
*less* of the error than one on the codes themselves (3-bit inputs, text transformer: 0.1 dB against 1 dB a layer).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.calibration.held_out import is_held_out
from onnxvitq.calibration.subgraphs import SubgraphRunner
from onnxvitq.core.formats import INT8, QParams, TensorFormat, activation_format, weight_format
from onnxvitq.core.layers import Linear
from onnxvitq.core.parallel import one_blas_thread
from onnxvitq.core.plan import Branch, Layers, QuantPlan, planned_linear
from onnxvitq.core.tensors import FloatArray
from onnxvitq.fit.quantized_inputs import quantized_input
from onnxvitq.fit.step import LayerGain, layer_gain
from onnxvitq.fit.steps.weight_reconstruction.solve import ENOUGH, affine, groups, residuals, used_rows
from onnxvitq.fit.steps.weight_reconstruction.sums import Rows, summed
from onnxvitq.numerics.affine import fake_quantize, params_from_range, params_from_weight
from onnxvitq.numerics.decibels import sqnr_of_error
from onnxvitq.numerics.fit import times
from onnxvitq.numerics.lowrank import LowRank, errors_by_rank, low_rank, share_budget
from onnxvitq.numerics.moments import DoubleArray, Moments, output_error
from onnxvitq.numerics.ridge import best_bias
from onnxvitq.targets.ort_cpu.layout import apply_products

FACTOR_A = weight_format(8, saturation_free=True)
# One scale for all of B: one a column would take as many bytes as four ranks, and a correction needs no more digits.
FACTOR_B = TensorFormat(INT8, saturation_free=True)
INNER = activation_format(8)
MAX_RANK = 64
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)  # of the regression; the held-out rows choose
# Time of a branch, in multiplies of the large product: of every value it adds to, whatever its rank, and of its own multiplies.
ADDED, SMALL = 250.0, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Branches:
    """How large the branches may be.

    budget: their bytes over those of the packed weights. latency: their time over that of the planned linears, as far as
    counting tells it (``ADDED``, ``SMALL``): a branch costs passes over the layer's output, whatever its rank, and branches
    beside all layers of a ViT-S take a quarter of the time again. rank: instead of both budgets, one for every layer, or by
    the tensor that layers read. worth_db: what a branch has to gain on held-out samples. positions, threads: as in
    ``Rebuild``. progress: told how many of the tensors that layers read are done, over both runs, and of how many.
    """

    budget: float = 0.1
    latency: float = 0.08
    rank: int | Mapping[str, int] | None = None
    worth_db: float = 0.2
    positions: FloatArray | None = None
    threads: int = 0
    progress: Callable[[int, int], None] = lambda *_: None


def fit_branches(
    graph: gs.Graph,
    layers: Layers,
    plan: QuantPlan,
    feeds: Iterable[Mapping[str, np.ndarray]],
    folder: Path,
    options: Branches,
) -> tuple[QuantPlan, LayerGain]:
    """A branch for every planned linear that gains from it on held-out samples.

    Args and errors are those of ``rebuild.weights.rebuild_weights``.

    Returns:
        The plan with branches, and the mean held-out SQNR in dB of the layers' outputs without and with them.
    """
    runs = _Runs(graph, layers, plan, feeds, options)
    gains: list[GroupGain] = []
    with one_blas_thread():
        if options.rank is None:
            gains = runs.once(folder / "gains", dict.fromkeys(groups(layers.blockmap.linears), MAX_RANK), keep=False)
            ranks = best_ranks(gains, options.budget * weight_bytes(layers, plan), options.latency)
        else:
            tensors, rank = groups(layers.blockmap.linears), options.rank
            ranks = {one: rank if isinstance(rank, int) else rank.get(one, 0) for one in tensors}
        fitted = {one.tensor: one for one in runs.once(folder / "branches", ranks, keep=True)}
    found = list({**{one.tensor: one.without() for one in gains}, **fitted}.values())
    kept = [one for one in found if one.branches]
    plan = plan.with_branches({name: branch for one in kept for name, branch in one.branches.items()})
    plan = plan.with_biases({name: bias for one in kept for name, bias in one.biases.items()})
    before, after = [one.before for one in found], [one.after for one in found]
    return plan, layer_gain(before, after, len(kept))


def branch_time(branch: Branch) -> float:
    """Of a branch over that of the product that it stands beside, as ``Branches.latency`` counts it."""
    inputs, outputs = branch.a.shape[0], branch.b.shape[1]
    return (ADDED * outputs + SMALL * branch.rank * (inputs + outputs)) / (inputs * outputs)


def weight_bytes(layers: Layers, plan: QuantPlan) -> int:
    """Of the planned weights, packed to their bits, and their scales."""
    total = 0
    for linear in layers.blockmap.linears:
        if planned_linear(plan, linear):
            bits = plan.decisions[linear.weight].spec.bits
            total += linear.in_features * linear.out_features * bits // 8 + 4 * linear.out_features
    return total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupGain:
    """For the layers that read one tensor: what each rank gains, falling; their inputs, their outputs together, and the rows
    of a sample; held-out SQNR in dB without and with a branch, and the branches that are worth it.
    """

    tensor: str
    gains: DoubleArray
    inputs: int
    outputs: int
    rows: float
    before: float = 0.0
    after: float = 0.0
    branches: Mapping[str, Branch] = field(default_factory=dict)
    biases: Mapping[str, FloatArray] = field(default_factory=dict)

    def without(self) -> "GroupGain":
        """The same, the layers left as they are."""
        return replace(self, after=self.before, branches={}, biases={})

    @property
    def cost(self) -> int:
        """Bytes of a rank: its codes in both factors, and its scale in A."""
        return self.inputs + self.outputs + 4


def best_ranks(found: Sequence[GroupGain], size: float, latency: float) -> dict[str, int]:
    """Tensor -> rank, within both budgets.

    A branch costs time at once and then with every rank. So layers are let in one after the other, most gain for the time of
    having a branch at all first; after each, what both budgets leave is shared out, and the best of these stays.

    Args:
        found: those without branches get none.
        size: bytes of all factors.
        latency: time over that of all products of ``found``.
    """
    best, most = dict.fromkeys((one.tensor for one in found), 0), 0.0
    able = [one for one in found if one.branches]
    able.sort(key=lambda one: -float(one.gains.sum()) / (one.rows * one.outputs))
    left = latency * sum(one.rows * one.inputs * one.outputs for one in found)
    let_in: list[GroupGain] = []
    for one in able:
        opening = ADDED * one.rows * one.outputs
        if opening >= left:
            continue
        left -= opening
        let_in.append(one)
        # Time of a rank and its bytes are both as I + O, but for the rows: the longest sequence decides.
        budget = int(min(size, left / (SMALL * max(one.rows for one in let_in))))
        ranks = share_budget(
            {one.tensor: one.gains for one in let_in}, {one.tensor: one.cost for one in let_in}, budget
        )
        gain = sum(float(one.gains[: ranks[one.tensor]].sum()) for one in let_in)
        if gain > most:
            best, most = {**dict.fromkeys(best, 0), **ranks}, gain
    return best


class _Runs:
    """Both networks side by side, over all samples."""

    def __init__(
        self,
        graph: gs.Graph,
        layers: Layers,
        plan: QuantPlan,
        feeds: Iterable[Mapping[str, np.ndarray]],
        options: Branches,
    ) -> None:
        self.graph, self.layers, self.plan, self.feeds, self.options = graph, layers, plan, feeds, options

    def once(self, folder: Path, ranks: Mapping[str, int], *, keep: bool) -> list[GroupGain]:
        """One run over the layers that have a rank; with ``keep``, later layers see the branches of those before them."""
        layers, plan, linears = self.layers, self.plan, self.layers.blockmap.linears
        folder.mkdir()
        exact = SubgraphRunner(self.graph, linears, self.feeds, folder / "float", self.options.threads)
        written = apply_products(self.graph, layers, plan)
        coded = SubgraphRunner(written, linears, self.feeds, folder / "quantized", self.options.threads)
        found, onto = [], residuals(self.graph, linears)
        tensors = groups(linears)
        for number, (tensor, group) in enumerate(tensors.items()):
            runs = 2 if self.options.rank is None else 1
            self.options.progress(number + (runs - 1) * keep * len(tensors), runs * len(tensors))
            streams = {one.name: onto.get(one.output, "") for one in group}
            streams = {name: stream for name, stream in streams.items() if stream and exact.can_reach(stream)}
            exact.reach([tensor, *streams.values()])
            coded.reach([tensor, *streams.values()])
            planned = [one for one in group if _may_have_branch(plan, one)]
            result = None
            if planned and ranks[tensor]:
                result = _Fit(layers, plan, planned, self.options).fit(exact, coded, streams, ranks[tensor])
                found.append(result)
            for linear in group:
                weight, bias = layers.weight(linear.name), layers.bias(linear.name)
                exact.compute(linear, affine(weight, bias, None))
                if not planned_linear(plan, linear):
                    coded.compute(linear, affine(weight, bias, None))
                    continue
                now = plan
                if keep and result is not None and result.branches:
                    now = plan.with_branches(result.branches).with_biases(result.biases)
                coded.compute(linear, quantized_linear(layers, now, linear))
        return found


class _Fit:
    """Fits the branches of the linear layers that read one tensor, side by side along O: they share A."""

    def __init__(self, layers: Layers, plan: QuantPlan, linears: Sequence[Linear], options: Branches) -> None:
        self.layers, self.linears, self.options = layers, linears, options
        self.plan = replace(plan, branches={})
        params = plan.params(linears[0].input)
        assert params is not None  # the caller's ``planned_linear`` said so
        self.params = params
        stops = np.cumsum([0, *(one.out_features for one in linears)])
        self.width, self.rows = int(stops[-1]), 0
        self.slices = [slice(begin, end) for begin, end in itertools.pairwise(stops)]

    def fit(self, exact: SubgraphRunner, coded: SubgraphRunner, streams: Mapping[str, str], rank: int) -> GroupGain:
        """The best branches of that rank, kept if the held-out error says so."""
        fitting, held = self._moments(exact, coded, streams, self.params)
        rank = rank if fitting.rows >= ENOUGH * len(fitting.gram) else 0
        fits = low_rank(fitting, rank, DAMPINGS)
        left = [errors_by_rank(held, fitting, one) for one in fits]
        best = int(np.argmin([errors[-1] for errors in left]))
        fit = fits[best]
        bias = np.concatenate([_bias(self.layers, self.plan, one.name) for one in self.linears])
        nothing = np.zeros(held.cross.shape, np.float32)
        before = float(output_error(held, nothing, np.zeros(self.width, np.float32)).sum())
        branches: dict[str, Branch] = {}
        biases: dict[str, FloatArray] = {}
        after = before
        if fit.energy.size:
            a_params = params_from_weight(fit.a, FACTOR_A)
            a = fake_quantize(fit.a, a_params)
            inner = self._inner(coded, self.params, a)
            factors = [params_from_weight(fit.b[:, part], FACTOR_B) for part in self.slices]
            b = np.concatenate(
                [fake_quantize(fit.b[:, p], q) for p, q in zip(self.slices, factors, strict=True)], axis=1
            )
            shift = best_bias(fitting, times(a, b))
            after = float(output_error(held, times(a, b), shift).sum())
            if round(sqnr_of_error(after, before), 3) > self.options.worth_db:
                for linear, part, b_params in zip(self.linears, self.slices, factors, strict=True):
                    branches[linear.name] = Branch(
                        a=fit.a, b=fit.b[:, part], a_params=a_params, b_params=b_params, inner=inner
                    )
                    biases[linear.name] = bias[part] + shift[part]
        return GroupGain(
            tensor=self.linears[0].input,
            gains=_gains(fit, np.array([before, *left[best][1:]])) / max(self.held_signal, 1e-30),
            inputs=fitting.cross.shape[0],
            outputs=self.width,
            rows=self.rows / exact.samples,
            before=round(sqnr_of_error(before, self.held_signal), 3),
            after=round(sqnr_of_error(min(after, before), self.held_signal), 3),
            branches=branches,
            biases=biases,
        )

    def _inner(self, coded: SubgraphRunner, params: QParams, a: FloatArray) -> QParams:
        """Codes of z A, over its whole range."""
        low, high = 0.0, 0.0
        for sample in range(coded.samples):
            product = times(fake_quantize(coded.values.get(self.linears[0].input, sample), params), a)
            low, high = min(low, float(product.min())), max(high, float(product.max()))
        return params_from_range(low, high, INNER)

    def _moments(
        self, exact: SubgraphRunner, coded: SubgraphRunner, streams: Mapping[str, str], read: QParams
    ) -> tuple[Moments, Moments]:
        """Of what the branch reads and what it should put out, on the samples fitted to and on those held out."""
        tensor, width = self.linears[0].input, self.width
        products = [quantized_linear(self.layers, self.plan, one) for one in self.linears]
        targets = [affine(self.layers.weight(one.name), self.layers.bias(one.name), None) for one in self.linears]
        powers: dict[int, DoubleArray] = {}  # of a sample, sums of w, w t and w t^2: (3, width)
        counts: dict[int, int] = {}

        def rows_of(sample: int) -> Rows:
            real, seen = (one.values.get(tensor, sample) for one in (exact, coded))
            shape = seen.shape
            rows, mass = used_rows(shape, (sample, exact.samples), self.options.positions)
            real, seen = (one.reshape(-1, one.shape[-1])[rows] for one in (real, seen))
            wanted = np.concatenate([target(real) for target in targets], axis=1)
            lacking = wanted - np.concatenate([product(seen) for product in products], axis=1)
            for linear, part in zip(self.linears, self.slices, strict=True):
                if linear.name in streams:
                    float_stream, own = (one.values.get(streams[linear.name], sample) for one in (exact, coded))
                    lacking[:, part] += (float_stream - own).reshape(-1, linear.out_features)[rows]
            counts[sample] = math.prod(shape[:-1])
            powers[sample] = np.stack(
                [mass.astype(np.float64) @ wanted.astype(np.float64) ** power for power in range(3)]
            )
            return Rows(inputs=fake_quantize(seen, read), targets=lacking, mass=mass)

        sums = summed((self.linears[0].in_features, width), exact.samples, rows_of, self.options.threads)
        self.rows = sum(counts.values())
        judged = [sample for sample in range(exact.samples) if is_held_out(sample)] or list(range(exact.samples))
        total, first, second = np.sum([powers[sample] for sample in judged], axis=0)
        self.held_signal = float((second - first**2 / total).sum())
        return sums


def _may_have_branch(plan: QuantPlan, linear: Linear) -> bool:
    """Not where the input's range is measured at run time: its codes have no scale that could be written beside them."""
    return planned_linear(plan, linear) and linear.input not in plan.dynamic


def _gains(fit: LowRank, left: DoubleArray) -> DoubleArray:
    """What each rank takes off the held-out error: the fit's own figures, lowered to what the best rank proves there.

    left: the error that 0, 1, .. ranks leave.
    """
    reached = left[0] - left
    best = int(np.argmax(reached))
    energy = fit.energy[:best]
    return energy * (reached[best] / max(float(energy.sum()), 1e-300))


def quantized_linear(layers: Layers, plan: QuantPlan, linear: Linear) -> Callable[[FloatArray], FloatArray]:
    """X (.., I) -> what the plan's codes put out for a linear layer, its branch included: (.., O)."""
    weight_params = plan.params(linear.weight)
    assert weight_params is not None  # the caller's ``planned_linear`` said so
    weight = fake_quantize(plan.weights.get(linear.name, layers.weight(linear.name)), weight_params)
    seen = partial(quantized_input, plan, linear.input)
    product = affine(weight, _bias(layers, plan, linear.name), seen)
    branch = plan.branches.get(linear.name)
    if branch is None:
        return product
    a, b = fake_quantize(branch.a, branch.a_params), fake_quantize(branch.b, branch.b_params)

    def both(x: FloatArray) -> FloatArray:
        return product(x) + times(fake_quantize(times(seen(x), a), branch.inner), b)

    return both


def _bias(layers: Layers, plan: QuantPlan, linear: str) -> FloatArray:
    return plan.biases.get(linear, layers.bias(linear))
