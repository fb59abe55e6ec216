"""Formats that the options leave open: the dearest form first, and back to the cheapest that costs the output little."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.layers import BlockMap
from onnxvitq.core.plan import QuantPlan
from onnxvitq.fit.initial_plan import make_plan
from onnxvitq.fit.steps.attention_formats import choose_contexts
from onnxvitq.fit.steps.input_formats import FREE_DB, TOKEN_DB, choose_inputs, most_accurate
from onnxvitq.fit.steps.outer_layers import (
    OUTER_DB,
    RETURN_DB,
    RUINED_DB,
    choose_outer_linears,
    outer_linears_of_8_bits,
)

CONTEXT = "/attn/MatMul_1"
WORTH_DB = 0.3
KINDS = {"x": "attn.query.input", "h": "mlp.fc1.input"}


@pytest.fixture
def plan(blockmap: BlockMap) -> QuantPlan:
    return make_plan(blockmap, QuantConfig())


def judge_of(dynamic: dict[str, float], token: dict[str, float]) -> Callable[[QuantPlan], float]:
    """30 dB, and what each input gains by each form (per token on top of dynamic)."""

    def judge(plan: QuantPlan) -> float:
        assert plan.per_token <= plan.dynamic
        return 30 + sum(dynamic[name] for name in plan.dynamic) + sum(token[name] for name in plan.per_token)

    return judge


def test_the_most_accurate_form_is_per_token(plan: QuantPlan) -> None:
    assert most_accurate(plan).dynamic == most_accurate(plan).per_token == {"x", "h"}


def test_patches_and_heads_are_not_divided(plan: QuantPlan) -> None:
    site = replace(plan.decisions["h"].site, role="head.input")
    other = replace(plan, decisions={**plan.decisions, "h": replace(plan.decisions["h"], site=site)})
    assert (most_accurate(other).dynamic, most_accurate(other).per_token) == (frozenset({"x", "h"}), frozenset({"x"}))


def test_each_kind_of_input_takes_the_cheapest_form_that_loses_little(plan: QuantPlan) -> None:
    judge = judge_of({"x": 2 * FREE_DB, "h": 1.0}, {"x": 0.9 * TOKEN_DB, "h": 1.1 * TOKEN_DB})
    chosen, parts = choose_inputs(plan, judge)
    assert (chosen.dynamic, chosen.per_token) == (frozenset({"x", "h"}), frozenset({"h"}))
    assert {part.part: part.accepted for part in parts} == {
        "mlp.fc1.input dynamic": False,
        "attn.query.input dynamic": True,
        "attn.query.input static": False,
    }


def test_nothing_gained_is_nothing_changed(plan: QuantPlan) -> None:
    calls: list[QuantPlan] = []
    none = {"x": 0.0, "h": 0.0}

    def judge(candidate: QuantPlan) -> float:
        calls.append(candidate)
        return judge_of(none, none)(candidate)

    chosen, _ = choose_inputs(plan, judge)
    assert (chosen.dynamic, chosen.per_token) == (frozenset(), frozenset())
    assert len(calls) == 2 + 2 * len(KINDS)


def test_a_static_plan_that_is_better_wins(plan: QuantPlan) -> None:
    """Calibrated ranges can clip, those of each input cannot; each kind alone would have kept its dearer form."""

    def judge(candidate: QuantPlan) -> float:
        return 35.0 if not candidate.dynamic else 30.0 + len(candidate.dynamic) + len(candidate.per_token)

    chosen, parts = choose_inputs(plan, judge)
    assert chosen.dynamic == frozenset()
    assert parts[-1].part == "all static"


def in_float(plan: QuantPlan) -> bool:
    return CONTEXT in plan.kept_float


@pytest.mark.parametrize(("gain", "kept"), [(0.9 * WORTH_DB, False), (1.1 * WORTH_DB, True)])
def test_a_product_is_float_where_it_is_worth_it(blockmap: BlockMap, plan: QuantPlan, gain: float, kept: bool) -> None:
    chosen, parts = choose_contexts(plan, blockmap, lambda one: 30.0 + gain * in_float(one), WORTH_DB)
    assert in_float(chosen) == kept == parts[0].accepted
    assert ("p" in chosen.decisions, "v" in chosen.decisions) == (not kept, not kept)
    assert {"q", "k"} <= chosen.decisions.keys()  # the scores stay integers


def test_groups_that_gain_nothing_go_back_to_integers(blockmap: BlockMap, plan: QuantPlan) -> None:
    attention = blockmap.attentions[0]
    second = replace(attention, name="second", probs="p2", value="v2", context_node="context2")
    decisions = dict(plan.decisions)
    for old, new in (("p", "p2"), ("v", "v2")):
        site = replace(decisions[old].site, name=new, consumers=(("context2", 0),))
        decisions[new] = replace(decisions[old], site=site)
    both = replace(plan, decisions=decisions)
    two = replace(blockmap, attentions=(attention, second))
    chosen, parts = choose_contexts(both, two, lambda one: 30.0 + ("context2" in one.kept_float), WORTH_DB)
    assert not in_float(chosen)
    assert "context2" in chosen.kept_float
    assert [part.accepted for part in parts] == [True, True, False]


def test_without_a_planned_product_there_is_nothing_to_choose(blockmap: BlockMap) -> None:
    plan = make_plan(blockmap, QuantConfig(attention="float"))
    assert choose_contexts(plan, blockmap, lambda one: float(len(one.decisions)), WORTH_DB)[0] is plan


def floats(plan: QuantPlan) -> set[str]:
    return set(plan.kept_float)


def test_layers_outside_the_blocks_are_float_where_they_ruin_the_output(hybrid: BlockMap) -> None:
    plan, costs = make_plan(hybrid, QuantConfig()), {"stem": 7.0, "gate": 7.0, "between": 7.0}
    chosen, parts = choose_outer_linears(
        plan, outer_linears_of_8_bits(plan, hybrid), lambda one: sum(costs[name] for name in floats(one))
    )
    assert floats(chosen) == {"stem", "gate", "between"}
    assert (parts[0].accepted, {part.accepted for part in parts[1:]}) == (True, {False})
    assert not {"stem.input", "gate.input", "between.input", "stem.weight"} & chosen.decisions.keys()


def test_those_that_do_no_harm_go_back_to_integers(hybrid: BlockMap) -> None:
    plan, costs = make_plan(hybrid, QuantConfig()), {"stem": 1.1 * OUTER_DB, "gate": 0.2 * RETURN_DB, "between": 0.0}
    chosen, _ = choose_outer_linears(
        plan, outer_linears_of_8_bits(plan, hybrid), lambda one: sum(costs[name] for name in floats(one))
    )
    assert floats(chosen) == {"stem"}


@pytest.mark.parametrize(("gain", "bits"), [(0.9 * OUTER_DB, "w8a8"), (2 * OUTER_DB, "w4a8"), (2 * OUTER_DB, "w8a4")])
def test_layers_that_cost_less_or_were_asked_to_be_coarse_stay(hybrid: BlockMap, gain: float, bits: str) -> None:
    plan = make_plan(hybrid, QuantConfig(bits=bits, edges_at_8_bits=False))
    assert (
        choose_outer_linears(plan, outer_linears_of_8_bits(plan, hybrid), lambda one: gain * bool(floats(one)))[0]
        is plan
    )


def test_an_output_that_is_not_ruined_leaves_all_as_it_is(hybrid: BlockMap) -> None:
    plan = make_plan(hybrid, QuantConfig())
    linears, gain = outer_linears_of_8_bits(plan, hybrid), 2 * OUTER_DB
    assert choose_outer_linears(plan, linears, lambda one: RUINED_DB + gain * bool(floats(one)))[0] is plan
    assert choose_outer_linears(plan, linears, lambda one: 0.99 * RUINED_DB + gain * bool(floats(one)))[0] is not plan
