"""What each bit width costs each group of layers, in error of the model's output.

One probe measures all groups (``evaluation.probe``). Each group is quantized alone, with one reference width, on as many
held-out samples as ``PASSES`` over the calibration data allow: what of the network follows on the group is run, and where a
few samples would take more, not all of that (``evaluation.one_by_one``). The error with the other widths follows from what they
do to the group's own output, which costs no run (``precision.rounding``). Errors of different groups add up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.plan import Layers, QuantPlan, only
from onnxvitq.core.quantize_options import FLOAT
from onnxvitq.core.tensors import DoubleArray, FloatArray, LongArray
from onnxvitq.evaluation.one_by_one import OneByOne
from onnxvitq.evaluation.probe import OutputProbe, ProbeOptions, Samples
from onnxvitq.numerics.sensitivity import omega
from onnxvitq.precision.groups import FIRST_WIDTH, FLOAT_BITS, LayerGroup
from onnxvitq.precision.network import PlannedNetwork
from onnxvitq.precision.rounding import GroupRounding

PASSES, FEW_PASSES = 1.0, 0.75  # over the calibration samples, that measuring one group after the other may take ..
FEW = 64  # .. the second of fewer samples than these, of which rounding takes as long as most passes
SUBGRAPHS = 8  # of the network, from one of which on it is run to measure a group

Feature = Callable[[FloatArray], FloatArray]  # a watched tensor -> what the criterion "nuclear" looks at


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WidthCosts:
    """What each width costs each group. A choice is the number of an option (a place in ``widths``) for each group.

    Attributes:
        groups: (G,) of layers, in the order of the network.
        widths: (K,) in bits, rising; 32 is float.
        sizes: (G, K) of the group's weights, in bits.
        errors: (G, K) that add up over groups: error power of the output over the output's power, or Paper A's Omega.
    """

    groups: tuple[LayerGroup, ...]
    widths: tuple[int, ...]
    sizes: LongArray
    errors: DoubleArray

    def error(self, choice: Sequence[int]) -> float:
        """Sum of the errors of a choice, in the unit of ``errors``."""
        return float(self.errors[np.arange(len(choice)), choice].sum())

    def size(self, choice: Sequence[int]) -> int:
        """Bits of all weights of a choice."""
        return int(self.sizes[np.arange(len(choice)), choice].sum())

    def bits(self, choice: Sequence[int]) -> dict[str, int]:
        """Width of each group in bits, by its name."""
        return {group.name: self.widths[option] for group, option in zip(self.groups, choice, strict=True)}

    @property
    def elements(self) -> int:
        """Weights of all groups."""
        return sum(group.size for group in self.groups)

    def same(self, option: int) -> tuple[int, ...]:
        """The choice of one width for all groups."""
        return (option,) * len(self.groups)


class CostMeter:
    """Measures what widths cost, one group at a time.

    Args:
        network: its plan has min-max parameters.
        samples: held out from every fit.
        groups: whose weights are quantized.
        rounding: of these groups.
        config: the widths to compare, the criterion, and near which mean to measure.

    Attributes:
        samples: how many each group is measured on.
    """

    def __init__(
        self,
        network: PlannedNetwork,
        samples: Samples,
        groups: tuple[LayerGroup, ...],
        rounding: GroupRounding,
        config: QuantConfig,
    ) -> None:
        self._network, self._groups, self._rounding, self._config = network, groups, rounding, config
        self._watched = [_watched(network.layers, group) for group in groups]
        options = ProbeOptions(watched=tuple(dict.fromkeys(tensor for tensor, _ in self._watched)), subgraphs=SUBGRAPHS)
        nothing = only(network.plan, ())
        self._probe = OutputProbe(network.graph, network.layers, nothing, samples, config.threads, options)
        count = network.statistics.count
        runs = count * (FEW_PASSES if count < FEW else PASSES)
        self._one_by_one = OneByOne(self._probe, [group.linears for group in groups], runs, len(samples.feeds))
        self.samples = self._one_by_one.count

    @property
    def runs(self) -> float:
        """Of the whole network on one sample, so far."""
        return self._probe.runs

    def measure(self) -> tuple[WidthCosts, WidthCosts]:
        """Costs in error power of the output, and costs by the configured criterion: the same object where that is measured."""
        widths = asked_widths(self._config)
        mean = self._config.average_bits or FIRST_WIDTH
        reference = min((width for width in widths if width < FLOAT_BITS), key=lambda width: abs(width - mean))
        ratios = self._rounding.relative_errors(widths, reference)
        powers, omegas = self._measure_groups(reference)
        sizes = np.outer([group.size for group in self._groups], widths).astype(np.int64)
        measured = WidthCosts(groups=self._groups, widths=widths, sizes=sizes, errors=powers[:, None] * ratios)
        if self._config.criterion == "measured":
            return measured, measured
        return measured, WidthCosts(groups=self._groups, widths=widths, sizes=sizes, errors=omegas[:, None] * ratios)

    def _measure_groups(self, width: int) -> tuple[DoubleArray, DoubleArray]:
        """Output error power and Omega of each group's weights quantized alone with that many bits; (G,) each."""
        nothing = only(self._network.plan, ())

        def plan_of(numbers: Sequence[int]) -> QuantPlan:
            return self._rounding.rounded_plan(nothing, {self._groups[number].name: width for number in numbers})

        powers = self._one_by_one.powers(plan_of)
        if self._config.criterion == "measured":
            return powers, powers
        omegas = []
        for number, (tensor, feature) in enumerate(self._watched):
            plans = (nothing, plan_of([number]))
            in_float, quantized = (self._probe.watch(plan, [tensor], self.samples)[0] for plan in plans)
            omegas.append(omega(feature(in_float), feature(quantized)))
        return powers, np.array(omegas)


def asked_widths(config: QuantConfig) -> tuple[int, ...]:
    """The widths to choose from in bits, rising; 32 is float."""
    return tuple(sorted(FLOAT_BITS if width == FLOAT else int(width) for width in set(config.widths)))


def _watched(layers: Layers, group: LayerGroup) -> tuple[str, Feature]:
    """The tensor that Paper A looks at for a group: an attention's map where the group makes the query or the key, else the
    output of the group's last layer.
    """
    for attention in layers.blockmap.attentions:
        if {attention.query_linear, attention.key_linear} & set(group.linears):
            return attention.probs, partial(_shares, axis=-1 if attention.probs_first else -2)
    return layers.blockmap.linear(group.linears[-1]).output, np.asarray


def _shares(exponentials: FloatArray, axis: int) -> FloatArray:
    """A softmax's output as it is, or, where it is divided late, its exponentials divided by their sums."""
    return exponentials / exponentials.sum(axis=axis, keepdims=True)
