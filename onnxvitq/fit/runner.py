"""Runs the steps: measures what they need, decides what they propose, records what became of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxvitq.calibration.dataset import CalibrationDataset
from onnxvitq.core.handover import Handover
from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.tensors import FloatArray
from onnxvitq.evaluation.saturation import describe_saturation
from onnxvitq.fit.acceptance import Verdict, decide
from onnxvitq.fit.exact_changes import try_change
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Proposal, Step
from onnxvitq.report.model_records import SaturationReport
from onnxvitq.report.records import Section, StepRecord
from onnxvitq.runtime.memory import give_back


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """What is to be written, and what the steps did.

    Attributes:
        graph: canonical float graph, exact changes included.
        layers: what was found in it, and its constants.
        plan: with parameters.
        dataset: calibration samples.
        reference: float outputs of the first samples that can be read again, one array each.
        steps: what each step proposed and what was kept.
        sections: parts of the report that steps filled in.
        saturation: which layers would saturate on calibration data, on processors without VNNI.
    """

    graph: gs.Graph
    layers: Layers
    plan: QuantPlan
    dataset: CalibrationDataset
    reference: Sequence[FloatArray]
    steps: tuple[StepRecord, ...]
    sections: tuple[Section, ...]
    saturation: SaturationReport


def fit(started: Handover[FitState], context: FitContext, steps: Sequence[Step]) -> Fitted:
    """All steps in order, from the state that the first sweep left (``fit.start``); what is to be written.

    Raises:
        OnnxVitqError: a step cannot go on; nothing was written.
    """
    state, records, sections = run_steps(started, context, steps)
    saturation = context.target.estimate_saturation(state.layers, state.plan, state.statistics, context.config.threads)
    return Fitted(
        graph=state.graph,
        layers=state.layers,
        plan=state.plan,
        dataset=context.dataset,
        reference=context.float_outputs[: context.dataset.kept],
        steps=records,
        sections=sections,
        saturation=describe_saturation(state.layers, saturation),
    )


def run_steps(
    started: Handover[FitState], context: FitContext, steps: Sequence[Step]
) -> tuple[FitState, tuple[StepRecord, ...], tuple[Section, ...]]:
    """The state after all steps, a record of each, and the parts of the report that they filled in."""
    state, records, sections = started.take(), list[StepRecord](), list[Section]()
    for done, step in enumerate(steps, start=1):
        begun = time.perf_counter()
        proposal = step.propose(state, context)
        if proposal is not None:
            verdict = _decide(state, context, proposal, steps)
            state = verdict.state
            if proposal.recorded:
                records.append(_record(step.name, proposal, verdict, time.perf_counter() - begun))
            if proposal.section is not None:
                sections.append(proposal.section)
            del verdict
        del proposal  # it holds a graph or weights
        give_back()
        context.progress("fit", done, len(steps))
    return state, tuple(records), tuple(sections)


def _decide(state: FitState, context: FitContext, proposal: Proposal, steps: Sequence[Step]) -> Verdict:
    if proposal.graph is not None:
        return try_change(state, context, proposal, proposal.graph, steps)
    return decide(state, context, proposal)


def _record(name: str, proposal: Proposal, verdict: Verdict, seconds: float) -> StepRecord:
    """The agreement is that of what is kept by now."""
    score = verdict.state.score
    return StepRecord(
        name=name,
        accepted=verdict.accepted,
        before=verdict.before,
        after=verdict.after,
        kept=verdict.kept,
        layers=proposal.gain.layers,
        parts=verdict.parts,
        agreement=None if score is None else score.agreement,
        seconds=round(seconds, 3),
    )
