"""Whole choices of widths evaluated by the model's output, before anything is fitted to them."""

from collections.abc import Mapping, Sequence

import numpy as np

from onnxvitq.core.plan import QuantPlan, only
from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.probe import OutputProbe, Samples
from onnxvitq.numerics.decibels import error_power
from onnxvitq.precision.groups import LayerGroup
from onnxvitq.precision.network import PlannedNetwork
from onnxvitq.precision.rounding import GroupRounding


class ChoiceTrial:
    """Runs the network with the weights of a choice, by one probe with all quantizers.

    Args:
        network: its plan has min-max parameters, of activations and of the layers that are in no group, too.
        groups: whose widths are chosen.
        rounding: of these groups.
        samples: to evaluate on.
        count: of these, the first so many; all when None.
        threads: of onnxruntime.
    """

    def __init__(
        self,
        network: PlannedNetwork,
        groups: Sequence[LayerGroup],
        rounding: GroupRounding,
        samples: Samples,
        *,
        count: int | None = None,
        threads: int = 0,
    ) -> None:
        self._rounding, self._samples, self.count = rounding, samples, count
        weights = {weight for group in groups for weight in group.weights}
        # Layers of the groups are without parameters: the weights of a choice are rounded values.
        self._others = only(network.plan, network.plan.decisions.keys() - weights)
        self._probe = OutputProbe(network.graph, network.layers, network.plan, samples, threads)

    @property
    def runs(self) -> float:
        """Of the whole network on one sample, so far."""
        return self._probe.runs

    def other_power(self) -> float:
        """Error power of the output over the output's power with all groups in float."""
        return error_power(self._probe(self._others, self.count).sqnr_db)

    def sqnr_db(self, bits: Mapping[str, int]) -> float:
        """Output SQNR in dB of a choice: widths in bits by the names of groups."""
        return self._probe(self._plan(bits), self.count).sqnr_db

    def references_and_errors(self, bits: Mapping[str, int]) -> tuple[FloatArray, FloatArray]:
        """The float model's outputs and what a choice's differ from them by, both (N, ..)."""
        references = np.concatenate(self._samples.references[: self.count])
        outputs = self._probe.outputs(self._plan(bits), self._samples.feeds[: self.count])
        return references, outputs - references

    def _plan(self, bits: Mapping[str, int]) -> QuantPlan:
        return self._rounding.rounded_plan(self._others, bits)
