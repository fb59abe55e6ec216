"""Quality control: bits are raised, then layers returned to float, the worst first, until as few decisions are lost as allowed.

The order comes from the output's error with one layer quantized at a time. How many of these changes are needed is found by
halving: the drop falls with their number, but for noise, so some seven evaluations serve a hundred layers. All are made by one
session (``evaluation.probe``); the model that is written is judged at the end, and where it misses by a sample, gets more.

A drop is counted on the samples that judge, held-out calibration samples or other data, and expected from margins
(``numerics.drop``). Both must keep the promise, the second by its upper bound: a promise is made only as far as the samples
can carry it. Of 64 samples, decisions that change with 0.4 % of all may be 1 %; a thousand more of ``--eval`` say 0.5 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.formats import EIGHT_BITS, QParams
from onnxvitq.core.layers import products
from onnxvitq.core.plan import QuantPlan, linear_groups, only, planned_products, without_nodes
from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.decisions import Decisions
from onnxvitq.evaluation.evaluator import OutputEvaluator
from onnxvitq.evaluation.probe import OutputProbe, Samples
from onnxvitq.numerics.affine import params_from_range, params_from_weight
from onnxvitq.numerics.decibels import error_power
from onnxvitq.numerics.drop import ExpectedDrop, binomial_interval, expected_drop, paired_interval
from onnxvitq.precision.allocator import Fitting

ORDERING = 4  # held-out samples that the order of the changes is measured on
ROUNDING = 1e-5  # of decisions, that float sums in another order may lose: a promise to lose none can be kept
MORE = 4  # further changes at most, where the written model misses what the probe promised
REASON = "returned to float to keep --max-drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is done to the linears that read one tensor, or to one product (``nodes``: their names), and their sites."""

    action: Literal["raise", "float"]
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Decisions lost of ``count`` samples that judge, and what is expected from margins.

    Of samples with labels: decisions that were right and no longer are, and those ``gained``, which were wrong and are right.
    """

    lost: int
    gained: int
    count: int
    labelled: bool
    expected: ExpectedDrop

    @property
    def share(self) -> float:
        """Of the samples that judge, -1 to 1: of labelled ones, what top-1 falls by."""
        return (self.lost - self.gained) / self.count

    def keeps(self, limit: float) -> bool:
        """Whether what was counted is within the limit, and what is expected is so with certainty (``numerics.drop.LEVEL``)."""
        return self.share <= limit and self.expected.bound <= limit + ROUNDING

    def described(self) -> dict[str, Any]:
        """For the report; the interval is that of the share, at 95 %, and the bound that of what is expected."""
        if self.labelled:
            interval = paired_interval(self.lost, self.gained, self.count)
        else:
            interval = binomial_interval(self.lost, self.count)
        return {
            "drop": round(self.share, 5),
            "lost": self.lost,
            "gained": self.gained,
            "samples": self.count,
            "interval": [round(bound, 5) for bound in interval],
            "expected": round(self.expected.share, 6),
            "bound": round(self.expected.bound, 6),
        }


class QualityKeeper:
    """Keeps one promise for one model.

    Args:
        fitting: its plan is fitted.
        samples: held out from every fit; they say what is changed first.
        decisions: what the float model decides on the samples that judge.
        config: says the promise.
    """

    def __init__(self, fitting: Fitting, samples: Samples, decisions: Decisions, config: QuantConfig) -> None:
        assert config.max_drop is not None  # or nobody would ask
        self._fitting, self._samples, self._decisions = fitting, samples, decisions
        self._config, self._limit = config, config.max_drop
        self._probe = OutputProbe(fitting.graph, fitting.layers, fitting.plan, samples, config.threads)
        self._evaluations = 0

    def keep(self) -> tuple[QuantPlan, dict[str, Any]]:
        """The plan that keeps the promise, or the best there is, and what the report says.

        Where a budget of bits or bytes is to be met as well, only what costs no byte is changed.
        """
        plan = self._fitting.plan
        before = drop = self._judged(plan)
        changes: list[Change] = []
        needed = 0
        if not drop.keeps(self._limit):
            changes = self._changes()
            fewest = self._fewest(changes)
            for needed in range(fewest, min(fewest + MORE, len(changes)) + 1):
                plan = self._changed(changes[:needed], written=True)
                drop = self._judged(plan)
                if drop.keeps(self._limit):
                    break
        made = [{"action": one.action, "layers": list(one.nodes)} for one in changes[:needed]]
        judge = {"source": self._decisions.source, "labelled": self._decisions.labels is not None}
        judge |= {"skipped": [{"file": name, "reason": reason} for name, reason in self._decisions.skipped]}
        report = {"max_drop": self._limit, "kept": drop.keeps(self._limit), "judge": judge, **drop.described()}
        return plan, {**report, "before": before.described(), "evaluations": self._evaluations, "changes": made}

    def _drop(self, plan: QuantPlan) -> Drop:
        """Of a plan, by the probe."""
        return self._lost(self._probe.outputs(plan, self._decisions.feeds))

    def _judged(self, plan: QuantPlan) -> Drop:
        """Of the written model."""
        fitting, samples = self._fitting, self._samples
        judge = OutputEvaluator(
            graph=fitting.graph,
            layers=fitting.layers,
            feeds=samples.feeds,
            references=samples.references,
            threads=self._config.threads,
        )
        return self._lost(judge.outputs(plan, self._decisions.feeds))

    def _lost(self, outputs: FloatArray) -> Drop:
        self._evaluations += 1
        judge, scores = self._decisions, outputs[: len(self._decisions.scores)]
        before, after, labels = judge.scores.argmax(axis=1), scores.argmax(axis=1), judge.labels
        lost, gained = before != after, np.zeros(len(scores), bool)
        if labels is not None:
            lost, gained = lost & (before == labels), lost & (after == labels)
        return Drop(
            lost=int(lost.sum()),
            gained=int(gained.sum()),
            count=len(scores),
            labelled=labels is not None,
            expected=expected_drop(judge.margins, (judge.scores, scores), labels),
        )

    def _changes(self) -> list[Change]:
        """Everything that can be done, in order: sites of few bits are raised, then layers return to float; worst first."""
        decisions = self._fitting.plan.decisions
        floats = [Change(action="float", nodes=nodes, tensors=tensors) for nodes, tensors in self._layers()]
        raises = [replace(one, action="raise") for one in floats]
        if self._config.sized:  # weights keep their bits
            activations = {name for name, one in decisions.items() if one.site.kind != "weight"}
            floats = [one for one in floats if activations.issuperset(one.tensors)]
            raises = [replace(one, tensors=tuple(n for n in one.tensors if n in activations)) for one in raises]
        raises = [one for one in raises if any(decisions[name].spec.bits < EIGHT_BITS for name in one.tensors)]
        return [*self._worst_first(raises, self._fitting.plan), *self._worst_first(floats, self._raised(raises))]

    def _layers(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """(nodes, sites) of what can be float on its own: linears that read one tensor, and products."""
        layers, plan = self._fitting.layers, self._fitting.plan
        members = []
        for tensor, names in linear_groups(layers, plan).items():
            members.append((tuple(names), (tensor, *(layers.blockmap.linear(name).weight for name in names))))
        planned = planned_products(plan, layers.blockmap)
        members += [((node,), operands) for node, operands in products(layers.blockmap) if node in planned]
        return members

    def _worst_first(self, changes: Sequence[Change], plan: QuantPlan) -> list[Change]:
        errors = [error_power(self._probe(only(plan, one.tensors), ORDERING).sqnr_db) for one in changes]
        return [changes[index] for index in np.argsort(np.negative(errors), kind="stable")]

    def _fewest(self, changes: Sequence[Change]) -> int:
        """How many of the changes the promise needs, by halving; all of them where these are not enough."""
        low, high = 0, len(changes)
        while high - low > 1:
            middle = (low + high) // 2
            kept = self._drop(self._changed(changes[:middle], written=False)).keeps(self._limit)
            low, high = (low, middle) if kept else (middle, high)
        return high

    def _changed(self, changes: Sequence[Change], *, written: bool) -> QuantPlan:
        """The plan with these changes. In the probe a float layer is one without parameters, its readers are fixed."""
        plan = self._raised([one for one in changes if one.action == "raise"])
        floats = [one for one in changes if one.action == "float"]
        if written:
            return without_nodes(plan, {node: REASON for one in floats for node in one.nodes})
        tensors = {tensor for one in floats for tensor in one.tensors}
        decisions = only(plan, plan.decisions.keys() - tensors).decisions
        return replace(_with_own_weights(plan, floats), decisions=decisions)

    def _raised(self, changes: Sequence[Change]) -> QuantPlan:
        """The plan with these sites at 8 bits: weights as they were before the fit, activations over the range they had."""
        plan, fitted = self._fitting.plan, dict[str, QParams]()
        if not self._config.sized:  # weights of few bits stay solved
            plan = _with_own_weights(plan, changes)
        decisions = dict(plan.decisions)
        for tensor in {tensor for one in changes for tensor in one.tensors}:
            decision = decisions[tensor]
            spec, params = decision.spec.with_bits(EIGHT_BITS), decision.params
            assert params is not None  # the plan is fitted
            decisions[tensor] = replace(decision, spec=spec)
            if decision.site.kind == "weight":
                fitted[tensor] = params_from_weight(self._fitting.layers.constants[tensor], spec)
            else:
                fitted[tensor] = params_from_range(*_meant_range(params, self._fitting.stats.ranges.get(tensor)), spec)
        return replace(plan, decisions=decisions).with_params(fitted)


def _meant_range(params: QParams, observed: tuple[float, float] | None) -> tuple[float, float]:
    """The range of a quantizer of few bits, with what the rounding of its zero point cut off of what was observed: of a GELU's
    output all that is negative, with 4 bits, which 8 bits must not cut off.
    """
    scale, zero = float(params.scale), int(params.zero_point)
    low, high = scale * (params.spec.qmin - zero), scale * (params.spec.qmax - zero)
    if observed is None:
        return low, high
    return min(low, max(observed[0], low - scale)), max(high, min(observed[1], high + scale))


def _with_own_weights(plan: QuantPlan, changes: Sequence[Change]) -> QuantPlan:
    """The plan without the solved weights and corrected biases of what changes: they made up for errors that are gone."""
    nodes = {node for one in changes for node in one.nodes}
    weights = {name: values for name, values in plan.weights.items() if name not in nodes}
    return replace(plan, weights=weights, biases={k: v for k, v in plan.biases.items() if k not in nodes})
