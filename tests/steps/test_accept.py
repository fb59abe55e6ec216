"""A step's parts are kept where the model's output gains."""

from dataclasses import replace

import numpy as np
import pytest

from onnxvitq.config import QuantConfig
from onnxvitq.plan import Problem, QuantPlan
from onnxvitq.spec import QParams, Stats
from onnxvitq.steps.accept import accept_parts
from onnxvitq.steps.policy import make_plan
from onnxvitq.steps.ranges import MinMaxRanges

START = 41.0


@pytest.fixture
def before(problem: Problem, stats: Stats) -> QuantPlan:
    return MinMaxRanges().apply(problem, make_plan(problem.blockmap, QuantConfig()), stats)[0]


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


def test_an_unchanged_plan_is_not_judged(problem: Problem, before: QuantPlan) -> None:
    seen, judge = judged_by_role("attn", before)
    plan, scores, outcomes = accept_parts(before, before, problem, judge, START)  # type: ignore[arg-type]
    assert (seen, outcomes) == ([], ())
    assert plan is before
    assert scores == START


def test_only_the_parts_that_gain_are_kept(problem: Problem, before: QuantPlan) -> None:
    after = scaled(before, 0.9)
    _, judge = judged_by_role("attn", before)
    plan, scores, outcomes = accept_parts(before, after, problem, judge, START)  # type: ignore[arg-type]
    changed = {
        decision.site.role
        for name, decision in plan.decisions.items()
        if decision.params is not before.decisions[name].params
    }
    assert changed
    assert all("attn" in role for role in changed)
    assert {outcome.accepted for outcome in outcomes if "attn" in outcome.part} == {True}
    assert scores > START


def test_a_weight_goes_with_its_input_and_operands_with_their_product(problem: Problem, before: QuantPlan) -> None:
    _, judge = judged_by_role("nothing", before)
    _, _, outcomes = accept_parts(before, scaled(before, 0.9), problem, judge, START)  # type: ignore[arg-type]
    parts = [outcome.part for outcome in outcomes]
    assert len(parts) == len(set(parts))
    assert [part for part in parts if part.endswith(("weight", "query", "key", "probs", "value"))] == []
    assert {"attn.scores", "attn.context"} <= set(parts)


def test_all_biases_are_one_part(problem: Problem, before: QuantPlan) -> None:
    after = before.with_biases({linear.name: problem.bias(linear.name) + 1 for linear in problem.blockmap.linears})
    plan, _, outcomes = accept_parts(before, after, problem, lambda plan: START + len(plan.biases), START)
    assert [(outcome.part, outcome.accepted) for outcome in outcomes] == [("bias", True)]
    assert set(plan.biases) == set(after.biases)
