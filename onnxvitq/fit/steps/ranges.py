"""Min-max scales for every site: the baseline, and the start of every search."""

from collections.abc import Sequence

import numpy as np

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.errors import CalibrationError
from onnxvitq.core.formats import QParams
from onnxvitq.core.layers import products
from onnxvitq.core.plan import Layers, QuantPlan, reads, without_nodes
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, LayerGain, Proposal
from onnxvitq.fit.steps.harmful_products import drop_harmful_products
from onnxvitq.numerics.affine import params_from_range, params_from_weight, product_unit
from onnxvitq.report.records import Part


class MinMaxRanges:
    """Activations from the lowest and highest value seen, weights from the largest magnitude of each channel."""

    name = "minmax"

    def runs(self, config: QuantConfig) -> bool:
        """Always: everything else is compared with it."""
        del config
        return True

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """The range of every activation site that is computed."""
        del context
        return range_requests(state.layers, state.plan)

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """Parameters for every site."""
        plan, parts = min_max(state, context)
        count = len(state.plan.decisions)
        gain = LayerGain(kept=count, layers=count)
        return Proposal(acceptance=Acceptance.BASELINE, plan=plan, gain=gain, parts=parts)


def min_max(state: FitState, context: FitContext) -> tuple[QuantPlan, tuple[Part, ...]]:
    """Min-max for every site of a state's plan; products outside attentions that do harm stay float, each a part."""
    plan = _without_lost(fit_ranges(state.layers, state.plan, state.statistics), state.layers)
    if not state.layers.blockmap.products:
        return plan, ()
    return drop_harmful_products(plan, state.layers, context.evaluator(state))


def _without_lost(plan: QuantPlan, layers: Layers) -> QuantPlan:
    """The plan without products whose results float32 could not tell from zero, or not hold, in units of their scales."""
    operands = {linear.name: (linear.input, linear.weight) for linear in layers.blockmap.linears}
    reasons: dict[str, str] = {}
    for node, tensors in (operands | dict(products(layers.blockmap))).items():
        left, right = (plan.params(tensor) for tensor in tensors)
        if left is None or right is None or not reads(plan, tensors[0], node):
            continue
        unit = product_unit(left, right)
        if unit == 0 or np.isinf(unit):
            reasons[node] = f"its values are too {'large' if unit else 'small'} for scales in float32"
    return without_nodes(plan, reasons) if reasons else plan


def range_requests(layers: Layers, plan: QuantPlan) -> tuple[StatisticsRequest, ...]:
    """The range of every activation site that is computed."""
    return tuple(
        StatisticsRequest(tensor=name, kind="range")
        for name, decision in plan.decisions.items()
        if decision.site.kind == "activation" and name not in layers.constants
    )


def fit_ranges(layers: Layers, plan: QuantPlan, stats: Statistics) -> QuantPlan:
    """The plan with min-max parameters for every site.

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
    return plan.with_params(fitted)
