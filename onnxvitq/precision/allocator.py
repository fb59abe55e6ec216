"""Mixed precision: the bits of each layer's weights under a budget, by the output's error with one group quantized at a time.

What a width costs a group is measured (``precision.costs``); costs add up. Within a budget of bits or bytes the best choice is
taken (``precision.budget``); without one, the smallest whose predicted error loses no more decisions than were promised
(``precision.allowed_error``): solving the weights makes up for some of it.

Of the front between size and error, every point is reported with its size and predicted error. The proposed one is evaluated
as well, and some that are spread evenly: one for every ``FRONT_EACH`` calibration samples, ``FRONT`` at most, or it would take
longer than the fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import ConfigError
from onnxvitq.core.plan import QuantPlan
from onnxvitq.core.tensors import LongArray
from onnxvitq.evaluation.decisions import Decisions
from onnxvitq.evaluation.probe import Samples
from onnxvitq.numerics.allocate import pareto_front
from onnxvitq.numerics.decibels import sqnr_of_error
from onnxvitq.precision.allowed_error import allowed_db, smallest_that_reaches
from onnxvitq.precision.budget import best_of_mean, best_of_size, is_worth, same_width_within
from onnxvitq.precision.costs import CostMeter, WidthCosts, asked_widths
from onnxvitq.precision.groups import FLOAT_BITS, find_groups
from onnxvitq.precision.network import PlannedNetwork
from onnxvitq.precision.rounding import GroupRounding
from onnxvitq.precision.trial import ChoiceTrial
from onnxvitq.precision.written import WrittenChoices
from onnxvitq.report.records import BitsChoice, FrontPoint, PrecisionReport

EVALUATED = 16  # of the calibration samples, one in so many evaluates whole choices
FRONT, FRONT_EACH = 8, 64  # points of the front that are evaluated, at most, and calibration samples for each

Options = tuple[int, ...]  # a choice: the number of each group's option


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choices:
    """The choices that are compared.

    Attributes:
        proposed: the best one for the budget or the promise.
        uniform: the best one of the same width for all.
        mixed: whether the proposed one is worth it.
    """

    proposed: Options
    uniform: Options
    mixed: bool

    @property
    def chosen(self) -> Options:
        """What is written."""
        return self.proposed if self.mixed else self.uniform


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Prediction:
    """Called with a choice, gives the output's SQNR in dB that its costs predict.

    Attributes:
        costs: in error power of the output over the output's power.
        others: error power of what is in no group.
    """

    costs: WidthCosts
    others: float

    def __call__(self, choice: Sequence[int]) -> float:
        return sqnr_of_error(self.others + self.costs.error(choice), smallest=0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Figures:
    """What the report says of a choice.

    Attributes:
        costs: by the criterion.
        predict: output SQNR in dB of a choice.
        other_bytes: of the file, that are no weights of the groups.
        evaluated: output SQNR in dB of the choices that were run.
    """

    costs: WidthCosts
    predict: _Prediction
    other_bytes: float
    evaluated: Mapping[Options, float]

    def point(self, choice: Options) -> FrontPoint:
        """Its size, its mean of bits and its errors."""
        size, by_omega = self.costs.size(choice), self.costs is not self.predict.costs
        return FrontPoint(
            size_mb=round((self.other_bytes + size / 8) / 1e6, 4),
            average_bits=round(size / self.costs.elements, 3),
            predicted_db=round(self.predict(choice), 2),
            omega=float(f"{self.costs.error(choice):.6g}") if by_omega else None,
            measured_db=self.evaluated.get(choice),
        )

    def described(self, choice: Options) -> BitsChoice:
        """The same with the bits of each group."""
        return BitsChoice(**asdict(self.point(choice)), bits=self.costs.bits(choice))


class BitAllocator:
    """Chooses the bits of one model's weights.

    Args:
        network: its plan has min-max parameters; exact changes of the graph are done.
        samples: held out from every fit.
        config: says the budget, the widths, what shares a width, and the criterion.
        decisions: what the float model decides; where a promise about that takes the budget's place.

    Attributes:
        groups: of layers that share a width.
        rounding: of their weights.

    Raises:
        ConfigError: no layer's bits may differ.
    """

    def __init__(
        self, network: PlannedNetwork, samples: Samples, config: QuantConfig, decisions: Decisions | None = None
    ) -> None:
        self._network, self._samples, self._config, self._decisions = network, samples, config, decisions
        with_edges = not config.edges_at_8_bits
        self.groups = find_groups(network.layers, network.plan, config.granularity, with_edges=with_edges)
        if not self.groups or asked_widths(config) == (FLOAT_BITS,):
            raise ConfigError("mixed precision", "expected layers whose bits may differ, found none")
        # Weights that are going to be solved again are evaluated as far as a layer alone can be solved.
        feedback, threads = config.runs("weights"), config.threads
        self.rounding = GroupRounding(network, self.groups, feedback=feedback, threads=threads)
        self._meter = CostMeter(network, samples, self.groups, self.rounding, config)

    def costs(self) -> tuple[WidthCosts, WidthCosts]:
        """What each width costs each group: in error power of the output over its power, and by the criterion."""
        return self._meter.measure()

    def choose(self) -> tuple[QuantPlan, PrecisionReport]:
        """The plan with the chosen formats and min-max parameters, and what the report says.

        Raises:
            ConfigError: the budget is smaller than the smallest choice.
        """
        measured, costs = self.costs()
        count = max(1, min(len(self._samples.feeds), self._network.statistics.count // EVALUATED))
        threads = self._config.threads
        trial = ChoiceTrial(self._network, self.groups, self.rounding, self._samples, count=count, threads=threads)
        predict = _Prediction(costs=measured, others=trial.other_power())
        front = pareto_front(list(costs.sizes), list(costs.errors))
        points = [tuple(int(option) for option in choice) for choice in front.choices]
        written = WrittenChoices(self._network, costs)
        if self._config.sized:
            choices = self._within_budget(costs, written, predict)
        else:
            choices = self._within_promise(costs, points, predict, trial)
        file = written(choices.chosen)
        near = {points[index] for index in self._spread(front.sizes)} | {choices.proposed, choices.uniform}
        self.rounding.prepare(costs.bits(choice) for choice in near)
        figures = _Figures(
            costs=costs,
            predict=predict,
            other_bytes=file.other_bytes,
            evaluated={choice: round(trial.sqnr_db(costs.bits(choice)), 2) for choice in near},
        )
        return file.plan, PrecisionReport(
            criterion=self._config.criterion,
            granularity=self._config.granularity,
            mixed=choices.mixed,
            chosen=figures.described(choices.chosen),
            proposed=figures.described(choices.proposed),
            uniform=figures.described(choices.uniform),
            front=tuple(map(figures.point, points)),
            samples=self._meter.samples,
            evaluated_samples=count,
            runs=round(self._meter.runs + trial.runs, 2),
        )

    def _within_budget(self, costs: WidthCosts, written: WrittenChoices, predict: _Prediction) -> _Choices:
        """The best choice of that mean or size, and the same width for all, or the smallest there is."""
        if self._config.average_bits is not None:
            best = best_of_mean(costs, self._config.average_bits)
        else:
            assert self._config.target_size is not None  # config.sized said so
            best = best_of_size(costs, written, self._config.target_size)
        proposed, uniform = best.options, same_width_within(costs, best.budget)
        gain = predict(proposed) - predict(uniform)
        mixed = costs.size(uniform) > best.budget or is_worth(
            costs, self._network.layers, written, (proposed, uniform), gain
        )
        return _Choices(proposed=proposed, uniform=uniform, mixed=mixed)

    def _within_promise(
        self,
        costs: WidthCosts,
        points: Sequence[Options],
        predict: _Prediction,
        trial: ChoiceTrial,
    ) -> _Choices:
        """The smallest point of the front that is predicted to keep the promise, and the smallest width for all that is."""
        decisions, max_drop = self._decisions, self._config.max_drop
        assert decisions is not None  # config.mixed without config.sized said so
        assert max_drop is not None
        least = allowed_db(trial, costs, decisions, max_drop)
        same = [costs.same(option) for option in range(len(costs.widths))]
        proposed, uniform = (smallest_that_reaches(choices, predict, least) for choices in (points, same))
        return _Choices(proposed=proposed, uniform=uniform, mixed=costs.size(proposed) < costs.size(uniform))

    def _spread(self, sizes: LongArray) -> list[int]:
        """Of the front's points those that are evaluated, spread evenly over its sizes in bits (P,)."""
        most = min(FRONT, self._network.statistics.count // FRONT_EACH)
        wanted = sizes[0] + (np.arange(most) + 0.5) / most * (sizes[-1] - sizes[0])
        return [int(np.argmin(np.abs(sizes - size))) for size in wanted]
