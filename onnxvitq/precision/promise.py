"""Quality control: bits are raised, then layers returned to float, the worst first, until as few decisions are lost as allowed.

The order comes from the output's error with one layer quantized at a time. How many of these remedies are needed is found by
halving: the drop falls with their number, but for noise, so some seven evaluations serve a hundred layers. All are made by one
session (``evaluation.probe``); the model that is written is evaluated at the end, and where it misses by a sample, gets more.

A drop is counted on held-out calibration samples or other data, and expected from margins (``numerics.drop``). Both must keep
the promise, the second by its upper bound: a promise is made only as far as the samples can carry it. Of 64 samples, decisions
that change with 0.4 % of all may be 1 %; a thousand more of ``--eval`` say 0.5 %.
"""

from collections.abc import Sequence

import numpy as np

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.plan import QuantPlan, only
from onnxvitq.evaluation.decisions import Decisions
from onnxvitq.evaluation.evaluator import OutputEvaluator
from onnxvitq.evaluation.probe import OutputProbe, Samples
from onnxvitq.numerics.decibels import error_power
from onnxvitq.precision.drop import Drop, drop_of
from onnxvitq.precision.network import PlannedNetwork
from onnxvitq.precision.remedies import Remedy, possible_remedies, raised, remedied
from onnxvitq.report.records import PromiseChange, PromiseData, PromiseReport, SkippedFile

ORDERING = 4  # held-out samples that the order of the remedies is measured on
MORE = 4  # further remedies at most, where the written model misses what the probe promised


class PromiseKeeper:
    """Keeps one promise for one model.

    Args:
        network: its plan is fitted.
        samples: held out from every fit; they say what is changed first.
        decisions: what the float model decides on the samples that the drop is counted on.
        config: says the promise.
    """

    def __init__(self, network: PlannedNetwork, samples: Samples, decisions: Decisions, config: QuantConfig) -> None:
        assert config.max_drop is not None  # or nobody would ask
        self._network, self._samples, self._decisions = network, samples, decisions
        self._threads, self._limit, self._weights_stay = config.threads, config.max_drop, config.sized
        self._probe = OutputProbe(network.graph, network.layers, network.plan, samples, config.threads)
        self._evaluations = 0

    def keep(self) -> tuple[QuantPlan, PromiseReport]:
        """The plan that keeps the promise, or the best there is, and what the report says.

        Where a budget of bits or bytes is to be met as well, only what costs no byte is changed.
        """
        plan = self._network.plan
        before = drop = self._written_drop(plan)
        remedies: list[Remedy] = []
        needed = 0
        if not drop.keeps(self._limit):
            remedies = self._remedies()
            fewest = self._fewest(remedies)
            for needed in range(fewest, min(fewest + MORE, len(remedies)) + 1):
                plan = remedied(self._network, remedies[:needed], weights_stay=self._weights_stay, written=True)
                drop = self._written_drop(plan)
                if drop.keeps(self._limit):
                    break
        return plan, self._report(before, drop, remedies[:needed])

    def _report(self, before: Drop, after: Drop, remedies: Sequence[Remedy]) -> PromiseReport:
        decisions = self._decisions
        skipped = tuple(SkippedFile(file=name, reason=reason) for name, reason in decisions.skipped)
        return PromiseReport(
            max_drop=self._limit,
            kept=after.keeps(self._limit),
            data=PromiseData(source=decisions.source, labelled=decisions.labels is not None, skipped=skipped),
            after=after.figures(),
            before=before.figures(),
            evaluations=self._evaluations,
            changes=tuple(PromiseChange(action=remedy.action, layers=remedy.nodes) for remedy in remedies),
        )

    def _probed_drop(self, plan: QuantPlan) -> Drop:
        """Of a plan, by the probe."""
        self._evaluations += 1
        return drop_of(self._probe.outputs(plan, self._decisions.feeds), self._decisions)

    def _written_drop(self, plan: QuantPlan) -> Drop:
        """Of the model that a plan is written as."""
        self._evaluations += 1
        evaluator = OutputEvaluator(
            graph=self._network.graph,
            layers=self._network.layers,
            feeds=self._samples.feeds,
            references=self._samples.references,
            threads=self._threads,
            target=self._network.target,
            task=self._samples.task,
        )
        return drop_of(evaluator.outputs(plan, self._decisions.feeds), self._decisions)

    def _remedies(self) -> list[Remedy]:
        """Everything that can be done, in order: sites of few bits are raised, then layers return to float; worst first."""
        raises, floats = possible_remedies(self._network, weights_stay=self._weights_stay)
        after_raising = raised(self._network, raises, weights_stay=self._weights_stay)
        return [*self._worst_first(raises, self._network.plan), *self._worst_first(floats, after_raising)]

    def _worst_first(self, remedies: Sequence[Remedy], plan: QuantPlan) -> list[Remedy]:
        errors = [error_power(self._probe(only(plan, remedy.tensors), ORDERING).sqnr_db) for remedy in remedies]
        return [remedies[index] for index in np.argsort(np.negative(errors), kind="stable")]

    def _fewest(self, remedies: Sequence[Remedy]) -> int:
        """How many of the remedies the promise needs, by halving; all of them where these are not enough."""
        low, high = 0, len(remedies)
        while high - low > 1:
            middle = (low + high) // 2
            plan = remedied(self._network, remedies[:middle], weights_stay=self._weights_stay, written=False)
            low, high = (low, middle) if self._probed_drop(plan).keeps(self._limit) else (middle, high)
        return high
