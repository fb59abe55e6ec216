"""Which attentions multiply probabilities and values in float, where the options leave it open."""

from collections.abc import Sequence
from dataclasses import replace

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.layers import Attention, BlockMap, Product
from onnxvitq.core.plan import QuantPlan, without_products
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.acceptance import Evaluate
from onnxvitq.fit.in_float import GAINS, fewest_in_float
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, LayerGain, Proposal
from onnxvitq.fit.steps.input_formats import most_accurate
from onnxvitq.report.records import Part

WORTH_DB = {"mixed": 0.3, "auto": 1.0}  # of the output, that products with V in float must spare, by --attention


class AttentionFormats:
    """Probabilities times values stay float where the output gains from it."""

    name = "attention"

    def runs(self, config: QuantConfig) -> bool:
        """Where the output says it, and the effort allows."""
        return config.chooses_products

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """Nothing: the output decides."""
        del state, context
        return ()

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """The plan with the fewest such products in float."""
        config = context.config
        # What floats gain must not be hidden under an error of the inputs that is about to go.
        plan = most_accurate(state.plan) if config.input_form == "auto" else state.plan
        worth = WORTH_DB[config.product_form]
        plan, parts = choose_contexts(plan, state.layers.blockmap, context.evaluator(state), worth)
        gain = LayerGain(kept=sum(bool(part.accepted) for part in parts), layers=len(parts))
        return Proposal(acceptance=Acceptance.DECIDED, plan=plan, gain=gain, parts=parts, evaluated=True)


def choose_contexts(
    plan: QuantPlan, blockmap: BlockMap, evaluate: Evaluate, worth_db: float
) -> tuple[QuantPlan, tuple[Part, ...]]:
    """Products of probabilities and values in float, where that spares the output ``worth_db``.

    Returns:
        The plan, and a part for each trial: ``accepted`` tells that products went (or went back) as tried.
    """
    found = [attention for attention in blockmap.attentions if _is_planned(plan, attention)]
    return fewest_in_float(plan, found, _contexts_in_float, evaluate, (worth_db, worth_db))


def _is_planned(plan: QuantPlan, attention: Attention) -> bool:
    return all(
        tensor in plan.decisions
        and any(name == attention.context_node for name, _ in plan.decisions[tensor].site.consumers)
        for tensor in (attention.probs, attention.value)
    )


def _contexts_in_float(plan: QuantPlan, attentions: Sequence[Attention]) -> QuantPlan:
    contexts = [
        Product(name=attention.context_node, left=attention.probs, right=attention.value, constant="", reason="")
        for attention in attentions
    ]
    reasons = dict.fromkeys((attention.context_node for attention in attentions), GAINS)
    return replace(without_products(plan, contexts), kept_float={**plan.kept_float, **reasons})
