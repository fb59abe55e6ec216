"""Branches of low rank as a step: what it proposes and reports."""

from collections.abc import Callable
from dataclasses import replace

from fitted_cases import Case

from onnxvitq.core.config import QuantConfig
from onnxvitq.fit.step import Acceptance
from onnxvitq.fit.steps.low_rank.step import LowRankBranches
from onnxvitq.numerics.affine import params_from_range

TransformerCase = Callable[..., Case]


def narrow(case: Case) -> Case:
    """Activations of three bits, so that there is something to gain."""
    decisions = dict(case.plan.decisions)
    for name, decision in decisions.items():
        if decision.site.kind == "activation":
            spec = decision.spec.with_bits(3)
            decisions[name] = replace(decision, spec=spec, params=params_from_range(*case.stats.ranges[name], spec))
    return replace(case, plan=replace(case.plan, decisions=decisions))


def test_each_branch_is_a_part_with_its_rank_and_bytes(transformer_case: TransformerCase) -> None:
    case = narrow(transformer_case(samples=32, bits=3))
    stages: list[str] = []
    context = case.context(method="aiqvit", ranks="darts", iterations=8, branch_budget=1.0)
    context = replace(context, progress=lambda stage, *_: stages.append(stage))
    proposal = LowRankBranches().propose(case.state(), context)
    assert proposal.acceptance is Acceptance.MUST_GAIN
    assert proposal.plan is not None
    branches = proposal.plan.branches
    assert branches
    assert {part.part: part.figures["rank"] for part in proposal.parts} == {
        name: branch.rank for name, branch in branches.items()
    }
    assert all(part.figures["bytes"] == branches[part.part].nbytes for part in proposal.parts)
    assert set(stages) == {"branches"}


def test_layers_too_small_for_what_a_branch_takes_get_none(transformer_case: TransformerCase) -> None:
    """Of 32 inputs, passes over the output take longer than the product itself."""
    case = narrow(transformer_case(samples=32, bits=3))
    proposal = LowRankBranches().propose(case.state(), case.context(method="aiqvit", branch_budget=1.0))
    assert proposal.parts == ()
    assert proposal.gain.layers > 0
    assert proposal.gain.before == proposal.gain.after


def test_it_belongs_to_the_method() -> None:
    assert [LowRankBranches().runs(QuantConfig(method=method)) for method in ("closed-form", "aiqvit")] == [False, True]
