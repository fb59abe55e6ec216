"""Weights of mixed precision's groups with some width, each layer rounded on its own: what a width does, and plans with it.

Layers that read one tensor are rounded together, in all the formats that are wanted at once (``numerics.rounding``). To compare
widths some of a layer's outputs are enough; all of them are rounded with the widths that a plan asks for.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from onnxvitq.calibration.held_out import split_samples
from onnxvitq.core.formats import QParams
from onnxvitq.core.parallel import fan_out
from onnxvitq.core.plan import QuantPlan
from onnxvitq.core.tensors import DoubleArray, FloatArray
from onnxvitq.numerics.affine import least_squares_params, params_from_weight
from onnxvitq.numerics.sensitivity import Rounded, Rounder
from onnxvitq.precision.groups import FLOAT_BITS, LayerGroup
from onnxvitq.precision.network import PlannedNetwork

OUTPUTS = 32  # of a layer, by which its widths are compared: each layer's error relative to another width is 0.3 dB off

Answer = TypeVar("Answer")


class GroupRounding:
    """Rounds the weights of groups' layers, when they are first asked for.

    Args:
        network: its plan says the formats but for the bits; its statistics have sampled rows of the layers' inputs.
        groups: whose layers are rounded.
        feedback: round with feedback of the error on sampled inputs, or plainly.
        threads: 0 takes one a core.
    """

    def __init__(self, network: PlannedNetwork, groups: Sequence[LayerGroup], *, feedback: bool, threads: int) -> None:
        self._network, self._groups, self._feedback, self._threads = network, groups, feedback, threads
        self._rounders: dict[str, Rounder] = {}  # by the tensor that is read
        self._rounded: dict[tuple[str, int], Rounded] = {}  # by layer and width

    def relative_errors(self, widths: Sequence[int], reference: int) -> DoubleArray:
        """Error of each group's layers with each width over that with ``reference`` bits, the mean over layers; (G, K).

        The error is that of a layer's own output, on held-out inputs. A layer passes its error on by a factor that hardly
        depends on the width, so this ratio turns an output error measured with one width into that with another.
        """
        self.prepare([{group.name: reference for group in self._groups}])
        others = [width for width in widths if width not in (reference, FLOAT_BITS)]

        def compare(rounder: Rounder, names: Sequence[str]) -> list[dict[int, float]]:
            drawn = {name: drawn_outputs(self._rounded[name, reference].errors, OUTPUTS) for name in names}
            pairs = [(name, width) for name in names for width in others]
            results = rounder([self._format(name, width, drawn[name][0]) for name, width in pairs])
            ratios: dict[str, dict[int, float]] = {name: {reference: 1.0, FLOAT_BITS: 0.0} for name in names}
            for (name, width), rounded in zip(pairs, results, strict=True):
                outputs, shares = drawn[name]
                known = np.maximum(self._rounded[name, reference].errors[outputs], np.finfo(np.float64).tiny)
                ratios[name][width] = float(np.average(rounded.errors / known, weights=shares))
            return [ratios[name] for name in names]

        ratios = self._by_input([name for group in self._groups for name in group.linears], compare)
        return np.array(
            [[np.mean([ratios[name][width] for name in group.linears]) for width in widths] for group in self._groups]
        )

    def prepare(self, choices: Iterable[Mapping[str, int]]) -> None:
        """Round what these choices (widths by the names of groups) need: together it takes less time than one by one."""
        asked = {pair for choice in choices for group in self._groups for pair in _pairs(group, choice)}
        wanted: dict[str, list[int]] = {}
        for name, width in sorted(asked - self._rounded.keys()):
            wanted.setdefault(name, []).append(width)
        if not wanted:
            return

        def round_all(rounder: Rounder, names: Sequence[str]) -> list[list[Rounded]]:
            results = iter(rounder([self._format(name, width) for name in names for width in wanted[name]]))
            return [[next(results) for _ in wanted[name]] for name in names]

        for name, results in self._by_input(list(wanted), round_all).items():
            self._rounded |= {(name, width): rounded for width, rounded in zip(wanted[name], results, strict=True)}

    def rounded_plan(self, plan: QuantPlan, bits: Mapping[str, int]) -> QuantPlan:
        """The plan with weights of that many bits for some groups, by name, and biases that make up for the mean error.

        The weights are real values, which a probe takes as they are: no parameters are set. A group of 32 bits stays as it is.
        """
        layers = self._network.layers
        self.prepare([bits])
        weights: dict[str, FloatArray] = {}
        biases: dict[str, FloatArray] = {}
        for name, width in (pair for group in self._groups for pair in _pairs(group, bits)):
            weights[name] = self._rounded[name, width].values
            biases[name] = layers.bias(name) + self._rounded[name, width].shift
        return plan.with_weights(weights).with_biases(biases)

    def _by_input(
        self, names: Sequence[str], function: Callable[[Rounder, Sequence[str]], list[Answer]]
    ) -> dict[str, Answer]:
        """What a function gives for each of some layers, asked at once for those that read one tensor."""
        layers, statistics = self._network.layers, self._network.statistics
        readers: dict[str, list[str]] = {}
        for name in names:
            readers.setdefault(layers.blockmap.linear(name).input, []).append(name)

        def ask(tensor: str) -> list[Answer]:
            if tensor not in self._rounders:
                fitting, held = (rows.reshape(-1, rows.shape[-1]) for rows in split_samples(statistics.rows[tensor]))
                self._rounders[tensor] = Rounder(fitting, held, feedback=self._feedback)
            return function(self._rounders[tensor], readers[tensor])

        answers = fan_out(ask, readers, self._threads)
        return {
            name: answer
            for members, theirs in zip(readers.values(), answers, strict=True)
            for name, answer in zip(members, theirs, strict=True)
        }

    def _format(self, name: str, width: int, outputs: np.ndarray | None = None) -> tuple[FloatArray, QParams]:
        """Some outputs of a layer's weight, all when None, and their parameters."""
        layers, plan = self._network.layers, self._network.plan
        weight = layers.weight(name)
        weight = weight if outputs is None else weight[:, outputs]
        spec = plan.decisions[layers.blockmap.linear(name).weight].spec.with_bits(width)
        # Plain scales that clip: alone, a layer's error is smaller with them; but clipped weights shrink what every layer
        # writes, these errors add up in the same direction, and together they lost 1 to 1.5 dB at 3 and 4 bits.
        return weight, least_squares_params(weight, spec) if self._feedback else params_from_weight(weight, spec)


def drawn_outputs(errors: DoubleArray, most: int) -> tuple[np.ndarray, DoubleArray]:
    """At most so many outputs of a layer, drawn by their errors (O,), and what each stands for of their sum, (D,) each.

    They are drawn evenly over the sum, so that an output with most of the error, as some layers have, is sure to be among them,
    and what it stands for is not overlooked: the weighted mean of errors relative to these is that of the sums.
    """
    if len(errors) <= most or not errors.any():
        outputs = np.arange(min(most, len(errors)))
        return outputs, errors[outputs] if errors.any() else np.ones(len(outputs))
    reached = np.cumsum(errors) / errors.sum()
    outputs, counts = np.unique(np.searchsorted(reached, (np.arange(most) + 0.5) / most), return_counts=True)
    return outputs, counts.astype(np.float64)


def _pairs(group: LayerGroup, bits: Mapping[str, int]) -> list[tuple[str, int]]:
    """A group's layers with the width that a choice gives them, if it does."""
    width = bits.get(group.name, FLOAT_BITS)
    return [(name, width) for name in group.linears] if width < FLOAT_BITS else []
