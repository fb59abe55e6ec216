"""As few layers or products in float as the output's gain needs; shared by the steps that choose what stays float.

All start from the most accurate form everywhere and walk back group by group to what is cheaper, as long as the *model's
output* on held-out samples loses little. The other way round, from the cheapest, the gain of one group would not be visible
under the error of the others.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from onnxvitq.core.layers import Attention, Linear
from onnxvitq.core.plan import QuantPlan
from onnxvitq.fit.acceptance import Evaluate
from onnxvitq.report.records import Part

GROUPS = 4  # of consecutive attentions or linear layers, which go back to integers together
GAINS = "the output gains from it in float"

_Layer = TypeVar("_Layer", Attention, Linear)


def fewest_in_float(
    plan: QuantPlan,
    found: Sequence[_Layer],
    in_float: Callable[[QuantPlan, Sequence[_Layer]], QuantPlan],
    evaluate: Evaluate,
    worth_db: tuple[float, float],
) -> tuple[QuantPlan, tuple[Part, ...]]:
    """All in float first, if that is worth it; then neighbours go back to integers together. At most 2 + GROUPS evaluations.

    Args:
        plan: with all of them as integers.
        found: what may be in float, in the order of the network.
        in_float: the plan with some of them in float.
        evaluate: output SQNR of a plan, in dB.
        worth_db: the gain in dB that all of them in float must bring; the loss in dB that all of them together may make when
            they go back, each group its share of it.

    Returns:
        The plan, and a part for each trial: ``accepted`` tells that layers went (or went back) as tried.
    """
    if not found:
        return plan, ()
    score, chosen = evaluate(plan), in_float(plan, found)
    reached = evaluate(chosen)
    accepted = reached - score >= worth_db[0]
    parts = [Part(part="all float", accepted=accepted, before=round(score, 3), after=round(reached, 3))]
    if not accepted:
        return plan, tuple(parts)
    score, remaining = reached, list(found)
    size = -(-len(found) // GROUPS)
    for start in range(0, len(found), size):
        group = found[start : start + size]
        others = [layer for layer in remaining if layer not in group]
        trial = in_float(plan, others)
        reached = evaluate(trial)
        accepted = score - reached < worth_db[1] * len(group) / len(found)
        name = f"int8 {group[0].name} to {group[-1].name}"
        parts.append(Part(part=name, accepted=accepted, before=round(score, 3), after=round(reached, 3)))
        if accepted:
            chosen, score, remaining = trial, reached, others
    return chosen, tuple(parts)
