"""A step's parts are kept where the model's output gains."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.formats import QParams
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics
from onnxvitq.fit.acceptance import accept_parts
from onnxvitq.fit.initial_plan import make_plan
from onnxvitq.fit.steps.harmful_products import HARMLESS_DB, drop_harmful_products
from onnxvitq.fit.steps.ranges import fit_ranges

START = 41.0


@pytest.fixture
def before(layers: Layers, stats: Statistics) -> QuantPlan:
    return fit_ranges(layers, make_plan(layers.blockmap, QuantConfig()), stats)


def scaled(plan: QuantPlan, factor: float) -> QuantPlan:
    """The plan with every scale changed."""
    params = {name: decision.params for name, decision in plan.decisions.items()}
    return plan.with_params(
        {name: replace(p, scale=p.scale * np.float32(factor)) for name, p in params.items() if isinstance(p, QParams)}
    )


def judged_by_role(wanted: str, plan: QuantPlan) -> "tuple[list[QuantPlan], object]":
    """A judge that likes a plan the better the more sites of a role differ from ``plan``, and others the less."""
    seen: list[QuantPlan] = []

    def judge(candidate: QuantPlan) -> float:
        seen.append(candidate)
        changed = [
            decision.site.role
            for name, decision in candidate.decisions.items()
            if decision.params is not plan.decisions[name].params
        ]
        return START + sum(1.0 if wanted in role else -1.0 for role in changed)

    return seen, judge


def test_an_unchanged_plan_is_not_judged(layers: Layers, before: QuantPlan) -> None:
    seen, judge = judged_by_role("attn", before)
    plan, scores, outcomes = accept_parts(before, before, layers, judge, START)  # type: ignore[arg-type]
    assert (seen, outcomes) == ([], ())
    assert plan is before
    assert scores == START


def test_only_the_parts_that_gain_are_kept(layers: Layers, before: QuantPlan) -> None:
    after = scaled(before, 0.9)
    _, judge = judged_by_role("attn", before)
    plan, scores, outcomes = accept_parts(before, after, layers, judge, START)  # type: ignore[arg-type]
    changed = {
        decision.site.role
        for name, decision in plan.decisions.items()
        if decision.params is not before.decisions[name].params
    }
    assert changed
    assert all("attn" in role for role in changed)
    assert {outcome.accepted for outcome in outcomes if "attn" in outcome.part} == {True}
    assert scores > START


def test_a_weight_goes_with_its_input_and_operands_with_their_product(layers: Layers, before: QuantPlan) -> None:
    _, judge = judged_by_role("nothing", before)
    _, _, outcomes = accept_parts(before, scaled(before, 0.9), layers, judge, START)  # type: ignore[arg-type]
    parts = [outcome.part for outcome in outcomes]
    assert len(parts) == len(set(parts))
    assert [part for part in parts if part.endswith(("weight", "query", "key", "probs", "value"))] == []
    assert {"attn.scores", "attn.context"} <= set(parts)


def test_all_biases_are_one_part(layers: Layers, before: QuantPlan) -> None:
    after = before.with_biases({linear.name: layers.bias(linear.name) + 1 for linear in layers.blockmap.linears})
    plan, _, outcomes = accept_parts(before, after, layers, lambda plan: START + len(plan.biases), START)
    assert [(outcome.part, outcome.accepted) for outcome in outcomes] == [("bias", True)]
    assert set(plan.biases) == set(after.biases)


# ------------------------------------------------------------------------------------------ products outside attentions


@dataclass
class ProductJudge:
    """Adds up the noise of the products that a plan quantizes, on top of a noise of one."""

    noise: Mapping[str, float]
    seen: list[set[str]] = field(default_factory=list)

    def __call__(self, plan: QuantPlan) -> float:
        readers = {name for decision in plan.decisions.values() for name, _ in decision.site.consumers}
        self.seen.append(readers & {"/gram", "/sum", "/table"})
        return START - 10 * float(np.log10(1 + sum(self.noise.get(name, 0.0) for name in self.seen[-1])))


@pytest.fixture
def planned(with_products: Layers, more_stats: Statistics) -> QuantPlan:
    return fit_ranges(with_products, make_plan(with_products.blockmap, QuantConfig()), more_stats)


def test_harmless_products_are_kept_after_two_looks(with_products: Layers, planned: QuantPlan) -> None:
    judge = ProductJudge({"/gram": 0.3, "/sum": 0.3, "/table": 0.3})  # 2.8 dB in all
    plan, outcomes = drop_harmful_products(planned, with_products, judge)
    assert plan is planned
    assert outcomes == ()
    assert judge.seen == [set(), {"/gram", "/sum", "/table"}]


def test_a_harmful_product_is_dropped_and_the_others_kept(with_products: Layers, planned: QuantPlan) -> None:
    judge = ProductJudge({"/gram": 99.0, "/sum": 0.2, "/table": 0.1})
    plan, outcomes = drop_harmful_products(planned, with_products, judge)
    assert plan.kept_float == {"/gram": "as integers it costs 20.0 dB of the output's SQNR"}
    assert [(outcome.part, outcome.accepted) for outcome in outcomes] == [
        ("/gram", False),
        ("/sum", True),
        ("/table", True),
    ]
    assert (outcomes[0].before, outcomes[0].after) == (START, START - 20)
    assert outcomes[1].before == START
    assert outcomes[2].before == outcomes[1].after == round(START - 10 * np.log10(1.2), 3)
    assert judge(plan) >= START - HARMLESS_DB
    # Shared operands stay for their other readers: a for /sum, h for fc1.
    readers = {name: [node for node, _ in plan.decisions[name].site.consumers] for name in ("a", "h")}
    assert readers == {"a": ["/sum"], "h": ["/mlp/fc1/MatMul"]}
    assert plan.params("h") is planned.params("h")
    assert planned.kept_float == {}


def test_an_operand_that_nobody_else_reads_goes_with_its_product(with_products: Layers, planned: QuantPlan) -> None:
    plan, _ = drop_harmful_products(planned, with_products, ProductJudge({"/gram": 99.0, "/sum": 99.0}))
    assert set(plan.kept_float) == {"/gram", "/sum"}
    assert plan.decisions.keys() == planned.decisions.keys() - {"a", "b"}
    assert [node for node, _ in plan.decisions["q"].site.consumers] == ["/attn/MatMul", "/table"]


def test_products_that_hide_each_others_harm_are_dropped(with_products: Layers, planned: QuantPlan) -> None:
    # 24 dB together; taken off alone, each would gain less than 2 dB.
    judge = ProductJudge(dict.fromkeys(("/gram", "/sum", "/table"), 80.0))
    plan, outcomes = drop_harmful_products(planned, with_products, judge)
    assert set(plan.kept_float) == {"/gram", "/sum", "/table"}
    assert [outcome.accepted for outcome in outcomes] == [False] * 3
    assert judge(plan) == START


def test_what_is_put_back_costs_no_more_than_the_limit_in_all(with_products: Layers, planned: QuantPlan) -> None:
    judge = ProductJudge(dict.fromkeys(("/gram", "/sum", "/table"), 0.6))  # 2.0 dB alone, 3.4 dB two
    plan, outcomes = drop_harmful_products(planned, with_products, judge)
    assert [outcome.accepted for outcome in outcomes] == [True, False, False]
    assert START - judge(plan) <= HARMLESS_DB


def test_a_product_of_a_tensor_with_itself(with_products: Layers, more_stats: Statistics) -> None:
    square = replace(with_products.blockmap.products[0], right="a")
    layers = replace(with_products, blockmap=replace(with_products.blockmap, products=(square,)))
    planned = fit_ranges(layers, make_plan(layers.blockmap, QuantConfig()), more_stats)
    plan, _ = drop_harmful_products(planned, layers, ProductJudge({"/gram": 99.0}))
    assert plan.decisions.keys() == planned.decisions.keys() - {"a"}


def test_without_planned_products_nothing_is_judged(
    layers: Layers, with_products: Layers, before: QuantPlan, stats: Statistics
) -> None:
    judge = ProductJudge({})
    assert drop_harmful_products(before, layers, judge) == (before, ())
    excluded = make_plan(with_products.blockmap, QuantConfig(nodes_to_exclude=("product*",)))
    plan, outcomes = drop_harmful_products(excluded, with_products, judge)
    assert plan is excluded
    assert (outcomes, judge.seen) == ((), [])


def test_a_products_operands_are_one_part(with_products: Layers, planned: QuantPlan) -> None:
    _, _, outcomes = accept_parts(planned, scaled(planned, 0.9), with_products, lambda plan: START - 1, START)
    assert [outcome.part for outcome in outcomes if "product" in outcome.part] == ["product0", "product1", "product2"]
