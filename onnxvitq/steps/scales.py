"""Scales by the error of what a tensor is for: the output of the linears that read it, the attention's scores and context."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxvitq.blockmap import Attention
from onnxvitq.fanout import fan_out
from onnxvitq.numerics.affine import fake_quantize
from onnxvitq.numerics.fit import ProductFit, Search, fit_linear, fit_product, times
from onnxvitq.numerics.objectives import OBJECTIVES, Objective
from onnxvitq.plan import Problem, QuantPlan
from onnxvitq.spec import FloatArray, QParams, StatRequest, Stats
from onnxvitq.steps.step import StepOutcome, outcome, split_samples, sqnr_db


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchScales:
    """Alternating search over [0.5, 1.2] x min-max (Paper A, section 1.4).

    Linears that read one tensor share its scale and are searched together. With the objective "ranking" the scores Q K use
    the ranking loss (eqs. 12 and 13) and everything else the Pearson loss, as published. A result is kept where it does not
    lose to min-max on held-out samples, by its own objective.
    """

    objective: str
    search: Search
    workers: int = 0
    name: str = "scales"

    def needs(self, problem: Problem, plan: QuantPlan) -> tuple[StatRequest, ...]:
        """Rows of every linear's input, matrices of every attention's operands."""
        requests = [StatRequest(tensor=tensor, kind="rows") for tensor in linear_groups(problem, plan)]
        for attention in problem.blockmap.attentions:
            for left, right, _ in _products(attention, problem, plan):
                requests += [StatRequest(tensor=left, kind="left"), StatRequest(tensor=right, kind="right")]
        return tuple(requests)

    def apply(self, problem: Problem, plan: QuantPlan, stats: Stats) -> tuple[QuantPlan, StepOutcome]:
        """Searched parameters in place of min-max's."""
        objective = OBJECTIVES["pearson" if self.objective == "ranking" else self.objective]

        def linears(group: tuple[str, list[str]]) -> _Judged:
            return self._linears(problem, plan, stats, group, objective)

        def product(pair: tuple[str, str, bool]) -> _Judged:
            left, right, scores = pair
            chosen = OBJECTIVES["ranking"] if scores and self.objective == "ranking" else objective
            return self._product(plan, stats, (left, right), chosen)

        pairs = [pair for attention in problem.blockmap.attentions for pair in _products(attention, problem, plan)]
        judged = [
            *fan_out(linears, linear_groups(problem, plan).items(), self.workers),
            *fan_out(product, pairs, self.workers),
        ]
        fitted = {tensor: params for one in judged for tensor, params in one.params.items()}
        kept = sum(one.kept for one in judged)
        return plan.with_params(fitted), outcome(
            self.name, [one.before for one in judged], [one.after for one in judged], kept
        )

    def _linears(
        self, problem: Problem, plan: QuantPlan, stats: Stats, group: tuple[str, list[str]], objective: Objective
    ) -> "_Judged":
        tensor, names = group
        weights = [problem.weight(name) for name in names]
        weight = np.concatenate(weights, axis=1)  # (I, sum of O)
        fitting, held = split_samples(stats.rows[tensor])
        first = plan.decisions[problem.blockmap.linear(names[0]).weight]
        fit = fit_linear(
            fitting, weight, (plan.decisions[tensor].spec, first.spec), stats.ranges[tensor], objective, self.search
        )
        start = _joined([plan.decisions[problem.blockmap.linear(name).weight].params for name in names])
        old = (plan.decisions[tensor].params, start)
        judged = _judge(held, weight, old, fit, objective)
        if not judged.kept:
            return judged
        params = {tensor: fit.left}
        stops = np.cumsum([0, *(w.shape[1] for w in weights)])
        for name, begin, end in zip(names, stops[:-1], stops[1:], strict=True):
            part = QParams(
                spec=fit.right.spec, scale=fit.right.scale[begin:end], zero_point=fit.right.zero_point[begin:end]
            )
            params[problem.blockmap.linear(name).weight] = part
        return _Judged(before=judged.before, after=judged.after, kept=True, params=params)

    def _product(self, plan: QuantPlan, stats: Stats, pair: tuple[str, str], objective: Objective) -> "_Judged":
        left, right = pair
        (fit_left, held_left), (fit_right, held_right) = (
            split_samples(stats.lefts[left]),
            split_samples(stats.rights[right]),
        )
        bounds = (stats.ranges[left], stats.ranges[right])
        fit = fit_product(fit_left, fit_right, plan.decisions[left].spec, bounds, objective, self.search)
        old = (plan.decisions[left].params, plan.decisions[right].params)
        judged = _judge(held_left, held_right, old, fit, objective)
        params = {left: fit.left, right: fit.right} if judged.kept else {}
        return _Judged(before=judged.before, after=judged.after, kept=judged.kept, params=params)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Judged:
    """Held-out SQNR of min-max and of what is kept, and the parameters when the search's are kept."""

    before: float
    after: float
    kept: bool
    params: Mapping[str, QParams]


def linear_groups(problem: Problem, plan: QuantPlan) -> dict[str, list[str]]:
    """Input tensor -> names of the planned linears that read it."""
    groups: dict[str, list[str]] = {}
    for linear in problem.blockmap.linears:
        if linear.input in plan.decisions and (linear.name, 0) in plan.decisions[linear.input].site.consumers:
            groups.setdefault(linear.input, []).append(linear.name)
    return groups


def _products(attention: Attention, problem: Problem, plan: QuantPlan) -> list[tuple[str, str, bool]]:
    """(left, right, whether these are the scores) of the products that the plan quantizes, both operands computed."""
    second = (attention.probs, attention.value) if attention.probs_first else (attention.value, attention.probs)
    pairs = [(attention.query, attention.key, True), (*second, False)]
    return [
        pair
        for pair in pairs
        if all(tensor in plan.decisions and tensor not in problem.constants for tensor in pair[:2])
    ]


def _joined(params: "list[QParams | None]") -> QParams:
    """Per-channel weight parameters side by side."""
    present = [one for one in params if one is not None]
    return QParams(
        spec=present[0].spec,
        scale=np.concatenate([one.scale for one in present]),
        zero_point=np.concatenate([one.zero_point for one in present]),
    )


def _judge(
    left: FloatArray,
    right: FloatArray,
    old: "tuple[QParams | None, QParams | None]",
    fit: ProductFit,
    objective: Objective,
) -> _Judged:
    """Compare old and fitted parameters on held-out samples."""
    assert old[0] is not None  # the min-max step ran before
    assert old[1] is not None
    product = times if right.ndim == 2 else np.matmul
    reference = product(left, right)
    before = product(fake_quantize(left, old[0]), fake_quantize(right, old[1]))
    after = product(fake_quantize(left, fit.left), fake_quantize(right, fit.right))
    kept = objective(reference, after) <= objective(reference, before)
    old_db = sqnr_db(reference, before)
    return _Judged(before=old_db, after=sqnr_db(reference, after) if kept else old_db, kept=kept, params={})
