"""Mixed precision: the bits of each layer's weights under a budget, from the output's error with one unit quantized at a time.

One probe judges all candidates (``evaluation.probe``). Each unit is quantized alone, with one reference width, on as many
held-out samples as ``PASSES`` over the calibration data allow: what of the network follows on the unit is run, and where a
few samples would take more, not all of that (``evaluation.one_by_one``). The error with the other widths follows from what they
do to the unit's own output, which costs no run (``steps.unit_fits``). Errors of different units add up, so the best choice
within a budget is a knapsack's, solved exactly (``numerics.allocate``). Without a budget, the smallest choice is taken whose
predicted error loses no more decisions than were promised; solving the weights makes up for some of it.

Of the front, every point is reported with its size and predicted error. The proposed one is measured as well, and some that are
spread evenly: one for every ``FRONT_EACH`` calibration samples, ``FRONT`` at most, or it would take longer than the fit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.core.config import FLOAT, QuantConfig
from onnxvitq.core.errors import ConfigError
from onnxvitq.core.plan import Layers, QuantPlan, only
from onnxvitq.core.statistics import Statistics
from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.decisions import Decisions
from onnxvitq.evaluation.one_by_one import OneByOne
from onnxvitq.evaluation.probe import Inside, OutputProbe, Samples
from onnxvitq.graph.io import to_proto
from onnxvitq.numerics.allocate import Floats, Whole, least_error, pareto_front
from onnxvitq.numerics.decibels import decibels, error_power, sqnr_of_error
from onnxvitq.numerics.drop import expected_drop
from onnxvitq.numerics.sensitivity import omega
from onnxvitq.precision.rounding import UnitFits
from onnxvitq.precision.subgraphs import (
    FIRST_WIDTH,
    FLOAT_BITS,
    BitCosts,
    BitUnit,
    find_units,
    unit_params,
    with_widths,
)
from onnxvitq.targets.ort_cpu.layout import apply_plan

PASSES, FEW_PASSES = 1.0, 0.75  # over the calibration samples, that measuring one unit after the other may take ..
FEW = 64  # .. the second of fewer samples than these, of which rounding takes as long as most passes
STAGES = 8  # of the network, from one of which on it is run to measure a unit
JUDGED = 16  # of the calibration samples, one in so many judges whole choices
FRONT, FRONT_EACH = 8, 64  # points of the front that are judged, at most, and calibration samples for each
# What a choice must be predicted to gain over the same width for all that fits the budget. Bundled model, validation images:
# 0.6 dB predicted at 4 bits came to -0.2 dB by module and 0.1 dB by layer once everything was fitted, 1.3 dB at 5 bits to 0.0
# dB: each layer is solved against what those before it left.
WORTH_DB = 1.5
DB_A_BIT = decibels(4)  # what another bit gains: half the step, a quarter of the power of the error
UNPACKING = 8192  # bytes of nodes, at most, for weights of one width and number of outputs
SIZE_TRIES = 5  # graphs written to meet a size in bytes
FACTORS = (2.0**-20, 2.0**20)  # of an error's size, between which that is looked for which keeps a promise
RECIPE = 4096  # bytes kept free for what the written file says of itself

Feature = Callable[[FloatArray], FloatArray]  # a watched tensor -> what Paper A looks at


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitting:
    """A canonical graph, what was found in it, a plan with min-max parameters, and the statistics it came from."""

    graph: gs.Graph
    layers: Layers
    plan: QuantPlan
    stats: Statistics


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Choice:
    """The number of each unit's option, and the bits that their weights may take."""

    options: tuple[int, ...]
    budget: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Written:
    """The plan of a choice, and the bytes in the file that are no weights of the units."""

    plan: QuantPlan
    rest: float


