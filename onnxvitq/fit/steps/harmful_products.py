"""Products outside attentions that harm the output as integers: they stay float from the baseline on."""

from dataclasses import replace

from onnxvitq.core.plan import Layers, QuantPlan, is_planned_product, without_products
from onnxvitq.fit.acceptance import Evaluate
from onnxvitq.report.records import Part

HARMLESS_DB = 3.0  # of the output's SQNR: half of all error comes from the products outside attentions


def drop_harmful_products(plan: QuantPlan, layers: Layers, evaluate: Evaluate) -> tuple[QuantPlan, tuple[Part, ...]]:
    """Return products outside attentions to float where integers cost the output more than ``HARMLESS_DB``.

    Such a product may be a linear attention, whose sums have no bounded range, or a table of positions, which is harmless:
    no pattern vouches for it, so the output decides. Where all together do harm, they are put back one by one onto the plan
    without any, as long as the loss against that plan stays harmless: taken off one by one, none of several harmful ones
    would be noticed, because the others' error hides what it costs. ``before`` of a part is without the product, ``after``
    with it.
    """
    in_float = [product for product in layers.blockmap.products if is_planned_product(plan, product)]
    if not in_float:
        return plan, ()
    limit = evaluate(without_products(plan, in_float))
    if limit - evaluate(plan) <= HARMLESS_DB:
        return plan, ()
    score, parts, reasons = limit, [], dict(plan.kept_float)
    for product in tuple(in_float):
        others = [other for other in in_float if other is not product]
        reached = evaluate(without_products(plan, others))
        accepted = limit - reached <= HARMLESS_DB
        parts.append(Part(part=product.name, accepted=accepted, before=round(score, 3), after=round(reached, 3)))
        if accepted:
            in_float, score = others, reached
        else:
            reasons[product.name] = f"as integers it costs {score - reached:.1f} dB of the output's SQNR"
    return replace(without_products(plan, in_float), kept_float=reasons), tuple(parts)
