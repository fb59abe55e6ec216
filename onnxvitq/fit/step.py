"""What a step of the fit is. A step proposes; ``fit.runner`` measures, evaluates, keeps or drops, and records.

A new step is one object with four members, and one line in ``fit.order``. It never writes a file, never keeps a state of its
own, and never decides by itself whether the model's output is the better for it, unless evaluating is what it is for: how a
proposal is decided is a value of it (``Acceptance``), and what that means is written down once, in ``fit.acceptance``.

``propose`` is given the context beside the state (the second edition's sketch had the state alone): samples, options and the
evaluator do not change during a fit, and a step that holds them would be made anew for each one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from onnxvitq.calibration.propagate import Change
from onnxvitq.core.config import QuantConfig
from onnxvitq.core.plan import QuantPlan
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.report.records import Part, Section


class Acceptance(Enum):
    """How a proposal is decided (``fit.acceptance``)."""

    BASELINE = "taken as it is: everything else is compared with it"
    EACH_PART = "the tensors of one role in all blocks at a time, each kept where the output is not the worse for it"
    ALL_OR_NOTHING = "as a whole, kept where the output is not the worse for it"
    MUST_GAIN = "as a whole, kept where the output gains: it costs time or bytes"
    DECIDED = "by the step itself, which evaluated; the output's score starts anew"
    FINAL = "by the step itself, which comes last: nothing is compared with it any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGain:
    """What a step did to the layers that it looked at, on held-out samples, whatever the model's output says.

    Attributes:
        before: mean output SQNR of the layers in dB without the step; None where it was not measured.
        after: with it.
        kept: layers that gain.
        layers: that it looked at.
    """

    before: float | None = None
    after: float | None = None
    kept: int = 0
    layers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proposal:
    """What a step would do.

    Attributes:
        acceptance: how it is decided.
        plan: for the graph as it is; None where the graph changes (its plan begins with min-max again) or nothing does.
        graph: an exact change of the state's graph; None where that stays.
        change: how statistics follow the change; None where they have to be measured again.
        gain: of the layers that it looked at.
        parts: for the report.
        section: a part of the report of its own, such as the sensitivities; None for most.
        recorded: whether it is a line among the report's steps; a step that only reports is not.
        evaluated: of a proposal that the step decided: whether it did so by the output, even where plans are otherwise not
            evaluated.
    """

    acceptance: Acceptance
    plan: QuantPlan | None = None
    graph: gs.Graph | None = None
    change: Change | None = None
    gain: LayerGain = LayerGain()
    parts: tuple[Part, ...] = ()
    section: Section | None = None
    recorded: bool = True
    evaluated: bool = False


class Step(Protocol):
    """One step of the fit."""

    @property
    def name(self) -> str:
        """As in the report and, where it has one, in ``--skip``."""
        ...

    def runs(self, config: QuantConfig) -> bool:
        """Whether the options ask for it."""
        ...

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """The statistics that it reads; those of all steps are measured in one sweep. ``state`` has none yet."""
        ...

    def propose(self, state: FitState, context: FitContext) -> Proposal | None:
        """What it would do; None where there is nothing to look at, and nothing to report."""
        ...


def layer_gain(before: Sequence[float], after: Sequence[float], kept: int) -> LayerGain:
    """The mean over layers of their output SQNR in dB."""
    return LayerGain(
        before=round(float(np.mean(before)), 3) if before else None,
        after=round(float(np.mean(after)), 3) if after else None,
        kept=kept,
        layers=len(before),
    )
