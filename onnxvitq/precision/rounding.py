"""Weights of mixed precision's units with some width, each layer rounded on its own: what each width does, and plans to judge.

Layers that read one tensor are rounded together, in all the formats that are wanted at once (``numerics.rounding``). To compare
widths some of a layer's outputs are enough; all of them are rounded with the widths that a plan asks for.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from onnxvitq.calibration.held_out import split_samples
from onnxvitq.core.formats import QParams
from onnxvitq.core.parallel import fan_out
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics
from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.affine import least_squares_params, params_from_weight
from onnxvitq.numerics.allocate import Floats
from onnxvitq.numerics.sensitivity import Rounded, Rounder
from onnxvitq.precision.subgraphs import FLOAT_BITS, BitUnit

OUTPUTS = 32  # of a layer, by which its widths are compared: each layer's error relative to another width is 0.3 dB off

Found = TypeVar("Found")


class UnitFits:
    """Rounds the weights of units' layers, when they are first asked for.

    Args:
        case: the problem, a plan that says the formats but for the bits, and the inputs' sampled rows.
        units: whose layers these are.
        feedback: round with feedback of the error on sampled inputs, or plainly.
        threads: 0 takes one a core.
    """

    def __init__(
        self, case: tuple[Layers, QuantPlan, Statistics], units: Sequence[BitUnit], *, feedback: bool, threads: int
    ) -> None:
        self._case, self._units, self._feedback, self._threads = case, units, feedback, threads
        self._rounders: dict[str, Rounder] = {}  # by the tensor that is read
        self._fits: dict[tuple[str, int], Rounded] = {}  # by linear and width

    def relative_errors(self, widths: Sequence[int], reference: int) -> Floats:
        """Error of each unit's layers with each width in units of that with ``reference`` bits, the mean over layers; (U, K).

        The error is that of a layer's own output, on held-out inputs. A layer passes its error on by a factor that hardly
        depends on the width, so this ratio turns an output error measured with one width into that with another.
        """
        self.make([{unit.name: reference for unit in self._units}])
        fewer = [width for width in widths if width not in (reference, FLOAT_BITS)]

        def compare(rounder: Rounder, names: Sequence[str]) -> list[dict[int, float]]:
            drawn = {name: drawn_outputs(self._fits[name, reference].errors, OUTPUTS) for name in names}
            pairs = [(name, width) for name in names for width in fewer]
            fits = rounder([self._format(name, width, drawn[name][0]) for name, width in pairs])
            found: dict[str, dict[int, float]] = {name: {reference: 1.0, FLOAT_BITS: 0.0} for name in names}
            for (name, width), fit in zip(pairs, fits, strict=True):
                outputs, shares = drawn[name]
                known = np.maximum(self._fits[name, reference].errors[outputs], np.finfo(np.float64).tiny)
                found[name][width] = float(np.average(fit.errors / known, weights=shares))
            return [found[name] for name in names]

        ratios = self._by_input([name for unit in self._units for name in unit.linears], compare)
        return np.array(
            [[np.mean([ratios[name][width] for name in unit.linears]) for width in widths] for unit in self._units]
        )

    def make(self, choices: Iterable[Mapping[str, int]]) -> None:
        """Round what these choices, widths by the names of units, need: together, it takes less time than one by one."""
        asked = {pair for choice in choices for unit in self._units for pair in _pairs(unit, choice)}
        wanted: dict[str, list[int]] = {}
        for name, width in sorted(asked - self._fits.keys()):
            wanted.setdefault(name, []).append(width)
        if not wanted:
            return

        def fit(rounder: Rounder, names: Sequence[str]) -> list[list[Rounded]]:
            fits = iter(rounder([self._format(name, width) for name in names for width in wanted[name]]))
            return [[next(fits) for _ in wanted[name]] for name in names]

        for name, fits in self._by_input(list(wanted), fit).items():
            self._fits |= {(name, width): one for width, one in zip(wanted[name], fits, strict=True)}

    def on(self, plan: QuantPlan, bits: Mapping[str, int]) -> QuantPlan:
        """The plan with weights of that many bits for some units, by name, and biases that make up for the mean error.

        The weights are real values, which a probe takes as they are: no parameters are set. A unit of 32 bits stays as it is.
        """
        layers = self._case[0]
        self.make([bits])
        weights: dict[str, FloatArray] = {}
        biases: dict[str, FloatArray] = {}
        for name, width in (pair for unit in self._units for pair in _pairs(unit, bits)):
            weights[name] = self._fits[name, width].values
            biases[name] = layers.bias(name) + self._fits[name, width].shift
        return plan.with_weights(weights).with_biases(biases)

    def _by_input(
        self, names: Sequence[str], function: Callable[[Rounder, Sequence[str]], list[Found]]
    ) -> dict[str, Found]:
        """What a function gives for each of some linears, asked at once for those that read one tensor."""
        layers, _, stats = self._case
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(layers.blockmap.linear(name).input, []).append(name)

        def ask(tensor: str) -> list[Found]:
            if tensor not in self._rounders:
                fitting, held = (rows.reshape(-1, rows.shape[-1]) for rows in split_samples(stats.rows[tensor]))
                self._rounders[tensor] = Rounder(fitting, held, feedback=self._feedback)
            return function(self._rounders[tensor], groups[tensor])

        found = fan_out(ask, groups, self._threads)
        return {
            name: one
            for group, some in zip(groups.values(), found, strict=True)
            for name, one in zip(group, some, strict=True)
        }

    def _format(self, name: str, width: int, outputs: np.ndarray | None = None) -> tuple[FloatArray, QParams]:
        """Some outputs of a linear's weight, all when None, and their parameters."""
        layers, plan, _ = self._case
        weight = layers.weight(name)
        weight = weight if outputs is None else weight[:, outputs]
        spec = plan.decisions[layers.blockmap.linear(name).weight].spec.with_bits(width)
        # Plain scales that clip: alone, a layer's error is smaller with them; but clipped weights shrink what every layer
        # writes, these errors add up in the same direction, and together they lost 1 to 1.5 dB at 3 and 4 bits.
        return weight, least_squares_params(weight, spec) if self._feedback else params_from_weight(weight, spec)


def drawn_outputs(errors: Floats, most: int) -> tuple[np.ndarray, Floats]:
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


def _pairs(unit: BitUnit, bits: Mapping[str, int]) -> list[tuple[str, int]]:
    """A unit's linears with the width that a choice says, if it is one."""
    width = bits.get(unit.name, FLOAT_BITS)
    return [(name, width) for name in unit.linears] if width < FLOAT_BITS else []
