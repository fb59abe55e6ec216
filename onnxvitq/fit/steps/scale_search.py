"""Scales by the error of what a tensor is for: the output of the linears that read it, the attention's scores and context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxvitq.calibration.held_out import split_samples
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.formats import QParams, TensorFormat
from onnxvitq.core.layers import Attention
from onnxvitq.core.parallel import fan_out
from onnxvitq.core.plan import Layers, QuantPlan, linear_groups
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.core.tensors import FloatArray
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, LayerGain, Proposal, layer_gain
from onnxvitq.numerics.affine import fake_quantize
from onnxvitq.numerics.fit import Search, fit_linear, fit_product, times
from onnxvitq.numerics.objectives import OBJECTIVES, Objective, against, sqnr_db


class ScaleSearch:
    """Searched parameters in place of min-max's, for linear layers and for the products of attentions."""

    name = "scales"

    def runs(self, config: QuantConfig) -> bool:
        """Unless the effort is "fast" or the objective is "minmax"."""
        return config.runs("scales")

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """Rows of every linear layer's input, matrices of every attention's operands."""
        del context
        return search_requests(state.layers, state.plan)

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """The plan with parameters that do not lose to min-max on held-out rows."""
        config = context.config
        candidates, rounds = config.search
        search = SearchScales(
            objective=config.objective, search=Search(candidates=candidates, rounds=rounds), workers=config.threads
        )
        plan, gain = search.apply(state.layers, state.plan, state.statistics)
        return Proposal(acceptance=Acceptance.EACH_PART, plan=plan, gain=gain)


