"""Which proposals are kept: the rule, its statistics and its figures, in this one place.

A search lowers the error of the tensors it looks at, averaged over all tokens; that can hide a loss where it matters (measured
on the bundled model: scales searched for every site gained 0.6 dB layer by layer and lost 2.9 dB at the output, because the
class token is one of fifty rows). So a proposal has to pass the whole model: the SQNR of its output on held-out samples.

A step has the benefit of the doubt: it already lowers its layers' error on held-out rows, and a handful of held-out samples
tell the output's error to about a decibel only. What is asked is not to fall ``DOUBT_DB`` below the best so far. Asking for
a gain keeps the luckiest: the bundled model's 43.0 dB on its 16 held-out images were 40.3 dB on others, where keeping
everything reached 41.5. What costs time or bytes has no such benefit: it must gain.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxvitq.core.formats import QParams
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, Proposal
from onnxvitq.report.records import Part

Evaluate = Callable[[QuantPlan], float]  # output SQNR in dB on held-out samples

PRODUCTS = {"query": "scores", "key": "scores", "probs": "context", "value": "context", "left": "", "right": ""}
DOUBT_DB = 1.0  # of the output's SQNR: what a few held-out samples cannot tell
DOUBTS = {Acceptance.ALL_OR_NOTHING: DOUBT_DB, Acceptance.MUST_GAIN: 0.0}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """What became of a proposal.

    Attributes:
        state: to go on from; the old one where nothing was kept.
        accepted: whether anything was kept.
        before: output SQNR in dB before it; None where it was not evaluated.
        after: with it; where it was not kept, what it would have been.
        kept: parts that were kept.
        parts: for the report.
    """

    state: FitState
    accepted: bool
    before: float | None
    after: float | None
    kept: int
    parts: tuple[Part, ...]


def decide(state: FitState, context: FitContext, proposal: Proposal) -> Verdict:
    """What is kept of a proposal that leaves the graph as it is."""
    if proposal.plan is None:
        return _unchanged(state, proposal)
    if proposal.acceptance is Acceptance.FINAL:
        return replace(_unchanged(state, proposal), state=replace(state, plan=proposal.plan), accepted=True)
    if proposal.acceptance is Acceptance.BASELINE:
        return _baseline(state, context, proposal, proposal.plan)
    if proposal.acceptance is Acceptance.DECIDED:
        return _decided(state, context, proposal, proposal.plan)
    if proposal.acceptance is Acceptance.EACH_PART:
        return _each_part(state, context, proposal, proposal.plan)
    return _all_or_nothing(state, context, proposal, proposal.plan)


def does_no_harm(state: FitState, score: OutputDifference | None, doubt_db: float = DOUBT_DB) -> bool:
    """Whether an output is less than ``doubt_db`` below the best so far; yes where plans are not evaluated."""
    return state.score is None or (score is not None and score.sqnr_db > state.best_db - doubt_db)


def _unchanged(state: FitState, proposal: Proposal) -> Verdict:
    return Verdict(state=state, accepted=False, before=state.sqnr_db, after=None, kept=0, parts=proposal.parts)


def _baseline(state: FitState, context: FitContext, proposal: Proposal, plan: QuantPlan) -> Verdict:
    """Taken as it is: it is what everything else is compared with."""
    return Verdict(
        state=state.scored(plan, context.score(state, plan)),
        accepted=True,
        before=None,
        after=None,
        kept=proposal.gain.kept,
        parts=proposal.parts,
    )


def _decided(state: FitState, context: FitContext, proposal: Proposal, plan: QuantPlan) -> Verdict:
    """The step has evaluated; other formats are no worse or better than before, the score starts anew."""
    after = state
    if plan is not state.plan:
        always = proposal.evaluated or context.config.evaluated
        after = state.restarted(plan, context.evaluator(state).difference(plan) if always else None)
    return Verdict(
        state=after,
        accepted=proposal.gain.kept > 0,
        before=state.sqnr_db,
        after=after.sqnr_db,
        kept=proposal.gain.kept,
        parts=proposal.parts,
    )


def _all_or_nothing(state: FitState, context: FitContext, proposal: Proposal, plan: QuantPlan) -> Verdict:
    score = context.evaluator(state).difference(plan)
    accepted = does_no_harm(state, score, DOUBTS[proposal.acceptance])
    after = state.scored(plan, score if context.config.evaluated else None) if accepted else state
    return Verdict(
        state=after,
        accepted=accepted,
        before=state.sqnr_db,
        after=round(score.sqnr_db, 3),
        kept=proposal.gain.kept if accepted else 0,
        parts=proposal.parts if accepted else refused(proposal.parts),
    )


def _each_part(state: FitState, context: FitContext, proposal: Proposal, plan: QuantPlan) -> Verdict:
    gain = proposal.gain
    if state.score is None:  # nothing is evaluated: the layers' own error has to do
        return Verdict(
            state=replace(state, plan=plan),
            accepted=gain.kept > 0,
            before=gain.before,
            after=gain.after,
            kept=gain.kept,
            parts=(),
        )
    evaluator = context.evaluator(state)
    seen: list[tuple[QuantPlan, OutputDifference]] = [(state.plan, state.score)]

    def evaluate(candidate: QuantPlan) -> float:
        seen.append((candidate, evaluator.difference(candidate)))
        return seen[-1][1].sqnr_db

    kept, _, parts = accept_parts(state.plan, plan, state.layers, evaluate, state.best_db)
    after = state.scored(kept, next(score for candidate, score in seen if candidate is kept))
    accepted = any(part.accepted for part in parts)
    return Verdict(
        state=after,
        accepted=accepted,
        before=state.sqnr_db,
        after=after.sqnr_db,
        kept=gain.kept if accepted else 0,
        parts=parts,
    )


def refused(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts of a proposal none of which was kept, whatever each of them promised."""
    return tuple(part if part.accepted is None else replace(part, accepted=False) for part in parts)


# ------------------------------------------------------------------------------------------------------- part by part


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _PlanChange:
    """What one part changes.

    Attributes:
        params: new parameters by tensor.
        biases: new biases (O,) by linear.
    """

    params: Mapping[str, QParams]
    biases: Mapping[str, FloatArray]


def accept_parts(
    before: QuantPlan, after: QuantPlan, layers: Layers, evaluate: Evaluate, best: float
) -> tuple[QuantPlan, float, tuple[Part, ...]]:
    """Go from one plan towards another part by part, keeping what does no harm.

    Args:
        before: the plan so far.
        after: what a step made of it.
        layers: names the roles.
        evaluate: output SQNR of a plan, in dB.
        best: the best output SQNR so far, in dB: of ``before``, or of a plan before it.

    Returns:
        The plan that was kept, its output SQNR, and one part each, in the order of the network.
    """
    plan, score, parts = before, best, []
    for name, change in _changes(before, after, layers).items():
        candidate = plan.with_params(change.params).with_biases(change.biases)
        reached = evaluate(candidate)
        accepted = reached > best - DOUBT_DB
        parts.append(Part(part=name, accepted=accepted, before=round(score, 3), after=round(reached, 3)))
        if accepted:
            plan, score, best = candidate, reached, max(best, reached)
    return plan, score, tuple(parts)


def _changes(before: QuantPlan, after: QuantPlan, layers: Layers) -> dict[str, _PlanChange]:
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
    parts = {name: _PlanChange(params=params, biases={}) for name, params in changed.items()}
    return parts | ({"bias": _PlanChange(params={}, biases=biases)} if biases else {})


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
