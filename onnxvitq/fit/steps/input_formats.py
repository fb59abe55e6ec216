"""How the inputs of linear layers are quantized, where the options leave it open: static, dynamic or per token.

From the most accurate form everywhere back to what is cheaper, kind by kind (see ``fit.in_float`` for why this way round).
Each evaluation writes, loads and runs the model: at most 2 + 2 P for P kinds of inputs.

What the forms cost (ViT-S geometry, one thread, interleaved with the all-static int8 model; a loaded machine, so rather
less than exact): ranges measured at run time 0 to 7 %; products with V in float nothing; tokens divided by their largest value
8 to 16 % for one kind of layer in every block, 30 % for all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.plan import QuantPlan
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.acceptance import Evaluate, part_name
from onnxvitq.fit.initial_plan import dynamic_inputs, token_inputs
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, LayerGain, Proposal
from onnxvitq.report.records import Part

FREE_DB = 0.1  # of the output's SQNR: the loss that a form without a run time of its own must spare
TOKEN_DB = 0.5  # the loss that dividing tokens must spare, for one kind of layer


class InputFormats:
    """The cheapest form of each kind of input that costs the output little."""

    name = "activations"

    def runs(self, config: QuantConfig) -> bool:
        """With ``--activations auto``."""
        return config.input_form == "auto"

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """Nothing: the output decides."""
        del state, context
        return ()

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """The plan with a form for each kind of input."""
        plan, parts = choose_inputs(state.plan, context.evaluator(state))
        gain = LayerGain(kept=sum(bool(part.accepted) for part in parts), layers=len(parts))
        return Proposal(acceptance=Acceptance.DECIDED, plan=plan, gain=gain, parts=parts, evaluated=True)


def most_accurate(plan: QuantPlan) -> QuantPlan:
    """Every input of a linear per token, or dynamic at least."""
    return replace(plan, dynamic=dynamic_inputs(plan.decisions), per_token=token_inputs(plan.decisions))


def choose_inputs(plan: QuantPlan, evaluate: Evaluate) -> tuple[QuantPlan, tuple[Part, ...]]:
    """Static, dynamic or per-token inputs, for all inputs of one role in all blocks together.

    All per token first. Then each kind in turn becomes dynamic if the output loses less than ``TOKEN_DB``, and static if it
    loses less than ``FREE_DB`` against that; if all static is as good as the result, it is all static.

    Returns:
        The plan, and a part for each trial: ``before`` with the dearer form, ``after`` with the cheaper.
    """
    chosen, parts = most_accurate(plan), list[Part]()
    per_token = chosen.per_token
    kinds: dict[str, set[str]] = {}
    for tensor in sorted(chosen.dynamic):
        kinds.setdefault(part_name(plan.decisions[tensor].site.role), set()).add(tensor)
    score = evaluate(chosen)
    for kind, tensors in kinds.items():
        for form, allowed_db, trial in _cheaper_forms(chosen, tensors, divided=bool(tensors & per_token)):
            reached = evaluate(trial)
            accepted = score - reached < allowed_db
            parts.append(_part(f"{kind} {form}", accepted, score, reached))
            if not accepted:
                break
            chosen, score = trial, reached
    static = replace(plan, dynamic=frozenset(), per_token=frozenset())
    reached = evaluate(static)
    if chosen.dynamic and score - reached < FREE_DB:
        parts.append(_part("all static", True, score, reached))
        chosen = static
    return chosen, tuple(parts)


def _cheaper_forms(plan: QuantPlan, tensors: set[str], *, divided: bool) -> Iterator[tuple[str, float, QuantPlan]]:
    """(form, loss in dB that it may cost, plan with these tensors in it), the dearer form first."""
    undivided = replace(plan, per_token=plan.per_token - tensors)
    if divided:
        yield "dynamic", TOKEN_DB, undivided
    yield "static", FREE_DB, replace(undivided, dynamic=plan.dynamic - tensors)


def _part(name: str, accepted: bool, before: float, after: float) -> Part:
    return Part(part=name, accepted=accepted, before=round(before, 3), after=round(after, 3))