class BitAllocator:
    """Chooses the bits of one model's weights.

    Args:
        fitting: exact changes of the graph are done.
        samples: held out from every fit.
        config: says the budget, the widths, what shares a width, and the criterion.
        decisions: what the float model decides; where a promise about that takes the budget's place.

    Raises:
        ConfigError: no layer's bits may differ.
    """

    def __init__(
        self, fitting: Fitting, samples: Samples, config: QuantConfig, decisions: Decisions | None = None
    ) -> None:
        self._fitting, self._samples, self._config, self._decisions = fitting, samples, config, decisions
        self._widths = tuple(sorted(FLOAT_BITS if one == FLOAT else int(one) for one in set(config.widths)))
        layers, plan = fitting.layers, fitting.plan
        self.units = find_units(layers, plan, config.granularity, with_edges=not config.edges_at_8_bits)
        if not self.units or self._widths == (FLOAT_BITS,):
            raise ConfigError("mixed precision", "expected layers whose bits may differ, found none")
        self._total = sum(unit.size for unit in self.units)
        self._watched = [_watched(layers, unit) for unit in self.units]
        names = dict.fromkeys(tensor for tensor, _ in self._watched)
        inside = Inside(watched=tuple(names), stages=STAGES)
        self._weights = OutputProbe(fitting.graph, layers, only(plan, ()), samples, config.threads, inside)
        count = fitting.stats.count
        runs = count * (FEW_PASSES if count < FEW else PASSES)
        linears = [unit.linears for unit in self.units]
        self._one_by_one = OneByOne(self._weights, linears, runs, len(samples.feeds))
        self._judged = max(1, min(len(samples.feeds), fitting.stats.count // JUDGED))
        # Weights that are going to be solved again are judged as far as a layer alone can be solved.
        self._fits = UnitFits(
            (layers, plan, fitting.stats), self.units, feedback=config.runs("weights"), threads=config.threads
        )
        self._files: dict[tuple[int, ...], _Written] = {}

    def choose(self) -> tuple[QuantPlan, dict[str, Any]]:
        """The plan with the chosen formats and min-max parameters, and what the report says.

        Raises:
            ConfigError: the budget is smaller than the smallest choice.
        """
        measured, costs = self.costs()
        probe, plan = self.probe(self._samples), self._fitting.plan
        base = error_power(probe(only(plan, plan.decisions.keys() - self._names()), self._judged).sqnr_db)
        front = pareto_front(list(costs.sizes), list(costs.errors))
        options = [tuple(int(one) for one in choice) for choice in front.choices]

        def predicted(choice: Sequence[int]) -> float:
            return sqnr_of_error(base + measured.predicted(choice), smallest=0)

        if self._config.sized:
            proposed, uniform = self._within_budget(costs)
            gain = predicted(proposed.options) - predicted(uniform)
            worth = costs.size(uniform) > proposed.budget or self._worth(costs, proposed, uniform, gain)
        else:
            proposed, uniform = self._within_drop(costs, options, predicted, self._allowed_db(probe, costs))
            worth = costs.size(proposed.options) < costs.size(uniform)
        chosen = proposed.options if worth else uniform
        written = self._written(costs, chosen)

        def point(choice: Sequence[int]) -> dict[str, Any]:
            size = costs.size(choice)
            entry = {"size_mb": round((written.rest + size / 8) / 1e6, 4), "average_bits": round(size / self._total, 3)}
            entry["predicted_db"] = round(predicted(choice), 2)
            return entry | ({} if costs is measured else {"omega": float(f"{costs.predicted(choice):.6g}")})

        near = {options[index] for index in self._spread(front.sizes)}
        near |= {proposed.options, uniform}
        self._fits.make(costs.bits(one) for one in near)
        seen = {one: round(self.measure(probe, costs, one, self._judged), 2) for one in near}

        def judged(choice: tuple[int, ...]) -> dict[str, Any]:
            return point(choice) | ({"measured_db": seen[choice]} if choice in seen else {})

        return written.plan, {
            "criterion": self._config.criterion,
            "granularity": self._config.granularity,
            "mixed": worth,
            **{
                name: {**judged(one), "bits": costs.bits(one)}
                for name, one in (("chosen", chosen), ("proposed", proposed.options), ("uniform", uniform))
            },
            "front": [judged(one) for one in options],
            "samples": self._one_by_one.count,
            "judged_samples": self._judged,
            "runs": round(self._weights.runs + probe.runs, 2),
        }

    def _spread(self, sizes: Whole) -> list[int]:
        """Of the front's points those that are measured, spread evenly over its sizes."""
        most = min(FRONT, self._fitting.stats.count // FRONT_EACH)
        wanted = sizes[0] + (np.arange(most) + 0.5) / most * (sizes[-1] - sizes[0])
        return [int(np.argmin(np.abs(sizes - one))) for one in wanted]

    def costs(self) -> tuple[BitCosts, BitCosts]:
        """What each width costs each unit: in error power of the output over its power, and by the criterion."""
        mean = self._config.average_bits or FIRST_WIDTH
        reference = min((width for width in self._widths if width < FLOAT_BITS), key=lambda width: abs(width - mean))
        ratios = self._fits.relative_errors(self._widths, reference)
        powers, omegas = self._measure_units(reference)
        sizes = np.outer([unit.size for unit in self.units], self._widths).astype(np.int64)
        measured = BitCosts(units=self.units, widths=self._widths, sizes=sizes, errors=powers[:, None] * ratios)
        if self._config.criterion == "measured":
            return measured, measured
        return measured, BitCosts(units=self.units, widths=self._widths, sizes=sizes, errors=omegas[:, None] * ratios)

    def _measure_units(self, width: int) -> tuple[Floats, Floats]:
        """Output error power and Omega of each unit's weights quantized alone with that many bits; (U,) each."""
        nothing = only(self._fitting.plan, ())

        def plan_of(numbers: Sequence[int]) -> QuantPlan:
            return self._fits.on(nothing, {self.units[number].name: width for number in numbers})

        powers = self._one_by_one.powers(plan_of)
        if self._config.criterion == "measured":
            return powers, powers
        count, omegas = self._one_by_one.count, []
        for number, (tensor, feature) in enumerate(self._watched):
            exact, seen = (self._weights.watch(plan, [tensor], count)[0] for plan in (nothing, plan_of([number])))
            omegas.append(omega(feature(exact), feature(seen)))
        return powers, np.array(omegas)

    def plan(self, costs: BitCosts, options: Sequence[int]) -> QuantPlan:
        """The plan of a choice, with min-max parameters."""
        bits = costs.bits(options)
        plan = with_widths(self._fitting.plan, self.units, bits)
        for unit in self.units:
            if bits[unit.name] < FLOAT_BITS:
                plan = plan.with_params(unit_params(self._fitting.layers, plan, unit, bits[unit.name]))
        return plan

    def measure(self, probe: OutputProbe, costs: BitCosts, options: Sequence[int], count: int | None = None) -> float:
        """Output SQNR of a choice in dB, before anything is fitted to it, by a probe with all quantizers."""
        return probe(self._judged_plan(costs, options), count).sqnr_db

    def _judged_plan(self, costs: BitCosts, options: Sequence[int]) -> QuantPlan:
        """The plan of a choice as a probe takes it: layers in float are without parameters."""
        plan = self._fitting.plan
        return self._fits.on(only(plan, plan.decisions.keys() - self._names()), costs.bits(options))

    def probe(self, samples: Samples) -> OutputProbe:
        """For ``measure``."""
        fitting = self._fitting
        return OutputProbe(fitting.graph, fitting.layers, fitting.plan, samples, self._config.threads)

    def _names(self) -> set[str]:
        """Of the weights whose bits may differ."""
        return {weight for unit in self.units for weight in unit.weights}

    def _within_budget(self, costs: BitCosts) -> tuple[_Choice, tuple[int, ...]]:
        """The best choice within the budget, and the best one of the same width for all, or the smallest there is."""
        choice = self._within_size(costs) if self._config.average_bits is None else self._within_mean(costs)
        same = [option for option, width in enumerate(self._widths) if width * self._total <= choice.budget]
        return choice, (same[-1] if same else 0,) * len(self.units)

    def _within_drop(
        self, costs: BitCosts, front: Sequence[tuple[int, ...]], predicted: Callable[[Sequence[int]], float], db: float
    ) -> tuple[_Choice, tuple[int, ...]]:
        """The smallest point of the front with that predicted SQNR, and the smallest one of the same width for all; where
        there is none, the largest.
        """
        same = [(option,) * len(self.units) for option in range(len(self._widths))]
        best, uniform = (next((one for one in some if predicted(one) >= db), some[-1]) for some in (front, same))
        return _Choice(options=best, budget=costs.size(best)), uniform

    def _allowed_db(self, probe: OutputProbe, costs: BitCosts) -> float:
        """The least output SQNR that is expected to keep the promise: of errors like those with one width, but smaller or
        larger.
        """
        decisions, limit = self._decisions, self._config.max_drop
        assert decisions is not None  # config.mixed said so
        assert limit is not None
        samples = self._samples
        plan = self._judged_plan(costs, [0] * len(self.units))
        references = np.concatenate(samples.references[: self._judged])
        errors = probe.outputs(plan, samples.feeds[: self._judged]) - references
        low, high = FACTORS
        while high > 1.01 * low:
            factor = math.sqrt(low * high)
            seen = references, references + factor * errors
            kept = expected_drop(decisions.margins, seen, decisions.labels).bound <= limit
            low, high = (factor, high) if kept else (low, factor)
        signal, noise = (float((one.astype(np.float64) ** 2).sum()) for one in (references, errors))
        return sqnr_of_error(low**2 * noise, signal, smallest=0) if noise > 0 < signal else -math.inf

    def _within_mean(self, costs: BitCosts) -> _Choice:
        """The best choice with that mean of bits."""
        bits = self._config.average_bits
        assert bits is not None  # or there is a size
        try:
            budget = bits * self._total
            options = least_error(list(costs.sizes), list(costs.errors), budget)
        except ValueError as error:
            message = f"expected at least {self._widths[0]} bits, got {bits:.4g}"
            raise ConfigError("average_bits", message, "allow fewer bits with bit_candidates") from error
        return _Choice(options=tuple(options), budget=budget)

    def _within_size(self, costs: BitCosts) -> _Choice:
        """The best choice whose file is small enough. It is met by writing: what unpacking adds depends on the widths."""
        assert self._config.target_size is not None  # config.mixed said so
        asked = self._config.target_size * 1e6
        rest = self._written(costs, (len(self._widths) - 1,) * len(self.units)).rest
        for _ in range(SIZE_TRIES):
            try:
                budget = 8 * (asked - rest)
                options = tuple(least_error(list(costs.sizes), list(costs.errors), budget))
            except ValueError:
                break
            written = self._written(costs, options)
            excess = written.rest + costs.size(options) / 8 - asked
            if excess <= 0:
                return _Choice(options=options, budget=budget)
            rest = max(written.rest, rest + excess)
        smallest = (0,) * len(self.units)
        least = self._written(costs, smallest).rest + costs.size(smallest) / 8
        if least > asked:
            message = f"expected at least {least / 1e6:.4g} MB, got {asked / 1e6:.4g}"
            raise ConfigError("target_size", message, "allow fewer bits with bit_candidates")
        return _Choice(options=smallest, budget=0)

    def _worth(self, costs: BitCosts, choice: _Choice, uniform: tuple[int, ...], gain: float) -> bool:
        """Whether so many dB over the same width for all are enough: several widths take more nodes to unpack, and for those
        bytes the same width would gain as well.
        """
        if gain < WORTH_DB:
            return False
        outputs = {self._fitting.layers.constants[name].shape[-1] for unit in self.units for name in unit.weights}
        dearer: float = UNPACKING * len(outputs) * len(set(choice.options))  # at most
        if gain < WORTH_DB + DB_A_BIT * 8 * dearer / self._total:
            dearer = self._written(costs, choice.options).rest - self._written(costs, uniform).rest
        return gain >= WORTH_DB + DB_A_BIT * 8 * max(dearer, 0) / self._total

    def _written(self, costs: BitCosts, options: tuple[int, ...]) -> _Written:
        """The file of a choice is made when it is first asked for: most choices never are."""
        if options not in self._files:
            plan = self.plan(costs, options)
            proto = to_proto(apply_plan(self._fitting.graph, self._fitting.layers, plan, packed=True), {})
            self._files[options] = _Written(plan=plan, rest=proto.ByteSize() + RECIPE - costs.size(options) / 8)
        return self._files[options]


def _watched(layers: Layers, unit: BitUnit) -> tuple[str, Feature]:
    """The tensor that Paper A looks at for a unit: an attention's map where the unit makes the query or the key, else the
    output of the unit's last layer.
    """
    for attention in layers.blockmap.attentions:
        if {attention.query_linear, attention.key_linear} & set(unit.linears):
            return attention.probs, partial(_shares, axis=-1 if attention.probs_first else -2)
    return layers.blockmap.linear(unit.linears[-1]).output, np.asarray


def _shares(powers: FloatArray, axis: int) -> FloatArray:
    """A softmax's output as it is, or, where it is divided late, its powers divided by their sums."""
    return powers / powers.sum(axis=axis, keepdims=True)
