"""How the inputs of linears are quantized, and which products and which layers outside the blocks stay float, where the
options leave it open.

All start from the most accurate form everywhere and walk back part by part to what is cheaper, as long as the *model's output*
on held-out samples loses little. The other way round, from the cheapest, one part's gain would not be seen under the error of
the others. Each judgement writes, loads and runs the model: at most 2 + 2 P for P kinds of inputs, 2 + GROUPS for products and
3 + GROUPS for layers.

What the forms cost (ViT-S geometry, one thread, interleaved with the all-static int8 model; a loaded machine, so rather
less than exact): ranges measured at run time 0 to 7 %; products with V in float nothing; tokens divided by their largest value
8 to 16 % for one kind of layer in every block, 30 % for all.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from onnxvitq.core.formats import EIGHT_BITS
from onnxvitq.core.layers import Attention, BlockMap, Linear, Product, outer_linears
from onnxvitq.core.plan import QuantPlan, without, without_nodes
from onnxvitq.fit.acceptance import Judge, PartOutcome, part_name
from onnxvitq.fit.initial_plan import dynamic_inputs, token_inputs

FREE_DB = 0.1  # of the output's SQNR: the loss that a form without a run time of its own must spare
TOKEN_DB = 0.5  # the loss that dividing tokens must spare, for one kind of layer
RUINED_DB = 20.0  # of the output's SQNR: a tenth of its amplitude is error
OUTER_DB = 10.0  # the loss that linear layers outside all blocks must make: nine tenths of the output's error
RETURN_DB = 1.0  # the loss that they may make, all together, that go back to integers
GROUPS = 4  # of consecutive attentions or linear layers, which go back to integers together
GAINS = "the output gains from it in float"

_Part = TypeVar("_Part", Attention, Linear)


def most_accurate(plan: QuantPlan) -> QuantPlan:
    """Every input of a linear per token, or dynamic at least."""
    return replace(plan, dynamic=dynamic_inputs(plan.decisions), per_token=token_inputs(plan.decisions))


def choose_inputs(plan: QuantPlan, judge: Judge) -> tuple[QuantPlan, tuple[PartOutcome, ...]]:
    """Static, dynamic or per-token inputs, for all inputs of one role in all blocks together.

    All per token first. Then each kind in turn becomes dynamic if the output loses less than ``TOKEN_DB``, and static if it
    loses less than ``FREE_DB`` against that; if all static is as good as the result, it is all static.

    Returns:
        The plan, and an outcome a kind: ``before`` with the dearer form, ``after`` with the cheaper.
    """
    chosen, outcomes = most_accurate(plan), []
    per_token = chosen.per_token
    kinds: dict[str, set[str]] = {}
    for tensor in sorted(chosen.dynamic):
        kinds.setdefault(part_name(plan.decisions[tensor].site.role), set()).add(tensor)
    score = judge(chosen)
    for kind, tensors in kinds.items():
        steps = (
            [("dynamic", TOKEN_DB, replace(chosen, per_token=chosen.per_token - tensors))]
            if tensors & per_token
            else []
        )
        for form, allowed, candidate in (*steps, ("static", FREE_DB, None)):
            trial = candidate or replace(chosen, dynamic=chosen.dynamic - tensors, per_token=chosen.per_token - tensors)
            reached = judge(trial)
            accepted = score - reached < allowed
            name = f"{kind} {form}"
            outcomes.append(PartOutcome(part=name, accepted=accepted, before=round(score, 3), after=round(reached, 3)))
            if not accepted:
                break
            chosen, score = trial, reached
    static = replace(plan, dynamic=frozenset(), per_token=frozenset())
    reached = judge(static)
    if chosen.dynamic and score - reached < FREE_DB:
        outcomes.append(PartOutcome(part="all static", accepted=True, before=round(score, 3), after=round(reached, 3)))
        chosen = static
    return chosen, tuple(outcomes)


def choose_contexts(
    plan: QuantPlan, blockmap: BlockMap, judge: Judge, worth: float
) -> tuple[QuantPlan, tuple[PartOutcome, ...]]:
    """Products of probabilities and values in float, where that spares the output ``worth`` dB.

    Returns:
        The plan, and an outcome a trial: ``accepted`` tells that products went (or went back) as tried.
    """
    found = [one for one in blockmap.attentions if _is_planned(plan, one)]
    return _fewest_in_float(plan, found, _contexts_in_float, judge, (worth, worth))


def outer_linears_of_8_bits(plan: QuantPlan, blockmap: BlockMap) -> tuple[Linear, ...]:
    """Of the layers outside the blocks those that are quantized, and not asked to be coarse."""
    return tuple(one for one in outer_linears(blockmap) if _has_8_bits(plan, one))


def choose_outer_linears(
    plan: QuantPlan, linears: Sequence[Linear], judge: Judge
) -> tuple[QuantPlan, tuple[PartOutcome, ...]]:
    """Layers outside the blocks in float, if they ruin the output: it has less than ``RUINED_DB``, and ``OUTER_DB`` more
    without them.

    The activations of a convolutional part have no normalisation to bound them and no residual stream to drown their error: of
    a text recogniser's 34 linear layers, the 20 before its blocks made nearly all of the error, and what they changed were
    decisions.

    Returns:
        The plan, and an outcome a trial: ``accepted`` tells that layers went (or went back) as tried.
    """
    if not linears or judge(plan) >= RUINED_DB:
        return plan, ()
    return _fewest_in_float(plan, linears, _linears_in_float, judge, (OUTER_DB, RETURN_DB))


def _fewest_in_float(
    plan: QuantPlan,
    found: Sequence[_Part],
    in_float: Callable[[QuantPlan, Sequence[_Part]], QuantPlan],
    judge: Judge,
    worth: tuple[float, float],
) -> tuple[QuantPlan, tuple[PartOutcome, ...]]:
    """All in float first, if that spares the first of these dB; then groups of neighbours go back to integers if the output
    loses less than their share of the second.
    """
    if not found:
        return plan, ()
    score, chosen = judge(plan), in_float(plan, found)
    reached = judge(chosen)
    accepted = reached - score >= worth[0]
    outcomes = [PartOutcome(part="all float", accepted=accepted, before=round(score, 3), after=round(reached, 3))]
    if not accepted:
        return plan, tuple(outcomes)
    score, remaining = reached, list(found)
    size = -(-len(found) // GROUPS)
    for start in range(0, len(found), size):
        group = found[start : start + size]
        others = [one for one in remaining if one not in group]
        trial = in_float(plan, others)
        reached = judge(trial)
        accepted = score - reached < worth[1] * len(group) / len(found)
        name = f"int8 {group[0].name} to {group[-1].name}"
        outcomes.append(PartOutcome(part=name, accepted=accepted, before=round(score, 3), after=round(reached, 3)))
        if accepted:
            chosen, score, remaining = trial, reached, others
    return chosen, tuple(outcomes)


def _is_planned(plan: QuantPlan, attention: Attention) -> bool:
    return all(
        tensor in plan.decisions
        and any(name == attention.context_node for name, _ in plan.decisions[tensor].site.consumers)
        for tensor in (attention.probs, attention.value)
    )


def _contexts_in_float(plan: QuantPlan, attentions: Sequence[Attention]) -> QuantPlan:
    contexts = [
        Product(name=one.context_node, left=one.probs, right=one.value, constant="", reason="") for one in attentions
    ]
    reasons = dict.fromkeys((one.context_node for one in attentions), GAINS)
    return replace(without(plan, contexts), kept_float={**plan.kept_float, **reasons})


def _has_8_bits(plan: QuantPlan, linear: Linear) -> bool:
    """Whether both what a layer reads and its weight have them."""
    sites = [plan.decisions.get(tensor) for tensor in (linear.input, linear.weight)]
    readers = [(linear.name, port) for port in range(2)]
    return all(
        site is not None and site.spec.bits == EIGHT_BITS and reader in site.site.consumers
        for site, reader in zip(sites, readers, strict=True)
    )


def _linears_in_float(plan: QuantPlan, linears: Sequence[Linear]) -> QuantPlan:
    return without_nodes(plan, dict.fromkeys((one.name for one in linears), GAINS))
