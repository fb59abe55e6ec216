"""How a step reports what it did to the layers that it looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxvitq.core.plan import Layers, QuantPlan
from onnxvitq.core.statistics import Statistics, StatisticsRequest
from onnxvitq.core.tensors import FloatArray
from onnxvitq.numerics.decibels import sqnr_of_error
from onnxvitq.numerics.objectives import mse


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What a step proposes: mean output SQNR in dB of the *layers* it looked at, on held-out samples, before and after.

    ``accepted``: at least one layer kept the step's result. ``kept`` of ``layers`` did.
    """

    name: str
    accepted: bool
    before: float | None
    after: float | None
    kept: int
    layers: int


class Step(Protocol):
    """One stage of the fit. Never touches a graph."""

    @property
    def name(self) -> str:
        """As in the report."""
        ...

    def needs(self, layers: Layers, plan: QuantPlan) -> tuple[StatisticsRequest, ...]:
        """The statistics this step reads."""
        ...

    def apply(self, layers: Layers, plan: QuantPlan, stats: Statistics) -> tuple[QuantPlan, StepOutcome]:
        """The plan with this step's decisions, and what they bought."""
        ...


def sqnr_db(reference: FloatArray, approximation: FloatArray) -> float:
    """Signal-to-quantization-noise ratio in dB, from the mean noise power of the samples; capped at 120."""
    return sqnr_of_error(mse(reference, approximation))


def outcome(name: str, before: Sequence[float], after: Sequence[float], kept: int) -> StepOutcome:
    """The summary of one step over its layers."""
    return StepOutcome(
        name=name,
        accepted=kept > 0,
        before=round(float(np.mean(before)), 3) if before else None,
        after=round(float(np.mean(after)), 3) if after else None,
        kept=kept,
        layers=len(before),
    )
