"""Keep of a step only what does not harm the *model's output* on held-out samples, part by part.

A search lowers the error of the tensors it looks at, averaged over all tokens; that can hide a loss where it matters (measured
on the bundled model: scales searched for every site gained 0.6 dB layer by layer and lost 2.9 dB at the output, because the
class token is one of fifty rows). So each part of a step, all blocks' tensors of one role, must pass the whole model.

A step has the benefit of the doubt: it already lowers its layers' error on held-out rows, and a handful of held-out samples
tell the output's error to about a decibel only. What is asked is not to fall ``DOUBT_DB`` below the best so far. Asking for
a gain keeps the luckiest: the bundled model's 43.0 dB on its 16 held-out images were 40.3 dB on others, where keeping
everything reached 41.5.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from onnxvitq.core.formats import QParams
from onnxvitq.core.plan import Layers, QuantPlan, _is_planned, without
from onnxvitq.core.tensors import FloatArray

Judge = Callable[[QuantPlan], float]  # output SQNR in dB on held-out samples

PRODUCTS = {"query": "scores", "key": "scores", "probs": "context", "value": "context", "left": "", "right": ""}
DOUBT_DB = 1.0  # of the output's SQNR: what a few held-out samples cannot tell
HARMLESS_DB = 3.0  # of the output's SQNR: half of all error comes from the products outside attentions


@dataclass(frozen=True, slots=True, kw_only=True)
class PartOutcome:
    """One part of a step: output SQNR in dB with what was kept so far, and with this part as well."""

    part: str
    accepted: bool
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    params: Mapping[str, QParams]
    biases: Mapping[str, FloatArray]


def accept_parts(
    before: QuantPlan, after: QuantPlan, layers: Layers, judge: Judge, score: float
) -> tuple[QuantPlan, float, tuple[PartOutcome, ...]]:
    """Go from one plan towards another part by part, keeping what does no harm.

    Args:
        before: the plan so far; its output SQNR is ``score``.
        after: what a step made of it.
        layers: names the roles.
        judge: output SQNR of a plan.
        score: the best so far, in dB; that of ``before``, or of a plan before it.

    Returns:
        The plan that was kept, its score, and one outcome a part, in the order of the network.
    """
    plan, best, outcomes = before, score, []
    for name, part in _parts(before, after, layers).items():
        candidate = plan.with_params(part.params).with_biases(part.biases)
        reached = judge(candidate)
        accepted = reached > best - DOUBT_DB
        outcomes.append(PartOutcome(part=name, accepted=accepted, before=round(score, 3), after=round(reached, 3)))
        if accepted:
            plan, score, best = candidate, reached, max(best, reached)
    return plan, score, tuple(outcomes)


def drop_harmful_products(plan: QuantPlan, layers: Layers, judge: Judge) -> tuple[QuantPlan, tuple[PartOutcome, ...]]:
    """Return products outside attentions to float where integers cost the output more than ``HARMLESS_DB``.

    Such a product may be a linear attention, whose sums have no bounded range, or a table of positions, which is harmless:
    no pattern vouches for it, so the output decides. Where all together do harm, they are put back one by one onto the plan
    without any, as long as the loss against that plan stays harmless: taken off one by one, none of several harmful ones
    would be seen, because the others' error hides what it costs. ``before`` of an outcome is without the product, ``after``
    with it.
    """
    in_float = [product for product in layers.blockmap.products if _is_planned(plan, product)]
    if not in_float:
        return plan, ()
    limit = judge(without(plan, in_float))
    if limit - judge(plan) <= HARMLESS_DB:
        return plan, ()
    score, outcomes, reasons = limit, [], dict(plan.kept_float)
    for product in tuple(in_float):
        others = [other for other in in_float if other is not product]
        reached = judge(without(plan, others))
        accepted = limit - reached <= HARMLESS_DB
        part = PartOutcome(part=product.name, accepted=accepted, before=round(score, 3), after=round(reached, 3))
        outcomes.append(part)
        if accepted:
            in_float, score = others, reached
        else:
            reasons[product.name] = f"as integers it costs {score - reached:.1f} dB of the output's SQNR"
    return replace(without(plan, in_float), kept_float=reasons), tuple(outcomes)


def _parts(before: QuantPlan, after: QuantPlan, layers: Layers) -> dict[str, _Part]:
    """What changed between two plans, by role without the block's number; all biases are one part."""
    inputs = {linear.weight: linear.input for linear in layers.blockmap.linears}
    changed: dict[str, dict[str, QParams]] = {}
    for tensor, decision in after.decisions.items():
        old = before.decisions[tensor].params
        if decision.params is None or _same(old, decision.params):
            continue
        # A weight goes with its input: they were searched together.
        role = after.decisions[inputs.get(tensor, tensor)].site.role
        changed.setdefault(part_name(role), {})[tensor] = decision.params
    biases = {name: bias for name, bias in after.biases.items() if bias is not before.biases.get(name)}
    parts = {name: _Part(params=params, biases={}) for name, params in changed.items()}
    return parts | ({"bias": _Part(params={}, biases=biases)} if biases else {})


def part_name(role: str) -> str:
    """block3.attn.q.input -> attn.q.input; block3.attn.query -> attn.scores; product2.left -> product2."""
    short = re.sub(r"^block\d+\.", "", role)
    head, _, last = short.rpartition(".")
    return f"{head}.{PRODUCTS.get(last, last)}".rstrip(".")


def _same(old: QParams | None, new: QParams) -> bool:
    return (
        old is not None
        and old.scale.tobytes() == new.scale.tobytes()
        and old.zero_point.tobytes() == new.zero_point.tobytes()
    )
