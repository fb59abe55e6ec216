"""Min-max scales for every site: the baseline, and the start of every search."""

from onnxvitq.core.errors import CalibrationError
from onnxvitq.core.formats import QParams
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.fit.outcome import StepOutcome
from onnxvitq.numerics.affine import params_from_range, params_from_weight


class MinMaxRanges:
    """Activations from the lowest and highest value seen, weights from the largest magnitude of each channel."""

    name = "minmax"

    def needs(self, layers: Layers, plan: QuantPlan) -> tuple[StatisticsRequest, ...]:
        """The range of every activation site that is computed."""
        return tuple(
            StatisticsRequest(tensor=name, kind="range")
            for name, decision in plan.decisions.items()
            if decision.site.kind == "activation" and name not in layers.constants
        )

    def apply(self, layers: Layers, plan: QuantPlan, stats: Statistics) -> tuple[QuantPlan, StepOutcome]:
        """Parameters for every site.

        Raises:
            CalibrationError: an activation was empty in every sample.
        """
        fitted: dict[str, QParams] = {}
        for name, decision in plan.decisions.items():
            if decision.site.kind == "weight":
                fitted[name] = params_from_weight(layers.constants[name], decision.spec)
                continue
            constant = layers.constants.get(name)  # an operand of a product that is a constant
            low, high = stats.ranges[name] if constant is None else (float(constant.min()), float(constant.max()))
            if low > high:
                raise CalibrationError(name, "the tensor was empty in every calibration sample")
            fitted[name] = params_from_range(low, high, decision.spec)
        count = len(fitted)
        return plan.with_params(fitted), StepOutcome(
            name=self.name, accepted=True, before=None, after=None, kept=count, layers=count
        )
