"""The output's error with one change of a network at a time, of many, within a number of runs.

The error of a change is measured by running the network from its own subgraph on (``evaluation.probe``). Where that takes too
many runs, the error is propagated through a few subgraphs only; from there the output's error follows from that of all changes
propagated to the same place, made at once: errors that have come that far go on much alike. Samples come first: with 32
calibration samples, four of them propagated no further rank choices of layers' bits better (Spearman 0.65 to 0.78, bundled
model and its twin) than one that is propagated to the end (0.29 to 0.63) in half as many runs a sample.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from onnxvitq.core.plan import QuantPlan
from onnxvitq.core.tensors import DoubleArray
from onnxvitq.evaluation.probe import OutputProbe

ENOUGH = 4  # samples, before the errors of any are propagated further

PlanOf = Callable[[Sequence[int]], QuantPlan]  # of some changes, by their numbers, made at once


class OneByOne:
    """Plans the runs.

    Args:
        probe: made for a plan without any of the changes.
        changes: each the linears whose weights it changes.
        runs: of the whole network, that it may take; one sample is measured in any case.
        most: samples.
    """

    def __init__(self, probe: OutputProbe, changes: Sequence[Sequence[str]], runs: float, most: int) -> None:
        self._probe, self._places = probe, [probe.places(linears) for linears in changes]
        costs = {ahead: self._cost(ahead) for ahead in range(len(probe.shares))}
        enough = min(ENOUGH, most)
        self.ahead = max((ahead for ahead, cost in costs.items() if enough * cost <= runs), default=0)
        self.count = max(1, min(most, int(runs / costs[self.ahead])))

    def _cost(self, ahead: int) -> float:
        """Runs of a sample: the network as it is, each change propagated through that many subgraphs, all
        to one place to the end.
        """
        shares, last = self._probe.shares, len(self._probe.shares) - 1
        ends = self._ends(ahead)
        each = sum(sum(shares[first : end + 1]) for (first, _), end in zip(self._places, ends, strict=True))
        together: dict[int, int] = {}
        for (first, _), end in zip(self._places, ends, strict=True):
            together[end] = min(first, together.get(end, first))
        return 1.0 + each + sum(sum(shares[first:]) for end, first in together.items() if end < last)

    def _ends(self, ahead: int) -> list[int]:
        """The place of the subgraph to which each change's error is propagated."""
        return [min(last + ahead, len(self._probe.shares) - 1) for _, last in self._places]

    def powers(self, plan_of: PlanOf) -> DoubleArray:
        """Error power of the output with each change alone, in units of the output's; (U,)."""
        return np.fromiter(self._powers(plan_of), np.float64, len(self._places))

    def _powers(self, plan_of: PlanOf) -> Iterator[float]:
        last = len(self._probe.shares) - 1
        ends = self._ends(self.ahead)
        passed = {last: 1.0}  # of an error in what a subgraph hands on, to the output
        for end in sorted(set(ends) - {last}):
            plan = plan_of([number for number, other in enumerate(ends) if other == end])
            there, output = self._probe.propagated(plan, (end, last), self.count)
            passed[end] = output / max(there, np.finfo(np.float64).tiny)
        for number, end in enumerate(ends):
            yield self._probe.propagated(plan_of([number]), (end,), self.count)[0] * passed[end]
