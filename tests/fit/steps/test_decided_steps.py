"""Steps that decide by themselves, or only report: bits, the promise, sensitivities."""

from collections.abc import Callable

import pytest
from fitted_cases import Case

from onnxvitq.fit.step import Acceptance
from onnxvitq.fit.steps.bits import ChooseBits
from onnxvitq.fit.steps.promise import KeepPromise
from onnxvitq.fit.steps.sensitivity import REPORTED, ReportSensitivity
from onnxvitq.report.records import PrecisionReport, PromiseReport, SensitivityReport

TransformerCase = Callable[..., Case]


def test_bits_are_a_new_start_with_a_section_of_their_own(transformer_case: TransformerCase) -> None:
    case = transformer_case(samples=16, bits=5)
    step, context = ChooseBits(), case.context(average_bits=4.0)
    assert step.runs(context.config)
    assert {request.kind for request in step.needs(case.state(), context)} == {"rows"}
    proposal = step.propose(case.state(), context)
    assert (proposal.acceptance, proposal.recorded) == (Acceptance.DECIDED, True)
    assert proposal.section is not None
    assert proposal.section.key == "precision"
    report = proposal.section.content
    assert isinstance(report, PrecisionReport)
    assert proposal.gain.layers == len(report.chosen.bits)
    assert proposal.plan is not None
    bits = {decision.spec.bits for decision in proposal.plan.decisions.values() if decision.site.kind == "weight"}
    assert bits >= set(report.chosen.bits.values())


@pytest.mark.parametrize(("bits", "max_drop", "changed"), [(8, 0.9, False), (2, 1e-6, True)])
def test_a_promise_is_kept_at_the_end_and_is_no_line_among_the_steps(
    transformer_case: TransformerCase, bits: int, max_drop: float, changed: bool
) -> None:
    case = transformer_case(samples=16, bits=bits)
    step, context = KeepPromise(), case.context(max_drop=max_drop)
    assert step.runs(context.config)
    proposal = step.propose(case.state(), context)
    assert (proposal.acceptance, proposal.recorded) == (Acceptance.FINAL, False)
    assert proposal.section is not None
    assert proposal.section.key == "quality"
    report = proposal.section.content
    assert isinstance(report, PromiseReport)
    assert (report.kept, report.max_drop) == (True, max_drop)
    assert bool(report.changes) == changed


def test_sensitivities_change_nothing(transformer_case: TransformerCase) -> None:
    case = transformer_case(samples=64, bits=4)
    step, context = ReportSensitivity(), case.context(sensitivity=True)
    proposal = step.propose(case.state(), context)
    assert (proposal.plan, proposal.graph, proposal.recorded) == (None, None, False)
    assert proposal.section is not None
    report = proposal.section.content
    assert isinstance(report, SensitivityReport)
    assert (report.samples, report.outputs) == (REPORTED, 1)
    assert sum(part.share for part in report.parts) == pytest.approx(1, abs=1e-3)
    assert sorted(name for part in report.parts for name in part.tensors) == sorted(case.plan.decisions)
