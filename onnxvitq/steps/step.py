"""What a step is, and what the steps share: which samples are held out, and how an error is reported."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxvitq.numerics.affine import fake_quantize
from onnxvitq.numerics.dynamic import fake_quantize_dynamic, fake_quantize_samples, fake_quantize_tokens
from onnxvitq.numerics.objectives import mse
from onnxvitq.plan import Problem, QuantPlan
from onnxvitq.spec import FloatArray, StatRequest, Stats

HELD_OUT_EVERY = 4  # of the calibration samples, one in four judges what the other three fitted


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What a step proposes: mean output SQNR in dB of the *layers* it looked at, on held-out samples, before and after.

    ``accepted``: at least one layer kept the step's result. ``kept`` of ``layers`` did. Whether the model's output gains is
    judged afterwards (``steps.accept``).
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

    def needs(self, problem: Problem, plan: QuantPlan) -> tuple[StatRequest, ...]:
        """The statistics this step reads."""
        ...

    def apply(self, problem: Problem, plan: QuantPlan, stats: Stats) -> tuple[QuantPlan, StepOutcome]:
        """The plan with this step's decisions, and what they bought."""
        ...


def is_held_out(sample: int) -> bool:
    """Whether the calibration sample of that number judges instead of being fitted to."""
    return sample % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def split_samples(samples: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(fitted on, held out) of (S, ..): every fourth sample is held out; all samples serve as both when there are fewer."""
    held = np.array([is_held_out(index) for index in range(len(samples))], bool)
    return (samples[~held], samples[held]) if held.any() else (samples, samples)


def seen_input(plan: QuantPlan, tensor: str, value: FloatArray) -> FloatArray:
    """What linears read of their input in a run in which it has this value (.., C), all of it."""
    if tensor in plan.dynamic:
        return fake_quantize_tokens(value) if tensor in plan.per_token else fake_quantize_dynamic(value)
    params = plan.params(tensor)
    assert params is not None  # the min-max step ran before
    return fake_quantize(value, params)


def seen_rows(plan: QuantPlan, tensor: str, rows: FloatArray) -> FloatArray:
    """What linears read of sampled rows (S, r, C) of their input."""
    return fake_quantize_samples(rows, lambda sample: seen_input(plan, tensor, sample))


def sqnr_db(reference: FloatArray, approximation: FloatArray) -> float:
    """Signal-to-quantization-noise ratio in dB, from the mean noise power of the samples; capped at 120."""
    return -10.0 * math.log10(max(mse(reference, approximation), 1e-12))


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
