"""Exact changes of the float model that quantize better: chosen by a step, proven and evaluated here.

A change is used only if the changed graph still computes the float outputs, and if the quantized output is not the worse for
it. Statistics follow it where they can (``calibration.propagate``); the rest is measured again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.calibration.cache import read_stats
from onnxvitq.calibration.kept import KeptStatistics
from onnxvitq.calibration.propagate import Change
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.quantize_options import StepName
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.evaluation.metrics import OutputDifference
from onnxvitq.fit.acceptance import Verdict, does_no_harm
from onnxvitq.fit.start import changed_state, requests_of
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, LayerGain, Proposal, Step
from onnxvitq.fit.steps.channel_scaling.choose import scaling_requests
from onnxvitq.fit.steps.channel_scaling.rewrite import apply_scalings
from onnxvitq.fit.steps.late_softmax.rewrite import divide_late
from onnxvitq.fit.steps.ranges import min_max
from onnxvitq.graph.scratch import save_in_scratch, scratch_folder
from onnxvitq.graph.writing import to_proto
from onnxvitq.report.records import Part
from onnxvitq.runtime.session import Session

EXACT = 1e-4  # of the largest output: how far a reparametrised float model may be off, by rounding
REASON = "reason"  # figure of a part that cannot be changed: why


class ExactChoice(Protocol):
    """Which exact changes of one kind quantize better, by the layers' own errors on held-out rows."""

    @property
    def name(self) -> StepName:
        """As in ``--skip``."""
        ...

    def choose(self, state: FitState, context: FitContext) -> tuple[Change, tuple[Part, ...]]:
        """What is to change, and a part of the report for each."""
        ...


@dataclass(frozen=True, slots=True)
class ExactChange:
    """A step made of choices of different tensors, from the same statistics: applied together, evaluated once.

    Attributes:
        choices: one or several.
    """

    choices: tuple[ExactChoice, ...]

    @property
    def name(self) -> str:
        """Of all choices, joined by +."""
        return "+".join(choice.name for choice in self.choices)

    def runs(self, config: QuantConfig) -> bool:
        """Whether any of them does (``fit.order`` leaves out those that do not)."""
        return any(config.runs(choice.name) for choice in self.choices)

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """Rows and channel ranges of every tensor that may be scaled, so that statistics can follow."""
        del context
        return scaling_requests(state.layers.blockmap)

    def propose(self, state: FitState, context: FitContext) -> Proposal:
        """The graph with the chosen scalings folded in and the chosen softmaxes divided late."""
        chosen = [choice.choose(state, context) for choice in self.choices]
        parts = tuple(part for _, some in chosen for part in some)
        change = Change(
            scalings=tuple(scaling for some, _ in chosen for scaling in some.scalings),
            late=tuple(name for some, _ in chosen for name in some.late),
        )
        graph, blockmap = state.graph, state.layers.blockmap
        if change.scalings:
            graph = apply_scalings(graph, blockmap, change.scalings)
        if change.late:
            graph = divide_late(graph, blockmap, list(change.late))
        return exact_proposal(parts, graph if parts else None, change)


def exact_proposal(parts: tuple[Part, ...], graph: gs.Graph | None, change: Change | None) -> Proposal:
    """Of an exact change; parts with a ``reason`` among their figures are those that cannot be changed.

    Args:
        parts: what is to change, and what cannot.
        graph: changed; None where nothing changes.
        change: how statistics follow; None where they have to be measured again.
    """
    gain = LayerGain(kept=sum(REASON not in part.figures for part in parts), layers=len(parts))
    changed = graph if gain.kept else None
    return Proposal(acceptance=Acceptance.ALL_OR_NOTHING, graph=changed, change=change, gain=gain, parts=parts)


def try_change(
    state: FitState, context: FitContext, proposal: Proposal, graph: gs.Graph, steps: Sequence[Step]
) -> Verdict:
    """Go on from a changed graph if the float model stays what it is and the quantized output is not the worse for it.

    The statistics of the graph as it was are put aside in a file meanwhile: the new ones take as much room.

    Args:
        state: before the change.
        context: of the fit.
        proposal: says what is changed, and how statistics follow.
        graph: changed.
        steps: all of the fit; they say what has to be known of the changed graph.
    """
    score: OutputDifference | None = None
    with scratch_folder() as folder:
        count, known = state.statistics.count, state.kept.put_aside(folder)
        changed = changed_state(state, graph, context)
        if _is_exact(graph, context):
            statistics = _follow(state, changed, context, proposal, (known, count), steps)
            changed = replace(changed, kept=KeptStatistics(statistics))
            plan, _ = min_max(changed, context)
            score = context.score(changed, plan)
            if does_no_harm(changed, score):
                after = changed.scored(plan, score)
                return replace(
                    _rejected(after, proposal, state.sqnr_db, after.sqnr_db), accepted=True, kept=proposal.gain.kept
                )
        state.kept.take_back()
    return _rejected(state, proposal, state.sqnr_db, None if score is None else round(score.sqnr_db, 3))


def _rejected(state: FitState, proposal: Proposal, before: float | None, after: float | None) -> Verdict:
    return Verdict(state=state, accepted=False, before=before, after=after, kept=0, parts=proposal.parts)


def _is_exact(graph: gs.Graph, context: FitContext) -> bool:
    """Whether the graph still computes the float outputs of the first sample."""
    feed = next(iter(context.dataset))
    with scratch_folder() as folder:
        path = folder / "changed.onnx"
        save_in_scratch(to_proto(graph.copy(), {}), path)
        value = Session(path, threads=context.config.threads).run(feed, [context.output])[0]
    reference = context.float_outputs[0]
    return bool(np.abs(value - reference).max() <= EXACT * np.abs(reference).max())


def _follow(
    before: FitState,
    after: FitState,
    context: FitContext,
    proposal: Proposal,
    known: tuple[Path, int],
    steps: Sequence[Step],
) -> Statistics:
    """Statistics of the changed graph. known: the file with those of the graph before, and how many samples they are of."""
    wanted, sampling = requests_of(steps, after, context), context.sampling(after)
    if proposal.change is None:
        return context.measurer.measure(after.graph, wanted, sampling, known[1])
    graphs, blockmaps = (before.graph, after.graph), (before.layers.blockmap, after.layers.blockmap)
    return context.measurer.measure_changed(
        graphs, blockmaps, proposal.change, read_stats(known[0]), (wanted, sampling)
    )
