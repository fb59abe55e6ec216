"""Layers outside the blocks stay float where these alone ruin the output.

The activations of a convolutional part have no normalisation to bound them and no residual stream to drown their error: of
a text recogniser's 34 linear layers, the 20 before its blocks made nearly all of the error, and what they changed were
decisions.
"""

from collections.abc import Sequence

from onnxvitq.core.config import QuantConfig
from onnxvitq.core.formats import EIGHT_BITS
from onnxvitq.core.layers import BlockMap, Linear, outer_linears
from onnxvitq.core.plan import QuantPlan, without_nodes
from onnxvitq.core.statistics import StatisticsRequest
from onnxvitq.fit.acceptance import Evaluate
from onnxvitq.fit.in_float import GAINS, fewest_in_float
from onnxvitq.fit.state import FitContext, FitState
from onnxvitq.fit.step import Acceptance, LayerGain, Proposal
from onnxvitq.report.records import Part

RUINED_DB = 20.0  # of the output's SQNR: a tenth of its amplitude is error
OUTER_DB = 10.0  # the loss that linear layers outside all blocks must make: nine tenths of the output's error
RETURN_DB = 1.0  # the loss that they may make, all together, that go back to integers
SAMPLES = 64  # at most, that say which layers ruin the output


class OuterLayers:
    """Layers outside the blocks in float, where the output is ruined by them. Comes before anything is fitted."""

    name = "outer-linears"

    def runs(self, config: QuantConfig) -> bool:
        """Not under a budget of bits, which says what every layer takes."""
        return config.runs("outer-linears") and not config.sized

    def needs(self, state: FitState, context: FitContext) -> Sequence[StatisticsRequest]:
        """Nothing: the output decides."""
        del state, context
        return ()

    def propose(self, state: FitState, context: FitContext) -> Proposal | None:
        """The plan with the fewest such layers in float."""
        linears = outer_linears_of_8_bits(state.plan, state.layers.blockmap)
        if state.score is None or not linears:
            return None
        # Nothing is fitted yet, so every sample may decide: a ruined output is one on which few samples decide otherwise.
        evaluator = context.evaluator(state, context.first_samples(SAMPLES))
        plan, parts = choose_outer_linears(state.plan, linears, evaluator)
        if not parts:
            return None
        gain = LayerGain(kept=sum(bool(part.accepted) for part in parts), layers=len(parts))
        return Proposal(acceptance=Acceptance.DECIDED, plan=plan, gain=gain, parts=parts, evaluated=True)


def outer_linears_of_8_bits(plan: QuantPlan, blockmap: BlockMap) -> tuple[Linear, ...]:
    """Of the layers outside the blocks those that are quantized, and not asked to be coarse."""
    return tuple(linear for linear in outer_linears(blockmap) if _has_8_bits(plan, linear))


def choose_outer_linears(
    plan: QuantPlan, linears: Sequence[Linear], evaluate: Evaluate
) -> tuple[QuantPlan, tuple[Part, ...]]:
    """Layers outside the blocks in float, if they ruin the output: it has less than ``RUINED_DB``, and ``OUTER_DB`` more
    without them.

    Returns:
        The plan, and a part for each trial: ``accepted`` tells that layers went (or went back) as tried.
    """
    if not linears or evaluate(plan) >= RUINED_DB:
        return plan, ()
    return fewest_in_float(plan, linears, _linears_in_float, evaluate, (OUTER_DB, RETURN_DB))


def _has_8_bits(plan: QuantPlan, linear: Linear) -> bool:
    """Whether both the tensor that a layer reads and its weight have them."""
    sites = [plan.decisions.get(tensor) for tensor in (linear.input, linear.weight)]
    readers = [(linear.name, port) for port in range(2)]
    return all(
        site is not None and site.spec.bits == EIGHT_BITS and reader in site.site.consumers
        for site, reader in zip(sites, readers, strict=True)
    )


def _linears_in_float(plan: QuantPlan, linears: Sequence[Linear]) -> QuantPlan:
    return without_nodes(plan, dict.fromkeys((linear.name for linear in linears), GAINS))