def search_requests(layers: Layers, plan: QuantPlan) -> tuple[StatisticsRequest, ...]:
    """Rows of every linear layer's input, matrices of every attention's operands."""
    requests = [StatisticsRequest(tensor=tensor, kind="rows") for tensor in linear_groups(layers, plan)]
    for attention in layers.blockmap.attentions:
        for left, right, _ in _products(attention, layers, plan):
            requests += [StatisticsRequest(tensor=left, kind="left"), StatisticsRequest(tensor=right, kind="right")]
    return tuple(requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchScales:
    """Alternating search over [0.5, 1.2] x min-max (Paper A, section 1.4).

    Linears that read one tensor share its scale and are searched together. With the objective "ranking" the scores Q K use
    the ranking loss (eqs. 12 and 13) and everything else the Pearson loss, as published. A result is kept where it does not
    lose to min-max on held-out samples, by its own objective.

    Attributes:
        objective: "mse", "pearson" or "ranking".
        search: how many candidates and rounds.
        workers: threads; 0 takes one a core.
    """

    objective: str
    search: Search
    workers: int = 0

    def apply(self, layers: Layers, plan: QuantPlan, stats: Statistics) -> tuple[QuantPlan, LayerGain]:
        """Searched parameters in place of min-max's."""
        objective = OBJECTIVES["pearson" if self.objective == "ranking" else self.objective]

        def linears(group: tuple[str, list[str]]) -> _Searched:
            return self._linears(layers, plan, stats, group, objective)

        def product(pair: tuple[str, str, bool]) -> _Searched:
            left, right, scores = pair
            chosen = OBJECTIVES["ranking"] if scores and self.objective == "ranking" else objective
            return self._product(plan, stats, (left, right), chosen)

        pairs = [
            pair
            for attention in layers.blockmap.attentions
            for pair in _products(attention, layers, plan)
            if stats.has_pairs(*pair[:2])
        ]
        searched = [
            *fan_out(linears, linear_groups(layers, plan).items(), self.workers),
            *fan_out(product, pairs, self.workers),
        ]
        fitted = {tensor: params for result in searched for tensor, params in result.params.items()}
        before, after = [result.before for result in searched], [result.after for result in searched]
        return plan.with_params(fitted), layer_gain(before, after, sum(result.kept for result in searched))

    def _linears(
        self, layers: Layers, plan: QuantPlan, stats: Statistics, group: tuple[str, list[str]], objective: Objective
    ) -> "_Searched":
        tensor, names = group
        linears = [layers.blockmap.linear(name) for name in names]
        weights = [layers.weight(name) for name in names]
        fitting, held = split_samples(stats.rows[tensor])
        spec, specs = plan.decisions[tensor].spec, [plan.decisions[linear.weight].spec for linear in linears]
        left, rights = _fit_formats(fitting, weights, (spec, specs), stats.ranges[tensor], objective, self.search)
        old = [plan.decisions[linear.weight].params for linear in linears]
        searched = _compared(
            (held, np.concatenate(weights, axis=1)),
            (_rounded(held, plan.decisions[tensor].params), _side_by_side(weights, old)),
            (_rounded(held, left), _side_by_side(weights, rights)),
            objective,
        )
        params = {tensor: left, **{linear.weight: right for linear, right in zip(linears, rights, strict=True)}}
        return replace(searched, params=params) if searched.kept else searched

    def _product(self, plan: QuantPlan, stats: Statistics, pair: tuple[str, str], objective: Objective) -> "_Searched":
        left, right = pair
        (fit_left, held_left), (fit_right, held_right) = (
            split_samples(stats.lefts[left]),
            split_samples(stats.rights[right]),
        )
        bounds = (stats.ranges[left], stats.ranges[right])
        specs = (plan.decisions[left].spec, plan.decisions[right].spec)
        fit = fit_product(fit_left, fit_right, specs, bounds, objective, self.search)
        searched = _compared(
            (held_left, held_right),
            (_rounded(held_left, plan.decisions[left].params), _rounded(held_right, plan.decisions[right].params)),
            (_rounded(held_left, fit.left), _rounded(held_right, fit.right)),
            objective,
        )
        return replace(searched, params={left: fit.left, right: fit.right}) if searched.kept else searched


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Searched:
    """Held-out SQNR of min-max and of what is kept, and the parameters when the search's are kept."""

    before: float
    after: float
    kept: bool
    params: Mapping[str, QParams]


def _products(attention: Attention, layers: Layers, plan: QuantPlan) -> list[tuple[str, str, bool]]:
    """(left, right, whether these are the scores) of the products that the plan quantizes, both operands computed."""
    second = (attention.probs, attention.value) if attention.probs_first else (attention.value, attention.probs)
    pairs = [(attention.query, attention.key, True), (*second, False)]
    return [
        pair
        for pair in pairs
        if all(tensor in plan.decisions and tensor not in layers.constants for tensor in pair[:2])
    ]


def _fit_formats(
    rows: FloatArray,
    weights: Sequence[FloatArray],
    specs: tuple[TensorFormat, Sequence[TensorFormat]],
    bounds: tuple[float, float],
    objective: Objective,
    search: Search,
) -> tuple[QParams, list[QParams]]:
    """Parameters of one input and of each weight that reads it.

    Weights of one format are searched side by side. Where there are several formats (some layers have fewer bits) each has
    its own search, and of the input's scales that they end with, the one is taken that all of them together lose least by.
    """
    lefts: dict[TensorFormat, QParams] = {}
    rights: dict[int, QParams] = {}
    for spec in dict.fromkeys(specs[1]):
        members = [index for index, other in enumerate(specs[1]) if other == spec]
        joined = np.concatenate([weights[index] for index in members], axis=1)  # (I, sum of O)
        fit = fit_linear(rows, joined, (specs[0], spec), bounds, objective, search)
        lefts[spec] = fit.left
        stops = np.cumsum([weights[index].shape[1] for index in members])[:-1]
        for index, scale in zip(members, np.split(fit.right.scale, stops), strict=True):
            rights[index] = replace(fit.right, scale=scale, zero_point=np.zeros(scale.shape, np.int64))
    found = [rights[index] for index in range(len(weights))]
    if len(lefts) == 1:
        return next(iter(lefts.values())), found
    reference, rounded = times(rows, np.concatenate(weights, axis=1)), _side_by_side(weights, found)
    loss = against(objective, reference)
    best = min(lefts.values(), key=lambda left: loss(times(fake_quantize(rows, left), rounded)))
    return best, found


def _rounded(values: FloatArray, params: QParams | None) -> FloatArray:
    assert params is not None  # the min-max step ran before
    return fake_quantize(values, params)


def _side_by_side(weights: Sequence[FloatArray], params: Sequence[QParams | None]) -> FloatArray:
    """Quantized weights, (I, sum of O)."""
    return np.concatenate([_rounded(weight, own) for weight, own in zip(weights, params, strict=True)], axis=1)


def _compared(
    exact: tuple[FloatArray, FloatArray],
    old: tuple[FloatArray, FloatArray],
    new: tuple[FloatArray, FloatArray],
    objective: Objective,
) -> _Searched:
    """Compare the product of old with that of new quantized operands, on held-out samples."""
    product = times if exact[1].ndim == 2 else np.matmul
    reference, before, after = (product(*operands) for operands in (exact, old, new))
    loss = against(objective, reference)
    kept = loss(after) <= loss(before)
    old_db = sqnr_db(reference, before)
    return _Searched(before=old_db, after=sqnr_db(reference, after) if kept else old_db, kept=kept, params={})
